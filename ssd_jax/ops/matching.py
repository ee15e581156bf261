"""Matching: which prior learns which object; SSD, section 2.2.

Two rules are known by the weights that they trained, Caffe's and ssd.pytorch's. Both are
deterministic here, and neither looks at the numbers of padded objects.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32, Int, Int32

from ssd_jax.ops.boxes import AnyArray, cxcywh_to_xyxy, encode_boxes, pairwise_iou

MatchingRule = Literal["bipartite", "per_object"]

# Caffe's MatchBBox: a pair that overlaps no more than this does not overlap.
_MIN_OVERLAP = 1e-6


class Targets(NamedTuple):
    """What each prior of an image has to learn."""

    loc: Float32[jax.Array, "P 4"]
    """Offsets to the prior's object (see `encode_boxes`); 0 where there is none."""
    label: Int32[jax.Array, " P"]
    """Class of the prior's object; 0, the background, where there is none."""


def match_priors(
    iou: Float[AnyArray, "M P"],
    valid: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]:
    """The object of each prior, and whether the prior is positive.

    With both rules a prior that overlaps an object by `threshold` (IoU) or more is positive and
    belongs to the object that it overlaps most, the first on ties. Before that each object
    secures a prior:

    - "bipartite", Caffe's: the pair of largest IoU is matched, then the largest among the objects
      and priors that are left, while it is above 1e-6; on ties the lower object, then the lower
      prior. No two objects share a prior.
    - "per_object", ssd.pytorch's: each object claims the prior that it overlaps most, the first on
      ties; where two claim one prior the later object gets it. Unlike there, an object that
      overlaps no prior (one without area) claims none.

    Objects that are not `valid` are padding and are never matched, whatever their IoU, NaN
    included. The index of a prior that is not positive means nothing, but is within [0, M).

    Raises ValueError for an unknown rule.
    """
    objects, priors = iou.shape
    if rule not in get_args(MatchingRule):
        raise ValueError(f"rule is {rule!r}; use 'bipartite' or 'per_object'")
    if objects == 0:
        return jnp.zeros(priors, jnp.int32), jnp.zeros(priors, bool)

    # Comparing first also turns NaN into 0.
    iou = jnp.where(valid[:, None] & (iou > 0), iou, 0)
    if rule == "bipartite":
        secured = _match_bipartite(iou)
    else:
        secured = _claim(jnp.max(iou, axis=1), jnp.argmax(iou, axis=1), priors)
    best_iou = jnp.max(iou, axis=0)
    best_object = jnp.argmax(iou, axis=0).astype(jnp.int32)
    object_index = jnp.where(secured >= 0, secured, best_object)
    positive = (secured >= 0) | ((best_iou >= threshold) & (best_iou > 0))
    return object_index, positive


def _claim(
    largest: Float[jax.Array, " M"], prior: Int[jax.Array, " M"], priors: int
) -> Int32[jax.Array, " P"]:
    """The last object that has each prior as its best, -1 where none has.

    `largest` is each object's largest IoU and `prior` the first prior with it.
    """
    claims = jnp.where(largest > 0, jnp.arange(len(largest), dtype=jnp.int32), -1)
    # A maximum, where a plain scatter leaves open which of two objects stays.
    return jnp.full(priors, -1, jnp.int32).at[prior].max(claims)


def _match_bipartite(iou: Float[jax.Array, "M P"]) -> Int32[jax.Array, " P"]:
    """The object of each prior in the greedy one-to-one matching, -1 where there is none.

    Taking the globally best pair M times is sequential. The same matching comes from taking, in
    one round, every pair in which each is the other's best: greedy would take such a pair as well,
    since only a better pair of the same row or column could prevent it. Ties go to the lower index
    in rows and in columns, which is greedy's order, so the results are equal. The globally best
    pair is always among them, so each round makes progress; a few rounds are typical.
    """
    objects, priors = iou.shape
    indices = jnp.arange(objects, dtype=jnp.int32)

    def match_mutual(state: tuple) -> tuple:
        matched, prior_object, _ = state
        left = jnp.where(matched[:, None] | (prior_object >= 0)[None, :], 0, iou)
        best_prior = jnp.argmax(left, axis=1)
        best_object = jnp.argmax(left, axis=0)
        overlaps = jnp.max(left, axis=1) > _MIN_OVERLAP
        mutual = overlaps & (best_object[best_prior] == indices)
        target = jnp.where(mutual, best_prior, priors)  # past the end: dropped
        prior_object = prior_object.at[target].set(indices, mode="drop")
        return matched | mutual, prior_object, jnp.any(overlaps & ~mutual)

    # Made from iou, not of constants: shard_map wants a loop's state to vary as its input does.
    matched = iou[:, 0] < 0  # [M], all False
    prior_object = jnp.where(iou[0] < 0, 0, -1).astype(jnp.int32)  # [P], all -1
    start = (matched, prior_object, jnp.any(iou > _MIN_OVERLAP))
    return lax.while_loop(lambda state: state[2], match_mutual, start)[1]


