"""Types of detection errors and their cost in AP, after TIDE (Bolya et al., ECCV 2020, section 2).

Every false positive has the type of the one correction that would make it a true positive. The
cost of a type is its delta AP: the increase of mean AP if all errors of the type were corrected.
True positives and mean AP are those of `evaluate_voc`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.data.tables import DetectionTable, GroundTruth, rows_by_class, split_by_label
from ssd_jax.evaluation.metrics.matching import BoxConvention, best_objects
from ssd_jax.evaluation.metrics.voc_ap import (
    average_precision,
    match_detections,
    nan_mean,
    precision_recall_curve,
)

Array = np.ndarray[Any, Any]

FALSE_POSITIVES = ("classification", "localization", "both", "duplicate", "background")
"""The types of false positives."""

ERRORS = (*FALSE_POSITIVES, "missed")
"""The types of errors: those of false positives, and missed objects."""

OUTCOMES = ("true positive", "ignored", *FALSE_POSITIVES)
"""The possible outcomes of a detection."""

(
    TRUE_POSITIVE,
    IGNORED,
    _CLASSIFICATION,
    _LOCALIZATION,
    _BOTH,
    _DUPLICATE,
    _BACKGROUND,
) = range(len(OUTCOMES))

_BLOCK = 1 << 17  # detections whose pairs with objects are in memory at once

BACKGROUND_IOU = 0.1
"""A false positive whose IoU with every object is lower is a background error."""


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of the detections [N] and of the objects [G] of an evaluation."""

    kind: Array
    """int64 [N], index into `OUTCOMES`."""
    object: Array
    """int64 [N], the row of the object that the detection matches, or would match if its
    classification or localization error were corrected; -1 for all others."""
    detected: Array
    """bool [G], objects with a true positive."""
    missed: Array
    """bool [G], objects, not difficult, that neither a true positive nor a classification or
    localization error covers."""

    def select(self, kept: Array, difficult: Array) -> "Outcomes":
        """Return the outcomes of the detections above some score alone.

        Detections of lower scores do not affect them.

        Args:
            kept: bool [N], detections of at least some score.
            difficult: bool [G], of the objects.
        """
        return _outcomes(self.kind[kept], self.object[kept], difficult)


def _outcomes(kind: Array, target: Array, difficult: Array) -> Outcomes:
    """Derive the outcomes of the objects from those of the detections."""
    detected = np.zeros(len(difficult), bool)
    detected[target[kind == TRUE_POSITIVE]] = True
    missed = ~detected & ~difficult
    missed[target[target >= 0]] = False
    return Outcomes(kind, target, detected, missed)


