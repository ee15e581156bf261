"""Draw augmented samples and the priors that their objects match: what the network sees.

python -m ssd_jax.data show --config FILE [--out DIR] [--count N] [--section.field VALUE ...]
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ssd_jax.cli import Parser, resolve_config
from ssd_jax.config import Config, ConfigError
from ssd_jax.data.sources import find_classes, open_source
from ssd_jax.data.types import Example
from ssd_jax.inference.drawing import (
    captioned,
    contact_sheet,
    draw_boxes,
    draw_matches,
    resize,
    save_image,
    side_by_side,
)

_DESCRIPTION = """Draw what the network sees: the first images of the training, as the config's seed
and augmentation make them. samples.jpg has each image of the data set beside what becomes of it,
matches.jpg each object with the priors that learn it. A table counts the positive priors of each
source.

--config FILE   the experiment, e.g. configs/quickstart.py
--out DIR       where the sheets go; default: runs/show/ and the config's name
--count N       images to draw; default: 16

Below, every field of the config with its value."""

_MAX_COUNT = 128  # more would not fit into the 65,535 rows of a JPEG
_SHEET_WIDTH = 2000
_MAX_SIDE = 960
_GAP = 12


class Sample(NamedTuple):
    """An image as it is trained on, and the record that it was made from."""

    image: np.ndarray
    """uint8 [S, S, 3], RGB."""
    boxes: np.ndarray
    """float32 [M, 4], xyxy in [0, 1]."""
    labels: np.ndarray
    """int32 [M], from 1."""
    mask: np.ndarray
    """bool [M], False for the padding at the end."""
    record: Example


class Matches(NamedTuple):
    """Which priors of an image learn which object."""

    owner: np.ndarray
    """int [P], the prior's object, from 0; -1 for the background."""
    iou: np.ndarray
    """float [P], of the prior and its object; 0 for the background."""
    num_priors: np.ndarray
    """int [n], priors of each object."""
    best_iou: np.ndarray
    """float [n], the largest IoU of an object and its priors; 0 where it has none."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, write the sheets and print the table."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=16)
    own, overrides = parser.parse_known_args(arguments)
    if not 1 <= own.count <= _MAX_COUNT:
        raise ConfigError(f"--count is {own.count}; use a number from 1 to {_MAX_COUNT}")
    config = resolve_config(own.config, overrides, description=_DESCRIPTION, flags=parser.flags)

    # JAX starts here, after everything that can be wrong with the command line. It leaves an
    # accelerator to the training that may be running there.
    import jax

    jax.config.update("jax_platforms", "cpu")
    show(config, own.out or Path("runs/show") / own.config.stem, own.count)


def show(config: Config, out: Path, count: int) -> None:
    """Write out/samples.jpg and out/matches.jpg of `count` images, and print the table.

    Raises ConfigError or DataError before anything is written if the images cannot be had, and
    ConfigError where `out` cannot be written.
    """
    from ssd_jax.models.ssd import feature_sizes, model_priors
    from ssd_jax.ops.priors import priors_per_cell

    classes = find_classes(config.data, config.model.classes)
    priors = model_priors(config.model, config.priors)
    samples = take_samples(config, classes, count)
    matches = [match_objects(priors, s.boxes, s.mask, config) for s in samples]

    columns = min(4, math.ceil(math.sqrt(count)))
    pairs = min(2, columns)
    sample_panels = [_sample_panel(s, classes, _cell_side(2 * pairs)) for s in samples]
    match_panels = [
        _match_panel(s, m, priors, config, _cell_side(columns))
        for s, m in zip(samples, matches, strict=True)
    ]
    legend = (
        "Thick: an object. Thin, in its colour: the priors that learn it. On it: how many they are "
        "and their best IoU. Broken: none has "
        f"{config.train.match_iou_threshold:g}, one was forced."
    )
    sheets = {
        "samples.jpg": contact_sheet(sample_panels, columns=pairs, gap=_GAP),
        "matches.jpg": captioned(
            contact_sheet(match_panels, columns=columns, gap=_GAP), legend, font_scale=0.7
        ),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, sheet in sheets.items():
            save_image(out / name, sheet)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None

    per_source = np.square(feature_sizes(config.model)) * priors_per_cell(
        config.priors.aspect_ratios
    )
    console = Console()
    print_table(matches, config, per_source.tolist(), console)
    for name in sheets:
        console.print(f"wrote {out / name}", highlight=False, soft_wrap=True)


def take_samples(config: Config, classes: tuple[str, ...], count: int) -> list[Sample]:
    """The first `count` images of a training, in its order, with their records."""
    from ssd_jax.data.pipeline import train_batches

    source = open_source(config.data, config.data.train_split, classes)
    batches = train_batches(
        source,
        config.data,
        image_size=config.model.image_size,
        mean=config.model.image_mean,
        batch_size=1,
        seed=config.train.seed,
    )
    samples = []
    with batches:
        for _ in range(count):
            one = {name: values[0] for name, values in next(batches).items()}
            record = source[int(one.pop("index"))]
            samples.append(Sample(**one, record=record))
    return samples


def match_objects(
    priors: np.ndarray, boxes: np.ndarray, mask: np.ndarray, config: Config
) -> Matches:
    """The priors (cxcywh) [P, 4] that learn each of an image's n objects, as a training has it.

    boxes: xyxy [M, 4]; mask: bool [M], True for the first n. All in fractions of the image.
    """
    import jax

    from ssd_jax.ops.boxes import cxcywh_to_xyxy, pairwise_iou
    from ssd_jax.ops.matching import make_targets

    # Objects that are classes of their own tell whose each prior is.
    targets = jax.jit(make_targets, static_argnames=("threshold", "rule", "variances"))(
        priors,
        boxes,
        np.arange(1, len(boxes) + 1),
        mask,
        threshold=config.train.match_iou_threshold,
        rule=config.train.matching,
        variances=config.priors.variances,
    )
    owner = np.asarray(targets.label) - 1
    overlap = np.asarray(pairwise_iou(boxes, cxcywh_to_xyxy(priors)))
    iou = np.where(owner >= 0, overlap[owner, np.arange(len(priors))], 0)
    mine = owner == np.arange(mask.sum())[:, None]  # [n, P]
    return Matches(owner, iou, mine.sum(1), np.where(mine, iou, 0).max(1))


def print_table(
    matches: Sequence[Matches], config: Config, per_source: Sequence[int], console: Console
) -> None:
    """Print how many priors of each source, which has `per_source` of them, are positive."""
    starts = np.cumsum([0, *per_source[:-1]])
    positive = np.add.reduceat([m.owner >= 0 for m in matches], starts, 1, np.int64).sum(0)
    total = int(positive.sum())
    objects = sum(len(m.num_priors) for m in matches)
    weak = sum(int((m.best_iou < config.train.match_iou_threshold).sum()) for m in matches)
    unmatched = sum(int((m.num_priors == 0).sum()) for m in matches)

    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("source", footer="all")
    for title, footer in (
        ("size", ""),
        ("priors an image", f"{sum(per_source):,}"),
        ("positive", f"{total:,}"),
        ("share", _percent(total, total)),
    ):
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    # The last of the sizes is no source's own.
    sources = zip(config.model.feature_layers, config.priors.sizes[:-1], strict=True)
    for (name, size), count, found in zip(sources, per_source, positive, strict=True):
        table.add_row(name, f"{size:g}", f"{count:,}", f"{found:,}", _percent(found, total))
    console.print(
        f"Positive priors of {_plural(len(matches), 'image')}, {config.train.matching}, "
        f"IoU {config.train.match_iou_threshold:g}",
        style="bold",
        highlight=False,
    )
    console.print(table)
    console.print(
        f"{_plural(objects, 'object')}, {total / max(objects, 1):.1f} positive priors each; "
        f"{weak:,} ({_percent(weak, objects)}) without one of IoU "
        f"{config.train.match_iou_threshold:g} or "
        f"more, {unmatched:,} without any",
        highlight=False,
        soft_wrap=True,
    )


def _sample_panel(sample: Sample, classes: Sequence[str], side: int) -> np.ndarray:
    """The record, and beside it what the augmentation made of it."""
    record = sample.record
    height, width = record.image.shape[:2]
    kinds = {"crowd": record.crowd, "difficult": record.difficult & ~record.crowd}
    special = [f"{which.sum()} {kind}" for kind, which in kinds.items() if which.any()]
    objects = ", ".join([_plural(len(record.labels), "object"), *special])
    boxes, labels = sample.boxes[sample.mask], sample.labels[sample.mask]
    return side_by_side(
        _draw_objects(record.image, record.boxes, record.labels, classes, side),
        _draw_objects(sample.image, boxes, labels, classes, side),
        (
            f"{record.image_id}: {width} x {height}, {objects}",
            f"as trained on: {_plural(len(boxes), 'object')}",
        ),
    )


def _draw_objects(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, classes: Sequence[str], side: int
) -> np.ndarray:
    """The image in the middle of a square, with its objects."""
    scaled = resize(image, side / max(image.shape[:2]))
    square = contact_sheet([scaled], columns=1, cell=(side, side), gap=0)
    height, width = scaled.shape[:2]
    corner = (side - width) // 2, (side - height) // 2
    boxes_px = boxes * np.tile((width, height), 2) + np.tile(corner, 2)
    return draw_boxes(square, boxes_px, labels - 1, classes)  # labels of samples start from 1


def _match_panel(
    sample: Sample, matches: Matches, priors: np.ndarray, config: Config, side: int
) -> np.ndarray:
    """The image as trained on, with its objects and their priors."""
    image = resize(sample.image, side / 1.2 / len(sample.image))
    # Rounded down: 0.499 is not enough, and 0.50 would look as if it were.
    best = [f"{math.floor(100 * iou) / 100:.2f}" for iou in matches.best_iou]
    weak = matches.best_iou < config.train.match_iou_threshold
    texts = [
        "none" if not count else f"forced: {iou}" if forced else f"{count}: {iou}"
        for count, iou, forced in zip(matches.num_priors, best, weak, strict=True)
    ]
    positive = matches.owner >= 0
    centres, sizes = priors[positive, :2], priors[positive, 2:]
    drawn = draw_matches(
        image,
        sample.boxes[sample.mask] * len(image),
        texts,
        weak,
        np.concatenate([centres - sizes / 2, centres + sizes / 2], 1) * len(image),
        matches.owner[positive],
    )
    counts = [_plural(len(weak), "object"), _plural(int(positive.sum()), "prior")]
    counts += [f"{weak.sum()} below {config.train.match_iou_threshold:g}"] if weak.any() else []
    return captioned(drawn, f"{sample.record.image_id}: {', '.join(counts)}")


def _cell_side(columns: int) -> int:
    """Side of the images of a sheet (pixels): large, but the sheet keeps to its width."""
    return min(_MAX_SIDE, (_SHEET_WIDTH - _GAP) // columns - _GAP)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
