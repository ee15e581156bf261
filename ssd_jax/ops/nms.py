"""Non-maximum suppression of fixed size: from a prediction for each prior to detections."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from ssd_jax.ops.boxes import AnyArray, pairwise_iou


class Detections(NamedTuple):
    """The detections of an image by falling score, padded with zeros to a fixed K."""

    boxes: Float32[jax.Array, "K 4"]
    """xyxy, in the unit of the boxes given."""
    scores: Float32[jax.Array, " K"]
    """Probability of the class."""
    labels: Int32[jax.Array, " K"]
    """Class from 1 on; 0 where padded."""
    count: Int32[jax.Array, ""]  # type: ignore[assignment]  # hides tuple.count
    """Detections before the padding."""


def nms_keep(
    boxes: Float[AnyArray, "K 4"], valid: Bool[AnyArray, " K"], iou_threshold: float
) -> Bool[jax.Array, " K"]:
    """The boxes that greedy suppression keeps.

    `boxes` are xyxy by falling score. From the first on, a valid box is kept unless its IoU with a
    box kept before is above `iou_threshold`. Boxes that are not `valid` are neither kept nor
    suppress others.
    """
    boxes, keep = jnp.asarray(boxes), jnp.asarray(valid)
    count = len(boxes)

    # One row of IoUs a step: K small steps for all classes and images at once, whose cost does not
    # depend on the boxes. All K x K at first, settled by rounds, takes hundreds of rounds where a
    # network that is hardly trained gives long chains of "a removes b, which then spares c".
    def step(i: jax.Array, keep: jax.Array, boxes: jax.Array) -> jax.Array:
        box = jax.lax.dynamic_slice_in_dim(boxes, i, 1)
        removed = (pairwise_iou(box, boxes)[0] > iou_threshold) & (jnp.arange(len(boxes)) > i)
        return keep & ~(removed & keep[i])

    # No box removes one before it: the steps of the second half need not look at the first.
    half = count // 2
    keep = jax.lax.fori_loop(0, half, partial(step, boxes=boxes), keep)
    rest = jax.lax.fori_loop(0, count - half, partial(step, boxes=boxes[half:]), keep[half:])
    return jnp.concatenate([keep[:half], rest])


def multiclass_nms(
    boxes: Float[AnyArray, "P 4"],
    scores: Float[AnyArray, "P C"],
    *,
    score_threshold: float,
    iou_threshold: float,
    candidates: int,
    max_detections: int,
) -> Detections:
    """The detections of one image; SSD, section 3, and Caffe's DetectionOutput.

    `boxes` are xyxy and `scores` probabilities with background as class 0. In each class the
    `candidates` best scores above `score_threshold` enter suppression (see `nms_keep`); of all
    that is kept, the best `max_detections` are returned. Equal scores are ordered by class, then
    by prior. A score of NaN is no candidate.

    ssd.pytorch takes 200 candidates and returns what is left of every class, Caffe 400 and 200.

    Raises ValueError if there is no class but background.
    """
    priors, classes = scores.shape
    if classes < 2:
        raise ValueError(f"scores has {classes} column; give background and at least one class")
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)

    by_class = jnp.transpose(scores[:, 1:])  # [C-1, P]
    by_class = jnp.where(by_class > score_threshold, by_class, -jnp.inf)
    # top_k puts the lower index first among equals.
    top_scores, top_priors = jax.lax.top_k(by_class, min(candidates, priors))  # [C-1, k]
    top_boxes = boxes[top_priors]  # [C-1, k, 4]
    valid = top_scores > -jnp.inf
    keep = jax.vmap(nms_keep, (0, 0, None))(top_boxes, valid, iou_threshold)

    flat_scores = jnp.where(keep, top_scores, -jnp.inf).reshape(-1)
    found, index = jax.lax.top_k(flat_scores, min(max_detections, flat_scores.size))  # [K]
    kept = found > -jnp.inf
    missing = max_detections - found.size
    return Detections(
        boxes=_pad(jnp.where(kept[:, None], top_boxes.reshape(-1, 4)[index], 0), missing),
        scores=_pad(jnp.where(kept, found, 0), missing),
        labels=_pad(
            jnp.where(kept, index // top_scores.shape[1] + 1, 0).astype(jnp.int32), missing
        ),
        count=jnp.sum(kept, dtype=jnp.int32),
    )


def _pad(x: jax.Array, missing: int) -> jax.Array:
    """`x` with `missing` rows of zeros after it."""
    return jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)])
