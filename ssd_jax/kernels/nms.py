"""Non-maximum suppression, fast on every platform; equal to `ssd_jax.ops.nms`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int32, UInt32

from ssd_jax.kernels.bitmask import (
    WORD_BITS,
    BitMask,
    mask_to_indices,
    pack_bits,
    popcount,
    top_k_mask,
    unpack_bits,
)
from ssd_jax.ops.boxes import AnyArray, Scalar, pairwise_iou
from ssd_jax.ops.nms import Detections, check_classes, select_detections

_Program = Callable[[jax.Array, jax.Array], Detections]

# Largest number of candidates of a class for the CPU's program for trained networks.
_FEW_CANDIDATES = 100


def batched_nms(
    boxes: Float[jax.Array, "B P 4"],
    scores: Float[jax.Array, "B P C"],
    *,
    score_threshold: Scalar,
    iou_threshold: Scalar,
    topk_candidates: int,
    detections_per_image: int,
) -> Detections:
    """Detect the objects of a batch: `multiclass_nms` of every image, fields [B, ...].

    On CPU, process one image at a time with `lax.map`, which stays in the cache; `vmap` would
    execute both branches of the CPU's program for every image.
    """
    check_classes(scores)
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    cpu, default = _programs(score_threshold, iou_threshold, topk_candidates, detections_per_image)

    def sequential(boxes: jax.Array, scores: jax.Array) -> Detections:
        return lax.map(lambda image: cpu(*image), (boxes, scores))

    return lax.platform_dependent(boxes, scores, cpu=sequential, default=jax.vmap(default))


def multiclass_nms(
    boxes: Float[AnyArray, "P 4"],
    scores: Float[AnyArray, "P C"],
    *,
    score_threshold: Scalar,
    iou_threshold: Scalar,
    topk_candidates: int,
    detections_per_image: int,
) -> Detections:
    """Detect the objects of one image; see `ssd_jax.ops.nms.multiclass_nms`."""
    check_classes(scores)
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    cpu, default = _programs(score_threshold, iou_threshold, topk_candidates, detections_per_image)
    return lax.platform_dependent(boxes, scores, cpu=cpu, default=default)


def _programs(
    score_threshold: Scalar, iou_threshold: Scalar, topk_candidates: int, detections_per_image: int
) -> tuple[_Program, _Program]:
    """Make the program for one image, (boxes, scores) -> detections, for CPU and for the others."""

    def suppress(boxes: jax.Array, top_scores: jax.Array, top_priors: jax.Array) -> Detections:
        top_boxes = boxes[top_priors]  # [C - 1, k, 4]
        keep = jax.vmap(nms_mask, (0, 0, None))(top_boxes, top_scores > -jnp.inf, iou_threshold)
        return select_detections(top_boxes, top_scores, keep, detections_per_image)

    def default(boxes: jax.Array, scores: jax.Array) -> Detections:
        by_class = jnp.transpose(scores[:, 1:])
        by_class = jnp.where(by_class > score_threshold, by_class, -jnp.inf)
        return suppress(boxes, *lax.top_k(by_class, min(topk_candidates, len(boxes))))

    def cpu(boxes: jax.Array, scores: jax.Array) -> Detections:
        candidates = pack_bits(scores[:, 1:] > score_threshold)
        many = min(topk_candidates, len(boxes))
        few = min(_FEW_CANDIDATES, many)

        def suppress_few() -> Detections:
            return suppress(boxes, *_top_k_of_mask(scores, candidates, few))

        def suppress_many() -> Detections:
            # Compared again: a comparison shared with `candidates` would be written to memory in
            # both cases.
            best = top_k_mask(scores[:, 1:], scores[:, 1:] > score_threshold, many)
            return suppress(boxes, *_top_k_of_mask(scores, best, many))

        # A trained network has few candidates; most of the work would be for padding.
        return lax.cond(jnp.max(popcount(candidates)) <= few, suppress_few, suppress_many)

    return cpu, default


def _top_k_of_mask(
    scores: Float[jax.Array, "P C"], mask: BitMask, k: int
) -> tuple[Float[jax.Array, "c k"], Int32[jax.Array, "c k"]]:
    """Return the k best masked scores of each class, -inf for none, and their priors."""
    # One slot more than needed: selecting all slots is a sort, which takes a CPU twice as long.
    priors, filled = mask_to_indices(mask, k + 1)
    label = 1 + jnp.arange(len(priors))
    best = jnp.where(filled, scores[priors, label[:, None]], -jnp.inf)
    best, order = lax.top_k(best, k)
    return best, jnp.take_along_axis(priors, order, axis=1)


def nms_mask(
    boxes: Float[AnyArray, "k 4"], valid: Bool[AnyArray, " k"], iou_threshold: Scalar
) -> Bool[jax.Array, " k"]:
    """Mark the boxes that greedy non-maximum suppression keeps; see `ssd_jax.ops.nms.nms_mask`."""
    boxes, remaining = jnp.asarray(boxes), jnp.asarray(valid)
    kept = []
    # One block of boxes at a time; those that are kept are the bits of a word.
    for _ in range(0, len(boxes), WORD_BITS):
        block = boxes[:WORD_BITS]
        overlaps = pack_bits(pairwise_iou(block, boxes) > iou_threshold)[0]  # [k]
        # Without the barrier both uses would compute the words.
        overlaps = lax.optimization_barrier(overlaps)
        word = _block_nms(overlaps[:WORD_BITS], remaining[:WORD_BITS])
        kept.append(word)
        spared = overlaps[WORD_BITS:] & word == 0
        boxes, remaining = boxes[WORD_BITS:], remaining[WORD_BITS:] & spared
    return unpack_bits(jnp.stack(kept), len(valid)) if kept else remaining


def _block_nms(
    overlaps: UInt32[jax.Array, " n"], valid: Bool[jax.Array, " n"]
) -> UInt32[jax.Array, ""]:
    """Return the kept boxes of a block as bits; overlaps[i] has those that box i overlaps."""
    bit = jnp.uint32(1) << jnp.arange(len(valid), dtype=jnp.uint32)
    earlier = overlaps & (bit - 1)

    # Start from all boxes. After n rounds the first n bits are correct; stop at a fixed point.
    def refine(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        word, _ = state
        keep = valid & (earlier & word == 0)
        return jnp.sum(jnp.where(keep, bit, 0), dtype=jnp.uint32), word

    every = jnp.sum(jnp.where(valid, bit, 0), dtype=jnp.uint32)
    return lax.while_loop(lambda s: s[0] != s[1], refine, refine((every, every)))[0]
