"""PASCAL VOC's average precision, in NumPy.

The rule is that of the VOC devkit (VOCevaldet.m; Everingham et al., IJCV 2010, section 4.2): of a
class, the detections of all images are taken by falling score, each looks at the object of its
image that it overlaps most, and the first to reach an object finds it.

Boxes are (xmin, ymin, xmax, ymax) in the pixels of the annotation files. VOC counts pixels from 1
and a box covers its last one, so it is xmax - xmin + 1 wide: box_convention="inclusive". With
pixels="exclusive" it is xmax - xmin wide, as for corners in [0, 1]. Both tables of an evaluation
must hold the same kind of boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Metric = Literal["voc", "voc07"]
BoxConvention = Literal["inclusive", "exclusive"]
Array = np.ndarray[Any, Any]

VOC_PIXELS = np.array([1, 1, 0, 0])
"""From continuous pixels to VOC's, which count from 1 and include the last one."""

# k / 10, so that a recall of exactly 3 objects in 10 reaches the point 0.3; np.arange(0, 1.1, 0.1)
# has 0.30000000000000004 there.
ELEVEN_POINTS = np.arange(11) / 10

SIZES = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, np.inf)}
"""COCO's sizes of objects, small, medium and large: the least and the largest square pixels, both
of them included."""


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

    def select(self, kept: Array) -> "DetectionTable":
        """The rows that `kept`, bool [N] or indices, chooses."""
        return DetectionTable(
            self.image[kept], self.label[kept], self.score[kept], self.boxes[kept]
        )


class Matches(NamedTuple):
    """What became of each detection of a class, and the object that it looked at.

    The first three are bool [N], exactly one of them true.
    """

    true_positive: Array
    false_positive: Array
    ignored: Array
    iou: Array
    """float64 [N], the highest IoU with an object of the image; 0 where none overlaps."""
    object: Array
    """int64 [N], that object's row; any where the IoU is 0."""


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
    ap_by_size: tuple[float, float, float] = (float("nan"),) * 3
    """Average precision of the small, medium and large objects alone, see `SIZES`; nan where there
    is none."""


@dataclass(frozen=True)
class VocResult:
    """The evaluation of a data set and the rules that it went by."""

    metric: Metric
    iou_threshold: float
    box_convention: BoxConvention
    classes: tuple[ClassResult, ...]

    @property
    def mean_ap(self) -> float:
        """Mean over the classes that have objects, 0 to 1; nan where none has."""
        return mean_of_known([c.ap for c in self.classes])

    @property
    def mean_by_size(self) -> tuple[float, float, float]:
        """The same of small, medium and large objects alone, over the classes that have some."""
        small, medium, large = (
            mean_of_known([c.ap_by_size[k] for c in self.classes]) for k in range(3)
        )
        return small, medium, large


