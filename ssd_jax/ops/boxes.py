"""Boxes: their two forms, their overlap, and the offsets that SSD regresses.

A form lives in a name: xyxy is (x1, y1, x2, y2), cxcywh is (centre x, centre y, width, height).
Units are fractions of the image unless a function says otherwise.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

AnyArray: TypeAlias = jax.Array | np.ndarray
"""A device array, or a NumPy one that becomes a constant under jit, as the priors do."""

# Smallest side that is encoded. A side of zero has no logarithm, and far below a thousandth of a
# pixel there is nothing to learn.
_MIN_SIDE = 1e-6


def cxcywh_to_xyxy(boxes: Float[AnyArray, "*n 4"]) -> Float[jax.Array, "*n 4"]:
    """The same boxes by their corners, in the same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: Float[AnyArray, "*n 4"]) -> Float[jax.Array, "*n 4"]:
    """The same boxes by centre and size, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def pairwise_iou(a: Float[AnyArray, "N 4"], b: Float[AnyArray, "M 4"]) -> Float[jax.Array, "N M"]:
    """Intersection over union (Jaccard overlap) of each box in `a` with each box in `b`.

    Both are xyxy in one unit. A box without area overlaps nothing: its row or column is 0, and so
    is its gradient.
    """
    # A coordinate at a time: arrays [N, M] vectorise, [N, M, 2] would not.
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
    """Product of the two sides, and 0 where one is not above 0.

    The selection also stands between the product and the sums that use it, so that a compiler
    cannot contract the two into one rounding. Priors often lie symmetrically about an object and
    tie to the last bit; which of them wins must not depend on how the code was compiled.
    """
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def encode_boxes(
    boxes_xyxy: Float[AnyArray, "P 4"],
    priors_cxcywh: Float[AnyArray, "P 4"],
    variances: tuple[float, float],
) -> Float[jax.Array, "P 4"]:
    """Offsets (dx, dy, dw, dh) that lead from each prior to its box; SSD, equation 2.

    The centre's move is in prior sizes, the size's is the logarithm of their ratio; they are
    divided by variances[0] and variances[1] as in Caffe. A box without width or height counts as
    1e-6 there, so that its offsets are finite.
    """
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    centre, size = priors_cxcywh[:, :2], priors_cxcywh[:, 2:]
    move = (boxes[:, :2] - centre) / (size * variances[0])
    growth = jnp.log(jnp.maximum(boxes[:, 2:], _MIN_SIDE) / size) / variances[1]
    return jnp.concatenate([move, growth], axis=-1)


def decode_boxes(
    offsets: Float[AnyArray, "P 4"],
    priors_cxcywh: Float[AnyArray, "P 4"],
    variances: tuple[float, float],
    *,
    max_box_scale: float = 0.0,
) -> Float[jax.Array, "P 4"]:
    """Boxes (xyxy) to which the offsets lead from the priors: the inverse of `encode_boxes`.

    A side is at most `max_box_scale` times its prior's; 0 sets no limit. The boxes are not
    clipped to the image.
    """
    centre, size = priors_cxcywh[:, :2], priors_cxcywh[:, 2:]
    growth = offsets[:, 2:] * variances[1]
    if max_box_scale:
        growth = jnp.minimum(growth, math.log(max_box_scale))
    boxes = jnp.concatenate(
        [
            centre + offsets[:, :2] * variances[0] * size,
            size * jnp.exp(growth),
        ],
        axis=-1,
    )
    return cxcywh_to_xyxy(boxes)
