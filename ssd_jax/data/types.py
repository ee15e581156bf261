"""What a source gives: the objects of an image, and the image with them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Annotation:
    """The objects of one image, known without reading the image."""

    image_id: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    boxes_px: np.ndarray
    """float32 [n, 4], xyxy, continuous pixels, inside the image and of positive area."""
    labels: np.ndarray
    """int32 [n]; class k of the source's list is k + 1, 0 is background."""
    difficult: np.ndarray
    """bool [n]; evaluation sets these objects aside."""
    crowd: np.ndarray
    """bool [n]; COCO's boxes around many objects of a class: difficult, and never trained on."""
    area: np.ndarray | None = None
    """float64 [n], square pixels of each object itself, as its segmentation has them; None: only
    the boxes are known."""


@dataclass(frozen=True)
class Example:
    """One image with its objects."""

    image_id: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    boxes: np.ndarray
    """float32 [n, 4], xyxy, in [0, 1]."""
    labels: np.ndarray
    """int32 [n]; class k of the source's list is k + 1, 0 is background."""
    difficult: np.ndarray
    """bool [n]."""
    crowd: np.ndarray
    """bool [n]."""


class DataSource(Protocol):
    """A data set: what the pipeline, the evaluation and the pictures ask of it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background; the label of the k-th is k + 1."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading its image."""

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB."""

    def __getitem__(self, i: int) -> Example: ...


def normalize_boxes(boxes_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 [n, 4] in [0, 1] from xyxy in pixels of an image of that size."""
    return (boxes_px / np.array([width, height, width, height], np.float32)).astype(np.float32)


def to_example(known: Annotation, image: np.ndarray) -> Example:
    """The image with its objects, boxes as fractions of it."""
    return Example(
        image_id=known.image_id,
        image=image,
        boxes=normalize_boxes(known.boxes_px, known.width, known.height),
        labels=known.labels,
        difficult=known.difficult,
        crowd=known.crowd,
    )


def distinct_ids(names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """The names of records; one that several have gets its origin in front: VOC2012-000001."""
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{origin}-{name}"
        for name, origin in zip(names, origins, strict=True)
    ]
