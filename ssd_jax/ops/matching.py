"""Matching: which prior learns which object; SSD, section 2.2.

Two rules are known by the weights that they trained, Caffe's and ssd.pytorch's. Both are
deterministic here, and neither looks at the numbers of padded objects.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32

from ssd_jax.ops.boxes import AnyArray, cxcywh_to_xyxy, encode_boxes, pairwise_iou

Rule = Literal["bipartite", "per_object"]

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
    rule: Rule,
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
    if rule not in ("bipartite", "per_object"):
        raise ValueError(f"rule is {rule!r}; use 'bipartite' or 'per_object'")
    if objects == 0:
        return jnp.zeros(priors, jnp.int32), jnp.zeros(priors, bool)

    # Comparing first also turns NaN into 0.
    iou = jnp.where(valid[:, None] & (iou > 0), iou, 0)
    secured = _match_bipartite(iou) if rule == "bipartite" else _claim_best(iou)
    best_iou = jnp.max(iou, axis=0)
    best_object = jnp.argmax(iou, axis=0).astype(jnp.int32)
    object_index = jnp.where(secured >= 0, secured, best_object)
    positive = (secured >= 0) | ((best_iou >= threshold) & (best_iou > 0))
    return object_index, positive


def _claim_best(iou: Float[jax.Array, "M P"]) -> Int32[jax.Array, " P"]:
    """The last object that has each prior as its best, -1 where none has."""
    objects, priors = iou.shape
    claims = jnp.where(jnp.max(iou, axis=1) > 0, jnp.arange(objects, dtype=jnp.int32), -1)
    # A maximum, where a plain scatter leaves open which of two objects stays.
    return jnp.full(priors, -1, jnp.int32).at[jnp.argmax(iou, axis=1)].max(claims)


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
    return jax.lax.while_loop(lambda state: state[2], match_mutual, start)[1]


def make_targets(
    priors: Float[AnyArray, "P 4"],
    boxes: Float[AnyArray, "M 4"],
    labels: Int[AnyArray, " M"],
    mask: Bool[AnyArray, " M"],
    *,
    threshold: float,
    rule: Rule,
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
    iou = pairwise_iou(boxes, cxcywh_to_xyxy(priors))
    object_index, positive = match_priors(iou, mask, threshold=threshold, rule=rule)
    # A prior without an object is encoded against itself, so that no number is extreme.
    matched = jnp.where(positive[:, None], boxes[object_index], cxcywh_to_xyxy(priors))
    loc = jnp.where(positive[:, None], encode_boxes(matched, priors, variances), 0)
    label = jnp.where(positive, jnp.asarray(labels)[object_index], 0)
    return Targets(loc.astype(jnp.float32), label.astype(jnp.int32))