def classify_outcomes(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> Outcomes:
    """Determine the outcome of each detection and of each object.

    The type of a false positive depends on its highest IoU with the objects of its class in the
    image (same) and with those of other classes (other), t being `iou_threshold`. It is the first
    of these that applies:

    - duplicate: same >= t, but a detection with a higher score matches the object;
    - localization: same >= `BACKGROUND_IOU`;
    - classification: other >= t;
    - both: other >= `BACKGROUND_IOU`;
    - background.

    Difficult objects count as objects of other classes too.
    """
    count = len(detections.label)
    kind = np.full(count, _BACKGROUND)
    target = np.full(count, -1)
    same = np.zeros(count)
    det_rows = rows_by_class(detections, num_classes)
    gt_rows = rows_by_class(ground_truth, num_classes)
    for det, gt in zip(det_rows, gt_rows, strict=True):
        det = det[np.argsort(-detections.score[det], kind="stable")]
        matches = match_detections(
            detections.image[det],
            detections.boxes[det],
            ground_truth.image[gt],
            ground_truth.boxes[gt],
            ground_truth.difficult[gt],
            iou_threshold=iou_threshold,
            box_convention=box_convention,
        )
        kind[det[matches.true_positive]] = TRUE_POSITIVE
        kind[det[matches.ignored]] = IGNORED
        same[det] = matches.iou
        overlaps = matches.iou > 0
        target[det[overlaps]] = gt[matches.object[overlaps]]

    false_positive = kind == _BACKGROUND
    low = min(BACKGROUND_IOU, iou_threshold)
    # The type of all others follows from the objects of their class.
    undecided = np.flatnonzero(false_positive & ((same < low) | (same == 0)))
    other, other_object = np.zeros(count), np.full(count, -1)
    for start in range(0, len(undecided), _BLOCK):
        rows = undecided[start : start + _BLOCK]
        other[rows], other_object[rows] = best_objects(
            detections.image[rows],
            detections.boxes,
            rows,
            ground_truth.image,
            ground_truth.boxes,
            box_convention,
            labels=(detections.label[rows], ground_truth.label),
        )
    # In ascending order of precedence.
    for error, iou, threshold in (
        (_BOTH, other, low),
        (_CLASSIFICATION, other, iou_threshold),
        (_LOCALIZATION, same, low),
        (_DUPLICATE, same, iou_threshold),
    ):
        kind[false_positive & (iou >= threshold) & (iou > 0)] = error
    target = np.where(kind == _CLASSIFICATION, other_object, target)
    target[~np.isin(kind, (TRUE_POSITIVE, _CLASSIFICATION, _LOCALIZATION))] = -1
    return _outcomes(kind, target, ground_truth.difficult)


def count_errors(outcomes: Outcomes) -> dict[str, int]:
    """Count the errors of each type in `ERRORS`."""
    counts = np.bincount(outcomes.kind, minlength=len(OUTCOMES))[_CLASSIFICATION:]
    return dict(zip(ERRORS, [*map(int, counts), int(outcomes.missed.sum())], strict=True))


def delta_ap(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    outcomes: Outcomes,
) -> dict[str, float]:
    """Compute the increase of mean AP (metric voc) if all errors of one type were corrected.

    For each type in `ERRORS`: a classification or localization error becomes a true positive, or
    is removed if its object has a detection already; other false positives are removed; missed
    objects are not required. The values do not add up to the difference of the mean AP and 1, as
    correcting one type reveals errors of others.
    """
    objects = np.bincount(
        ground_truth.label[~ground_truth.difficult], minlength=num_classes
    ).astype(np.int64)
    required = np.flatnonzero(objects)
    tp = outcomes.kind == TRUE_POSITIVE
    counted = outcomes.kind != IGNORED
    rank = np.argsort(-detections.score, kind="stable")

    def mean_ap(label: Array, tp: Array, counted: Array, objects: Array) -> float:
        order = rank[counted[rank]]
        tp = tp[order]
        rows = split_by_label(label[order], num_classes)
        return nan_mean([_ap(tp[rows[k]], int(objects[k])) for k in required])

    before = mean_ap(detections.label, tp, counted, objects)
    after = {}
    for kind, name in enumerate(FALSE_POSITIVES, start=_CLASSIFICATION):
        of_kind = outcomes.kind == kind
        label, corrected = detections.label.copy(), np.zeros_like(tp)
        if kind in (_CLASSIFICATION, _LOCALIZATION):
            corrected = _first_of_each_object(outcomes, of_kind, rank, ground_truth.difficult)
            label[corrected] = ground_truth.label[outcomes.object[corrected]]
        after[name] = mean_ap(label, tp | corrected, counted & (corrected | ~of_kind), objects)
    missed = np.bincount(ground_truth.label[outcomes.missed], minlength=num_classes)
    after["missed"] = mean_ap(detections.label, tp, counted, objects - missed)
    return {name: value - before for name, value in after.items()}


def confusion_matrix(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    outcomes: Outcomes,
) -> Array:
    """Count how often an object of class i is predicted as class j.

    True positives are on the diagonal. In descending order of score, a classification error is
    assigned to its object if that is still unassigned. Difficult objects and ignored detections do
    not count.

    Returns:
        int64 [classes + 1, classes + 1]. The last row and column are background: detections that
        are assigned to no object, and objects that no detection is assigned to.
    """
    rank = np.argsort(-detections.score, kind="stable")
    classification = outcomes.kind == _CLASSIFICATION
    assigned = (outcomes.kind == TRUE_POSITIVE) | _first_of_each_object(
        outcomes, classification, rank, ground_truth.difficult
    )
    unassigned = (outcomes.kind != IGNORED) & ~assigned
    undetected = ~ground_truth.difficult
    undetected[outcomes.object[assigned]] = False

    gt_label, label = ground_truth.label, detections.label
    background = num_classes
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (gt_label[outcomes.object[assigned]], label[assigned]), 1)
    matrix[background, :num_classes] = np.bincount(label[unassigned], minlength=num_classes)
    matrix[:num_classes, background] = np.bincount(gt_label[undetected], minlength=num_classes)
    return matrix


def _first_of_each_object(
    outcomes: Outcomes, candidates: Array, rank: Array, difficult: Array
) -> Array:
    """Select the candidate with the highest score of each object without a true positive.

    Args:
        outcomes: of all detections.
        candidates: bool [N].
        rank: int [N], rows of the detections in descending order of score.
        difficult: bool [G], of the objects.

    Returns:
        bool [N].
    """
    rows = rank[candidates[rank]]
    target = outcomes.object[rows]
    free = ~outcomes.detected[target] & ~difficult[target]
    rows, target = rows[free], target[free]
    first = np.zeros(len(candidates), bool)
    first[rows[np.unique(target, return_index=True)[1]]] = True
    return first


def _ap(true_positive: Array, num_objects: int) -> float:
    """Compute the AP of a class's detections in descending order of score; 1 without objects."""
    if num_objects == 0:
        return 1.0
    return average_precision(*precision_recall_curve(true_positive, num_objects), metric="voc")
