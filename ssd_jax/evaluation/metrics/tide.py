"""What the false positives of an evaluation are, and what each kind of error costs.

After TIDE (Bolya et al., ECCV 2020, section 2): every false positive is given the one change that
would make it right, and the gain in mean AP if all of a kind were changed says what the kind costs.
Which detections are right is VOC's rule here, as in `evaluate_voc`, whose mean AP is gained.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.evaluation.metrics.voc_ap import (
    BoxConvention,
    DetectionTable,
    GroundTruth,
    average_precision,
    curve,
    match_detections,
    mean_of_known,
    pair_iou,
    pairs,
    rows_of_classes,
)

Array = np.ndarray[Any, Any]

FALSE_POSITIVES = ("wrong class", "poor box", "wrong class and poor box", "duplicate", "background")
"""The kinds of false positives."""

ERRORS = (*FALSE_POSITIVES, "missed")
"""The kinds of errors: false positives, and objects that are missed."""

OUTCOMES = ("right", "set aside", *FALSE_POSITIVES)
"""What a detection can be."""

_RIGHT, _SET_ASIDE, _WRONG_CLASS, _POOR_BOX, _BOTH, _DUPLICATE, _BACKGROUND = range(7)

_BLOCK = 1 << 17  # detections whose pairs with objects are in memory at once

BACKGROUND_IOU = 0.1
"""Below this IoU with every object a detection shows background."""


@dataclass(frozen=True)
class Outcomes:
    """What became of the detections [N] and of the objects [G] of an evaluation."""

    kind: Array
    """int64 [N], index into `OUTCOMES`."""
    object: Array
    """int64 [N], the row of the object that is found, or that would be if a wrong class or a poor
    box were mended; -1 for all others."""
    found: Array
    """bool [G]."""
    missed: Array
    """bool [G]: not difficult, not found, and no wrong class or poor box is all that is between."""

    def above(self, kept: Array, difficult: Array) -> "Outcomes":
        """Return the outcomes of the detections above a score alone.

        Detections of lower scores change nothing for them.

        Args:
            kept: bool [N], the detections of at least some score.
            difficult: bool [G], of the objects.
        """
        kind, target = self.kind[kept], self.object[kept]
        found = np.zeros_like(self.found)
        found[target[kind == _RIGHT]] = True
        missed = ~found & ~difficult
        missed[target[target >= 0]] = False
        return Outcomes(kind, target, found, missed)


def find_outcomes(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> Outcomes:
    """The outcome of each detection and of each object.

    A false positive is, by its highest IoU with the objects of its class in the image (same) and
    with those of other classes (other), the first of these that holds:

    - duplicate: same from the threshold on; a better detection has that object;
    - poor box: same from `BACKGROUND_IOU` on;
    - wrong class: other from the threshold on;
    - wrong class and poor box: other from `BACKGROUND_IOU` on;
    - background.

    The threshold is `iou_threshold`. Difficult objects count for `other` too: they are there.
    """
    count, objects = len(detections.label), len(ground_truth.label)
    kind = np.full(count, _BACKGROUND)
    target = np.full(count, -1)
    found = np.zeros(objects, bool)
    same = np.zeros(count)
    det_rows = rows_of_classes(detections.label, num_classes, "detections")
    gt_rows = rows_of_classes(ground_truth.label, num_classes, "ground truth")
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
        kind[det[matches.true_positive]] = _RIGHT
        kind[det[matches.ignored]] = _SET_ASIDE
        same[det] = matches.iou
        overlaps = matches.iou > 0
        target[det[overlaps]] = gt[matches.object[overlaps]]
        found[gt[matches.object[matches.true_positive]]] = True

    wrong = kind == _BACKGROUND
    low = min(BACKGROUND_IOU, iou_threshold)
    # The others are decided by their own class.
    undecided = np.flatnonzero(wrong & ((same < low) | (same == 0)))
    other, other_object = np.zeros(count), np.full(count, -1)
    for start in range(0, len(undecided), _BLOCK):
        rows = undecided[start : start + _BLOCK]
        other[rows], other_object[rows] = _of_other_classes(
            detections, rows, ground_truth, box_convention
        )
    kind[wrong & (other >= low) & (other > 0)] = _BOTH
    kind[wrong & (other >= iou_threshold) & (other > 0)] = _WRONG_CLASS
    kind[wrong & (same >= low) & (same > 0)] = _POOR_BOX
    kind[wrong & (same >= iou_threshold) & (same > 0)] = _DUPLICATE
    wrong_class = kind == _WRONG_CLASS
    target[wrong_class] = other_object[wrong_class]
    target[~np.isin(kind, (_RIGHT, _WRONG_CLASS, _POOR_BOX))] = -1

    missed = ~found & ~ground_truth.difficult
    missed[target[target >= 0]] = False
    return Outcomes(kind, target, found, missed)


def count_errors(outcomes: Outcomes) -> dict[str, int]:
    """The number of each of `ERRORS`."""
    counts = np.bincount(outcomes.kind, minlength=len(OUTCOMES))[2:]
    return dict(zip(ERRORS, [*map(int, counts), int(outcomes.missed.sum())], strict=True))


def gains(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    outcomes: Outcomes,
) -> dict[str, float]:
    """What mean AP (area under the curve) would gain if all errors of one kind were mended.

    For each of `ERRORS`: a wrong class or a poor box becomes right, or vanishes where its object
    has a detection already; other false positives vanish; missed objects are not asked for. The
    gains of all kinds do not add up to what is missing to 1: mending one brings others forth.
    """
    objects = np.bincount(
        ground_truth.label[~ground_truth.difficult], minlength=num_classes + 1
    ).astype(np.int64)
    asked = np.flatnonzero(objects[1:]) + 1
    right = outcomes.kind == _RIGHT
    kept = outcomes.kind != _SET_ASIDE
    rank = np.argsort(-detections.score, kind="stable")

    def mean_ap(label: Array, right: Array, kept: Array, objects: Array) -> float:
        order = rank[kept[rank]]
        right = right[order]
        rows = rows_of_classes(label[order], num_classes, "detections")
        return mean_of_known([_ap(right[rows[k - 1]], int(objects[k])) for k in asked])

    before = mean_ap(detections.label, right, kept, objects)
    after = {}
    for kind, name in enumerate(FALSE_POSITIVES, start=_WRONG_CLASS):
        of_kind = outcomes.kind == kind
        label, mended = detections.label.copy(), np.zeros_like(right)
        if kind in (_WRONG_CLASS, _POOR_BOX):
            mended = _first_of_each(outcomes, of_kind, rank, ground_truth.difficult)
            label[mended] = ground_truth.label[outcomes.object[mended]]
        after[name] = mean_ap(label, right | mended, kept & (mended | ~of_kind), objects)
    missed = np.bincount(ground_truth.label[outcomes.missed], minlength=num_classes + 1)
    after["missed"] = mean_ap(detections.label, right, kept, objects - missed)
    return {name: value - before for name, value in after.items()}


def confusion_matrix(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    num_classes: int,
    outcomes: Outcomes,
) -> Array:
    """How often an object of class i was told as class j, int64 [classes + 1, classes + 1].

    Row and column 0 are nothing: an object that nobody told, and a detection on no object or on
    one that is told already. What is right by VOC's rule is on the diagonal; of the others, by
    falling score, a wrong class takes its object if it is still free. Difficult objects, and what
    is set aside for them, do not count.
    """
    right = outcomes.kind == _RIGHT
    rank = np.argsort(-detections.score, kind="stable")
    wrong_class = outcomes.kind == _WRONG_CLASS
    told = right | _first_of_each(outcomes, wrong_class, rank, ground_truth.difficult)
    on_nothing = (outcomes.kind != _SET_ASIDE) & ~told
    untold = ~ground_truth.difficult
    untold[outcomes.object[told]] = False

    objects, found = ground_truth.label, detections.label
    of_object = [objects[outcomes.object[told]], 0 * found[on_nothing], objects[untold]]
    as_class = [found[told], found[on_nothing], 0 * objects[untold]]
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (np.concatenate(of_object), np.concatenate(as_class)), 1)
    return matrix


def _first_of_each(outcomes: Outcomes, among: Array, rank: Array, difficult: Array) -> Array:
    """Of the detections `among`, bool [N], the best of each object that is not found; bool [N]."""
    rows = rank[among[rank]]
    target = outcomes.object[rows]
    free = ~outcomes.found[target] & ~difficult[target]
    rows, target = rows[free], target[free]
    first = np.zeros(len(among), bool)
    first[rows[np.unique(target, return_index=True)[1]]] = True
    return first


def _ap(right: Array, num_objects: int) -> float:
    """AP of a class's detections by falling score; 1 where no object is left to find."""
    if num_objects == 0:
        return 1.0
    return average_precision(*curve(right, num_objects), metric="voc")


