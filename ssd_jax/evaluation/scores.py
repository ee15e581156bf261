"""Detections scored by the metrics that are asked for."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ssd_jax.evaluation.coco import CocoResult, evaluate_coco
from ssd_jax.evaluation.voc import DetectionTable, GroundTruth, Pixels, VocResult, evaluate_voc

MetricName = Literal["voc", "voc07", "coco"]
Result = VocResult | CocoResult


def score_detections(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    *,
    metrics: Sequence[MetricName],
    area: np.ndarray[Any, Any] | None = None,
    iou_threshold: float = 0.5,
    pixels: Pixels = "inclusive",
) -> list[Result]:
    """The result of each of `metrics`, in their order; boxes in VOC's pixels.

    `area` (float [N], square pixels of each object; None: of its box) is COCO's alone,
    `iou_threshold` and `pixels` are VOC's: COCO has ten thresholds, and boxes that end where they
    say.
    """
    return [
        evaluate_coco(detections, ground_truth, classes, area=area)
        if metric == "coco"
        else evaluate_voc(
            detections,
            ground_truth,
            classes,
            metric=metric,
            iou_threshold=iou_threshold,
            pixels=pixels,
        )
        for metric in metrics
    ]
