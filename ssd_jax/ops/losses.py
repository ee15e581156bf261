"""The MultiBox loss of SSD, section 2.2: localisation, confidence and hard negative mining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from ssd_jax.ops.boxes import AnyArray
from ssd_jax.ops.matching import Targets
from ssd_jax.ops.ranks import float_sort_key, kth_largest


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


@jax.custom_vjp
def _log_sum_exp(x: Float[jax.Array, "P C"], largest: Float[jax.Array, " P"]) -> jax.Array:
    """The logarithm [P] of each row's sum of exponentials, divided by that of its largest."""
    return jnp.log(jnp.sum(jnp.exp(x - largest[:, None]), axis=-1))


def _log_sum_exp_forward(x: jax.Array, largest: jax.Array) -> tuple[jax.Array, tuple]:
    log_sum = _log_sum_exp(x, largest)
    return log_sum, (x, largest, log_sum)


def _log_sum_exp_backward(saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    # The exponentials are taken again: to keep them is to write and read an array as large as x.
    x, largest, log_sum = saved
    return grad[:, None] * jnp.exp(x - largest[:, None] - log_sum[:, None]), None


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


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
    rank = jnp.where(positive, 0, float_sort_key(background_loss))
    least = kth_largest(rank[:, None], count)[0]
    above, equal = rank > least, (rank == least) & ~positive
    first = jnp.cumsum(equal) <= count - jnp.sum(above)
    return (above | (equal & first)) & (count > 0)


def multibox_loss(
    loc: Float[AnyArray, "P 4"],
    conf: Float[AnyArray, "P C"],
    targets: Targets,
    num_positives: Float[AnyArray, ""] | float,
    *,
    neg_pos_ratio: float,
) -> MultiboxLoss:
    """One image's share of the loss: its sums, divided by the positives of the whole batch.

    `loc` are predicted offsets and `conf` logits with background as class 0; labels are below C.
    `num_positives` counts the positive priors of the global batch, over all devices, so that
    adding up the images gives the batch's loss. It is taken as 1 where it is 0, as in Caffe
    (ssd.pytorch divides by 0), so that a batch without objects has a loss and a gradient of 0.
    The negatives are chosen in each image, `neg_pos_ratio` for a positive. The computation is
    float32 for any input type.
    """
    positive = targets.label > 0
    # Masked before the maths, so that no prediction of a negative reaches the sum or its gradient.
    error = jnp.where(positive[:, None], loc.astype(jnp.float32) - targets.loc, 0)
    loc_sum = jnp.sum(smooth_l1(error))

    conf = conf.astype(jnp.float32)
    # Each row by its own maximum; ssd.pytorch's shared one underflows.
    largest = jax.lax.stop_gradient(jnp.max(conf, axis=-1))
    log_sum = _log_sum_exp(conf, largest)
    background_loss = jax.lax.stop_gradient(log_sum - (conf[:, 0] - largest))
    trained = positive | hard_negative_mask(background_loss, positive, ratio=neg_pos_ratio)
    # Compare and sum instead of a gather, whose gradient would be a scatter.
    is_target = targets.label[:, None] == jnp.arange(conf.shape[-1])[None, :]
    of_target = jnp.sum(jnp.where(is_target, conf - largest[:, None], 0), axis=-1)
    conf_sum = jnp.sum(jnp.where(trained, log_sum - of_target, 0))

    norm = jnp.maximum(jnp.asarray(num_positives, jnp.float32), 1)
    return MultiboxLoss(loc_sum / norm, conf_sum / norm)
