"""Validate a dataset and report all findings.

ssd-jax data check --config FILE [--fix-report FILE] [--section.field VALUE ...]
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ssd_jax.config import Config, ConfigError, printable
from ssd_jax.data.errors import KINDS, DataError, Finding
from ssd_jax.data.prior_sizes import QUANTILES, propose_size
from ssd_jax.data.sources import detect_format, find_classes, open_source
from ssd_jax.data.validation import (
    Findings,
    SplitStatistics,
    validate_annotations,
    validate_images,
)
from ssd_jax.io import atomic_write, is_dir

_MAX_LINES = 3
"""Findings of a kind on the console."""
_MAX_ROWS = 24
"""Classes in a table on the console; --fix-report has all."""
_CHUNK = 256
"""Objects matched at once: their IoUs with 25,000 priors take 25 MB."""


@dataclass(frozen=True)
class Report:
    """Statistics and findings of a dataset."""

    classes: tuple[str, ...]
    splits: dict[str, SplitStatistics]
    """Keys: training and evaluation, without a split that cannot be opened."""
    findings: Findings


def run(config: Config, fix_report: Path | None) -> int:
    """Validate a dataset and print the findings.

    Args:
        config: the experiment.
        fix_report: JSON file for all findings.

    Returns:
        The exit status: 1 if training would stop.
    """
    if fix_report and not is_dir(fix_report.absolute().parent):
        raise ConfigError(f"--fix-report: folder not found: {fix_report.parent}; create it first")

    # Leave the accelerator to a training that may be running.
    import jax

    jax.config.update("jax_platforms", "cpu")
    console = Console(highlight=False, soft_wrap=True)
    report = check(config, console)
    show(report, config, console)
    if fix_report:
        try:
            atomic_write(fix_report, to_json(report, config).encode())
        except OSError as error:
            raise ConfigError(f"--fix-report: {error}; name another file") from None
        console.print(f"all findings are in {fix_report}", markup=False)
    return 1 if report.findings.count("error") else 0


def check(config: Config, console: Console) -> Report:
    """Validate annotations and images of both splits.

    Raises:
        ConfigError: the config is invalid, or data.root is not the folder of a dataset.
    """
    try:
        detect_format(config.data)
    except DataError as error:
        raise ConfigError(error.finding.message) from None
    findings = Findings()
    best_iou = make_best_iou(config)
    classes = _find_classes(config, findings)
    statistics: dict[str, SplitStatistics] = {}
    sources = {}
    if config.data.eval_split == config.data.train_split:
        problem = f"data.eval_split is {config.data.eval_split!r}, which is trained on"
        advice = "name another split: the scores are too high"
        findings.add("training", Finding(problem, advice, kind="shared_image"))
    for role, split in _splits(config).items():
        try:
            sources[role] = open_source(config.data, split, classes, findings.to(role))
        except DataError as error:
            findings.add(role, error.finding)
    for role, source in sources.items():
        statistics[role] = validate_annotations(
            source,
            findings.to(role),
            data=config.data,
            training=role == "training",
            image_size=config.model.image_size,
            match_iou_threshold=config.train.match_iou_threshold,
            best_iou=best_iou,
        )
    training_digests: dict[bytes, str] = {}
    with _progress(console, sum(map(len, sources.values()))) as tick:
        for role, source in sources.items():
            training_digests = validate_images(source, findings.to(role), tick, training_digests)
    return Report(classes, statistics, findings)


def _splits(config: Config) -> dict[str, str]:
    """Return role -> split, training first; a split in both roles is listed once."""
    splits = {"training": config.data.train_split}
    if config.data.eval_split != config.data.train_split:
        splits["evaluation"] = config.data.eval_split
    return splits


def _find_classes(config: Config, findings: Findings) -> tuple[str, ...]:
    """Return the classes of the training split; of the evaluation split if it is unreadable."""
    data = config.data
    for split in (data.train_split, data.eval_split):
        try:
            classes = find_classes(
                dataclasses.replace(data, train_split=split), config.model.classes, lambda _: None
            )
        except DataError as error:
            if split == data.train_split:
                findings.add("training", error.finding)
            continue
        spellings: dict[str, str] = {}
        for name in classes:
            first = spellings.setdefault(name.lower(), name)
            if first != name:
                problem = f"classes {first!r} and {name!r} differ only in case"
                advice = "if they are one class, use the same name in all annotations"
                findings.add("training", Finding(problem, advice, kind="similar_classes"))
        return classes
    return ()


def make_best_iou(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from boxes [m, 4] in [0, 1] to their best IoU with a prior, [m]."""
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
    """Show a progress bar on a terminal; yield the function that advances it."""
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
    for role, statistics in report.splits.items():
        console.print(_table(report, role, statistics, config))
        console.print(
            f"most objects to train on in an image: {statistics.most} "
            f"({printable(statistics.fullest)}); "
            f"data.max_objects is {config.data.max_objects}\n",
            markup=False,
        )
    size = config.model.image_size
    console.print(
        f"small, medium, large: area in the network's {size}x{size} input, with borders at 32x32\n"
        "and 96x96 pixels. no prior: objects to train on whose best IoU with a prior is below\n"
        f"train.match_iou_threshold {config.train.match_iou_threshold:g}. "
        f"Matching ({config.train.matching}) assigns them\na prior, but they are detected less "
        "often.\n",
        markup=False,
    )
    errors, warnings, notes = (report.findings.count(s) for s in ("error", "warning", "note"))
    console.print(
        f"{errors} errors, {warnings} warnings, {notes} notes: "
        + ("training would stop" if errors else "training can start"),
        markup=False,
    )


