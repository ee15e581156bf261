"""COCO's twelve figures, by the hotcoco library, which counts as pycocotools does.

The rule is COCO's (cocodataset.org/#detection-eval; pycocotools' cocoeval.py): AP is the mean over
the IoU thresholds 0.50, 0.55, ..., 0.95 and over the classes of the precision at 101 recalls; AR
the mean over both of the recall that 1, 10 or 100 detections of a class an image reach. Small
objects are below 32^2 pixels, large ones above 96^2. Unlike VOC's rule a detection takes the best
object that is still free, and a threshold is looked at for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hotcoco
import numpy as np

from ssd_jax.evaluation.metrics.voc_ap import BoxConvention, DetectionTable, GroundTruth

Array = np.ndarray[Any, Any]

# Name -> (precision or recall, IoU threshold or None for all ten, area, detections an image),
# areas and detections as indices of COCO's: all, small, medium, large; 1, 10, 100.
_FIGURES: dict[str, tuple[str, float | None, int, int]] = {
    "AP": ("precision", None, 0, 2),
    "AP50": ("precision", 0.5, 0, 2),
    "AP75": ("precision", 0.75, 0, 2),
    "APs": ("precision", None, 1, 2),
    "APm": ("precision", None, 2, 2),
    "APl": ("precision", None, 3, 2),
    "AR1": ("recall", None, 0, 0),
    "AR10": ("recall", None, 0, 1),
    "AR100": ("recall", None, 0, 2),
    "ARs": ("recall", None, 1, 2),
    "ARm": ("recall", None, 2, 2),
    "ARl": ("recall", None, 3, 2),
}

FIGURES = tuple(_FIGURES)
"""The names of the twelve figures, in the order that pycocotools prints them."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Sizes and corners that were written in decimals are themselves again after VOC's offset, so that
# an IoU of exactly a threshold stays one (pixels).
_DIGITS = 9
_GROUP = 500_000  # detections that the library has at once, as far as classes can be told apart


@dataclass(frozen=True)
class CocoClass:
    """The figures of one class."""

    name: str
    ap: float
    """AP over the ten thresholds, 0 to 1; nan for a class without objects."""
    num_objects: int
    """Objects that are no crowds."""
    num_detections: int
    """Detections, with those that COCO leaves out after the 100th of a class in an image."""
    ap_by_size: tuple[float, float, float]
    """AP of the small, medium and large objects alone; nan where there is none."""


@dataclass(frozen=True)
class CocoResult:
    """The evaluation of a data set by COCO's rule."""

    figures: dict[str, float]
    """`FIGURES`, 0 to 1; nan where there is no object to find, for which COCO writes -1."""
    classes: tuple[CocoClass, ...]

    metric: Literal["coco"] = "coco"

    @property
    def mean_ap(self) -> float:
        """COCO's AP, 0 to 1; nan where no class has objects."""
        return self.figures["AP"]

    @property
    def mean_by_size(self) -> tuple[float, float, float]:
        """COCO's APs, APm and APl."""
        return self.figures["APs"], self.figures["APm"], self.figures["APl"]


def evaluate_coco(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    *,
    area: Array | None = None,
    box_convention: BoxConvention = "inclusive",
) -> CocoResult:
    """COCO's figures over all of `classes`, where label k is classes[k - 1].

    Args:
        detections: any number of an image; COCO takes the best 100 of each class. Equal scores
            keep the order of the images, then that of the rows, as in pycocotools.
        ground_truth: `difficult` objects are COCO's crowds: nobody asks for them, and a detection
            that lies in one by the threshold is neither right nor wrong.
        classes: names; those without objects have ap nan and do not enter the means.
        area: float [N], square pixels of each object; COCO's own is that of its segmentation.
            None: that of its box, which is larger, so APs, APm and APl differ a little.
        box_convention: inclusive: boxes are xmax - xmin + 1 pixels wide; exclusive: xmax - xmin.

    Raises ValueError for a label outside 1..len(classes), or areas of another number.
    """
    for table, what in ((detections, "detections"), (ground_truth, "ground truth")):
        outside = (table.label < 1) | (table.label > len(classes))
        if outside.any():
            raise ValueError(
                f"{what} have label {table.label[outside][0]} and there are {len(classes)} "
                f"classes; use 1 to {len(classes)}, 0 is background"
            )
    gt_boxes = _to_xywh(ground_truth.boxes, box_convention)
    areas = gt_boxes[:, 2] * gt_boxes[:, 3] if area is None else np.asarray(area, np.float64)
    if areas.shape != ground_truth.label.shape:
        raise ValueError(
            f"area has shape {areas.shape} and there are {len(ground_truth.label)} objects; "
            "give one value an object"
        )
    precision, recall = _accumulate_in_groups(
        detections, ground_truth, gt_boxes, areas, len(classes), box_convention
    )
    tables = {"precision": precision, "recall": recall}
    return CocoResult(
        figures={
            name: _mean(tables[kind][_rows(iou)][..., size, most])
            for name, (kind, iou, size, most) in _FIGURES.items()
        },
        classes=tuple(
            CocoClass(
                name=name,
                ap=_mean(precision[:, :, k, 0, 2]),
                num_objects=int(np.sum((ground_truth.label == k + 1) & ~ground_truth.difficult)),
                num_detections=int(np.sum(detections.label == k + 1)),
                ap_by_size=(
                    _mean(precision[:, :, k, 1, 2]),
                    _mean(precision[:, :, k, 2, 2]),
                    _mean(precision[:, :, k, 3, 2]),
                ),
            )
            for k, name in enumerate(classes)
        ),
    )


