"""What lies behind the figures of an evaluation: curves, errors, confusions, best and worst images.

All of it goes by VOC's rule at one IoU, whatever metrics were asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.evaluation.metrics.tide import (
    OUTCOMES,
    Outcomes,
    confusion_matrix,
    count_errors,
    find_outcomes,
    gains,
)
from ssd_jax.evaluation.metrics.voc_ap import (
    BoxConvention,
    DetectionTable,
    GroundTruth,
    VocResult,
    evaluate_voc,
)

Array = np.ndarray[Any, Any]

REPORT_SCORE = 0.3
"""Score from which a detection is counted and drawn. An evaluation keeps up to 200 of an image,
down to 0.01, which belong to the curves and which nobody who uses a detector looks at."""


@dataclass(frozen=True)
class ImageCounts:
    """What the images have; int64 [images] each."""

    right: Array
    """Detections that are right."""
    wrong: Array
    """False positives."""
    missing: Array
    """Objects, not difficult, that no detection finds."""

    def f1(self) -> Array:
        """Harmonic mean of an image's precision and recall, float64; nan with nothing in it."""
        both = 2 * self.right
        total = both + self.wrong + self.missing
        return np.where(total > 0, both / np.maximum(total, 1), np.nan)

    def worst(self, count: int) -> list[int]:
        """Up to `count` images with errors, lowest F1 first, of equals the one with most errors."""
        errors = self.wrong + self.missing
        order = np.lexsort((-errors, self.f1()))
        return [int(i) for i in order if errors[i] > 0][:count]

    def best(self, count: int) -> list[int]:
        """Up to `count` images with something right, highest F1 first, of equals most objects."""
        order = np.lexsort((-self.right, -self.f1()))
        return [int(i) for i in order if self.right[i] > 0][:count]


@dataclass(frozen=True)
class Analysis:
    """The analysis of the detections of a data set."""

    curves: VocResult
    """Of all detections, area under the curve."""
    gains: dict[str, float]
    """What mean AP would gain if all errors of a kind were mended, see `errors.gains`."""
    score: float
    """What follows counts detections from this score on."""
    counts: dict[str, int]
    """The number of each of `errors.ERRORS`."""
    confusion: Array
    """int64 [classes + 1, classes + 1], see `errors.confusion_matrix`."""
    images: ImageCounts


def analyse(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    num_images: int,
    *,
    area: Array | None = None,
    score: float = REPORT_SCORE,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> Analysis:
    """The analysis of detections whose images are numbered from 0 to `num_images` - 1.

    `area`, `iou_threshold` and `box_convention` as for `evaluate_voc`; `score` as
    `Analysis.score`.
    """
    k = len(classes)
    everything = find_outcomes(
        detections, ground_truth, k, iou_threshold=iou_threshold, box_convention=box_convention
    )
    is_told = detections.score >= score
    told = detections.select(is_told)
    outcomes = everything.above(is_told, ground_truth.difficult)
    return Analysis(
        curves=evaluate_voc(
            detections,
            ground_truth,
            classes,
            area=area,
            iou_threshold=iou_threshold,
            box_convention=box_convention,
        ),
        gains=gains(detections, ground_truth, k, everything),
        score=score,
        counts=count_errors(outcomes),
        confusion=confusion_matrix(told, ground_truth, k, outcomes),
        images=_count_images(told, ground_truth, outcomes, num_images),
    )


def _count_images(
    detections: DetectionTable, ground_truth: GroundTruth, outcomes: Outcomes, num_images: int
) -> ImageCounts:
    right = outcomes.kind == OUTCOMES.index("right")
    wrong = ~right & (outcomes.kind != OUTCOMES.index("set aside"))
    missing = ~outcomes.found & ~ground_truth.difficult
    return ImageCounts(
        right=np.bincount(detections.image[right], minlength=num_images),
        wrong=np.bincount(detections.image[wrong], minlength=num_images),
        missing=np.bincount(ground_truth.image[missing], minlength=num_images),
    )
