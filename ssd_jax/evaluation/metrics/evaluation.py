"""Evaluation of detections by several metrics, with an error analysis and a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.baseline import detect_mean_boxes
from ssd_jax.evaluation.metrics.coco_ap import CocoResult, evaluate_coco
from ssd_jax.evaluation.metrics.error_analysis import (
    REPORT_SCORE_THRESHOLD,
    Analysis,
    analyze_errors,
)
from ssd_jax.evaluation.metrics.matching import BoxConvention
from ssd_jax.evaluation.metrics.voc_ap import VocResult, evaluate_voc

MetricName = Literal["voc", "voc07", "coco"]
Result = VocResult | CocoResult


@dataclass(frozen=True)
class Evaluation:
    """The detections of a dataset with their metrics and error analysis."""

    name: str
    """Name of the evaluated checkpoint or file."""
    detections: DetectionTable
    results: list[Result]
    """One per metric."""
    analysis: Analysis
    baseline: list[Result]
    """Results of `detect_mean_boxes` by the same metrics; empty if it gives no detections."""

    def with_box_convention(self, box_convention: BoxConvention) -> "Evaluation":
        """Return the evaluation with `box_convention` as the reported convention of its files."""

        def rename(results: list[Result]) -> list[Result]:
            return [
                replace(r, box_convention=box_convention) if isinstance(r, VocResult) else r
                for r in results
            ]

        curves = replace(self.analysis.curves, box_convention=box_convention)
        return replace(
            self,
            results=rename(self.results),
            analysis=replace(self.analysis, curves=curves),
            baseline=rename(self.baseline),
        )


def evaluate_detections(
    name: str,
    detections: DetectionTable,
    data: EvaluationData,
    *,
    metrics: Sequence[MetricName],
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
    report_score_threshold: float = REPORT_SCORE_THRESHOLD,
) -> Evaluation:
    """Evaluate the detections of a dataset by each metric and analyze their errors.

    Args:
        name: of the checkpoint or file, for reports.
        detections: `image` is an index into `data.image_names`.
        data: the ground truth.
        metrics: the first one is the mAP of the evaluation.
        iou_threshold: of the VOC metrics and the error analysis.
        box_convention: of the VOC metrics and the error analysis.
        report_score_threshold: lowest score of detections that the error analysis counts.
    """
    settings: dict[str, Any] = {
        "area": data.area,
        "iou_threshold": iou_threshold,
        "box_convention": box_convention,
    }

    def score(table: DetectionTable) -> list[Result]:
        return score_detections(table, data.objects, data.classes, metrics=metrics, **settings)

    mean_boxes = detect_mean_boxes(data)
    return Evaluation(
        name=name,
        detections=detections,
        results=score(detections),
        analysis=analyze_errors(
            detections,
            data.objects,
            data.classes,
            len(data.image_names),
            score_threshold=report_score_threshold,
            **settings,
        ),
        baseline=[] if mean_boxes is None else score(mean_boxes),
    )


def score_detections(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    *,
    metrics: Sequence[MetricName],
    area: np.ndarray[Any, Any] | None = None,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> list[Result]:
    """Compute each metric, in the order of `metrics`.

    `iou_threshold` and `box_convention` affect the VOC metrics only: COCO has ten thresholds and
    continuous pixels. The other arguments are those of `evaluate_voc`.
    """
    return [
        evaluate_coco(detections, ground_truth, classes, area=area)
        if metric == "coco"
        else evaluate_voc(
            detections,
            ground_truth,
            classes,
            area=area,
            metric=metric,
            iou_threshold=iou_threshold,
            box_convention=box_convention,
        )
        for metric in metrics
    ]
