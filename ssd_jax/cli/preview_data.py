"""Sheets of augmented training images and their matched priors."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

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
from ssd_jax.io import reason

_SHEET_WIDTH = 2000
_MAX_SIDE = 960
_GAP = 12


class Sample(NamedTuple):
    """An augmented training image, and the record that it was made from."""

    image: np.ndarray
    """uint8 [S, S, 3], RGB."""
    boxes: np.ndarray
    """float32 [M, 4], xyxy in [0, 1]."""
    labels: np.ndarray
    """int32 [M]."""
    mask: np.ndarray
    """bool [M], False for the padding at the end."""
    record: Example


class PriorMatches(NamedTuple):
    """The object matched to each prior of an image."""

    object_index: np.ndarray
    """int [P], index of the object, -1 for background."""
    iou: np.ndarray
    """float [P], IoU of prior and object; 0 for background."""
    num_priors: np.ndarray
    """int [n], number of priors of each object."""
    best_iou: np.ndarray
    """float [n], the largest IoU of an object with its priors; 0 without any."""


def show(config: Config, out: Path, count: int) -> None:
    """Write out/samples.jpg and out/matches.jpg of `count` images, and print the table.

    Raises:
        ConfigError, DataError: the images cannot be read; nothing is written.
        ConfigError: `out` cannot be written.
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
        "Thick: object. Thin, same color: its positive priors. Caption: their number and best IoU. "
        f"Dashed: no prior has IoU {config.train.match_iou_threshold:g}, one was forced."
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
        raise ConfigError(f"--out: {out} cannot be written ({reason(error)})") from None

    per_layer = np.square(feature_sizes(config.model)) * priors_per_cell(
        config.priors.aspect_ratios
    )
    console = Console()
    print_table(matches, config, per_layer.tolist(), console)
    for name in sheets:
        console.print(f"wrote {out / name}", highlight=False, soft_wrap=True)


def take_samples(config: Config, classes: tuple[str, ...], count: int) -> list[Sample]:
    """Return the first `count` images of a training, in its order, with their records."""
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
) -> PriorMatches:
    """Match priors to an image's n objects as in training.

    Args:
        priors: [P, 4], cxcywh in [0, 1].
        boxes: [M, 4], xyxy in [0, 1].
        mask: bool [M], True for the first n boxes, which are objects.
        config: matching rule and threshold.
    """
    import jax

    from ssd_jax.kernels.matching import make_targets
    from ssd_jax.ops.boxes import cxcywh_to_xyxy, pairwise_iou

    # With a separate class for each object, a prior's class is its object.
    targets = jax.jit(make_targets, static_argnames=("threshold", "rule", "variances"))(
        priors,
        boxes,
        np.arange(1, len(boxes) + 1),
        mask,
        threshold=config.train.match_iou_threshold,
        rule=config.train.matching,
        variances=config.priors.variances,
    )
    object_index = np.asarray(targets.label) - 1  # background is -1
    overlap = np.asarray(pairwise_iou(boxes, cxcywh_to_xyxy(priors)))
    iou = np.where(object_index >= 0, overlap[object_index, np.arange(len(priors))], 0)
    matched = object_index == np.arange(mask.sum())[:, None]  # [n, P]
    return PriorMatches(object_index, iou, matched.sum(1), np.where(matched, iou, 0).max(1))


def print_table(
    matches: Sequence[PriorMatches], config: Config, per_layer: Sequence[int], console: Console
) -> None:
    """Print the number of positive priors of each feature map.

    Args:
        matches: the matches of each image.
        config: the experiment.
        per_layer: number of priors of each feature map.
        console: output.
    """
    starts = np.cumsum([0, *per_layer[:-1]])
    positive = np.add.reduceat([m.object_index >= 0 for m in matches], starts, 1, np.int64).sum(0)
    total = int(positive.sum())
    objects = sum(len(m.num_priors) for m in matches)
    weak = sum(int((m.best_iou < config.train.match_iou_threshold).sum()) for m in matches)
    unmatched = sum(int((m.num_priors == 0).sum()) for m in matches)

    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("layer", footer="all")
    for title, footer in (
        ("size", ""),
        ("priors per image", f"{sum(per_layer):,}"),
        ("positive", f"{total:,}"),
        ("share", _percent(total, total)),
    ):
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    # The last size is used only by the larger square priors of the last layer.
    layers = zip(config.model.feature_layers, config.priors.sizes[:-1], strict=True)
    for (name, size), count, hits in zip(layers, per_layer, positive, strict=True):
        table.add_row(name, f"{size:g}", f"{count:,}", f"{hits:,}", _percent(hits, total))
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
    """Draw the record beside its augmented form."""
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
            f"augmented: {_plural(len(boxes), 'object')}",
        ),
    )


def _draw_objects(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, classes: Sequence[str], side: int
) -> np.ndarray:
    """Draw an image with its objects in the middle of a square."""
    scaled = resize(image, side / max(image.shape[:2]))
    square = contact_sheet([scaled], columns=1, cell=(side, side), gap=0)
    height, width = scaled.shape[:2]
    corner = (side - width) // 2, (side - height) // 2
    boxes_px = boxes * np.tile((width, height), 2) + np.tile(corner, 2)
    return draw_boxes(square, boxes_px, labels, classes)


def _match_panel(
    sample: Sample, matches: PriorMatches, priors: np.ndarray, config: Config, side: int
) -> np.ndarray:
    """Draw the augmented image with its objects and their positive priors."""
    image = resize(sample.image, side / 1.2 / len(sample.image))
    # Rounded down: 0.499 is below a threshold of 0.5, but 0.50 would not look like it.
    best = [f"{math.floor(100 * iou) / 100:.2f}" for iou in matches.best_iou]
    weak = matches.best_iou < config.train.match_iou_threshold
    texts = [
        "none" if not count else f"forced: {iou}" if forced else f"{count}: {iou}"
        for count, iou, forced in zip(matches.num_priors, best, weak, strict=True)
    ]
    positive = matches.object_index >= 0
    centers, sizes = priors[positive, :2], priors[positive, 2:]
    drawn = draw_matches(
        image,
        sample.boxes[sample.mask] * len(image),
        texts,
        weak,
        np.concatenate([centers - sizes / 2, centers + sizes / 2], 1) * len(image),
        matches.object_index[positive],
    )
    counts = [_plural(len(weak), "object"), _plural(int(positive.sum()), "prior")]
    counts += [f"{weak.sum()} below {config.train.match_iou_threshold:g}"] if weak.any() else []
    return captioned(drawn, f"{sample.record.image_id}: {', '.join(counts)}")


def _cell_side(columns: int) -> int:
    """Return the side of the images of a sheet of limited width (pixels)."""
    return min(_MAX_SIDE, (_SHEET_WIDTH - _GAP) // columns - _GAP)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
