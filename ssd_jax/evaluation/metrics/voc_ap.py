"""PASCAL VOC's average precision, in NumPy.

The protocol is that of the VOC devkit (VOCevaldet.m; Everingham et al., IJCV 2010, section 4.2).
The detections of a class in all images are processed in descending order of score. Each is
compared with the object of its image that has the highest IoU; the first detection of an object is
a true positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ssd_jax.data.tables import DetectionTable, GroundTruth, object_areas, rows_by_class
from ssd_jax.evaluation.metrics.class_metrics import ClassMetrics
from ssd_jax.evaluation.metrics.matching import (
    BoxConvention,
    best_objects,
    box_areas,
    sort_by_score,
)

Metric = Literal["voc", "voc07"]
Array = np.ndarray[Any, Any]

# k / 10, so that a recall of exactly 3 in 10 objects reaches the point 0.3; np.arange(0, 1.1, 0.1)
# contains 0.30000000000000004.
ELEVEN_POINTS = np.arange(11) / 10

SIZES = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, np.inf)}
"""COCO's size ranges small, medium and large: smallest and largest area (square pixels), both
included."""


class Matches(NamedTuple):
    """The match of each detection of a class.

    The first three fields are bool [N], exactly one of them true.
    """

    true_positive: Array
    false_positive: Array
    ignored: Array
    iou: Array
    """float64 [N], the highest IoU with an object of the image; 0 without overlap."""
    object: Array
    """int64 [N], that object's row; arbitrary where the IoU is 0."""


@dataclass(frozen=True)
class ClassResult(ClassMetrics):
    """AP and precision-recall curve of one class.

    The curve has one point per detection in descending order of score; ignored detections (on
    difficult objects) have none.
    """

    recall: Array
    """float64 [n]; nan for a class without objects."""
    precision: Array
    """float64 [n]."""
    scores: Array
    """float64 [n], in descending order."""


@dataclass(frozen=True)
class VocResult:
    """VOC's AP of a dataset, with the settings that it was computed with."""

    metric: Metric
    iou_threshold: float
    box_convention: BoxConvention
    classes: tuple[ClassResult, ...]

    @property
    def mean_ap(self) -> float:
        """Mean AP of the classes with objects, 0 to 1; nan if there are none."""
        return nan_mean([c.ap for c in self.classes])

    @property
    def mean_by_size(self) -> tuple[float, float, float]:
        """Mean AP of small, medium and large objects, of the classes that have some."""
        small, medium, large = (nan_mean([c.ap_by_size[k] for c in self.classes]) for k in range(3))
        return small, medium, large


