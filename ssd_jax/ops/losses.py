"""The MultiBox loss of SSD, section 2.2: localisation, confidence and hard negative mining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32

from ssd_jax.ops.boxes import AnyArray
from ssd_jax.ops.matching import Targets


class MultiboxLoss(NamedTuple):
    """One image's share of the two losses; a batch's is the sum over its images."""

    loc: Float32[jax.Array, ""]
    """Smooth L1 of the offsets of positive priors."""
    conf: Float32[jax.Array, ""]
    """Cross entropy of positive priors and chosen negatives (nats)."""


def smooth_l1(x: Float[AnyArray, "*n"]) -> Float[jax.Array, "*n"]:
    """Elementwise x² / 2 below 1 in size and |x| - 1/2 above; Fast R-CNN, equation 3."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)


def hard_negative_mask(
    background_loss: Float[AnyArray, " P"], positive: Bool[AnyArray, " P"], *, ratio: float
) -> Bool[jax.Array, " P"]:
    """The negatives that are trained on: those that look least like background.

    Of the priors that are not positive, the floor(ratio * positives) with the highest
    `background_loss` are chosen, or all of them where that is more; ties go to the lower prior.
    An image without positives has no negatives.
    """
    positives = jnp.sum(positive)
    count = jnp.minimum(jnp.floor(ratio * positives), positive.size - positives).astype(jnp.int32)
    # Integers in the order of the losses, 0 for what cannot be chosen. Adding 0 makes -0 a 0.
    bits = lax.bitcast_convert_type(jnp.asarray(background_loss, jnp.float32) + 0, jnp.uint32)
    rank = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    rank = jnp.where(positive, 0, rank)

    # The count-th largest, from its highest bit to its lowest: 32 sums instead of a sort, which
    # on a CPU takes ten times as long.
    def add_bit(k: jax.Array, least: jax.Array) -> jax.Array:
        more = least | (jnp.uint32(1 << 31) >> k.astype(jnp.uint32))
        return jnp.where(jnp.sum(rank >= more) >= count, more, least)

    # Made from rank, not of a constant: shard_map wants a loop's state to vary as its input does.
    least = lax.fori_loop(0, 32, add_bit, rank[0] & 0)
    above, equal = rank > least, (rank == least) & ~positive
    first = jnp.cumsum(equal) <= count - jnp.sum(above)
    return (above | (equal & first)) & (count > 0)


def multibox_loss(
    loc: Float[AnyArray, "P 4"],
    conf: Float[AnyArray, "P C"],
    targets: Targets,
    num_positives: Float[AnyArray, ""] | float,
    *,
    negative_ratio: float,
) -> MultiboxLoss:
    """One image's share of the loss: its sums, divided by the positives of the whole batch.

    `loc` are predicted offsets and `conf` logits with background as class 0; labels are below C.
    `num_positives` counts the positive priors of the global batch, over all devices, so that
    adding up the images gives the batch's loss. It is taken as 1 where it is 0, as in Caffe
    (ssd.pytorch divides by 0), so that a batch without objects has a loss and a gradient of 0.
    The negatives are chosen in each image, `negative_ratio` for a positive. The computation is
    float32 for any input type.
    """
    positive = targets.label > 0
    # Masked before the maths, so that no prediction of a negative reaches the sum or its gradient.
    error = jnp.where(positive[:, None], loc.astype(jnp.float32) - targets.loc, 0)
    loc_sum = jnp.sum(smooth_l1(error))

    # log_softmax subtracts each row's own maximum; ssd.pytorch's shared one underflows.
    log_prob = jax.nn.log_softmax(conf.astype(jnp.float32), axis=-1)
    background_loss = jax.lax.stop_gradient(-log_prob[:, 0])
    trained = positive | hard_negative_mask(background_loss, positive, ratio=negative_ratio)
    # Compare and sum instead of a gather, whose gradient would be a scatter.
    is_target = targets.label[:, None] == jnp.arange(conf.shape[-1])[None, :]
    conf_sum = -jnp.sum(jnp.where(is_target & trained[:, None], log_prob, 0))

    norm = jnp.maximum(jnp.asarray(num_positives, jnp.float32), 1)
    return MultiboxLoss(loc_sum / norm, conf_sum / norm)
