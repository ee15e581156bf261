"""Non-maximum suppression of fixed size: from a prediction per prior to detections."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32, Int32

from ssd_jax.ops.boxes import AnyArray, Scalar, pairwise_iou


class Detections(NamedTuple):
    """Detections of one image in descending order of score, padded with zeros to K."""

    boxes: Float32[jax.Array, "K 4"]
    """xyxy, in the unit of the input boxes."""
    scores: Float32[jax.Array, " K"]
    """Probability of the class."""
    labels: Int32[jax.Array, " K"]
    """Class, from 1; 0 for padding."""
    count: Int32[jax.Array, ""]  # type: ignore[assignment]  # hides tuple.count
    """Number of detections without padding."""


def nms_mask(
    boxes: Float[AnyArray, "k 4"], valid: Bool[AnyArray, " k"], iou_threshold: Scalar
) -> Bool[jax.Array, " k"]:
    """Mark the boxes that greedy non-maximum suppression keeps.

    Args:
        boxes: xyxy, in descending order of score.
        valid: False for padding, which is neither kept nor suppresses others.
        iou_threshold: a box is suppressed if its IoU with a kept box is above this.
    """
    overlaps = pairwise_iou(boxes, boxes) > iou_threshold
    valid = jnp.asarray(valid)
    if len(valid) == 0:
        return valid

    def keep_or_suppress(i: jax.Array, keep: jax.Array) -> jax.Array:
        return keep.at[i].set(valid[i] & ~jnp.any(keep & overlaps[i]))

    return lax.fori_loop(0, len(valid), keep_or_suppress, jnp.zeros_like(valid))


def multiclass_nms(
    boxes: Float[AnyArray, "P 4"],
    scores: Float[AnyArray, "P C"],
    *,
    score_threshold: Scalar,
    iou_threshold: Scalar,
    topk_candidates: int,
    detections_per_image: int,
) -> Detections:
    """Detect the objects of one image; SSD, section 3, and Caffe's DetectionOutput.

    In each class, the `topk_candidates` best scores above `score_threshold` enter suppression (see
    `nms_mask`). The best `detections_per_image` of all kept boxes are returned. Equal scores are
    ordered by class, then by prior. NaN is never above the threshold.

    ssd.pytorch uses 200 candidates and returns all kept boxes, Caffe uses 400 and returns 200.

    Args:
        boxes: decoded boxes of the priors, xyxy.
        scores: probabilities, with background as class 0.
        score_threshold: a candidate's score is above this.
        iou_threshold: see `nms_mask`.
        topk_candidates: largest number of candidates of a class.
        detections_per_image: K, the size of the result.

    Raises:
        ValueError: background is the only class.
    """
    check_classes(scores)
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    by_class = jnp.transpose(scores[:, 1:])
    by_class = jnp.where(by_class > score_threshold, by_class, -jnp.inf)
    # top_k puts the lower index first among equals.
    top_scores, top_priors = lax.top_k(by_class, min(topk_candidates, len(boxes)))
    top_boxes = boxes[top_priors]  # [C - 1, k, 4]
    keep = jax.vmap(nms_mask, (0, 0, None))(top_boxes, top_scores > -jnp.inf, iou_threshold)
    return select_detections(top_boxes, top_scores, keep, detections_per_image)


def check_classes(scores: Float[AnyArray, "*n C"]) -> None:
    """Raise ValueError if background is the only class of the scores."""
    if scores.shape[-1] < 2:
        raise ValueError(
            f"scores has {scores.shape[-1]} column; give background and at least one class"
        )


def select_detections(
    boxes: Float[jax.Array, "c k 4"],
    scores: Float[jax.Array, "c k"],
    keep: Bool[jax.Array, "c k"],
    detections_per_image: int,
) -> Detections:
    """Select the best kept boxes of all classes; c = C - 1, without background."""
    flat_scores = jnp.where(keep, scores, -jnp.inf).reshape(-1)
    best, index = lax.top_k(flat_scores, min(detections_per_image, flat_scores.size))  # [K]
    valid = best > -jnp.inf
    labels = (index // scores.shape[1] + 1).astype(jnp.int32)
    padding = (0, detections_per_image - best.size)
    return Detections(
        boxes=jnp.pad(jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0), (padding, (0, 0))),
        scores=jnp.pad(jnp.where(valid, best, 0), padding),
        labels=jnp.pad(jnp.where(valid, labels, 0), padding),
        count=jnp.sum(valid, dtype=jnp.int32),
    )
