"""PASCAL VOC's average precision, in NumPy.

The rule is that of the VOC devkit (VOCevaldet.m; Everingham et al., IJCV 2010, section 4.2): of a
class, the detections of all images are taken by falling score, each looks at the object of its
image that it overlaps most, and the first to reach an object finds it.

Boxes are (xmin, ymin, xmax, ymax) in the pixels of the annotation files. VOC counts pixels from 1
and a box covers its last one, so it is xmax - xmin + 1 wide: pixels="inclusive". With
pixels="exclusive" it is xmax - xmin wide, as for corners in [0, 1]. Both tables of an evaluation
must hold the same kind of boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Metric = Literal["voc", "voc07"]
Pixels = Literal["inclusive", "exclusive"]
Array = np.ndarray[Any, Any]

VOC_PIXELS = np.array([1, 1, 0, 0])
"""From continuous pixels to VOC's, which count from 1 and include the last one."""

# k / 10, so that a recall of exactly 3 objects in 10 reaches the point 0.3; np.arange(0, 1.1, 0.1)
# has 0.30000000000000004 there.
ELEVEN_POINTS = np.arange(11) / 10


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a data set, one a row.

    Raises ValueError where columns differ in length or a box is not finite.
    """

    image: Array
    """int [N], any number that names the image in both tables."""
    label: Array
    """int [N], from 1; k is the k-th class."""
    boxes: Array
    """float [N, 4], xmin, ymin, xmax, ymax."""
    difficult: Array
    """bool [N]; difficult objects are neither asked for nor held against a detection."""

    def __post_init__(self) -> None:
        _set_columns(self, "ground truth", image=np.int64, label=np.int64, difficult=np.bool_)


@dataclass(frozen=True)
class DetectionTable:
    """The detections of a data set, one a row.

    Raises ValueError where columns differ in length or a box or score is not finite.
    """

    image: Array
    """int [N], any number that names the image in both tables."""
    label: Array
    """int [N], from 1; k is the k-th class."""
    score: Array
    """float [N]; equal scores keep the order of the rows."""
    boxes: Array
    """float [N, 4], xmin, ymin, xmax, ymax."""

    def __post_init__(self) -> None:
        _set_columns(self, "detections", image=np.int64, label=np.int64, score=np.float64)


class Matches(NamedTuple):
    """What became of each detection of a class: bool [N] each, exactly one of them true."""

    true_positive: Array
    false_positive: Array
    ignored: Array


@dataclass(frozen=True)
class ClassResult:
    """The curve of one class, a point for each detection that counts, by falling score.

    Detections on difficult objects are no points of it.
    """

    name: str
    ap: float
    """Average precision, 0 to 1; nan for a class without objects."""
    num_objects: int
    """Objects that are not difficult."""
    num_detections: int
    """Detections, with those on difficult objects."""
    recall: Array
    """float64 [n]; nan for a class without objects."""
    precision: Array
    """float64 [n]."""
    scores: Array
    """float64 [n], falling."""


@dataclass(frozen=True)
class VocResult:
    """The evaluation of a data set and the rules that it went by."""

    metric: Metric
    iou_threshold: float
    pixels: Pixels
    classes: tuple[ClassResult, ...]

    @property
    def mean_ap(self) -> float:
        """Mean over the classes that have objects, 0 to 1; nan where none has."""
        values = [c.ap for c in self.classes if c.num_objects]
        return float(np.mean(values)) if values else float("nan")


def average_precision(recall: Array, precision: Array, *, metric: Metric) -> float:
    """The average precision, 0 to 1, of a curve [n] by falling score; 0 for an empty one.

    voc: the area under the precision that is made to fall, VOC 2010 and later. voc07: the mean
    over the recalls 0, 0.1, ..., 1 of the best precision at that recall or more, VOC 2007.
    """
    # Precision at this recall or more: the running maximum from the right.
    best = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    if metric == "voc07":
        return float(best[np.searchsorted(recall, ELEVEN_POINTS, side="left")].mean())
    if metric == "voc":
        return float(np.sum(np.diff(recall, prepend=0.0) * best[:-1]))
    raise ValueError(f"metric is {metric!r}; use voc or voc07")


def match_detections(
    image: Array,
    boxes: Array,
    gt_image: Array,
    gt_boxes: Array,
    gt_difficult: Array,
    *,
    iou_threshold: float = 0.5,
    pixels: Pixels = "inclusive",
) -> Matches:
    """Which of the detections [N] of one class, ordered by falling score, find an object of [G].

    Each looks only at the object of its image with the highest IoU, the first of equals, taken
    and difficult ones included. Below `iou_threshold`, or where the boxes do not overlap, it is
    a false positive. Else it is ignored on a difficult object, a true positive on one that no
    earlier detection took, and a false positive on one that is taken. The threshold itself is
    enough, as in the devkit and in Caffe; ssd.pytorch asks for more than it.
    """
    if pixels not in ("inclusive", "exclusive"):
        raise ValueError(f"pixels is {pixels!r}; use inclusive or exclusive")
    best_iou, best_gt = _best_objects(image, boxes, gt_image, gt_boxes, pixels)
    hit = (best_iou >= iou_threshold) & (best_iou > 0)
    ignored = np.zeros(len(image), bool)
    ignored[hit] = gt_difficult[best_gt[hit]]
    rows = np.flatnonzero(hit & ~ignored)
    true_positive = np.zeros(len(image), bool)
    true_positive[rows[np.unique(best_gt[rows], return_index=True)[1]]] = True
    return Matches(true_positive, ~(true_positive | ignored), ignored)


def evaluate_voc(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    *,
    metric: Metric = "voc",
    iou_threshold: float = 0.5,
    pixels: Pixels = "inclusive",
) -> VocResult:
    """The average precision of each of `classes`, where label k is classes[k - 1].

    An image counts if it is in either table. A class without objects that are not difficult has
    ap nan and does not enter the mean; ssd.pytorch's -1 did. Raises ValueError for a label
    outside 1..len(classes) and an unknown metric or pixels.
    """
    det_rows = _rows_of_classes(detections.label, len(classes), "detections")
    gt_rows = _rows_of_classes(ground_truth.label, len(classes), "ground truth")
    results = []
    for name, det, gt in zip(classes, det_rows, gt_rows, strict=True):
        det = det[np.argsort(-detections.score[det], kind="stable")]
        difficult = ground_truth.difficult[gt]
        matches = match_detections(
            detections.image[det],
            detections.boxes[det],
            ground_truth.image[gt],
            ground_truth.boxes[gt],
            difficult,
            iou_threshold=iou_threshold,
            pixels=pixels,
        )
        counted = ~matches.ignored
        true_positives = np.cumsum(matches.true_positive[counted])
        num_objects = int(np.sum(~difficult))
        recall = true_positives / (num_objects or np.nan)
        precision = true_positives / np.arange(1, len(true_positives) + 1)
        ap = average_precision(recall, precision, metric=metric)
        scores = detections.score[det][counted]
        results.append(
            ClassResult(
                name=name,
                ap=ap if num_objects else float("nan"),
                num_objects=num_objects,
                num_detections=len(det),
                recall=recall,
                precision=precision,
                scores=scores,
            )
        )
    return VocResult(metric, iou_threshold, pixels, tuple(results))


def _best_objects(
    image: Array, boxes: Array, gt_image: Array, gt_boxes: Array, pixels: Pixels
) -> tuple[Array, Array]:
    """The highest IoU [N] with an object of the detection's image, and that object's row [N].

    0 and 0 for a detection in an image without objects.
    """
    order = np.argsort(gt_image, kind="stable")
    gt_image = gt_image[order]
    first = np.searchsorted(gt_image, image, side="left")
    count = np.searchsorted(gt_image, image, side="right") - first
    best_iou, best_gt = np.zeros(len(image)), np.zeros(len(image), np.int64)
    some = np.flatnonzero(count)
    if len(some) == 0:
        return best_iou, best_gt
    # Every pair of a detection and an object of its image, one detection's pairs in a row.
    first, count = first[some], count[some]
    start = np.cumsum(count) - count
    pair_gt = np.arange(count.sum()) + np.repeat(first - start, count)
    iou = _iou(boxes[np.repeat(some, count)], gt_boxes[order[pair_gt]], pixels)
    highest = np.maximum.reduceat(iou, start)
    is_best = iou == np.repeat(highest, count)
    best_iou[some] = highest
    best_gt[some] = order[np.minimum.reduceat(np.where(is_best, pair_gt, len(order)), start)]
    return best_iou, best_gt


def _iou(a: Array, b: Array, pixels: Pixels) -> Array:
    """The IoU of each pair of rows of a and b, [n, 4] each; 0 where they do not overlap."""
    last = 1.0 if pixels == "inclusive" else 0.0
    a, b = a.T, b.T
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]) + last
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]) + last
    overlap = (width > 0) & (height > 0)
    inter = width * height
    area_a = (a[2] - a[0] + last) * (a[3] - a[1] + last)
    area_b = (b[2] - b[0] + last) * (b[3] - b[1] + last)
    # Boxes that overlap have areas above 0, so the union is safe to divide by.
    union = np.where(overlap, area_a + area_b - inter, 1.0)
    return np.where(overlap, inter / union, 0.0)


def _rows_of_classes(label: Array, num_classes: int, what: str) -> list[Array]:
    """The rows of each label 1..num_classes, in the order of the table."""
    outside = (label < 1) | (label > num_classes)
    if outside.any():
        raise ValueError(
            f"{what} have label {label[outside][0]} and there are {num_classes} classes; "
            f"use 1 to {num_classes}, 0 is background"
        )
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(1, num_classes + 1), side="right")
    return np.split(order, ends)[:num_classes]


def _set_columns(table: Any, what: str, **kinds: type) -> None:
    """Make the columns of a frozen table arrays of `kinds` and its boxes float64 [N, 4]."""
    boxes = np.asarray(table.boxes, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{what}: boxes has shape {boxes.shape}; give [N, 4]")
    columns: dict[str, Array] = {
        name: np.asarray(getattr(table, name), kind) for name, kind in kinds.items()
    }
    for name, column in columns.items():
        if column.shape != (len(boxes),):
            raise ValueError(
                f"{what}: {name} has shape {column.shape} and there are {len(boxes)} boxes; "
                "give one value a box"
            )
    for name, column in {**columns, "boxes": boxes}.items():
        if column.dtype == np.float64 and not np.isfinite(column).all():
            row = int(np.argwhere(~np.isfinite(column))[0][0])
            raise ValueError(f"{what}: {name} of row {row} is not finite: {column[row]}")
        object.__setattr__(table, name, column)
