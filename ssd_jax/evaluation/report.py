"""What an evaluation leaves behind: metrics.json, a table, pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssd_jax.data.errors import printable
from ssd_jax.evaluation.metrics.coco_ap import FIGURES, CocoClass, CocoResult
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.voc_ap import SIZES, ClassResult, VocResult
from ssd_jax.evaluation.scores import Result
from ssd_jax.inference.drawing import contact_sheet, draw_boxes, resize, save_image, side_by_side
from ssd_jax.io import atomic_write

Array = np.ndarray[Any, Any]

METRIC_NAMES = {
    "voc": "area under the curve (VOC 2010)",
    "voc07": "11 points (VOC 2007)",
    "coco": "mean of IoU 0.50 to 0.95 (COCO)",
}
# Small enough for a sheet of many, large enough for the names on the boxes.
_PICTURE_SIDE = 480


@dataclass(frozen=True)
class Sample:
    """An image with what was found on it and what there is.

    Boxes are [n, 4], xmin, ymin, xmax, ymax in pixels where 0 is the image's left or upper edge
    (for VOC's, which count from 1, take 1 from xmin and ymin).
    """

    name: str
    """Name of the file to write, without suffix."""
    image: Array
    """RGB, uint8 [H, W, 3]."""
    boxes: Array
    labels: Array
    """int [n], from 1."""
    scores: Array
    """float [n], 0 to 1."""
    gt_boxes: Array
    gt_labels: Array
    """int [m], from 1."""


def means(results: Sequence[Result]) -> dict[str, float]:
    """The figures of the whole data set, by their names in metrics.json."""
    named: dict[str, float] = {}
    for result in results:
        if isinstance(result, CocoResult):
            named |= {f"coco/{name}": value for name, value in result.figures.items()}
        else:
            named[f"{result.metric}/mAP"] = result.mean_ap
            named |= _by_size(result.metric, result.mean_by_size)
    return named


def class_aps(result: Result) -> dict[str, float]:
    """The average precision of each class, by its name."""
    classes: Sequence[ClassResult | CocoClass] = result.classes
    return {c.name: c.ap for c in classes}


def _by_size(metric: str, aps: Sequence[float]) -> dict[str, float]:
    """voc/APs and its like."""
    return {f"{metric}/AP{size}": ap for size, ap in zip(SIZES, aps, strict=True)}


def flat_metrics(results: Sequence[Result]) -> dict[str, float]:
    """The means of all results and the first one's classes, by the names of `metric_names`.

    What is nan, as a class without objects, is left out.
    """
    classes = {f"AP/{c.name}": c.ap for c in results[0].classes}
    named = {"mAP": results[0].mean_ap, **means(results), **classes}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def metric_names(metrics: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The names of the `figures` that these metrics give."""
    named = [
        f"{metric}/{name}"
        for metric in metrics
        for name in (FIGURES if metric == "coco" else ("mAP", *(f"AP{size}" for size in SIZES)))
    ]
    return ["mAP", *named, *(f"AP/{name}" for name in classes)]


def write_report(results: Sequence[Result], out_dir: Path, extra: Mapping[str, Any]) -> None:
    """Write out_dir/metrics.json, making the folder.

    It holds the means as "voc/mAP" and "voc07/mAP", COCO's figures as "coco/AP" to "coco/ARl",
    VOC's rules and "per_class"; then `extra`, such as num_images and the checkpoint. The results
    are of the same detections. Numbers are written to the last digit and nan as null.
    Raises ValueError where `extra` names a field of the results, OSError where it cannot write.
    """
    classes: Sequence[ClassResult | CocoClass] = results[0].classes
    head: dict[str, Any] = means(results)
    for result in results:
        if isinstance(result, VocResult):
            head |= {"iou_threshold": result.iou_threshold, "box_convention": result.box_convention}
    per_class = {
        c.name: {
            **{name: ap for r in results for name, ap in _class_figures(r, k).items()},
            "objects": c.num_objects,
            "detections": c.num_detections,
        }
        for k, c in enumerate(classes)
    }
    clash = sorted({*head, "per_class"} & set(extra))
    if clash:
        raise ValueError(f"extra has {', '.join(clash)}, which the result has too; rename it")
    tree = without_nan({**head, **extra, "per_class": per_class})
    out_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(out_dir / "metrics.json", to_json(tree, indent=2))


def _class_figures(result: Result, k: int) -> dict[str, float]:
    """The figures of one class."""
    known = result.classes[k]
    return {f"{result.metric}/AP": known.ap, **_by_size(result.metric, known.ap_by_size)}


def compare(a: Sequence[Result], b: Sequence[Result]) -> dict[str, Any]:
    """The figures of two evaluations by the same metrics and of the same classes, as JSON.

    "figures" has each of `means` and "per_class" those of each class; each with a, b and the
    difference b - a.
    """

    def differences(of_a: Mapping[str, float], of_b: Mapping[str, float]) -> dict[str, Any]:
        return {
            name: {"a": of_a[name], "b": of_b[name], "difference": of_b[name] - of_a[name]}
            for name in of_a
        }

    return {
        "figures": differences(means(a), means(b)),
        "per_class": {
            name: {
                figure: difference
                for of_a, of_b in zip(a, b, strict=True)
                for figure, difference in differences(
                    _class_figures(of_a, k), _class_figures(of_b, k)
                ).items()
            }
            for k, name in enumerate(class_aps(a[0]))
        },
    }


def print_comparison(a: Sequence[Result], b: Sequence[Result], console: Console) -> None:
    """Print the average precision of each class in two evaluations, and the difference."""
    for of_a, of_b in zip(a, b, strict=True):
        table = Table(box=box.SIMPLE_HEAD, show_footer=True)
        table.add_column("class", footer="mean")
        mean_a, mean_b = of_a.mean_ap, of_b.mean_ap
        for name, foot in (
            ("A", number(mean_a)),
            ("B", number(mean_b)),
            ("B - A", signed(mean_b - mean_a)),
        ):
            table.add_column(name, footer=foot, justify="right", no_wrap=True)
        aps_b = class_aps(of_b)
        for name, ap in class_aps(of_a).items():
            table.add_row(
                escape(printable(name)), number(ap), number(aps_b[name]), signed(aps_b[name] - ap)
            )
        console.print(_title(of_a), style="bold", highlight=False)
        console.print(table)


def write_analysis(
    path: Path, analysis: Analysis, classes: Sequence[str], images: Sequence[str]
) -> None:
    """Write an analysis as JSON, for programs: errors, confusion matrix, counts of each image.

    `images` are the names of the images. Raises OSError where it cannot write.
    """
    counts = analysis.images
    tree = {
        "iou_threshold": analysis.curves.iou_threshold,
        "score": analysis.score,
        "errors": {
            name: {"count": count, "gain": analysis.gains[name]}
            for name, count in analysis.counts.items()
        },
        "confusion": {"names": [None, *classes], "counts": analysis.confusion.tolist()},
        "images": {
            name: {"right": right, "wrong": wrong, "missing": missing}
            for name, right, wrong, missing in zip(
                images,
                counts.right.tolist(),
                counts.wrong.tolist(),
                counts.missing.tolist(),
                strict=True,
            )
        },
    }
    atomic_write(path, to_json(without_nan(tree)))


def print_errors(analysis: Analysis, console: Console) -> None:
    """Print the errors by kind, a line."""
    kinds = [f"{name} {count:,}" for name, count in analysis.counts.items()]
    right = int(analysis.images.right.sum())
    console.print(
        f"From score {analysis.score:g}: {right:,} right; {', '.join(kinds)}", highlight=False
    )


def print_table(
    results: Sequence[Result], console: Console, baseline: Sequence[Result] = ()
) -> None:
    """Print the average precision (0 to 1), objects and detections of each class, and the mean.

    There is a column for each result, a line with COCO's figures, and one with the baseline's.
    """
    classes: Sequence[ClassResult | CocoClass] = results[0].classes
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    counted = [c for c in classes if c.num_objects]
    mean_of = f"mean of {len(counted)}"
    if len(counted) < len(classes):
        mean_of += f" with objects, of {len(classes)}"
    objects = sum(c.num_objects for c in classes)
    found = sum(c.num_detections for c in classes)
    table.add_column("class", footer=mean_of)
    for r in results:
        name = "AP" if len(results) == 1 else r.metric
        table.add_column(name, footer=number(r.mean_ap), justify="right", no_wrap=True)
    table.add_column("objects", footer=f"{objects:,}", justify="right", no_wrap=True)
    table.add_column("detections", footer=f"{found:,}", justify="right", no_wrap=True)
    for k, c in enumerate(classes):
        aps = [number(r.classes[k].ap) for r in results]
        table.add_row(
            escape(printable(c.name)), *aps, f"{c.num_objects:,}", f"{c.num_detections:,}"
        )
    # A title of the table would be broken to the width of its columns.
    for r in results:
        console.print(_title(r), style="bold", highlight=False)
    console.print(table)
    for r in results:
        if isinstance(r, VocResult):
            sizes = zip(("small", "medium", "large"), r.mean_by_size, strict=True)
            by_size = ", ".join(f"{name} {number(ap)}" for name, ap in sizes)
            console.print(f"{r.metric} by size of objects: {by_size}", highlight=False)
        else:
            figures = [f"{name} {number(value)}" for name, value in r.figures.items()]
            console.print(f"COCO: {', '.join(figures)}", highlight=False)
    if baseline:
        console.print(describe_baseline(baseline), highlight=False)


def describe_baseline(baseline: Sequence[Result]) -> str:
    """Describe the results of the baseline in one line; empty without any."""
    if not baseline:
        return ""
    figures = ", ".join(f"{r.metric} {number(r.mean_ap)}" for r in baseline)
    return f"Baseline, the mean ground-truth box of each class on every image: mAP {figures}"


def _title(result: Result) -> str:
    """What the numbers of a result are and the rules that they went by."""
    title = f"Average precision, {METRIC_NAMES[result.metric]}"
    if isinstance(result, VocResult):
        title += f", IoU {result.iou_threshold:g}, {result.box_convention} pixels"
    return title


def write_pictures(
    pictures: Sequence[Sample],
    classes: Sequence[str],
    out_dir: Path,
    *,
    min_score: float = 0.3,
) -> None:
    """Write each picture's detections beside its ground truth, and all of them on one sheet.

    The files are out_dir/pictures/NAME.jpg and out_dir/pictures.jpg; without pictures there are
    none. Detections below `min_score` are left out: an evaluation keeps up to 200 of an image,
    down to 0.01, and nobody could see it for them.
    """
    if not pictures:
        return
    folder = out_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    panels = []
    for picture in pictures:
        panels.append(_panel(picture, classes, min_score))
        save_image(folder / f"{picture.name}.jpg", panels[-1])
    save_image(out_dir / "pictures.jpg", contact_sheet(panels, columns=2, gap=24))


def _panel(picture: Sample, classes: Sequence[str], min_score: float) -> Array:
    """One picture's detections beside its ground truth."""
    shown = picture.scores >= min_score
    boxes = np.reshape(picture.boxes, (-1, 4))[shown]
    labels, scores = picture.labels[shown], picture.scores[shown]
    return side_by_side(
        draw_panel(picture.image, boxes, labels, classes, scores),
        draw_panel(picture.image, picture.gt_boxes, picture.gt_labels, classes),
        (
            f"{picture.name}: {len(boxes)} detected, score from {min_score:g}",
            f"ground truth: {len(picture.gt_labels)}",
        ),
    )


def draw_panel(
    image: Array,
    boxes: Array,
    labels: Array,
    classes: Sequence[str],
    scores: Array | None = None,
) -> Array:
    """An image with its boxes at the size of a panel, see `draw_boxes`."""
    factor = _PICTURE_SIDE / max(image.shape[:2])
    boxes = np.reshape(boxes, (-1, 4)) * factor
    return draw_boxes(resize(image, factor), boxes, labels, classes, scores)


def number(value: float) -> str:
    """A figure with four decimals; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference of figures with its sign; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:+.4f}"


def to_json(tree: Any, indent: int | None = None) -> bytes:
    """Return a tree as JSON in UTF-8; a lone surrogate, which UTF-8 has not, stays an escape."""
    text = json.dumps(tree, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")


def without_nan(value: Any) -> Any:
    """A tree of JSON with None for nan."""
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