def match_boxes(
    boxes: Float[AnyArray, "M 4"],
    priors: Float[AnyArray, "P 4"],
    valid: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]:
    """`match_priors` of the IoUs of boxes and priors, both xyxy in one unit.

    A CPU goes from object to object, which takes the time of the objects that there are instead of
    the places for them, and makes no matrix; other platforms have all rows at once.
    """

    def at_once(boxes: jax.Array, priors: jax.Array, valid: jax.Array) -> tuple:
        return match_priors(pairwise_iou(boxes, priors), valid, threshold=threshold, rule=rule)

    arrays = jnp.asarray(boxes), jnp.asarray(priors), jnp.asarray(valid)
    if len(boxes) == 0 or rule not in get_args(MatchingRule):
        return at_once(*arrays)
    in_turn = partial(_match_sequential, threshold=threshold, rule=rule)
    return lax.platform_dependent(*arrays, cpu=in_turn, default=at_once)


def _match_sequential(
    boxes: Float[jax.Array, "M 4"],
    priors: Float[jax.Array, "P 4"],
    valid: Bool[jax.Array, " M"],
    *,
    threshold: float,
    rule: MatchingRule,
) -> tuple[Int32[jax.Array, " P"], Bool[jax.Array, " P"]]:
    objects, count = len(boxes), len(priors)
    object_indices = jnp.arange(objects, dtype=jnp.int32)
    prior_indices = jnp.arange(count, dtype=jnp.int32)

    def row(i: jax.Array) -> jax.Array:
        """The object's IoU with each prior."""
        iou = pairwise_iou(lax.dynamic_slice_in_dim(boxes, i, 1), priors)[0]
        return jnp.where(valid[i] & (iou > 0), iou, 0)

    def best(iou: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The largest IoU and the first prior that has it; argmax would not vectorise."""
        largest = jnp.max(iou)
        return largest, jnp.min(jnp.where(iou == largest, prior_indices, count))

    def look(i: jax.Array, seen: tuple) -> tuple:
        best_iou, best_object, largest, prior = seen
        iou = row(i)
        better = iou > best_iou
        own_largest, own_prior = best(iou)
        return (
            jnp.where(better, iou, best_iou),
            jnp.where(better, i, best_object),
            largest.at[i].set(own_largest),
            prior.at[i].set(own_prior),
        )

    def settle(state: tuple) -> tuple:
        """The pair of largest IoU; where its prior is taken, the object's next best instead."""
        largest, prior, secured = state
        i = jnp.argmax(largest)
        taken = jnp.any(secured == prior[i])
        others = jnp.zeros(count, bool).at[secured].set(True, mode="drop")
        next_largest, next_prior = best(jnp.where(others, 0, row(i)))
        return (
            largest.at[i].set(jnp.where(taken, next_largest, 0)),
            prior.at[i].set(jnp.where(taken, next_prior, prior[i])),
            secured.at[i].set(jnp.where(taken, count, prior[i])),
        )

    # Made from the input, as in _match_bipartite.
    zero = jnp.where(valid, 0, 0)  # [M]
    nothing = (zero[0] + prior_indices) * 0
    last = jnp.max(jnp.where(valid, object_indices + 1, 0))
    best_iou, best_object, largest, prior = lax.fori_loop(
        0, last, look, (nothing.astype(jnp.float32), nothing, zero.astype(jnp.float32), zero)
    )
    if rule == "per_object":
        secured = _claim(largest, prior, count)
    else:
        # An object's largest IoU only falls while others take priors: the largest of all, where
        # its prior is free, is the pair that comes next.
        start = (largest, prior, zero + count)  # past the end: none
        _, _, owned = lax.while_loop(lambda s: jnp.max(s[0]) > _MIN_OVERLAP, settle, start)
        secured = (nothing - 1).at[owned].set(object_indices, mode="drop")
    object_index = jnp.where(secured >= 0, secured, best_object)
    return object_index, (secured >= 0) | ((best_iou >= threshold) & (best_iou > 0))


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
    """What each prior has to learn from one image's objects.

    `priors` are cxcywh and `boxes` xyxy, both fractions of the image; `labels` count from 1;
    `mask` is False for padding, whose boxes and labels may be anything. `match_priors` explains
    `threshold` (IoU) and `rule`, `encode_boxes` the `variances`. An image without objects gives
    background everywhere.
    """
    if boxes.shape[0] == 0:
        return Targets(jnp.zeros(priors.shape, jnp.float32), jnp.zeros(len(priors), jnp.int32))
    boxes = jnp.where(mask[:, None], boxes, 0).astype(jnp.float32)
    corners = cxcywh_to_xyxy(priors)
    object_index, positive = match_boxes(boxes, corners, mask, threshold=threshold, rule=rule)
    # A prior without an object is encoded against itself, so that no number is extreme.
    matched = jnp.where(positive[:, None], boxes[object_index], corners)
    loc = jnp.where(positive[:, None], encode_boxes(matched, priors, variances), 0)
    label = jnp.where(positive, jnp.asarray(labels)[object_index], 0)
    return Targets(loc.astype(jnp.float32), label.astype(jnp.int32))
