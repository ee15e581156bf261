"""Pages on evaluations: HTML files that hold all their plots and images, to read offline."""

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_jax.data.errors import escape_controls
from ssd_jax.evaluation import plots
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.coco_ap import CocoClass
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.tide import BACKGROUND_IOU
from ssd_jax.evaluation.metrics.voc_ap import SIZES, VOC_PIXELS, ClassResult
from ssd_jax.evaluation.report import (
    METRIC_NAMES,
    class_aps,
    describe_baseline,
    draw_panel,
    means,
    number,
    signed,
)
from ssd_jax.evaluation.scores import Evaluation, Result
from ssd_jax.inference.drawing import Image, contact_sheet, encode_image, label_color
from ssd_jax.io import atomic_write

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_CONFUSED = 12
_JPEG_QUALITY = 80


def write_html(
    path: Path,
    evaluation: Evaluation,
    data: EvaluationData,
    *,
    facts: Sequence[str] = (),
    images: int = 8,
) -> None:
    """Write the page on one evaluation.

    It has the figures, a table of the classes, curves, errors, the confusion matrix, and up to
    `images` of the worst and of the best images. `facts` are short texts for its head. The plots
    are written too, as SVG files in plots/ beside the page. Raises OSError where it cannot write.
    """
    analysis = evaluation.analysis
    name = evaluation.name
    figures = {
        "curves": plots.curves({name: analysis.curves}),
        "errors": plots.errors({name: analysis.counts}, {name: analysis.gains}),
        "confusion": plots.confusion(analysis.confusion, data.classes),
    }
    counts = analysis.images
    groups = [
        (
            "worst",
            "Worst images",
            "Those with errors, lowest F1 first. Left what was found, right what there is.",
            counts.worst(images),
        ),
        (
            "best",
            "Best images",
            "Those with something right, highest F1 first, of equals those with most objects.",
            counts.best(images),
        ),
    ]
    text = (
        _environment()
        .get_template("report.html")
        .render(
            title=f"Evaluation of {name}",
            facts=[*_data_facts(data), *facts],
            means=_cards(evaluation.results),
            baseline=describe_baseline(evaluation.baseline),
            metrics=[(r.metric, METRIC_NAMES[r.metric]) for r in evaluation.results],
            table=_class_table(evaluation.results),
            confused=_most_confused(analysis.confusion, data.classes),
            plots=_write_plots(path.parent / "plots", figures),
            groups=[
                {
                    "id": key,
                    "title": title,
                    "note": note,
                    "images": [
                        _figure(data, k, _caption(analysis, data, k), [evaluation]) for k in rows
                    ],
                }
                for key, title, note, rows in groups
            ],
            **_common(analysis, [r.metric for r in evaluation.results]),
        )
    )
    atomic_write(path, text.encode())


def write_comparison_page(
    path: Path,
    a: Evaluation,
    b: Evaluation,
    data: EvaluationData,
    *,
    facts: Sequence[str] = (),
    images: int = 8,
) -> None:
    """Write the page on two evaluations of the same data set by the same metrics.

    It has their figures and differences, the curves of both in one plot, their errors, and up to
    `images` of those on which each is ahead by most, in F1. Plots as by `write_html`.
    """
    runs = {f"A: {a.name}": a, f"B: {b.name}": b}
    figures = {
        "curves": plots.curves({name: run.analysis.curves for name, run in runs.items()}),
        "errors": plots.errors(
            {name: run.analysis.counts for name, run in runs.items()},
            {name: run.analysis.gains for name, run in runs.items()},
        ),
    }
    f1_a, f1_b = (np.nan_to_num(run.analysis.images.f1(), nan=1.0) for run in (a, b))
    groups = []
    for name, ahead in (("A", f1_a - f1_b), ("B", f1_b - f1_a)):
        rows = [int(k) for k in np.argsort(-ahead, kind="stable")[:images] if ahead[k] > 0]
        groups.append(
            {
                "title": f"Images on which {name} is ahead",
                "note": "By F1, most first. Left A, then B, right what there is.",
                "images": [_figure(data, k, _both_captions(a, b, data, k), [a, b]) for k in rows],
            }
        )
    text = (
        _environment()
        .get_template("comparison.html")
        .render(
            title="Two evaluations side by side",
            names=[a.name, b.name],
            facts=[*_data_facts(data), *facts],
            tables=_comparison_tables(a.results, b.results),
            plots=_write_plots(path.parent / "plots", figures),
            groups=groups,
            **_common(a.analysis, [r.metric for r in a.results]),
        )
    )
    atomic_write(path, text.encode())


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2

    # Names of classes and images are data and may hold anything.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # The type is kept: what is markup already is not escaped again.
        finalize=lambda value: (
            type(value)(escape_controls(value)) if isinstance(value, str) else value
        ),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _common(analysis: Analysis, metrics: Sequence[str]) -> dict[str, Any]:
    curves = analysis.curves
    shown = sum(bool(c.num_objects) for c in curves.classes)
    note = "Of all detections. Beside each name: the area under its curve, which is AP by voc."
    if any(metric == "voc07" for metric in metrics):
        note += " The 11-point AP (voc07) of the table is another figure of the same curve."
    if shown > plots.MAX_CURVES:
        note += f" The {plots.MAX_CURVES} classes with the most objects, of {shown}."
    return {
        "rules": f"VOC's figures, curves, errors and confusions: IoU {curves.iou_threshold:g}, "
        f"{curves.box_convention} pixels.",
        "curve_note": note,
        "score": f"{analysis.score:g}",
        "iou": f"{curves.iou_threshold:g}",
        "low_iou": f"{BACKGROUND_IOU:g}",
    }