def mean_of_known(values: Sequence[float] | Array) -> float:
    """The mean of the values that are not nan; nan where all are."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


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
    box_convention: BoxConvention = "inclusive",
) -> Matches:
    """Which of the detections [N] of one class, ordered by falling score, find an object of [G].

    Each looks only at the object of its image with the highest IoU, the first of equals, taken
    and difficult ones included. Below `iou_threshold`, or where the boxes do not overlap, it is
    a false positive. Else it is ignored on a difficult object, a true positive on one that no
    earlier detection took, and a false positive on one that is taken. The threshold itself is
    enough, as in the devkit and in Caffe; ssd.pytorch asks for more than it.
    """
    rows = np.arange(len(boxes))
    best_iou, best_gt = _best_objects(image, boxes, rows, gt_image, gt_boxes, box_convention)
    hits = _hits(best_iou, iou_threshold)
    true_positive, counted = _decide(hits, best_gt, gt_difficult, np.ones(len(rows), bool))
    return Matches(true_positive, counted & ~true_positive, ~counted, best_iou, best_gt)


def _hits(best_iou: Array, iou_threshold: float) -> Array:
    """The rows of detections that overlap their object enough."""
    return np.flatnonzero((best_iou >= iou_threshold) & (best_iou > 0))


def _decide(hits: Array, best_gt: Array, set_aside: Array, may_fail: Array) -> tuple[Array, Array]:
    """Of detections [N] by falling score: which find an object first, and which count, bool [N].

    `set_aside`, bool [G], are objects whose hits do not count; `may_fail`, bool [N], the
    detections that count as false positives.
    """
    ignored = set_aside[best_gt[hits]]
    rows = hits[~ignored]
    true_positive, counted = np.zeros(len(may_fail), bool), may_fail.copy()
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
    """The average precision of each of `classes`, where label k is classes[k - 1].

    An image counts if it is in either table. A class without objects that are not difficult has
    ap nan and does not enter the mean; ssd.pytorch's -1 did.

    `area` is float [N], square pixels of each object; None: of its box. By it the precision of
    small, medium and large objects is taken, as COCO does and VOC does not: objects of other sizes
    are set aside like difficult ones, and so are false positives whose box has another size.

    Raises ValueError for a label outside 1..len(classes) and an unknown metric or box_convention.
    """
    areas = (
        box_areas(ground_truth.boxes, box_convention)
        if area is None
        else np.asarray(area, np.float64)
    )
    if areas.shape != ground_truth.label.shape:
        raise ValueError(
            f"area has shape {areas.shape} and there are {len(ground_truth.label)} objects; "
            "give one value an object"
        )
    gt_sizes, det_sizes = (_sizes(a) for a in (areas, box_areas(detections.boxes, box_convention)))
    det_rows = rows_of_classes(detections.label, len(classes), "detections")
    gt_rows = rows_of_classes(ground_truth.label, len(classes), "ground truth")
    results = []
    for name, det, gt in zip(classes, det_rows, gt_rows, strict=True):
        # In the order of the table first: what is far apart in memory is then read once.
        image, score, sizes = detections.image[det], detections.score[det], det_sizes[det]
        order = _by_falling(score)
        det, image, score, sizes = det[order], image[order], score[order], sizes[order]
        difficult = ground_truth.difficult[gt]
        best_iou, best_gt = _best_objects(
            image,
            detections.boxes,
            det,
            ground_truth.image[gt],
            ground_truth.boxes[gt],
            box_convention,
        )
        hits = _hits(best_iou, iou_threshold)
        true_positive, counted = _decide(hits, best_gt, difficult, np.ones(len(det), bool))
        num_objects = int(np.sum(~difficult))
        recall, precision = curve(true_positive[counted], num_objects)
        by_size = []
        for size in range(len(SIZES)):
            others = difficult | (gt_sizes[gt] & (1 << size) == 0)
            of_size = _decide(hits, best_gt, others, sizes & (1 << size) != 0)
            by_size.append(_ap_of(*of_size, int(np.sum(~others)), metric))
        results.append(
            ClassResult(
                name=name,
                ap=_ap_of(true_positive, counted, num_objects, metric),
                num_objects=num_objects,
                num_detections=len(det),
                recall=recall,
                precision=precision,
                scores=score[counted],
                ap_by_size=(by_size[0], by_size[1], by_size[2]),
            )
        )
    return VocResult(metric, iou_threshold, box_convention, tuple(results))


def _sizes(area: Array) -> Array:
    """The sizes that an area [N] has, uint8: bit k for the k-th of `SIZES`."""
    sizes = np.zeros(len(area), np.uint8)
    for k, (least, most) in enumerate(SIZES.values()):
        sizes |= ((least <= area) & (area <= most)).view(np.uint8) << k
    return sizes


def curve(true_positive: Array, num_objects: int) -> tuple[Array, Array]:
    """(recall, precision), float64 [n] each, after each of the detections [n] by falling score.

    The recall is nan where there is no object.
    """
    found = np.cumsum(true_positive)
    return found / (num_objects or np.nan), found / np.arange(1, len(found) + 1)


def _ap_of(true_positive: Array, counted: Array, num_objects: int, metric: Metric) -> float:
    """The average precision of detections, bool [N] each, by falling score; nan without objects."""
    # Between true positives the precision only falls, so their points alone give the same.
    rank = np.cumsum(counted)[true_positive]
    found = np.arange(1, len(rank) + 1)
    ap = average_precision(found / (num_objects or np.nan), found / rank, metric=metric)
    return ap if num_objects else float("nan")


def _by_falling(score: Array) -> Array:
    """The rows [N] by falling score, equal ones in their order."""
    # NumPy's stable sort takes several times as long as the other; few scores are equal.
    order = np.argsort(-score)
    equal = np.diff(score[order]) == 0
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, -score[rows]))]
    return order


def box_areas(boxes: Array, box_convention: BoxConvention) -> Array:
    """The square pixels [N] of boxes [N, 4]."""
    last = _last_pixel(box_convention)
    return (boxes[:, 2] - boxes[:, 0] + last) * (boxes[:, 3] - boxes[:, 1] + last)


def _last_pixel(box_convention: BoxConvention) -> float:
    """What a box is wider than the difference of its corners."""
    if box_convention not in ("inclusive", "exclusive"):
        raise ValueError(f"box_convention is {box_convention!r}; use inclusive or exclusive")
    return 1.0 if box_convention == "inclusive" else 0.0


def _best_objects(
    image: Array,
    boxes: Array,
    rows: Array,
    gt_image: Array,
    gt_boxes: Array,
    box_convention: BoxConvention,
) -> tuple[Array, Array]:
    """The highest IoU [N] with an object of the detection's image, and that object's row [N].

    A detection's box is that of its row of `boxes`; most are never looked at. 0 and 0 for a
    detection in an image without objects.
    """
    best_iou, best_gt = np.zeros(len(image)), np.zeros(len(image), np.int64)
    row, pair_gt = pairs(image, gt_image)
    if len(row) == 0:
        return best_iou, best_gt
    iou = pair_iou(boxes[rows[row]], gt_boxes[pair_gt], box_convention)
    start = np.flatnonzero(np.diff(row, prepend=-1))
    some = row[start]
    highest = np.maximum.reduceat(iou, start)
    is_best = iou == np.repeat(highest, np.diff(start, append=len(row)))
    best_iou[some] = highest
    best_gt[some] = np.minimum.reduceat(np.where(is_best, pair_gt, len(gt_image)), start)
    return best_iou, best_gt


def pairs(image: Array, gt_image: Array) -> tuple[Array, Array]:
    """Every pair of a detection [N] and an object [G] of its image: the rows of both, int64 [n].

    One detection's pairs follow each other, its objects by their rows.
    """
    order = np.argsort(gt_image, kind="stable")
    known, firsts, counts = np.unique(gt_image[order], return_index=True, return_counts=True)
    if len(known) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers = known[-1] - known[0] + 1
    if numbers > 8 * (len(image) + len(gt_image)):
        # Numbers far apart: by their rank.
        place = np.minimum(np.searchsorted(known, image), len(known) - 1)
        place = np.where(known[place] == image, place, len(known))
    else:
        # One look into a table takes a tenth of a search; the last place is for other images.
        place = np.where((image < known[0]) | (image > known[-1]), numbers, image - known[0])
        table = np.zeros((2, numbers + 1), np.int64)
        table[:, known - known[0]] = firsts, counts
        firsts, counts = table
    first, count = np.append(firsts, 0)[place], np.append(counts, 0)[place]
    start = np.cumsum(count) - count
    place = np.arange(count.sum()) + np.repeat(first - start, count)
    return np.repeat(np.arange(len(image)), count), order[place]


def pair_iou(a: Array, b: Array, box_convention: BoxConvention) -> Array:
    """The IoU of each pair of rows of a and b, [n, 4] each; 0 where they do not overlap."""
    last = _last_pixel(box_convention)
    area_a, area_b = box_areas(a, box_convention), box_areas(b, box_convention)
    a, b = a.T, b.T
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]) + last
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]) + last
    overlap = (width > 0) & (height > 0)
    inter = width * height
    # Boxes that overlap have areas above 0, so the union is safe to divide by.
    union = np.where(overlap, area_a + area_b - inter, 1.0)
    return np.where(overlap, inter / union, 0.0)


def rows_of_classes(label: Array, num_classes: int, what: str) -> list[Array]:
    """The rows of each label 1..num_classes, in the order of the table."""
    outside = (label < 1) | (label > num_classes)
    if outside.any():
        raise ValueError(
            f"{what} have label {label[outside][0]} and there are {num_classes} classes; "
            f"use 1 to {num_classes}, 0 is background"
        )
    # Of 16 bits NumPy sorts in two passes, not by comparing.
    order = np.argsort(label.astype(np.min_scalar_type(num_classes)), kind="stable")
    ends = np.cumsum(np.bincount(label, minlength=num_classes + 1)[1:])
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
