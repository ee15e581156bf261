"""Data sources, and the annotations and examples that they return."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ssd_jax.data.headers import Header


@dataclass(frozen=True)
class Annotation:
    """The objects of one image."""

    image_id: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    boxes_px: np.ndarray
    """float32 [n, 4], xyxy, continuous pixels, inside the image and of positive area."""
    labels: np.ndarray
    """int32 [n], index of the class in the source's `classes`."""
    difficult: np.ndarray
    """bool [n]; evaluation ignores these objects."""
    crowd: np.ndarray
    """bool [n]; COCO's boxes around many objects of a class: difficult, and never trained on."""
    area: np.ndarray | None = None
    """float64 [n], square pixels of each object's segmentation; None if only boxes are known."""


@dataclass(frozen=True)
class Example:
    """One image with its objects."""

    image_id: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    boxes: np.ndarray
    """float32 [n, 4], xyxy, in [0, 1]."""
    labels: np.ndarray
    """int32 [n], index of the class in the source's `classes`."""
    difficult: np.ndarray
    """bool [n]."""
    crowd: np.ndarray
    """bool [n]."""


class DataSource(Protocol):
    """A dataset with random access; subclasses inherit the methods that have a body."""

    classes: tuple[str, ...]
    """Names of the classes, without background."""
    image_numbers: Sequence[int | str] = ()
    """Image id of each record in COCO's annotation file; () for other formats."""
    category_ids: Mapping[str, int] = {}
    """Class -> category id in COCO's annotation file; empty for other formats."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> Annotation:
        """Return the objects of record i without reading its image."""
        ...

    def image(self, i: int) -> np.ndarray:
        """Return the image of record i: uint8 [H, W, 3], RGB."""
        ...

    def file(self, i: int) -> Path | None:
        """Return the image file of record i; None if the image is not stored in a separate file."""
        return None

    def image_with_header(self, i: int) -> tuple[Header | None, np.ndarray]:
        """Return the header of record i's image file, None without a file, and the image."""
        return None, self.image(i)

    def __getitem__(self, i: int) -> Example:
        return to_example(self.annotation(i), self.image(i))


def to_example(annotation: Annotation, image: np.ndarray) -> Example:
    """Combine an image with its objects."""
    return Example(
        image_id=annotation.image_id,
        image=image,
        boxes=normalize_boxes(annotation.boxes_px, annotation.width, annotation.height),
        labels=annotation.labels,
        difficult=annotation.difficult,
        crowd=annotation.crowd,
    )


def normalize_boxes(boxes_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """Divide xyxy boxes in pixels by the size of their image: float32 [n, 4] in [0, 1]."""
    return (boxes_px / np.array([width, height, width, height], np.float32)).astype(np.float32)


def distinct_ids(names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """Return the names, each that occurs twice prefixed by its origin: VOC2012-000001."""
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{origin}-{name}"
        for name, origin in zip(names, origins, strict=True)
    ]
