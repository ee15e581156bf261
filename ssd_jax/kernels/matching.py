"""Matching of boxes and priors, fast on every platform; equal to `ssd_jax.ops.matching`."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Int32

from ssd_jax.ops import matching as reference
from ssd_jax.ops.boxes import AnyArray, cxcywh_to_xyxy, pairwise_iou
from ssd_jax.ops.matching import (
    MIN_BIPARTITE_IOU,
    MatchingRule,
    Targets,
    combine_matches,
    encode_targets,
    force_best_priors,
)

Match = tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]


def make_targets(
    priors: Float[AnyArray, "P 4"],
    boxes: Float[AnyArray, "M 4"],
    labels: Int[AnyArray, " M"],
    mask: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
    variances: tuple[float, float],
) -> Targets:
    """Make the training targets of one image; see `ssd_jax.ops.matching.make_targets`."""
    boxes = jnp.where(mask[:, None], boxes, 0).astype(jnp.float32)
    priors_xyxy = cxcywh_to_xyxy(priors)
    box_index, positive = match_boxes(boxes, priors_xyxy, mask, threshold=threshold, rule=rule)
    return encode_targets(priors, priors_xyxy, boxes, labels, box_index, positive, variances)


def match_boxes(
    boxes: Float[AnyArray, "M 4"],
    priors: Float[AnyArray, "P 4"],
    valid: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> Match:
    """Compute `match_priors(pairwise_iou(boxes, priors), ...)`; both are xyxy in one unit.

    On CPU, process one valid box at a time: padding costs nothing and no matrix [M, P] is
    written. Other platforms process all boxes at once.
    """
    sequential = partial(_match_sequential, threshold=threshold, rule=rule)

    def parallel(boxes: jax.Array, priors: jax.Array, valid: jax.Array) -> Match:
        return match_priors(pairwise_iou(boxes, priors), valid, threshold=threshold, rule=rule)

    arrays = jnp.asarray(boxes), jnp.asarray(priors), jnp.asarray(valid)
    if len(boxes) == 0 or rule not in get_args(MatchingRule):
        return parallel(*arrays)
    return lax.platform_dependent(*arrays, cpu=sequential, default=parallel)


def match_priors(
    iou: Float[AnyArray, "M P"],
    valid: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> Match:
    """Match priors to ground-truth boxes; see `ssd_jax.ops.matching.match_priors`."""
    if rule != "bipartite" or len(iou) == 0:
        return reference.match_priors(iou, valid, threshold=threshold, rule=rule)
    iou = jnp.where(valid[:, None] & (iou > 0), iou, 0)
    best_box = jnp.argmax(iou, axis=0).astype(jnp.int32)
    return combine_matches(_match_mutual(iou), jnp.max(iou, axis=0), best_box, threshold)


def _match_mutual(iou: Float[jax.Array, "M P"]) -> Int32[jax.Array, " P"]:
    """Return the index of each prior's box in the greedy one-to-one matching, or -1.

    Greedy matching takes the best remaining pair M times in sequence. This takes, in one round,
    every pair in which each is the other's best. Greedy takes such a pair as well, since only a
    better pair in the same row or column could prevent it. Ties go to the lower index in rows and
    columns, which is the greedy order, so the results are equal. The best remaining pair is always
    among them, so each round makes progress; a few rounds are typical.
    """
    num_boxes, num_priors = iou.shape
    boxes = jnp.arange(num_boxes, dtype=jnp.int32)

    def match_round(state: tuple) -> tuple:
        matched, forced, _ = state
        remaining = jnp.where(matched[:, None] | (forced >= 0)[None, :], 0, iou)
        best_prior = jnp.argmax(remaining, axis=1)
        best_box = jnp.argmax(remaining, axis=0)
        overlaps = jnp.max(remaining, axis=1) > MIN_BIPARTITE_IOU
        mutual = overlaps & (best_box[best_prior] == boxes)
        target = jnp.where(mutual, best_prior, num_priors)  # past the end: dropped
        forced = forced.at[target].set(boxes, mode="drop")
        return matched | mutual, forced, jnp.any(overlaps & ~mutual)

    # Made from iou, not from constants: shard_map requires that a loop's state varies like its
    # input.
    matched = iou[:, 0] < 0  # [M], all False
    forced = jnp.where(iou[0] < 0, 0, -1).astype(jnp.int32)  # [P], all -1
    start = (matched, forced, jnp.any(iou > MIN_BIPARTITE_IOU))
    return lax.while_loop(lambda state: state[2], match_round, start)[1]


def _match_sequential(
    boxes: Float[jax.Array, "M 4"],
    priors: Float[jax.Array, "P 4"],
    valid: Bool[jax.Array, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> Match:
    num_boxes, num_priors = len(boxes), len(priors)
    box_indices = jnp.arange(num_boxes, dtype=jnp.int32)
    prior_indices = jnp.arange(num_priors, dtype=jnp.int32)

    def iou_row(i: jax.Array) -> Float[jax.Array, " P"]:
        iou = pairwise_iou(lax.dynamic_slice_in_dim(boxes, i, 1), priors)[0]
        return jnp.where(valid[i] & (iou > 0), iou, 0)

    def find_best(iou: Float[jax.Array, " P"]) -> tuple[jax.Array, jax.Array]:
        """Return the largest IoU and the first prior that has it; argmax would not vectorise."""
        largest = jnp.max(iou)
        return largest, jnp.min(jnp.where(iou == largest, prior_indices, num_priors))

    def scan_object(i: jax.Array, state: tuple) -> tuple:
        """Update the best box of each prior, and find the best prior of box i."""
        best_iou, best_box, largest, prior = state
        iou = iou_row(i)
        better = iou > best_iou
        row_largest, row_prior = find_best(iou)
        return (
            jnp.where(better, iou, best_iou),
            jnp.where(better, i, best_box),
            largest.at[i].set(row_largest),
            prior.at[i].set(row_prior),
        )

    def assign_next(state: tuple) -> tuple:
        """Assign the best pair, or find the box's next best prior if that one is taken."""
        largest, prior, assigned = state
        i = jnp.argmax(largest)
        taken = jnp.any(assigned == prior[i])
        all_taken = jnp.zeros(num_priors, bool).at[assigned].set(True, mode="drop")
        next_largest, next_prior = find_best(jnp.where(all_taken, 0, iou_row(i)))
        return (
            largest.at[i].set(jnp.where(taken, next_largest, 0)),
            prior.at[i].set(jnp.where(taken, next_prior, prior[i])),
            assigned.at[i].set(jnp.where(taken, num_priors, prior[i])),
        )

    # Made from the input, as in _match_mutual.
    zeros = jnp.where(valid, 0, 0)  # [M]
    zero_priors = (zeros[0] + prior_indices) * 0  # [P]
    stop = jnp.max(jnp.where(valid, box_indices + 1, 0))
    start = (zero_priors.astype(jnp.float32), zero_priors, zeros.astype(jnp.float32), zeros)
    best_iou, best_box, largest, prior = lax.fori_loop(0, stop, scan_object, start)
    if rule == "per_object":
        forced = force_best_priors(largest, prior, num_priors)
    else:
        # A box's largest IoU only decreases while others take priors, so the largest of all is the
        # next greedy pair if its prior is free.
        pairs = (largest, prior, zeros + num_priors)  # past the end: none
        _, _, assigned = lax.while_loop(
            lambda state: jnp.max(state[0]) > MIN_BIPARTITE_IOU, assign_next, pairs
        )
        forced = (zero_priors - 1).at[assigned].set(box_indices, mode="drop")
    return combine_matches(forced, best_iou, best_box, threshold)
