"""Boxes: formats, intersection over union, and the offsets that SSD regresses.

Names state the format: xyxy is (x1, y1, x2, y2), cxcywh is (center x, center y, width, height).
Units are fractions of the image unless stated otherwise.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

AnyArray: TypeAlias = jax.Array | np.ndarray
"""A JAX array, or a NumPy array that becomes a constant under jit, as the priors do."""

Scalar: TypeAlias = Float[AnyArray, ""] | float
"""A number, which may be an argument of a compiled function."""

# Smallest side that is encoded: the logarithm of 0 is infinite, and sides far below a thousandth of
# a pixel cannot be learned.
_MIN_SIDE = 1e-6


def cxcywh_to_xyxy(boxes: Float[AnyArray, "*n 4"]) -> Float[jax.Array, "*n 4"]:
    """Convert boxes to xyxy, in the same unit."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def xyxy_to_cxcywh(boxes: Float[AnyArray, "*n 4"]) -> Float[jax.Array, "*n 4"]:
    """Convert boxes to cxcywh, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def pairwise_iou(a: Float[AnyArray, "N 4"], b: Float[AnyArray, "M 4"]) -> Float[jax.Array, "N M"]:
    """Compute the intersection over union (Jaccard overlap) of every pair of boxes.

    Both are xyxy in one unit. A box without area has IoU 0 with every box, and gradient 0.
    """
    # One coordinate at a time: arrays [N, M] vectorise, [N, M, 2] would not.
    ax1, ay1, ax2, ay2 = (a[:, None, k] for k in range(4))
    bx1, by1, bx2, by2 = (b[None, :, k] for k in range(4))
    intersection = _area(
        jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1),
        jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1),
    )
    area_a, area_b = _area(ax2 - ax1, ay2 - ay1), _area(bx2 - bx1, by2 - by1)
    union = area_a + area_b - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def _area(width: AnyArray, height: AnyArray) -> jax.Array:
    """Multiply width and height; 0 where one of them is not above 0.

    The `where` also separates the product from the sums that use it, so that a compiler cannot
    contract the two into one rounding. Priors often lie symmetrically about an object and tie to
    the last bit; which of them is matched must not depend on the compiler.
    """
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def encode_boxes(
    boxes_xyxy: Float[AnyArray, "P 4"],
    priors_cxcywh: Float[AnyArray, "P 4"],
    variances: tuple[float, float],
) -> Float[jax.Array, "P 4"]:
    """Encode each box as offsets (dx, dy, dw, dh) from its prior; SSD, equation 2.

    (dx, dy) is the difference of the centers in prior sizes, (dw, dh) the logarithm of the ratio of
    the sizes; they are divided by variances[0] and variances[1], as in Caffe. Sides below 1e-6
    count as 1e-6, so that offsets are finite.
    """
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    center, size = priors_cxcywh[:, :2], priors_cxcywh[:, 2:]
    dxdy = (boxes[:, :2] - center) / (size * variances[0])
    dwdh = jnp.log(jnp.maximum(boxes[:, 2:], _MIN_SIDE) / size) / variances[1]
    return jnp.concatenate([dxdy, dwdh], axis=-1)


def decode_boxes(
    offsets: Float[AnyArray, "P 4"],
    priors_cxcywh: Float[AnyArray, "P 4"],
    variances: tuple[float, float],
    *,
    max_box_scale: float = 0.0,
) -> Float[jax.Array, "P 4"]:
    """Decode offsets to boxes (xyxy); the inverse of `encode_boxes`.

    `max_box_scale` limits a box's sides to a multiple of its prior's; 0: no limit. The boxes are
    not clipped to the image.
    """
    center, size = priors_cxcywh[:, :2], priors_cxcywh[:, 2:]
    log_scale = offsets[:, 2:] * variances[1]
    if max_box_scale:
        log_scale = jnp.minimum(log_scale, math.log(max_box_scale))
    boxes = jnp.concatenate(
        [
            center + offsets[:, :2] * variances[0] * size,
            size * jnp.exp(log_scale),
        ],
        axis=-1,
    )
    return cxcywh_to_xyxy(boxes)