def _accumulate_in_groups(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    gt_boxes: Array,
    areas: Array,
    num_classes: int,
    box_convention: BoxConvention,
) -> tuple[Array, Array]:
    """As `_accumulate`, some classes at a time: the library takes 250 bytes a detection."""
    counts = np.bincount(detections.label, minlength=num_classes + 1)[1:]
    group = np.cumsum(counts) // _GROUP
    precisions, recalls = [np.zeros((10, 101, 0, 4, 3))], [np.zeros((10, 0, 4, 3))]
    for number in np.unique(group):
        first, last = np.flatnonzero(group == number)[[0, -1]] + 1
        det = np.flatnonzero((first <= detections.label) & (detections.label <= last))
        gt = np.flatnonzero((first <= ground_truth.label) & (ground_truth.label <= last))
        precision, recall = _accumulate(
            DetectionTable(
                detections.image[det],
                detections.label[det] - first + 1,
                detections.score[det],
                _to_xywh(detections.boxes[det], box_convention),
            ),
            GroundTruth(
                ground_truth.image[gt],
                ground_truth.label[gt] - first + 1,
                gt_boxes[gt],
                ground_truth.difficult[gt],
            ),
            areas[gt],
            int(last - first + 1),
        )
        precisions.append(precision)
        recalls.append(recall)
    return np.concatenate(precisions, axis=2), np.concatenate(recalls, axis=1)


def _accumulate(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    areas: Array,
    num_classes: int,
) -> tuple[Array, Array]:
    """(precision [10, 101, classes, 4, 3], recall [10, classes, 4, 3]); -1 where not defined.

    The boxes of both tables are x, y, width, height.
    """
    # An image that is in neither table changes nothing. Numbers from 1: some readers of COCO's
    # files take an id of 0 for none.
    names = np.unique(np.concatenate([detections.image, ground_truth.image]))
    known = hotcoco.COCO.from_arrays(
        [{"id": k + 1, "width": 0, "height": 0} for k in range(len(names))],
        [{"id": k + 1, "name": str(k + 1)} for k in range(num_classes)],
        np.searchsorted(names, ground_truth.image) + 1,
        ground_truth.label,
        ground_truth.boxes,
        area=areas,
        iscrowd=ground_truth.difficult.astype(np.int64),
    )
    image = np.searchsorted(names, detections.image) + 1
    found = known.load_res(
        np.column_stack([image, detections.boxes, detections.score, detections.label])
    )
    evaluation = hotcoco.COCOeval(known, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    result = evaluation.eval
    assert result is not None  # accumulate() has run
    return np.asarray(result["precision"]), np.asarray(result["recall"])


def _to_xywh(boxes: Array, box_convention: BoxConvention) -> Array:
    """[N, 4] x, y, width, height in continuous pixels; x and y count from 0 with inclusive."""
    if box_convention not in ("inclusive", "exclusive"):
        raise ValueError(f"box_convention is {box_convention!r}; use inclusive or exclusive")
    corner = boxes[:, :2] - (1.0 if box_convention == "inclusive" else 0.0)
    return np.round(np.concatenate([corner, boxes[:, 2:] - corner], axis=1), _DIGITS)


def _rows(iou: float | None) -> Any:
    """The index of the thresholds that are asked for."""
    return slice(None) if iou is None else np.isclose(_THRESHOLDS, iou)


def _mean(values: Array) -> float:
    """The mean of what is defined; nan where nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
