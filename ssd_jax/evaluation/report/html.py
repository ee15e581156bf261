"""HTML reports: single files that contain all their plots and images, to read offline."""

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_jax.data.errors import escape_controls
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.evaluation import Evaluation, Result
from ssd_jax.evaluation.metrics.tide import BACKGROUND_IOU
from ssd_jax.evaluation.metrics.voc_ap import SIZES
from ssd_jax.evaluation.report import plots
from ssd_jax.evaluation.report.formatting import (
    METRIC_NAMES,
    describe_baseline,
    format_difference,
    format_number,
)
from ssd_jax.evaluation.report.images import fit_panel
from ssd_jax.evaluation.report.metrics_json import class_aps, mean_metrics
from ssd_jax.inference.drawing import contact_sheet, draw_boxes, encode_image, label_color
from ssd_jax.io import atomic_write

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_CONFUSIONS = 12
_JPEG_QUALITY = 80


def write_html(
    path: Path,
    evaluation: Evaluation,
    data: EvaluationData,
    *,
    facts: Sequence[str] = (),
    images: int = 8,
) -> None:
    """Write the report of one evaluation, and its plots as SVG files in plots/ beside it.

    It shows the metrics, a table of the classes, curves, errors, the confusion matrix, and the
    worst and best images.

    Args:
        path: of the HTML file.
        evaluation: of `data`.
        data: the ground truth.
        facts: short texts for the head of the report.
        images: number of worst and of best images.

    Raises:
        OSError: a file cannot be written.
    """
    analysis = evaluation.analysis
    figures = {
        "curves": plots.plot_curves({evaluation.name: analysis.curves}),
        "errors": plots.plot_errors({evaluation.name: analysis}),
        "confusion": plots.plot_confusion(analysis.confusion, data.classes),
    }
    layout = "Predictions (left) and ground truth (right)."
    groups = [
        _image_group(
            "worst",
            "Worst images",
            f"Images with errors, lowest F1 first. {layout}",
            analysis.images.worst(images),
            data,
            {"": evaluation},
        ),
        _image_group(
            "best",
            "Best images",
            f"Images with true positives, highest F1 first, then most objects. {layout}",
            analysis.images.best(images),
            data,
            {"": evaluation},
        ),
    ]
    _render(
        path,
        "report.html",
        title=f"Evaluation of {evaluation.name}",
        facts=[*_data_facts(data), *facts],
        means=_mean_cards(evaluation.results),
        baseline=describe_baseline(evaluation.baseline),
        metrics=[(r.metric, METRIC_NAMES[r.metric]) for r in evaluation.results],
        table=_class_table(evaluation.results),
        confusions=_most_confused(analysis.confusion, data.classes),
        plots=_write_plots(path.parent / "plots", figures),
        groups=groups,
        **_settings(evaluation),
    )


def write_comparison_html(
    path: Path, a: Evaluation, b: Evaluation, data: EvaluationData, *, images: int = 8
) -> None:
    """Write the report on two evaluations of the same dataset by the same metrics.

    It shows their metrics and differences, the curves of both in one plot, their errors, and up to
    `images` images on which each has the higher F1. The plots are written as by `write_html`.

    Raises:
        OSError: a file cannot be written.
    """
    runs = {f"A: {a.name}": a, f"B: {b.name}": b}
    analyses = {name: run.analysis for name, run in runs.items()}
    figures = {
        "curves": plots.plot_curves({name: x.curves for name, x in analyses.items()}),
        "errors": plots.plot_errors(analyses),
    }
    f1_a, f1_b = (np.nan_to_num(run.analysis.images.f1(), nan=1.0) for run in (a, b))
    groups = []
    for name, lead in (("A", f1_a - f1_b), ("B", f1_b - f1_a)):
        rows = [int(k) for k in np.argsort(-lead, kind="stable")[:images] if lead[k] > 0]
        groups.append(
            _image_group(
                name,
                f"Images on which {name} is better",
                "Largest difference in F1 first. A (left), B (middle) and ground truth (right).",
                rows,
                data,
                {"A ": a, "B ": b},
            )
        )
    _render(
        path,
        "comparison.html",
        title="Comparison of two evaluations",
        names=[a.name, b.name],
        facts=_data_facts(data),
        tables=_comparison_tables(a.results, b.results),
        plots=_write_plots(path.parent / "plots", figures),
        groups=groups,
        **_settings(a),
    )


def _render(path: Path, template: str, **values: Any) -> None:
    atomic_write(path, _environment().get_template(template).render(values).encode())


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2

    # Names of classes and images are data and may contain anything.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Keep the type: markup is not to be escaped again.
        finalize=lambda value: (
            type(value)(escape_controls(value)) if isinstance(value, str) else value
        ),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """Describe the settings of an evaluation, for the texts of both templates."""
    analysis = evaluation.analysis
    curves = analysis.curves
    shown = sum(bool(c.num_objects) for c in curves.classes)
    note = "Over all detections. Beside each name: the area under its curve, its AP by voc."
    if any(r.metric == "voc07" for r in evaluation.results):
        note += " The 11-point AP (voc07) in the table is another summary of the same curve."
    if shown > plots.MAX_CURVES:
        note += f" The {plots.MAX_CURVES} classes with the most objects, of {shown}."
    return {
        "settings": f"VOC metrics, curves, errors and confusion matrix: IoU "
        f"{curves.iou_threshold:g}, {curves.box_convention} pixels.",
        "curve_note": note,
        "score": f"{analysis.score_threshold:g}",
        "iou": f"{curves.iou_threshold:g}",
        "low_iou": f"{BACKGROUND_IOU:g}",
    }


