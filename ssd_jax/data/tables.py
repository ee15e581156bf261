"""Tables of detections and of ground truth, in NumPy.

Boxes are xyxy in continuous pixels of the image: 0 is its left or upper edge, its width or height
the opposite one. Labels are 0-based class ids; background has none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a dataset, one per row.

    Raises:
        ValueError: columns differ in length or a box is not finite.
    """

    image: Array
    """int [N], the image's index; any number that identifies the image in both tables."""
    label: Array
    """int [N], 0-based class id."""
    boxes: Array
    """float64 [N, 4], xyxy in continuous pixels."""
    difficult: Array
    """bool [N]; difficult objects are ignored: neither required nor counted as errors."""

    def __post_init__(self) -> None:
        _set_columns(self, "ground truth", image=np.int64, label=np.int64, difficult=np.bool_)


@dataclass(frozen=True)
class DetectionTable:
    """The detections of a dataset, one per row.

    Raises:
        ValueError: columns differ in length or a box or score is not finite.
    """

    image: Array
    """int [N], the image's index; any number that identifies the image in both tables."""
    label: Array
    """int [N], 0-based class id."""
    score: Array
    """float64 [N]; equal scores keep the order of the rows."""
    boxes: Array
    """float64 [N, 4], xyxy in continuous pixels."""

    def __post_init__(self) -> None:
        _set_columns(self, "detections", image=np.int64, label=np.int64, score=np.float64)

    def select(self, rows: Array) -> "DetectionTable":
        """Return the rows that a mask, bool [N], or indices select."""
        return DetectionTable(
            self.image[rows], self.label[rows], self.score[rows], self.boxes[rows]
        )


def rows_by_class(table: DetectionTable | GroundTruth, num_classes: int) -> list[Array]:
    """Return the rows of each class, in the order of the table.

    Raises:
        ValueError: a label is not a class id.
    """
    label = table.label
    outside = (label < 0) | (label >= num_classes)
    if outside.any():
        name = "detections" if isinstance(table, DetectionTable) else "ground truth"
        raise ValueError(
            f"{name}: label {label[outside][0]} is out of range for {num_classes} classes; "
            f"use 0 to {num_classes - 1}"
        )
    return split_by_label(label, num_classes)


def split_by_label(label: Array, num_classes: int) -> list[Array]:
    """Return the positions of each class id in `label`, in order."""
    # NumPy sorts 16-bit integers in two passes, without comparisons.
    order = np.argsort(label.astype(np.min_scalar_type(num_classes)), kind="stable")
    return np.split(order, np.cumsum(np.bincount(label, minlength=num_classes)))[:num_classes]


def object_areas(areas: Array, ground_truth: GroundTruth) -> Array:
    """Return the areas of the objects as float64 [N].

    Raises:
        ValueError: there is not one area per object.
    """
    areas = np.asarray(areas, np.float64)
    if areas.shape != ground_truth.label.shape:
        raise ValueError(
            f"area has shape {areas.shape} and there are {len(ground_truth.label)} objects; "
            "give one value per object"
        )
    return areas


def _set_columns(table: Any, name: str, **dtypes: type) -> None:
    """Convert the columns of a frozen table to arrays, its boxes to float64 [N, 4]."""
    boxes = np.asarray(table.boxes, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: boxes has shape {boxes.shape}; give [N, 4]")
    columns: dict[str, Array] = {
        column: np.asarray(getattr(table, column), dtype) for column, dtype in dtypes.items()
    }
    for column, values in columns.items():
        if values.shape != (len(boxes),):
            raise ValueError(
                f"{name}: {column} has shape {values.shape} and there are {len(boxes)} boxes; "
                "give one value per box"
            )
    for column, values in {**columns, "boxes": boxes}.items():
        if values.dtype == np.float64 and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{name}: {column} of row {row} is not finite: {values[row]}")
        object.__setattr__(table, column, values)
