"""Ground truth of a dataset for evaluation and reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.data.tables import GroundTruth
from ssd_jax.data.types import DataSource

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class EvaluationData:
    """The ground truth of a dataset whose images are numbered from 0."""

    classes: tuple[str, ...]
    """Name of each class id."""
    objects: GroundTruth
    area: Array
    """float64 [N], area of each object (square pixels): of its segmentation, else of its box."""
    image_names: Sequence[str]
    """Unique name of each image."""
    read_image: Callable[[int], Array | None]
    """Returns an image, RGB uint8 [H, W, 3], or None if it is not available."""
    image_sizes: Array | None = None
    """int [images, 2], width and height in pixels; None if unknown."""


def load_ground_truth(source: DataSource) -> EvaluationData:
    """Read the annotations of a source."""
    annotations = [source.annotation(i) for i in range(len(source))]
    areas = []
    for a in annotations:
        sides = np.asarray(a.boxes_px[:, 2:] - a.boxes_px[:, :2], np.float64)
        areas.append(sides.prod(axis=1) if a.area is None else a.area)
    return EvaluationData(
        classes=tuple(source.classes),
        objects=GroundTruth(
            image=np.repeat(np.arange(len(annotations)), [len(a.labels) for a in annotations]),
            label=np.concatenate([a.labels for a in annotations]),
            boxes=np.concatenate([a.boxes_px for a in annotations]),
            difficult=np.concatenate([a.difficult for a in annotations]),
        ),
        area=np.concatenate(areas),
        image_names=[a.image_id for a in annotations],
        read_image=source.image,
        image_sizes=np.array([(a.width, a.height) for a in annotations]).reshape(-1, 2),
    )
