"""Detections scored by the metrics that are asked for, and analysed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ssd_jax.evaluation.baseline import detect_mean_boxes
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.coco_ap import CocoResult, evaluate_coco
from ssd_jax.evaluation.metrics.error_analysis import REPORT_SCORE, Analysis, analyse
from ssd_jax.evaluation.metrics.voc_ap import (
    BoxConvention,
    DetectionTable,
    GroundTruth,
    VocResult,
    evaluate_voc,
)

MetricName = Literal["voc", "voc07", "coco"]
Result = VocResult | CocoResult


@dataclass(frozen=True)
class Evaluation:
    """The detections of a data set and all that is said of them."""

    name: str
    """What was evaluated."""
    found: DetectionTable
    """Boxes in VOC's pixels."""
    results: list[Result]
    analysis: Analysis
    baseline: list[Result]
    """Of the mean box of each class on every image, by the same metrics; see `baseline`. Empty
    where it is not computed."""

    def with_box_convention(self, box_convention: BoxConvention) -> "Evaluation":
        """Return the evaluation with `box_convention` as the name of its pixel convention.

        For boxes that were converted from files of that convention.
        """

        def rename(results: list[Result]) -> list[Result]:
            return [
                replace(result, box_convention=box_convention)
                if isinstance(result, VocResult)
                else result
                for result in results
            ]

        return replace(
            self,
            results=rename(self.results),
            analysis=replace(
                self.analysis, curves=replace(self.analysis.curves, box_convention=box_convention)
            ),
            baseline=rename(self.baseline),
        )


def evaluate_detections(
    name: str,
    found: DetectionTable,
    data: EvaluationData,
    *,
    metrics: Sequence[MetricName],
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
    report_score_threshold: float = REPORT_SCORE,
) -> Evaluation:
    """The evaluation of the detections of a data set, in VOC's pixels, by each of `metrics`.

    `report_score_threshold`: score from which the analysis counts a detection.
    """
    score = partial(
        score_detections,
        ground_truth=data.objects,
        classes=data.classes,
        metrics=metrics,
        area=data.area,
        iou_threshold=iou_threshold,
        box_convention=box_convention,
    )
    mean_boxes = detect_mean_boxes(data)
    return Evaluation(
        name,
        found,
        score(found),
        analyse(
            found,
            data.objects,
            data.classes,
            len(data.image_names),
            area=data.area,
            score=report_score_threshold,
            iou_threshold=iou_threshold,
            box_convention=box_convention,
        ),
        [] if mean_boxes is None else score(mean_boxes),
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
    """The result of each of `metrics`, in their order; boxes in VOC's pixels.

    `area` is float [N], square pixels of each object; None: of its box. `iou_threshold` and
    `box_convention` are VOC's: COCO has ten thresholds, and boxes that end where they say.
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
