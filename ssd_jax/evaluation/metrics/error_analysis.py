"""Error analysis: curves, TIDE's errors, the confusion matrix, best and worst images.

All of it follows VOC's protocol at one IoU threshold, whatever metrics are evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.metrics.matching import BoxConvention
from ssd_jax.evaluation.metrics.tide import (
    IGNORED,
    TRUE_POSITIVE,
    Outcomes,
    classify_outcomes,
    confusion_matrix,
    count_errors,
    delta_ap,
)
from ssd_jax.evaluation.metrics.voc_ap import VocResult, evaluate_voc

Array = np.ndarray[Any, Any]

REPORT_SCORE_THRESHOLD = 0.3
"""Default lowest score of detections that are counted and drawn. An evaluation keeps up to 200
detections of an image, down to score 0.01; the low ones matter for the curves only."""


@dataclass(frozen=True)
class ImageCounts:
    """Counts of each image; int64 [images] each."""

    tp: Array
    """True positives."""
    fp: Array
    """False positives."""
    fn: Array
    """False negatives: objects, not difficult, without a true positive."""

    def f1(self) -> Array:
        """Compute the F1 score of each image, float64; nan without objects and detections."""
        total = 2 * self.tp + self.fp + self.fn
        return np.where(total > 0, 2 * self.tp / np.maximum(total, 1), np.nan)

    def worst(self, count: int) -> list[int]:
        """Return up to `count` images with errors: lowest F1 first, then most errors."""
        errors = self.fp + self.fn
        order = np.lexsort((-errors, self.f1()))
        return [int(i) for i in order if errors[i] > 0][:count]

    def best(self, count: int) -> list[int]:
        """Return up to `count` images with true positives: highest F1 first, then most objects."""
        order = np.lexsort((-self.tp, -self.f1()))
        return [int(i) for i in order if self.tp[i] > 0][:count]


@dataclass(frozen=True)
class Analysis:
    """Error analysis of the detections of a dataset."""

    curves: VocResult
    """Precision-recall curves of all detections, by the metric voc."""
    delta_ap: dict[str, float]
    """TIDE's delta AP of each error type, over all detections; see `tide.delta_ap`."""
    score_threshold: float
    """Lowest score of the detections that the following fields count."""
    counts: dict[str, int]
    """Number of errors of each type in `tide.ERRORS`."""
    confusion: Array
    """int64 [classes + 1, classes + 1], see `tide.confusion_matrix`."""
    images: ImageCounts


def analyze_errors(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    num_images: int,
    *,
    area: Array | None = None,
    score_threshold: float = REPORT_SCORE_THRESHOLD,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> Analysis:
    """Analyze the errors of detections whose images are numbered from 0 to `num_images` - 1.

    `score_threshold` is that of `Analysis`; the other arguments are those of `evaluate_voc`.
    """
    num_classes = len(classes)
    outcomes = classify_outcomes(
        detections,
        ground_truth,
        num_classes,
        iou_threshold=iou_threshold,
        box_convention=box_convention,
    )
    kept = detections.score >= score_threshold
    kept_detections = detections.select(kept)
    kept_outcomes = outcomes.select(kept, ground_truth.difficult)
    return Analysis(
        curves=evaluate_voc(
            detections,
            ground_truth,
            classes,
            area=area,
            iou_threshold=iou_threshold,
            box_convention=box_convention,
        ),
        delta_ap=delta_ap(detections, ground_truth, num_classes, outcomes),
        score_threshold=score_threshold,
        counts=count_errors(kept_outcomes),
        confusion=confusion_matrix(kept_detections, ground_truth, num_classes, kept_outcomes),
        images=_count_images(kept_detections, ground_truth, kept_outcomes, num_images),
    )


def _count_images(
    detections: DetectionTable, ground_truth: GroundTruth, outcomes: Outcomes, num_images: int
) -> ImageCounts:
    tp = outcomes.kind == TRUE_POSITIVE
    fp = ~tp & (outcomes.kind != IGNORED)
    fn = ~outcomes.detected & ~ground_truth.difficult
    return ImageCounts(
        tp=np.bincount(detections.image[tp], minlength=num_images),
        fp=np.bincount(detections.image[fp], minlength=num_images),
        fn=np.bincount(ground_truth.image[fn], minlength=num_images),
    )
