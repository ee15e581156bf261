"""MultiBox loss, fast on every platform; equal to `ssd_jax.ops.losses` up to rounding."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num

from ssd_jax.kernels.radix_select import float_sort_key, kth_largest
from ssd_jax.ops.boxes import AnyArray
from ssd_jax.ops.losses import MultiboxLoss, smooth_l1
from ssd_jax.ops.matching import Targets


def hard_negative_mask(
    background_loss: Float[AnyArray, " P"], positive: Bool[AnyArray, " P"], *, ratio: float
) -> Bool[jax.Array, " P"]:
    """Mark the negative priors to train on; see `ssd_jax.ops.losses.hard_negative_mask`.

    Selects with a threshold instead of a sort.
    """
    positives = jnp.sum(positive)
    count = jnp.minimum(jnp.floor(ratio * positives), positive.size - positives).astype(jnp.int32)
    key = jnp.where(positive, 0, float_sort_key(background_loss))
    threshold = kth_largest(key[:, None], count)[0]
    above, equal = key > threshold, (key == threshold) & ~positive
    first = jnp.cumsum(equal) <= count - jnp.sum(above)
    return (above | (equal & first)) & (count > 0)


@jax.custom_vjp
def _log_sum_exp(x: Float[jax.Array, "P C"], largest: Float[jax.Array, " P"]) -> jax.Array:
    """Compute log(sum(exp(x - largest))) of each row [P]."""
    return jnp.log(jnp.sum(jnp.exp(x - largest[:, None]), axis=-1))


def _log_sum_exp_forward(x: jax.Array, largest: jax.Array) -> tuple[jax.Array, tuple]:
    log_sum = _log_sum_exp(x, largest)
    return log_sum, (x, largest, log_sum)


def _log_sum_exp_backward(saved: tuple, grad: jax.Array) -> tuple[jax.Array, None]:
    # Compute the exponentials again instead of storing an array as large as x.
    x, largest, log_sum = saved
    return grad[:, None] * jnp.exp(x - largest[:, None] - log_sum[:, None]), None


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


def multibox_loss(
    loc: Float[AnyArray, "P 4"],
    conf: Float[AnyArray, "P C"],
    targets: Targets,
    num_positives: Num[AnyArray, ""] | float,
    *,
    neg_pos_ratio: float,
) -> MultiboxLoss:
    """Compute one image's losses; see `ssd_jax.ops.losses.multibox_loss`."""
    positive = targets.label > 0
    error = jnp.where(positive[:, None], loc.astype(jnp.float32) - targets.loc, 0)
    loc_sum = jnp.sum(smooth_l1(error))

    conf = conf.astype(jnp.float32)
    # Each row's own maximum; one for all rows, as in ssd.pytorch, underflows.
    largest = jax.lax.stop_gradient(jnp.max(conf, axis=-1))
    log_sum = _log_sum_exp(conf, largest)
    background_loss = jax.lax.stop_gradient(log_sum - (conf[:, 0] - largest))
    trained = positive | hard_negative_mask(background_loss, positive, ratio=neg_pos_ratio)
    # Compare and sum instead of a gather, whose gradient would be a scatter.
    is_target = targets.label[:, None] == jnp.arange(conf.shape[-1])[None, :]
    target_logit = jnp.sum(jnp.where(is_target, conf - largest[:, None], 0), axis=-1)
    conf_sum = jnp.sum(jnp.where(trained, log_sum - target_logit, 0))

    norm = jnp.maximum(jnp.asarray(num_positives, jnp.float32), 1)
    return MultiboxLoss(loc_sum / norm, conf_sum / norm)
