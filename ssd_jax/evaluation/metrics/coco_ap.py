"""COCO's twelve metrics, by the hotcoco library, which agrees with pycocotools.

The protocol is COCO's (cocodataset.org/#detection-eval; pycocotools' cocoeval.py). AP is the mean
over the IoU thresholds 0.50, 0.55, ..., 0.95 and over the classes of the precision at 101 recalls.
AR is the mean over both of the highest recall with 1, 10 or 100 detections per class and image.
Small objects are below 32^2 pixels, large ones above 96^2. Unlike in VOC's protocol, a detection
takes the best object that is still unmatched, and each threshold is matched separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hotcoco
import numpy as np

from ssd_jax.data.tables import DetectionTable, GroundTruth, object_areas, rows_by_class
from ssd_jax.evaluation.metrics.class_metrics import ClassMetrics

Array = np.ndarray[Any, Any]

# Name -> (precision or recall, IoU threshold or None for all ten, area, detections per image);
# areas and detections are indices of COCO's: all, small, medium, large; 1, 10, 100.
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
"""Names of the twelve metrics, in the order in which pycocotools prints them."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Rounding restores widths and corners that were written in decimals, so that an IoU exactly at a
# threshold stays there (pixels).
_DIGITS = 9
_GROUP = 500_000  # detections in memory at once, if no single class has more


@dataclass(frozen=True)
class CocoResult:
    """COCO's metrics of a dataset."""

    figures: dict[str, float]
    """Value of each of `FIGURES`, 0 to 1; nan without objects, where COCO writes -1."""
    classes: tuple[ClassMetrics, ...]

    metric: Literal["coco"] = "coco"

    @property
    def mean_ap(self) -> float:
        """COCO's AP, 0 to 1; nan if no class has objects."""
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
) -> CocoResult:
    """Compute COCO's metrics over all classes.

    Args:
        detections: any number per image; COCO uses the best 100 of each class. Equal scores keep
            the order of the images, then that of the rows, as in pycocotools.
        ground_truth: `difficult` objects are COCO's crowds: they are not required, and a detection
            that lies in one by the threshold is ignored.
        classes: name of each class id; those without objects have AP nan and are excluded from
            means.
        area: float [N], area of each object (square pixels); COCO's is that of its segmentation.
            None: the area of its box, which is larger, so APs, APm and APl differ slightly.

    Raises:
        ValueError: a label is out of range, or there is not one area per object.
    """
    det_rows = rows_by_class(detections, len(classes))
    gt_rows = rows_by_class(ground_truth, len(classes))
    gt_boxes = _to_xywh(ground_truth.boxes)
    areas = object_areas(gt_boxes[:, 2] * gt_boxes[:, 3] if area is None else area, ground_truth)
    precision, recall = _accumulate_in_groups(
        detections, ground_truth, gt_boxes, areas, len(classes)
    )
    tables = {"precision": precision, "recall": recall}

    def class_ap(k: int, size: int) -> float:
        return _defined_mean(precision[:, :, k, size, 2])

    return CocoResult(
        figures={
            name: _defined_mean(tables[table][_threshold_rows(iou)][..., size, most])
            for name, (table, iou, size, most) in _FIGURES.items()
        },
        classes=tuple(
            ClassMetrics(
                name=name,
                ap=class_ap(k, 0),
                num_objects=int(np.sum(~ground_truth.difficult[gt])),
                num_detections=len(det),
                ap_by_size=(class_ap(k, 1), class_ap(k, 2), class_ap(k, 3)),
            )
            for k, (name, det, gt) in enumerate(zip(classes, det_rows, gt_rows, strict=True))
        ),
    )


def _accumulate_in_groups(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    gt_boxes: Array,
    areas: Array,
    num_classes: int,
) -> tuple[Array, Array]:
    """Call `_accumulate` for groups of classes: the library takes 250 bytes per detection."""
    counts = np.bincount(detections.label, minlength=num_classes)
    group = np.cumsum(counts) // _GROUP
    precisions, recalls = [np.zeros((10, 101, 0, 4, 3))], [np.zeros((10, 0, 4, 3))]
    for number in np.unique(group):
        first, last = np.flatnonzero(group == number)[[0, -1]]
        det = np.flatnonzero((first <= detections.label) & (detections.label <= last))
        gt = np.flatnonzero((first <= ground_truth.label) & (ground_truth.label <= last))
        precision, recall = _accumulate(
            DetectionTable(
                detections.image[det],
                detections.label[det] - first,
                detections.score[det],
                _to_xywh(detections.boxes[det]),
            ),
            GroundTruth(
                ground_truth.image[gt],
                ground_truth.label[gt] - first,
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
    detections: DetectionTable, ground_truth: GroundTruth, areas: Array, num_classes: int
) -> tuple[Array, Array]:
    """Accumulate precision and recall of tables whose boxes are x, y, width, height.

    Returns:
        precision [10, 101, classes, 4, 3] and recall [10, classes, 4, 3]; -1 where not defined.
    """
    # Images that are in neither table have no effect. Ids start from 1: some readers of COCO's
    # files take an id of 0 for a missing one.
    images = np.unique(np.concatenate([detections.image, ground_truth.image]))
    coco_gt = hotcoco.COCO.from_arrays(
        [{"id": k + 1, "width": 0, "height": 0} for k in range(len(images))],
        [{"id": k + 1, "name": str(k + 1)} for k in range(num_classes)],
        np.searchsorted(images, ground_truth.image) + 1,
        ground_truth.label + 1,
        ground_truth.boxes,
        area=areas,
        iscrowd=ground_truth.difficult.astype(np.int64),
    )
    image = np.searchsorted(images, detections.image) + 1
    coco_dt = coco_gt.load_res(
        np.column_stack([image, detections.boxes, detections.score, detections.label + 1])
    )
    evaluation = hotcoco.COCOeval(coco_gt, coco_dt, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    result = evaluation.eval
    assert result is not None  # set by accumulate()
    return np.asarray(result["precision"]), np.asarray(result["recall"])


def _to_xywh(boxes: Array) -> Array:
    """Convert boxes [N, 4] from xyxy to x, y, width, height."""
    corner = boxes[:, :2]
    return np.round(np.concatenate([corner, boxes[:, 2:] - corner], axis=1), _DIGITS)


def _threshold_rows(iou: float | None) -> Any:
    """Return the index of an IoU threshold; None: all of them."""
    return slice(None) if iou is None else np.isclose(_THRESHOLDS, iou)


def _defined_mean(values: Array) -> float:
    """Compute the mean of the values that are defined (not -1); nan if none is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
