"""Tables of an evaluation for the console."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssd_jax.config import printable
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.evaluation import Evaluation, Result
from ssd_jax.evaluation.metrics.voc_ap import VocResult
from ssd_jax.evaluation.report.formatting import (
    METRIC_NAMES,
    describe_baseline,
    format_difference,
    format_number,
)
from ssd_jax.evaluation.report.metrics_json import class_aps


def print_metrics(
    results: Sequence[Result], console: Console, baseline: Sequence[Result] = ()
) -> None:
    """Print the AP (0 to 1), objects and detections of each class, and the means.

    The table has a column per result; COCO's metrics, the APs by size and the baseline follow in
    one line each.
    """
    classes = results[0].classes
    with_objects = sum(c.num_objects > 0 for c in classes)
    footer = f"mean of {with_objects}"
    if with_objects < len(classes):
        footer += f" with objects, of {len(classes)}"
    columns: list[tuple[str, str]] = [
        ("AP" if len(results) == 1 else r.metric, format_number(r.mean_ap)) for r in results
    ]
    columns += [
        ("objects", f"{sum(c.num_objects for c in classes):,}"),
        ("detections", f"{sum(c.num_detections for c in classes):,}"),
    ]
    table = _table(footer, columns)
    for k, c in enumerate(classes):
        aps = [format_number(r.classes[k].ap) for r in results]
        table.add_row(
            escape(printable(c.name)), *aps, f"{c.num_objects:,}", f"{c.num_detections:,}"
        )
    # As titles of the table they would be wrapped to its width.
    for r in results:
        console.print(_title(r), style="bold", highlight=False)
    console.print(table)
    for r in results:
        if isinstance(r, VocResult):
            sizes = zip(("small", "medium", "large"), r.mean_by_size, strict=True)
            by_size = ", ".join(f"{name} {format_number(ap)}" for name, ap in sizes)
            console.print(f"{r.metric} by size of objects: {by_size}", highlight=False)
        else:
            figures = [f"{name} {format_number(value)}" for name, value in r.figures.items()]
            console.print(f"COCO: {', '.join(figures)}", highlight=False)
    if baseline:
        console.print(describe_baseline(baseline), highlight=False)


def print_errors(analysis: Analysis, console: Console) -> None:
    """Print the number of true positives and of errors by type in one line."""
    counts = {"true positives": int(analysis.images.tp.sum()), **analysis.counts}
    console.print(
        f"At score {analysis.score_threshold:g} and above: "
        + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        highlight=False,
    )


def print_comparison(a: Evaluation, b: Evaluation, console: Console) -> None:
    """Print the names of two evaluations, the AP of each class, and the differences."""
    console.print(f"A: {a.name}\nB: {b.name}", markup=False)
    for result_a, result_b in zip(a.results, b.results, strict=True):
        means = _compare(result_a.mean_ap, result_b.mean_ap)
        table = _table("mean", list(zip(("A", "B", "B - A"), means, strict=True)))
        aps_b = class_aps(result_b)
        for name, ap in class_aps(result_a).items():
            table.add_row(escape(printable(name)), *_compare(ap, aps_b[name]))
        console.print(_title(result_a), style="bold", highlight=False)
        console.print(table)


def _table(footer: str, columns: Sequence[tuple[str, str]]) -> Table:
    """Create a table of the classes with named columns of numbers and their footers."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("class", footer=footer)
    for name, column_footer in columns:
        table.add_column(name, footer=column_footer, justify="right", no_wrap=True)
    return table


def _compare(a: float, b: float) -> tuple[str, str, str]:
    return format_number(a), format_number(b), format_difference(b - a)


def _title(result: Result) -> str:
    """Name the metric of a result and its settings."""
    title = f"Average precision, {METRIC_NAMES[result.metric]}"
    if isinstance(result, VocResult):
        title += f", IoU {result.iou_threshold:g}, {result.box_convention} pixels"
    return title
