"""Matching: assign ground-truth boxes to priors; SSD, section 2.2.

There are two rules, Caffe's and ssd.pytorch's; published weights were trained with one or the
other. Both are deterministic and independent of the values in padded boxes.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32, Int, Int32

from ssd_jax.ops.boxes import AnyArray, cxcywh_to_xyxy, encode_boxes, pairwise_iou

MatchingRule = Literal["bipartite", "per_object"]

MIN_BIPARTITE_IOU = 1e-6
"""IoU that a pair must exceed to be matched by "bipartite", as in Caffe's MatchBBox."""


class Targets(NamedTuple):
    """Training targets of the priors of one image."""

    loc: Float32[jax.Array, "P 4"]
    """Offsets to the matched box (see `encode_boxes`); 0 for negative priors."""
    label: Int32[jax.Array, " P"]
    """Class of the matched box; 0, the background, for negative priors."""


def match_priors(
    iou: Float[AnyArray, "M P"],
    valid: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]:
    """Match priors to ground-truth boxes.

    A prior is positive if its largest IoU is at least `threshold`; it is matched to the box with
    that IoU, the first one on ties. In addition the rule forces matches, which take precedence, so
    that small objects get a prior too:

    - "bipartite" (Caffe): match the pair with the largest IoU, remove both, and repeat while the
      IoU is above 1e-6; on ties the lower box first, then the lower prior. Two boxes never share
      a prior.
    - "per_object" (ssd.pytorch): match each box to the prior with the largest IoU, the first one
      on ties; if two boxes have the same best prior, the later box gets it. Unlike in
      ssd.pytorch, a box without overlap (one without area) is not matched.

    Args:
        iou: IoU of every box with every prior. Rows that are not valid may hold anything, NaN
            included.
        valid: False for padding, which is never matched.
        threshold: smallest IoU of a positive prior.
        rule: rule for forced matches.

    Returns:
        The index of each prior's box, and whether the prior is positive. The index of a negative
        prior is arbitrary, but within [0, M).

    Raises:
        ValueError: the rule is unknown.
    """
    num_boxes, num_priors = iou.shape
    if rule not in get_args(MatchingRule):
        raise ValueError(f"rule is {rule!r}; use 'bipartite' or 'per_object'")
    if num_boxes == 0:
        return jnp.zeros(num_priors, jnp.int32), jnp.zeros(num_priors, bool)
    # Comparing first also turns NaN into 0.
    iou = jnp.where(valid[:, None] & (iou > 0), iou, 0)
    if rule == "bipartite":
        forced = _match_bipartite(iou)
    else:
        forced = force_best_priors(jnp.max(iou, axis=1), jnp.argmax(iou, axis=1), num_priors)
    best_box = jnp.argmax(iou, axis=0).astype(jnp.int32)
    return combine_matches(forced, jnp.max(iou, axis=0), best_box, threshold)


def _match_bipartite(iou: Float[jax.Array, "M P"]) -> Int32[jax.Array, " P"]:
    """Return the index of each prior's box in the greedy one-to-one matching, or -1."""

    def match_best_pair(_: jax.Array, state: tuple) -> tuple:
        iou, forced = state
        box, prior = jnp.unravel_index(jnp.argmax(iou), iou.shape)
        is_match = iou[box, prior] > MIN_BIPARTITE_IOU
        forced = forced.at[prior].set(jnp.where(is_match, box.astype(jnp.int32), forced[prior]))
        return iou.at[box, :].set(0).at[:, prior].set(0), forced

    state = iou, jnp.full(iou.shape[1], -1, jnp.int32)
    return lax.fori_loop(0, iou.shape[0], match_best_pair, state)[1]


def force_best_priors(
    best_iou: Float[jax.Array, " M"], best_prior: Int[jax.Array, " M"], num_priors: int
) -> Int32[jax.Array, " P"]:
    """Return the index of the last box whose best prior each prior is, or -1.

    Args:
        best_iou: largest IoU of each box; boxes with 0 are ignored.
        best_prior: the first prior with that IoU.
        num_priors: number of priors.
    """
    box = jnp.where(best_iou > 0, jnp.arange(len(best_iou), dtype=jnp.int32), -1)
    # A maximum: a plain scatter leaves the order of equal indices undefined.
    return jnp.full(num_priors, -1, jnp.int32).at[best_prior].max(box)


def combine_matches(
    forced: Int32[jax.Array, " P"],
    best_iou: Float[jax.Array, " P"],
    best_box: Int32[jax.Array, " P"],
    threshold: float,
) -> tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]:
    """Combine forced matches (-1: none) with those by the IoU threshold; see `match_priors`."""
    is_forced = forced >= 0
    positive = is_forced | ((best_iou >= threshold) & (best_iou > 0))
    return jnp.where(is_forced, forced, best_box), positive


def encode_targets(
    priors: Float[AnyArray, "P 4"],
    priors_xyxy: Float[AnyArray, "P 4"],
    boxes: Float[AnyArray, "M 4"],
    labels: Int[AnyArray, " M"],
    box_index: Int32[jax.Array, " P"],
    positive: Bool[jax.Array, " P"],
    variances: tuple[float, float],
) -> Targets:
    """Encode the boxes matched to the priors as training targets.

    `priors` are cxcywh, `boxes` xyxy; `box_index` and `positive` come from `match_priors`.
    """
    if boxes.shape[0] == 0:
        return Targets(jnp.zeros(priors.shape, jnp.float32), jnp.zeros(len(priors), jnp.int32))
    # Negative priors are encoded against themselves, which gives finite numbers.
    matched = jnp.where(positive[:, None], boxes[box_index], priors_xyxy)
    loc = jnp.where(positive[:, None], encode_boxes(matched, priors, variances), 0)
    label = jnp.where(positive, jnp.asarray(labels)[box_index], 0)
    return Targets(loc.astype(jnp.float32), label.astype(jnp.int32))


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
    """Make the training targets of one image.

    An image without objects gives background for every prior.

    Args:
        priors: cxcywh, fractions of the image.
        boxes: ground truth, xyxy, fractions of the image.
        labels: classes of the boxes, from 1.
        mask: False for padding, whose boxes and labels are ignored.
        threshold: smallest IoU of a positive prior; see `match_priors`.
        rule: matching rule; see `match_priors`.
        variances: scale of the offsets; see `encode_boxes`.
    """
    boxes = jnp.where(mask[:, None], boxes, 0).astype(jnp.float32)
    priors_xyxy = cxcywh_to_xyxy(priors)
    iou = pairwise_iou(boxes, priors_xyxy)
    box_index, positive = match_priors(iou, mask, threshold=threshold, rule=rule)
    return encode_targets(priors, priors_xyxy, boxes, labels, box_index, positive, variances)
