"""What an evaluation knows of a data set: its objects, and its images to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_jax.data.types import DataSource
from ssd_jax.evaluation.metrics.voc_ap import VOC_PIXELS, GroundTruth

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class EvaluationData:
    """The ground truth of a data set whose images are numbered from 0."""

    classes: tuple[str, ...]
    """Names; label k of `objects` is classes[k - 1]."""
    objects: GroundTruth
    """Boxes in VOC's pixels."""
    area: Array
    """float64 [N], square pixels of each object: of its segmentation, else of its box."""
    image_names: Sequence[str]
    """A name for each image, which no other has."""
    read_image: Callable[[int], Array | None]
    """The pixels of an image, RGB uint8 [H, W, 3], as its boxes count them; None: not to be had."""
    image_sizes: Array | None = None
    """int [images, 2], width and height in pixels; None where they are not known."""


def data_set(source: DataSource) -> EvaluationData:
    """The data set that a source gives."""
    known = [source.annotation(i) for i in range(len(source))]
    areas = []
    for one in known:
        sides = np.asarray(one.boxes_px[:, 2:] - one.boxes_px[:, :2], np.float64)
        areas.append(sides.prod(axis=1) if one.area is None else one.area)
    return EvaluationData(
        classes=tuple(source.classes),
        objects=GroundTruth(
            image=np.repeat(np.arange(len(known)), [len(a.labels) for a in known]),
            label=np.concatenate([a.labels for a in known]) + 1,
            boxes=np.concatenate([a.boxes_px for a in known]) + VOC_PIXELS,
            difficult=np.concatenate([a.difficult for a in known]),
        ),
        area=np.concatenate(areas),
        image_names=[a.image_id for a in known],
        read_image=source.image,
        image_sizes=np.array([(a.width, a.height) for a in known]).reshape(-1, 2),
    )