def _show_findings(report: Report, config: Config, console: Console) -> None:
    for kind, findings in report.findings.by_kind().items():
        severity, title = KINDS[kind]
        count = sum(finding.count for finding in findings)
        images = f" in {len(findings)} images" if count > len(findings) else ""
        console.print(f"{severity}: {title} ({count}{images})", markup=False)
        for finding in findings[:_MAX_LINES]:
            console.print(f"  {finding.message}", markup=False)
        if len(findings) > _MAX_LINES:
            console.print(f"  and {len(findings) - _MAX_LINES} more", markup=False)
        for advice in dict.fromkeys(f.advice for f in findings[:_MAX_LINES] if f.advice):
            console.print(f"  > {advice}", markup=False)
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
    quantiles = "/".join(f"{quantile:.0%}".removesuffix("%") for quantile in QUANTILES)
    sides = ", ".join(
        f"{name} {' / '.join(f'{side:.3g}' for side in values)}"
        for name, values in (("width", proposal.widths), ("height", proposal.heights))
    )
    lines = [f"their sides in the {size}x{size} input, {quantiles} % quantiles: {sides} pixels"]
    ratios_text = ", ".join(f"{ratio:g}" for ratio in aspect_ratios)
    if proposal.share == 0:
        lines.append(
            f"no prior size matches them with IoU {config.train.match_iou_threshold:g} and aspect "
            f"ratios {ratios_text}: add larger ratios to priors.aspect_ratios"
        )
    else:
        lines.append(
            f"with aspect ratios {ratios_text} a prior of {proposal.best:.3g} pixels would match "
            f"{proposal.share:.0%} of them, and {proposal.smallest:.3g} is the smallest size that "
            f"would match any (priors.sizes starts at {min(config.priors.sizes):g})"
        )
    return lines


def _table(report: Report, role: str, statistics: SplitStatistics, config: Config) -> Table:
    images, columns = statistics.images, statistics.columns
    total = int(columns["objects"].sum())
    table = Table(
        title=escape(f"{role}: {_splits(config)[role]}, {images} images, {total} objects"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        show_footer=True,
    )
    table.add_column("class", "all", overflow="fold")
    for name, counts in columns.items():
        footer = str(images) if name == "images" else str(counts.sum())
        table.add_column(name, footer, justify="right", no_wrap=True)
    shown = _choose_rows(columns)
    for k in shown:
        cells = [str(column[k]) for column in columns.values()]
        table.add_row(escape(printable(report.classes[k])), *cells)
    others = np.setdiff1d(np.arange(len(report.classes)), shown)
    if len(others):
        # An image can have objects of several classes, so the numbers of images do not add up.
        sums = [
            "" if name == "images" else str(column[others].sum())
            for name, column in columns.items()
        ]
        table.add_row(f"{len(others)} other classes", *sums)
    return table


def _choose_rows(columns: Mapping[str, np.ndarray]) -> list[int]:
    """Choose the classes of a table: all, or the extremes if there are too many.

    The extremes have the most objects, the fewest, or the most objects without a prior. Classes
    without objects are findings.
    """
    objects, no_prior = columns["objects"], columns["no prior"]
    if len(objects) <= _MAX_ROWS:
        return list(range(len(objects)))
    by_objects = np.argsort(-objects, kind="stable")
    by_objects = by_objects[objects[by_objects] > 0]
    by_no_prior = np.argsort(-no_prior, kind="stable")
    by_no_prior = by_no_prior[no_prior[by_no_prior] > 0]
    part = _MAX_ROWS // 3
    chosen = (by_objects[:part], by_objects[-part:], by_no_prior[:part])
    return np.unique(np.concatenate(chosen)).tolist()


def to_json(report: Report, config: Config) -> str:
    """Return the report as indented JSON."""
    splits = _splits(config)
    content = {
        "data": dataclasses.asdict(config.data),
        "splits": {
            role: {
                "split": splits[role],
                "images": statistics.images,
                "most_objects": statistics.most,
                "classes": {
                    name: {
                        column.replace(" ", "_"): int(counts[k])
                        for column, counts in statistics.columns.items()
                    }
                    for k, name in enumerate(report.classes)
                },
            }
            for role, statistics in report.splits.items()
        },
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "split": splits[role],
                "file": str(finding.file or ""),
                "record": finding.record,
                "object": finding.item,
                "count": finding.count,
                "message": finding.message,
                "advice": finding.advice,
            }
            for role, finding in report.findings
        ],
    }
    return json.dumps(content, indent=2) + "\n"
