"""Look a data set over before a week of training: all that is wrong with it, at once.

python -m ssd_jax.data check --config FILE [--fix-report FILE] [--section.field VALUE ...]
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ssd_jax.cli import Parser, resolve_config
from ssd_jax.config import Config, ConfigError
from ssd_jax.data.errors import KINDS, DataError, printable
from ssd_jax.data.prior_sizes import QUANTILES, propose_size
from ssd_jax.data.sources import find_classes, open_source
from ssd_jax.data.validation import Findings, Objects, survey_images, survey_objects
from ssd_jax.io import atomic_write, is_dir

_DESCRIPTION = """Look a data set over: every annotation and every image of both splits.

errors     training would stop at these; the exit status is 1
warnings   training goes on with less or with something else, as the line says
notes      good to know

--config FILE       the experiment, e.g. configs/voc_folder.py
--fix-report FILE   write all findings as JSON; the console shows the first few of each kind

Below, every field of the config with its value."""

_SHOWN = 3
"""Findings of a kind on the console."""
_MOST_ROWS = 24
"""Classes in a table on the console; --fix-report has all."""
_CHUNK = 256
"""Objects whose priors are looked for at once: their IoUs with 25,000 priors are 25 MB."""


@dataclass(frozen=True)
class Report:
    """What there is in a data set, and what is wrong with it."""

    classes: tuple[str, ...]
    splits: dict[str, Objects]
    """By training and evaluation; without one that cannot be opened."""
    findings: Findings


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, look the data over and print what was found.

    Raises SystemExit(1) where training would stop.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--fix-report", type=Path)
    own, overrides = parser.parse_known_args(arguments)
    config = resolve_config(own.config, overrides, description=_DESCRIPTION, flags=parser.flags)
    if own.fix_report and not is_dir(own.fix_report.absolute().parent):
        raise ConfigError(f"--fix-report: {own.fix_report.parent} is not a folder; make it")

    # JAX starts here, after everything that can be wrong with the command line. It leaves an
    # accelerator to the training that may be running there.
    import jax

    jax.config.update("jax_platforms", "cpu")
    console = Console(highlight=False, soft_wrap=True)
    report = check(config, console)
    show(report, config, console)
    if own.fix_report:
        try:
            atomic_write(own.fix_report, to_json(report, config).encode())
        except OSError as error:
            raise ConfigError(f"--fix-report: {error}; name another file") from None
        console.print(f"all findings are in {own.fix_report}", markup=False)
    if report.findings.count("error"):
        raise SystemExit(1)


def check(config: Config, console: Console) -> Report:
    """Read both splits, their images too, and collect what is wrong with them.

    Raises:
        ConfigError: the config cannot be used, whatever the data.
    """
    findings = Findings()
    best_iou = make_best_iou(config)
    classes = _find_classes(config, findings)
    tables: dict[str, Objects] = {}
    sources = {}
    if config.data.eval_split == config.data.train_split:
        what = f"data.eval_split is {config.data.eval_split!r}, which is trained on"
        change = "name a split of its own: the score says too much"
        findings.add("training", DataError(what, change, kind="shared_image"))
    for role, split in _splits(config).items():
        try:
            sources[role] = open_source(config.data, split, classes, findings.to(role))
        except DataError as error:
            findings.add(role, error)
    for role, source in sources.items():
        tables[role] = survey_objects(
            source,
            findings.to(role),
            data=config.data,
            training=role == "training",
            image_size=config.model.image_size,
            match_iou_threshold=config.train.match_iou_threshold,
            best_iou=best_iou,
        )
    trained_on: dict[bytes, str] = {}
    with _progress(console, sum(map(len, sources.values()))) as tick:
        for role, source in sources.items():
            trained_on = survey_images(source, findings.to(role), tick, trained_on)
    return Report(classes, tables, findings)


def _splits(config: Config) -> dict[str, str]:
    """Training first; a split that is both is looked at once."""
    splits = {"training": config.data.train_split}
    if config.data.eval_split != config.data.train_split:
        splits["evaluation"] = config.data.eval_split
    return splits


def _find_classes(config: Config, findings: Findings) -> tuple[str, ...]:
    """The classes that training would have; the evaluation's where they cannot be found."""
    data = config.data
    for split in (data.train_split, data.eval_split):
        try:
            classes = find_classes(
                dataclasses.replace(data, train_split=split), config.model.classes, lambda _: None
            )
        except DataError as error:
            if split == data.train_split:
                findings.add("training", error)
            continue
        spellings: dict[str, str] = {}
        for name in classes:
            first = spellings.setdefault(name.lower(), name)
            if first != name:
                what = f"classes {first!r} and {name!r} differ by case alone"
                change = "write one of them in all annotations, if they are one"
                findings.add("training", DataError(what, change, kind="similar_classes"))
        return classes
    return ()