def _data_facts(data: EvaluationData) -> list[str]:
    objects = int(np.sum(~data.objects.difficult))
    facts = [f"{len(data.image_names):,} images", f"{objects:,} objects"]
    difficult = len(data.objects.difficult) - objects
    return [*facts, f"{difficult:,} more are difficult"] if difficult else facts


def _class_table(results: Sequence[Result]) -> dict[str, Any]:
    """Columns, a row a class with its colour, and the means."""
    columns, foot = ["class"], ["mean"]
    for r in results:
        columns += [f"{r.metric} AP", *(f"AP{size}" for size in SIZES)]
        foot += [number(r.mean_ap), *map(number, r.mean_by_size)]
    classes: Sequence[ClassResult | CocoClass] = results[0].classes
    rows = []
    for k, c in enumerate(classes):
        cells = [c.name]
        for r in results:
            cells += [number(r.classes[k].ap), *map(number, r.classes[k].ap_by_size)]
        cells += [f"{c.num_objects:,}", f"{c.num_detections:,}"]
        rows.append(("rgb({}, {}, {})".format(*label_color(k + 1)), cells))
    foot += [
        f"{sum(c.num_objects for c in classes):,}",
        f"{sum(c.num_detections for c in classes):,}",
    ]
    return {"columns": [*columns, "objects", "detections"], "rows": rows, "foot": foot}


def _cards(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Names and values of the means; mean APs by different rules are told apart."""
    rules = {f"{r.metric}/mAP": METRIC_NAMES[r.metric] for r in results}
    return [
        (f"{name}, {rules[name]}" if name in rules else name, number(value))
        for name, value in means(results).items()
    ]


def _comparison_tables(a: Sequence[Result], b: Sequence[Result]) -> list[dict[str, Any]]:
    """The means of two evaluations, then each metric's classes; what differs most comes first."""
    tables = [_differences("figure", means(a), means(b))]
    for of_a, of_b in zip(a, b, strict=True):
        what = f"class, {METRIC_NAMES[of_a.metric]}"
        table = _differences(what, class_aps(of_a), class_aps(of_b))
        table["rows"].sort(key=lambda row: -row["size"])
        tables.append(table)
    return tables


def _differences(what: str, a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any]:
    rows = []
    for name, of_a in a.items():
        change = b[name] - of_a
        known = not np.isnan(change)
        rows.append(
            {
                "cells": [name, number(of_a), number(b[name])],
                "difference": signed(change),
                "direction": "" if not known or change == 0 else ("up" if change > 0 else "down"),
                "size": abs(change) if known else -1.0,
            }
        )
    return {"columns": [what, "A", "B", "B - A"], "rows": rows}


def _most_confused(matrix: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """The classes that are most often told as another: object, told as, times, share."""
    wrong = matrix[1:, 1:].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [tuple(map(int, np.unravel_index(k, wrong.shape))) for k in order]
    return [
        [classes[i], classes[j], f"{wrong[i, j]:,}", f"{wrong[i, j] / matrix[i + 1].sum():.1%}"]
        for i, j in pairs
        if wrong[i, j] > 0
    ]


def _write_plots(folder: Path, figures: Mapping[str, Any]) -> dict[str, str]:
    """The figures as files of the folder; and for the page, as addresses that hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {}
    for name, figure in figures.items():
        svg = plots.to_svg(figure)
        atomic_write(folder / f"{name}.svg", svg)
        addresses[name] = _address("image/svg+xml", svg)
    return addresses


def _figure(
    data: EvaluationData, k: int, caption: str, evaluations: Sequence[Evaluation]
) -> dict[str, str | None]:
    """Image k with what each evaluation found and what there is, and its caption."""
    image = data.read_image(k)
    if image is None:
        return {"caption": caption, "source": None}
    score = evaluations[0].analysis.score
    panels: list[Image] = []
    for evaluation in evaluations:
        found = evaluation.found
        rows = np.flatnonzero((found.image == k) & (found.score >= score))
        panels.append(
            draw_panel(
                image,
                found.boxes[rows] - VOC_PIXELS,
                found.label[rows],
                data.classes,
                found.score[rows],
            )
        )
    known = np.flatnonzero(data.objects.image == k)
    boxes = data.objects.boxes[known] - VOC_PIXELS
    panels.append(draw_panel(image, boxes, data.objects.label[known], data.classes))
    sheet = contact_sheet(panels, columns=len(panels), gap=8)
    return {
        "caption": caption,
        "source": _address("image/jpeg", encode_image(sheet, ".jpg", quality=_JPEG_QUALITY)),
    }


def _caption(analysis: Analysis, data: EvaluationData, k: int) -> str:
    return f"{data.image_names[k]}: {_counts(analysis, k)}"


def _both_captions(a: Evaluation, b: Evaluation, data: EvaluationData, k: int) -> str:
    told = [f"{name} {_counts(run.analysis, k)}" for name, run in (("A", a), ("B", b))]
    return f"{data.image_names[k]}: {'; '.join(told)}"


def _counts(analysis: Analysis, k: int) -> str:
    of = analysis.images
    return f"{of.right[k]} right, {of.wrong[k]} wrong, {of.missing[k]} missing"


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
