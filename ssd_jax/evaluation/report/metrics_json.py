"""Metrics, error analysis and comparison of evaluations as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_jax.evaluation.metrics.coco_ap import FIGURES, CocoResult
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.evaluation import Evaluation, Result
from ssd_jax.evaluation.metrics.voc_ap import SIZES, VocResult
from ssd_jax.io import atomic_write


def mean_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Return the metrics of the whole dataset, by their names in metrics.json."""
    metrics: dict[str, float] = {}
    for result in results:
        if isinstance(result, CocoResult):
            metrics |= {f"coco/{name}": value for name, value in result.figures.items()}
        else:
            metrics[f"{result.metric}/mAP"] = result.mean_ap
            metrics |= _by_size(result.metric, result.mean_by_size)
    return metrics


def class_aps(result: Result) -> dict[str, float]:
    """Return the AP of each class, by its name."""
    return {c.name: c.ap for c in result.classes}


def flat_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Return the means of all results and the APs of the first one, by `metric_names`.

    nan, such as the AP of a class without objects, is left out.
    """
    aps = {f"AP/{name}": ap for name, ap in class_aps(results[0]).items()}
    metrics = {"mAP": results[0].mean_ap, **mean_metrics(results), **aps}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def metric_names(metrics: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names of the `flat_metrics` of some metrics and classes."""
    means = [
        f"{metric}/{name}"
        for metric in metrics
        for name in (FIGURES if metric == "coco" else ("mAP", *(f"AP{size}" for size in SIZES)))
    ]
    return ["mAP", *means, *(f"AP/{name}" for name in classes)]


def write_metrics(results: Sequence[Result], out_dir: Path, extra: Mapping[str, Any]) -> None:
    """Write out_dir/metrics.json, creating the folder.

    The file contains the means such as "voc/mAP" and "voc07/mAP", COCO's "coco/AP" to "coco/ARl",
    VOC's settings, `extra`, and "per_class". Numbers keep every digit and nan is null.

    Args:
        results: of the same detections.
        out_dir: that the file is written to.
        extra: further entries, such as num_images and step.

    Raises:
        ValueError: `extra` contains a name of the results.
        OSError: the file cannot be written.
    """
    head: dict[str, Any] = mean_metrics(results)
    for result in results:
        if isinstance(result, VocResult):
            head |= {"iou_threshold": result.iou_threshold, "box_convention": result.box_convention}
    per_class = {
        c.name: {
            **{name: ap for r in results for name, ap in _class_metrics(r, k).items()},
            "objects": c.num_objects,
            "detections": c.num_detections,
        }
        for k, c in enumerate(results[0].classes)
    }
    clash = sorted({*head, "per_class"} & set(extra))
    if clash:
        raise ValueError(f"extra contains {', '.join(clash)} of the results; rename it")
    out_dir.mkdir(parents=True, exist_ok=True)
    tree = {**head, **extra, "per_class": per_class}
    atomic_write(out_dir / "metrics.json", _to_json(tree, indent=2))


def _class_metrics(result: Result, k: int) -> dict[str, float]:
    """Return the metrics of one class."""
    c = result.classes[k]
    return {f"{result.metric}/AP": c.ap, **_by_size(result.metric, c.ap_by_size)}


def _by_size(metric: str, aps: Sequence[float]) -> dict[str, float]:
    """Name APs by size: voc/APs, voc/APm and voc/APl."""
    return {f"{metric}/AP{size}": ap for size, ap in zip(SIZES, aps, strict=True)}


def write_comparison_json(path: Path, a: Evaluation, b: Evaluation) -> None:
    """Write the metrics of two evaluations of the same classes, and the differences b - a.

    Raises:
        OSError: the file cannot be written.
    """
    per_class: dict[str, dict[str, Any]] = {}
    for result_a, result_b in zip(a.results, b.results, strict=True):
        for k, c in enumerate(result_a.classes):
            differences = _differences(_class_metrics(result_a, k), _class_metrics(result_b, k))
            per_class.setdefault(c.name, {}).update(differences)
    tree = {
        "a": a.name,
        "b": b.name,
        "figures": _differences(mean_metrics(a.results), mean_metrics(b.results)),
        "per_class": per_class,
    }
    atomic_write(path, _to_json(tree, indent=2))


def _differences(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any]:
    return {name: {"a": a[name], "b": b[name], "difference": b[name] - a[name]} for name in a}


def write_analysis(
    path: Path, analysis: Analysis, classes: Sequence[str], image_names: Sequence[str]
) -> None:
    """Write an error analysis: errors by type, confusion matrix, and the counts of each image.

    Raises:
        OSError: the file cannot be written.
    """
    images = analysis.images
    tree = {
        "iou_threshold": analysis.curves.iou_threshold,
        "score_threshold": analysis.score_threshold,
        "errors": {
            name: {"count": count, "delta_ap": analysis.delta_ap[name]}
            for name, count in analysis.counts.items()
        },
        "confusion": {"names": [*classes, None], "counts": analysis.confusion.tolist()},
        "images": {
            name: {"tp": tp, "fp": fp, "fn": fn}
            for name, tp, fp, fn in zip(
                image_names,
                images.tp.tolist(),
                images.fp.tolist(),
                images.fn.tolist(),
                strict=True,
            )
        },
    }
    atomic_write(path, _to_json(tree))


def _to_json(tree: Any, indent: int | None = None) -> bytes:
    """Encode a tree as JSON in UTF-8, nan as null; lone surrogates stay escaped."""
    text = json.dumps(_nan_to_none(tree), indent=indent, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode(errors="backslashreplace")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _nan_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