def make_best_iou(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [m, 4], boxes in [0, 1] -> float32 [m], the largest IoU of each with a prior."""
    import jax

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.ops.boxes import cxcywh_to_xyxy, pairwise_iou

    priors = cxcywh_to_xyxy(model_priors(config.model, config.priors))

    @jax.jit
    def best_of_chunk(boxes: jax.Array) -> jax.Array:
        return pairwise_iou(boxes, priors).max(1)

    def best_iou(boxes: np.ndarray) -> np.ndarray:
        padded = np.zeros((math.ceil(len(boxes) / _CHUNK) * _CHUNK, 4), np.float32)
        padded[: len(boxes)] = boxes
        best = [np.asarray(best_of_chunk(chunk)) for chunk in padded.reshape(-1, _CHUNK, 4)]
        return np.concatenate([np.zeros(0, np.float32), *best])[: len(boxes)]

    return best_iou


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[], object]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda: None
        return
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def show(report: Report, config: Config, console: Console) -> None:
    """Print the first findings of each kind, a table for each split, and a summary."""
    _show_findings(report, config, console)
    for role, objects in report.splits.items():
        console.print(_table(report, role, objects, config))
        console.print(
            f"most objects to train on in an image: {objects.most} ({printable(objects.fullest)}); "
            f"data.max_objects is {config.data.max_objects}\n",
            markup=False,
        )
    size = config.model.image_size
    console.print(
        f"small, medium, large: area in the network's {size}x{size} input, with borders at 32x32\n"
        "and 96x96 pixels. no prior: objects to train on whose best IoU with a prior is below\n"
        f"train.match_iou_threshold {config.train.match_iou_threshold:g}. "
        f"Matching ({config.train.matching}) secures "
        "them one, so that training goes\non, but they are found less often.\n",
        markup=False,
    )
    errors, warnings, notes = (report.findings.count(s) for s in ("error", "warning", "note"))
    console.print(
        f"{errors} errors, {warnings} warnings, {notes} notes: "
        + ("training would stop" if errors else "training can start"),
        markup=False,
    )


def _show_findings(report: Report, config: Config, console: Console) -> None:
    for kind, found in report.findings.by_kind().items():
        severity, title = KINDS[kind]
        count = sum(error.count for error in found)
        images = f" in {len(found)} images" if count > len(found) else ""
        console.print(f"{severity}: {title} ({count}{images})", markup=False)
        for error in found[:_SHOWN]:
            console.print(f"  {error.what}", markup=False)
        if len(found) > _SHOWN:
            console.print(f"  and {len(found) - _SHOWN} more", markup=False)
        for change in dict.fromkeys(e.change for e in found[:_SHOWN] if e.change):
            console.print(f"  > {change}", markup=False)
        if kind == "no_prior":
            for line in _describe_sizes(report.splits["training"].unmatched, config):
                console.print(f"  > {line}", markup=False)
    if any(True for _ in report.findings):
        console.print()


def _describe_sizes(unmatched: np.ndarray, config: Config) -> list[str]:
    """Describe the objects without a prior, and the prior size that would match most of them."""
    size, ratios = config.model.image_size, config.priors.aspect_ratios
    aspect_ratios = sorted({1.0, *(float(ratio) for source in ratios for ratio in source)})
    proposal = propose_size(unmatched * size, aspect_ratios, config.train.match_iou_threshold, size)
    shares = "/".join(f"{share:.0%}".removesuffix("%") for share in QUANTILES)
    sides = ", ".join(
        f"{name} {' / '.join(f'{side:.3g}' for side in values)}"
        for name, values in (("width", proposal.widths), ("height", proposal.heights))
    )
    lines = [f"their sides in the {size}x{size} input, {shares} % quantiles: {sides} pixels"]
    told = ", ".join(f"{ratio:g}" for ratio in aspect_ratios)
    if proposal.share == 0:
        lines.append(
            f"no size of prior matches them by {config.train.match_iou_threshold:g} "
            "with aspect ratios "
            f"{told}: add larger ones to priors.aspect_ratios"
        )
    else:
        lines.append(
            f"with aspect ratios {told} a prior of {proposal.best:.3g} pixels would match "
            f"{proposal.share:.0%} of them, one of {proposal.smallest:.3g} is the smallest that "
            f"would match any (priors.sizes starts at {min(config.priors.sizes):g})"
        )
    return lines


def _table(report: Report, role: str, objects: Objects, config: Config) -> Table:
    total = int(objects.columns["objects"].sum())
    table = Table(
        title=escape(f"{role}: {_splits(config)[role]}, {objects.images} images, {total} objects"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        show_footer=True,
    )
    table.add_column("class", "all", overflow="fold")
    for name, counts in objects.columns.items():
        footer = str(objects.images) if name == "images" else str(counts.sum())
        table.add_column(name, footer, justify="right", no_wrap=True)
    shown = _choose_rows(objects.columns)
    for k in shown:
        cells = [str(column[k]) for column in objects.columns.values()]
        table.add_row(escape(printable(report.classes[k])), *cells)
    others = np.setdiff1d(np.arange(len(report.classes)), shown)
    if len(others):
        # An image can have objects of several classes, so its count is no sum.
        sums = [
            "" if name == "images" else str(column[others].sum())
            for name, column in objects.columns.items()
        ]
        table.add_row(f"{len(others)} other classes", *sums)
    return table


def _choose_rows(columns: Mapping[str, np.ndarray]) -> list[int]:
    """Choose the classes that a table shows: all, or of many those that stand out.

    These have the most objects, the fewest ones, or the most objects without a prior. Classes
    without objects are findings.
    """
    objects, no_prior = columns["objects"], columns["no prior"]
    if len(objects) <= _MOST_ROWS:
        return list(range(len(objects)))
    by_objects = np.argsort(-objects, kind="stable")
    by_objects = by_objects[objects[by_objects] > 0]
    by_no_prior = np.argsort(-no_prior, kind="stable")
    by_no_prior = by_no_prior[no_prior[by_no_prior] > 0]
    part = _MOST_ROWS // 3
    chosen = (by_objects[:part], by_objects[-part:], by_no_prior[:part])
    return np.unique(np.concatenate(chosen)).tolist()


def to_json(report: Report, config: Config) -> str:
    """The whole report as indented JSON."""
    splits = _splits(config)
    content = {
        "data": dataclasses.asdict(config.data),
        "splits": {
            role: {
                "split": splits[role],
                "images": objects.images,
                "most_objects": objects.most,
                "classes": {
                    name: {
                        column.replace(" ", "_"): int(counts[k])
                        for column, counts in objects.columns.items()
                    }
                    for k, name in enumerate(report.classes)
                },
            }
            for role, objects in report.splits.items()
        },
        "findings": [
            {
                "severity": error.severity,
                "kind": error.kind,
                "split": splits[role],
                "file": str(error.file or ""),
                "record": error.record,
                "object": error.item,
                "count": error.count,
                "what": error.what,
                "change": error.change,
            }
            for role, error in report.findings
        ],
    }
    return json.dumps(content, indent=2) + "\n"
