"""MultiBox loss of SSD, section 2.2: localization, confidence and hard negative mining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Num

from ssd_jax.ops.boxes import AnyArray
from ssd_jax.ops.matching import Targets


class MultiboxLoss(NamedTuple):
    """Losses of one image; the loss of a batch is the sum over its images."""

    loc: Float32[jax.Array, ""]
    """Smooth L1 loss of the offsets of positive priors."""
    conf: Float32[jax.Array, ""]
    """Cross entropy of positive priors and hard negatives (nats)."""


def smooth_l1(x: Float[AnyArray, "*n"]) -> Float[jax.Array, "*n"]:
    """Compute x² / 2 where |x| < 1 and |x| - 1/2 elsewhere; Fast R-CNN, equation 3."""
    magnitude = jnp.abs(x)
    return jnp.where(magnitude < 1, 0.5 * jnp.square(x), magnitude - 0.5)


def hard_negative_mask(
    background_loss: Float[AnyArray, " P"], positive: Bool[AnyArray, " P"], *, ratio: float
) -> Bool[jax.Array, " P"]:
    """Mark the negative priors to train on: those that look least like background.

    Select the floor(ratio * positives) negatives with the largest `background_loss`, or all
    negatives if there are fewer; the lower prior on ties. An image without positives has no hard
    negatives.
    """
    loss = jnp.where(positive, -jnp.inf, background_loss)
    rank = jnp.argsort(jnp.argsort(loss, descending=True))
    return (rank < jnp.floor(ratio * jnp.sum(positive))) & ~jnp.asarray(positive)


def multibox_loss(
    loc: Float[AnyArray, "P 4"],
    conf: Float[AnyArray, "P C"],
    targets: Targets,
    num_positives: Num[AnyArray, ""] | float,
    *,
    neg_pos_ratio: float,
) -> MultiboxLoss:
    """Compute one image's losses, divided by the number of positives in the batch.

    The computation is float32 for any input type.

    Args:
        loc: predicted offsets.
        conf: predicted logits, with background as class 0.
        targets: see `ssd_jax.ops.matching.make_targets`; labels are below C.
        num_positives: positive priors of the global batch, over all devices, so that the losses of
            its images add up to the loss of the batch. 0 counts as 1, as in Caffe (ssd.pytorch
            divides by 0), so that a batch without objects has zero loss and gradient.
        neg_pos_ratio: hard negatives per positive, selected in each image.
    """
    positive = targets.label > 0
    # Masked before the loss, so that predictions of negatives never reach the sum or its gradient.
    error = jnp.where(positive[:, None], loc.astype(jnp.float32) - targets.loc, 0)
    loc_sum = jnp.sum(smooth_l1(error))

    log_probs = jax.nn.log_softmax(conf.astype(jnp.float32))
    cross_entropy = -jnp.take_along_axis(log_probs, targets.label[:, None], axis=-1)[:, 0]
    background_loss = jax.lax.stop_gradient(-log_probs[:, 0])
    negative = hard_negative_mask(background_loss, positive, ratio=neg_pos_ratio)
    conf_sum = jnp.sum(jnp.where(positive | negative, cross_entropy, 0))

    norm = jnp.maximum(jnp.asarray(num_positives, jnp.float32), 1)
    return MultiboxLoss(loc_sum / norm, conf_sum / norm)