def _of_other_classes(
    detections: DetectionTable,
    rows: Array,
    ground_truth: GroundTruth,
    box_convention: BoxConvention,
) -> tuple[Array, Array]:
    """Return the highest IoU of detections with an object of another class in their image.

    Args:
        detections: all of them.
        rows: int [n], the ones that are asked for.
        ground_truth: all objects.
        box_convention: as for `evaluate_voc`.

    Returns:
        The IoU [n], 0 where none overlaps, and the object's row [n], the first of equals, -1 where
        none overlaps.
    """
    iou, best = np.zeros(len(rows)), np.full(len(rows), -1)
    row, gt = pairs(detections.image[rows], ground_truth.image)
    other = detections.label[rows][row] != ground_truth.label[gt]
    row, gt = row[other], gt[other]
    of_pair = pair_iou(detections.boxes[rows[row]], ground_truth.boxes[gt], box_convention)
    overlaps = of_pair > 0
    row, gt, of_pair = row[overlaps], gt[overlaps], of_pair[overlaps]
    if len(row) == 0:
        return iou, best
    # The pairs of a detection follow each other.
    start = np.flatnonzero(np.diff(row, prepend=-1))
    highest = np.maximum.reduceat(of_pair, start)
    is_best = of_pair == np.repeat(highest, np.diff(start, append=len(row)))
    iou[row[start]] = highest
    none = len(ground_truth.label)
    best[row[start]] = np.minimum.reduceat(np.where(is_best, gt, none), start)
    return iou, best