def nan_mean(values: Sequence[float] | Array) -> float:
    """Compute the mean of the values that are not nan; nan if all are."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")


def average_precision(recall: Array, precision: Array, *, metric: Metric) -> float:
    """Compute the average precision of a curve [n] in descending order of score.

    Args:
        recall: after each detection.
        precision: after each detection.
        metric: voc: the area under the monotonically decreasing precision (VOC 2010 and later).
            voc07: the mean over the recalls 0, 0.1, ..., 1 of the highest precision at that recall
            or above (VOC 2007).

    Returns:
        A number from 0 to 1; 0 for an empty curve.
    """
    # The highest precision at this recall or above: the running maximum from the right.
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    if metric == "voc07":
        return float(envelope[np.searchsorted(recall, ELEVEN_POINTS, side="left")].mean())
    if metric == "voc":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1]))
    raise ValueError(f"metric is {metric!r}; use voc or voc07")


def match_detections(
    image: Array,
    boxes: Array,
    gt_image: Array,
    gt_boxes: Array,
    gt_difficult: Array,
    *,
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> Matches:
    """Match the detections [N] of one class, in descending order of score, to its objects [G].

    Each detection is compared with the object of its image that has the highest IoU, the first of
    equals, even if that object is matched already or difficult. Below `iou_threshold`, or without
    overlap, it is a false positive. Otherwise it is ignored if the object is difficult, a true
    positive if no earlier detection matched it, and a false positive if one did. An IoU equal to
    the threshold suffices, as in the devkit and in Caffe; ssd.pytorch requires a higher one.
    """
    rows = np.arange(len(boxes))
    best_iou, best_gt = best_objects(image, boxes, rows, gt_image, gt_boxes, box_convention)
    hits = _hits(best_iou, iou_threshold)
    true_positive, counted = _assign(hits, best_gt, gt_difficult, np.ones(len(rows), bool))
    return Matches(true_positive, counted & ~true_positive, ~counted, best_iou, best_gt)


def _hits(best_iou: Array, iou_threshold: float) -> Array:
    """Return the rows of the detections that reach the IoU threshold."""
    return np.flatnonzero((best_iou >= iou_threshold) & (best_iou > 0))


def _assign(
    hits: Array, best_gt: Array, gt_ignored: Array, countable: Array
) -> tuple[Array, Array]:
    """Assign objects to detections [N] in descending order of score.

    Args:
        hits: rows of the detections that reach the IoU threshold.
        best_gt: int [N], the object with the highest IoU.
        gt_ignored: bool [G], objects whose hits are ignored.
        countable: bool [N], detections that count as false positives if they match no object.

    Returns:
        Masks [N] of the true positives and of all detections that count.
    """
    ignored = gt_ignored[best_gt[hits]]
    rows = hits[~ignored]
    true_positive, counted = np.zeros(len(countable), bool), countable.copy()
    true_positive[rows[np.unique(best_gt[rows], return_index=True)[1]]] = True
    counted[hits[ignored]] = False
    return true_positive, counted | true_positive


def evaluate_voc(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    *,
    area: Array | None = None,
    metric: Metric = "voc",
    iou_threshold: float = 0.5,
    box_convention: BoxConvention = "inclusive",
) -> VocResult:
    """Compute the average precision of each class.

    An image counts if it is in either table. A class without objects (difficult ones apart) has
    AP nan and is excluded from the mean; ssd.pytorch included it as -1.

    Args:
        detections: in any order.
        ground_truth: in any order.
        classes: name of each class id.
        area: float [N], area of each object (square pixels), for AP by size; None: the area of its
            box. AP by size follows COCO: objects of other sizes are ignored like difficult ones,
            and so are false positives whose box has another size.
        metric: see `average_precision`.
        iou_threshold: lowest IoU of a true positive.
        box_convention: width of a box, see `BoxConvention`.

    Raises:
        ValueError: a label is out of range, or `metric` or `box_convention` is unknown.
    """
    areas = box_areas(ground_truth.boxes, box_convention) if area is None else area
    gt_sizes = _size_bits(object_areas(areas, ground_truth))
    det_sizes = _size_bits(box_areas(detections.boxes, box_convention))
    det_rows = rows_by_class(detections, len(classes))
    gt_rows = rows_by_class(ground_truth, len(classes))
    results = []
    for name, det, gt in zip(classes, det_rows, gt_rows, strict=True):
        # Gather in the order of the table first, so that memory is read sequentially.
        image, score, sizes = detections.image[det], detections.score[det], det_sizes[det]
        order = sort_by_score(score)
        det, image, score, sizes = det[order], image[order], score[order], sizes[order]
        difficult = ground_truth.difficult[gt]
        best_iou, best_gt = best_objects(
            image,
            detections.boxes,
            det,
            ground_truth.image[gt],
            ground_truth.boxes[gt],
            box_convention,
        )
        hits = _hits(best_iou, iou_threshold)
        true_positive, counted = _assign(hits, best_gt, difficult, np.ones(len(det), bool))
        num_objects = int(np.sum(~difficult))
        recall, precision = precision_recall_curve(true_positive[counted], num_objects)
        by_size = []
        for size in range(len(SIZES)):
            ignored = difficult | (gt_sizes[gt] & (1 << size) == 0)
            matches = _assign(hits, best_gt, ignored, sizes & (1 << size) != 0)
            by_size.append(_ap_of_matches(*matches, int(np.sum(~ignored)), metric))
        results.append(
            ClassResult(
                name=name,
                ap=_ap_of_matches(true_positive, counted, num_objects, metric),
                num_objects=num_objects,
                num_detections=len(det),
                recall=recall,
                precision=precision,
                scores=score[counted],
                ap_by_size=(by_size[0], by_size[1], by_size[2]),
            )
        )
    return VocResult(metric, iou_threshold, box_convention, tuple(results))


def _size_bits(area: Array) -> Array:
    """Return the sizes of areas [N] as uint8: bit k is set for the k-th range of `SIZES`."""
    sizes = np.zeros(len(area), np.uint8)
    for k, (smallest, largest) in enumerate(SIZES.values()):
        sizes |= ((smallest <= area) & (area <= largest)).view(np.uint8) << k
    return sizes


def precision_recall_curve(true_positive: Array, num_objects: int) -> tuple[Array, Array]:
    """Compute recall and precision after each detection, in descending order of score.

    Args:
        true_positive: bool [n].
        num_objects: number of objects; 0 gives a recall of nan.

    Returns:
        recall and precision, float64 [n] each.
    """
    tp = np.cumsum(true_positive)
    return tp / (num_objects or np.nan), tp / np.arange(1, len(tp) + 1)


def _ap_of_matches(true_positive: Array, counted: Array, num_objects: int, metric: Metric) -> float:
    """Compute the AP from masks [N] in descending order of score; nan without objects."""
    # Between true positives the precision only decreases, so their points alone give the same AP.
    rank = np.cumsum(counted)[true_positive]
    tp = np.arange(1, len(rank) + 1)
    ap = average_precision(tp / (num_objects or np.nan), tp / rank, metric=metric)
    return ap if num_objects else float("nan")