def _data_facts(data: EvaluationData) -> list[str]:
    difficult = int(np.sum(data.objects.difficult))
    objects = len(data.objects.difficult) - difficult
    facts = [f"{len(data.image_names):,} images", f"{objects:,} objects"]
    return [*facts, f"{difficult:,} difficult objects"] if difficult else facts


def _class_table(results: Sequence[Result]) -> dict[str, Any]:
    """Return columns, a row per class with its color, and the means."""
    columns, foot = ["class"], ["mean"]
    for r in results:
        columns += [f"{r.metric} AP", *(f"AP{size}" for size in SIZES)]
        foot += map(format_number, (r.mean_ap, *r.mean_by_size))
    classes = results[0].classes
    rows = []
    for k, c in enumerate(classes):
        cells = [c.name]
        for r in results:
            cells += map(format_number, (r.classes[k].ap, *r.classes[k].ap_by_size))
        cells += [f"{c.num_objects:,}", f"{c.num_detections:,}"]
        rows.append(("rgb({}, {}, {})".format(*label_color(k)), cells))
    foot += [
        f"{sum(c.num_objects for c in classes):,}",
        f"{sum(c.num_detections for c in classes):,}",
    ]
    return {"columns": [*columns, "objects", "detections"], "rows": rows, "foot": foot}


def _mean_cards(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return names and values of the means; the name of a mean AP includes its definition."""
    definitions = {f"{r.metric}/mAP": METRIC_NAMES[r.metric] for r in results}
    return [
        (f"{name}, {definitions[name]}" if name in definitions else name, format_number(value))
        for name, value in mean_metrics(results).items()
    ]


def _comparison_tables(a: Sequence[Result], b: Sequence[Result]) -> list[dict[str, Any]]:
    """Return tables of the means and of each metric's classes, the largest differences first."""
    tables = [_comparison_table("metric", mean_metrics(a), mean_metrics(b))]
    for result_a, result_b in zip(a, b, strict=True):
        name = f"class, {METRIC_NAMES[result_a.metric]}"
        table = _comparison_table(name, class_aps(result_a), class_aps(result_b))
        table["rows"].sort(key=lambda row: -row["size"])
        tables.append(table)
    return tables


def _comparison_table(name: str, a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any]:
    rows = []
    for key in a:
        change = b[key] - a[key]
        rows.append(
            {
                "cells": [key, format_number(a[key]), format_number(b[key])],
                "difference": format_difference(change),
                "direction": "up" if change > 0 else "down" if change < 0 else "",
                "size": -1.0 if np.isnan(change) else abs(change),
            }
        )
    return {"columns": [name, "A", "B", "B - A"], "rows": rows}


def _most_confused(matrix: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """Return the most frequent confusions: ground truth, prediction, count and share."""
    confusions = matrix[:-1, :-1].copy()
    np.fill_diagonal(confusions, 0)
    order = np.argsort(-confusions, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [tuple(map(int, np.unravel_index(k, confusions.shape))) for k in order]
    return [
        [
            classes[i],
            classes[j],
            f"{confusions[i, j]:,}",
            f"{confusions[i, j] / matrix[i].sum():.1%}",
        ]
        for i, j in pairs
        if confusions[i, j] > 0
    ]


def _write_plots(folder: Path, figures: Mapping[str, Any]) -> dict[str, str]:
    """Write figures as SVG files and return data URLs of them."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = {}
    for name, figure in figures.items():
        svg = plots.to_svg(figure)
        atomic_write(folder / f"{name}.svg", svg)
        urls[name] = _data_url("image/svg+xml", svg)
    return urls


def _image_group(
    key: str,
    title: str,
    note: str,
    rows: Sequence[int],
    data: EvaluationData,
    evaluations: Mapping[str, Evaluation],
) -> dict[str, Any]:
    """Return a section of images with captions; `evaluations` have the prefix of their counts."""
    images = []
    for k in rows:
        counts = [f"{name}{_counts(e.analysis, k)}" for name, e in evaluations.items()]
        caption = f"{data.image_names[k]}: {'; '.join(counts)}"
        images.append({"caption": caption, "source": _draw(data, k, list(evaluations.values()))})
    return {"id": key, "title": title, "note": note, "images": images}


def _counts(analysis: Analysis, k: int) -> str:
    images = analysis.images
    return f"{images.tp[k]} TP, {images.fp[k]} FP, {images.fn[k]} FN"


def _draw(data: EvaluationData, k: int, evaluations: Sequence[Evaluation]) -> str | None:
    """Draw image k with each evaluation's detections and the ground truth, as a data URL."""
    image = data.read_image(k)
    if image is None:
        return None
    panels = []
    for evaluation in evaluations:
        table = evaluation.detections
        kept = (table.image == k) & (table.score >= evaluations[0].analysis.score_threshold)
        rows = table.select(np.flatnonzero(kept))
        panel = fit_panel(image, rows.boxes)
        panels.append(draw_boxes(*panel, rows.label, data.classes, rows.score))
    objects = data.objects
    rows_gt = np.flatnonzero(objects.image == k)
    panel = fit_panel(image, objects.boxes[rows_gt])
    panels.append(draw_boxes(*panel, objects.label[rows_gt], data.classes))
    sheet = contact_sheet(panels, columns=len(panels), gap=8)
    return _data_url("image/jpeg", encode_image(sheet, ".jpg", quality=_JPEG_QUALITY))


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
