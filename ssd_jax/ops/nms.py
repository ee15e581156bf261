"""Non-maximum suppression of fixed size: from a prediction for each prior to detections."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, UInt32

from ssd_jax.ops.boxes import AnyArray, pairwise_iou
from ssd_jax.ops.candidates import (
    BITS,
    Words,
    mask_to_indices,
    pack_bits,
    popcount,
    top_k_mask,
    unpack_bits,
)

# Candidates of a class for which a CPU has a program of its own.
_FEW = 100


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


def nms_mask(
    boxes: Float[AnyArray, "K 4"], valid: Bool[AnyArray, " K"], iou_threshold: float
) -> Bool[jax.Array, " K"]:
    """The boxes that greedy suppression keeps.

    `boxes` are xyxy by falling score. From the first on, a valid box is kept unless its IoU with a
    box kept before is above `iou_threshold`. Boxes that are not `valid` are neither kept nor
    suppress others.
    """
    boxes, left = jnp.asarray(boxes), jnp.asarray(valid)
    kept = []
    # A block at a time, whose boxes that are kept are the bits of a word.
    for _ in range(0, len(boxes), BITS):
        overlaps = pack_bits(pairwise_iou(boxes[:BITS], boxes) > iou_threshold)[0]  # [K]
        # Both uses would compute the words anew.
        overlaps = jax.lax.optimization_barrier(overlaps)
        word = _block_nms(overlaps[:BITS], left[:BITS])
        kept.append(word)
        boxes, left = boxes[BITS:], left[BITS:] & (overlaps[BITS:] & word == 0)
    return unpack_bits(jnp.stack(kept), len(valid)) if kept else left


def _block_nms(
    overlaps: UInt32[jax.Array, " k"], valid: Bool[jax.Array, " k"]
) -> UInt32[jax.Array, ""]:
    """The boxes of a block that are kept, as bits; `overlaps` has each box's with all of them."""
    own = jnp.uint32(1) << jnp.arange(len(valid), dtype=jnp.uint32)
    before = overlaps & (own - 1)

    # From all on: after n rounds the first n bits are right, and where nothing changes all are.
    def settle(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        word, _ = state
        spared = valid & (before & word == 0)
        return jnp.sum(jnp.where(spared, own, 0), dtype=jnp.uint32), word

    every = jnp.sum(jnp.where(valid, own, 0), dtype=jnp.uint32)
    return jax.lax.while_loop(lambda s: s[0] != s[1], settle, settle((every, every)))[0]


def multiclass_nms(
    boxes: Float[AnyArray, "P 4"],
    scores: Float[AnyArray, "P C"],
    *,
    score_threshold: float,
    iou_threshold: float,
    topk_candidates: int,
    detections_per_image: int,
) -> Detections:
    """The detections of one image; SSD, section 3, and Caffe's DetectionOutput.

    `boxes` are xyxy and `scores` probabilities with background as class 0. In each class the
    `topk_candidates` best scores above `score_threshold` enter suppression (see `nms_mask`); of all
    that is kept, the best `detections_per_image` are returned. Equal scores are ordered by class,
    then by prior. A score of NaN is no candidate.

    ssd.pytorch takes 200 candidates and returns what is left of every class, Caffe 400 and 200.
    Of a batch a CPU takes one image after the other (`lax.map`) sooner than all at once: `vmap` has
    both the way for few candidates and that for many computed.

    Raises ValueError if there is no class but background.
    """
    priors, classes = scores.shape
    if classes < 2:
        raise ValueError(f"scores has {classes} column; give background and at least one class")
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)

    topk_candidates = min(topk_candidates, priors)
    suppress = partial(
        _suppress, iou_threshold=iou_threshold, detections_per_image=detections_per_image
    )

    def default(boxes: jax.Array, scores: jax.Array) -> Detections:
        by_class = jnp.transpose(scores[:, 1:])
        by_class = jnp.where(by_class > score_threshold, by_class, -jnp.inf)
        # top_k puts the lower index first among equals.
        return suppress(boxes, *jax.lax.top_k(by_class, topk_candidates))

    def cpu(boxes: jax.Array, scores: jax.Array) -> Detections:
        words = pack_bits(scores[:, 1:] > score_threshold)
        few = min(_FEW, topk_candidates)

        def of_few() -> Detections:
            return suppress(boxes, *_best_of(scores, words, few))

        def of_many() -> Detections:
            # Compared a second time: to be kept for here it would be written in either case.
            best = top_k_mask(scores[:, 1:], scores[:, 1:] > score_threshold, topk_candidates)
            return suppress(boxes, *_best_of(scores, best, topk_candidates))

        # A trained network has few candidates, and then most of the work is for empty places.
        return jax.lax.cond(jnp.max(popcount(words)) <= few, of_few, of_many)

    return jax.lax.platform_dependent(boxes, scores, cpu=cpu, default=default)


def _best_of(scores: jax.Array, chosen: Words, count: int) -> tuple[jax.Array, jax.Array]:
    """What `top_k` gives of the scores [P, C + 1], of the priors that are chosen."""
    # A place more than are asked for: the choice of all is a sort, which takes a CPU twice as long.
    priors, filled = mask_to_indices(chosen, count + 1)
    label = 1 + jnp.arange(len(priors))
    best = jnp.where(filled, scores[priors, label[:, None]], -jnp.inf)
    best, order = jax.lax.top_k(best, count)
    return best, jnp.take_along_axis(priors, order, axis=1)


def _suppress(
    boxes: Float[jax.Array, "P 4"],
    top_scores: Float[jax.Array, "C k"],
    top_priors: Int32[jax.Array, "C k"],
    *,
    iou_threshold: float,
    detections_per_image: int,
) -> Detections:
    """The detections by the best scores of each class, -inf where there is none, and priors."""
    top_boxes = boxes[top_priors]  # [C, k, 4]
    valid = top_scores > -jnp.inf
    keep = jax.vmap(nms_mask, (0, 0, None))(top_boxes, valid, iou_threshold)

    flat_scores = jnp.where(keep, top_scores, -jnp.inf).reshape(-1)
    found, index = jax.lax.top_k(flat_scores, min(detections_per_image, flat_scores.size))  # [K]
    kept = found > -jnp.inf
    missing = detections_per_image - found.size
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
