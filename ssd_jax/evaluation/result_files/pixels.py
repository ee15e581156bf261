"""The VOC devkit's pixels in files: they count from 1, and a box includes its last one."""

from typing import Any

import numpy as np

from ssd_jax.evaluation.metrics.matching import BoxConvention

Array = np.ndarray[Any, Any]

_VOC_OFFSET = np.array([1, 1, 0, 0])


def continuous_to_voc(boxes: Array) -> Array:
    """Convert boxes [N, 4], xyxy, from continuous pixels to VOC's."""
    return boxes + _VOC_OFFSET


def corners_to_continuous(boxes: Array, box_convention: BoxConvention) -> Array:
    """Convert corners [N, 4] of a file to continuous pixels: VOC's pixels if inclusive."""
    return boxes - _VOC_OFFSET if box_convention == "inclusive" else boxes


def xywh_to_continuous(boxes: Array, box_convention: BoxConvention) -> Array:
    """Convert x, y, width, height [N, 4] of a file to corners in continuous pixels."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return corners_to_continuous(corners, box_convention)
