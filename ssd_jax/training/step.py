"""Data-parallel training step: a pure function of one device's share, and its `jax.pmap`.

Each device holds the whole state and a share of the batch. One all-reduce sums the gradients and
losses, not yet normalised, and the number of positives that normalises them, so that any number of
devices takes the same step. Batch norm has further all-reduces.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssd_jax.config import TrainConfig
from ssd_jax.kernels.losses import multibox_loss
from ssd_jax.kernels.matching import make_targets
from ssd_jax.models.ssd import SSD
from ssd_jax.ops.losses import MultiboxLoss
from ssd_jax.ops.matching import Targets
from ssd_jax.training.optimizer import Schedule
from ssd_jax.training.state import Params, TrainState, join_frozen, split_frozen

AXIS = "batch"
BATCH_KEYS = ("image", "boxes", "labels", "mask")
"""Arrays of a batch that the step reads."""

Batch = Mapping[str, Array | np.ndarray]
Metrics = dict[str, Array]


class StepSums(NamedTuple):
    """Sums over a part of the batch, not yet divided by the number of positives."""

    grads: Params
    loss_loc: Array
    loss_conf: Array
    positives: Array


def image_targets(
    batch: Batch, priors: np.ndarray, variances: tuple[float, float], config: TrainConfig
) -> Targets:
    """Match priors to the objects of each image: fields [b, P, ...], see `make_targets`.

    The batch's labels are class ids without background; those of the targets have it as class 0.
    """
    return jax.vmap(
        partial(
            make_targets,
            threshold=config.match_iou_threshold,
            rule=config.matching,
            variances=variances,
        ),
        in_axes=(None, 0, 0, 0),
    )(priors, batch["boxes"], batch["labels"] + 1, batch["mask"])  # class 0 is background


def image_losses(loc: Array, conf: Array, targets: Targets, config: TrainConfig) -> MultiboxLoss:
    """Sum the losses of each image [b], not yet divided by the number of positives.

    loc [b, P, 4] and conf [b, P, C] are the network's outputs.
    """
    return jax.vmap(
        partial(multibox_loss, neg_pos_ratio=config.neg_pos_ratio), in_axes=(0, 0, 0, None)
    )(loc, conf, targets, 1.0)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: SSD,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    priors: np.ndarray,
    variances: tuple[float, float],
    config: TrainConfig,
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Take one step on this device's share of the batch, under an axis named AXIS.

    Args:
        state: the same on all devices.
        batch: image [b, S, S, 3] with values from 0 to 255, boxes [b, M, 4] xyxy in [0, 1], labels
            [b, M] with 0 as the first class, mask [b, M]; the scalars stop, and decay_per_step for
            the schedule.
        model: built for AXIS.
        optimizer: see `make_optimizer`.
        schedule: see `make_schedule`.
        priors: float32 [P, 4] cxcywh.
        variances: of the encoded offsets.
        config: settings of matching, loss, accumulation and non-finite steps.
        ema_decay: decay of the moving averages; 0 disables them.

    Returns:
        The next state, and metrics over the global batch. A non-finite step, whose loss or gradient
        is not finite, changes only `nonfinite_steps` and, if config.on_nonfinite is skip, `step`.
        If it is stop, later steps change nothing either, so that the host still finds the state
        before that step. The metric nonfinite is 1 for such a step; stop is positive if any process
        set it.
    """
    # Frozen layers are not differentiated, so their gradients are not computed.
    trained, frozen = split_frozen(state.params, model.config.frozen_layers)

    def forward_backward(batch_stats: Params, part: Batch) -> tuple[Params, StepSums]:
        """Return the running statistics after a part of the batch, and its sums."""

        def loss_fn(trained: Params) -> tuple[Array, tuple[Array, Array, Params]]:
            (loc, conf), updates = model.apply(
                {"params": join_frozen(trained, frozen), "batch_stats": batch_stats},
                part["image"],
                train=True,
                mutable=["batch_stats"],
            )
            loss = image_losses(loc, conf, targets, config)
            loss_loc, loss_conf = jnp.sum(loss.loc), jnp.sum(loss.conf)
            return loss_loc + loss_conf, (loss_loc, loss_conf, updates.get("batch_stats", {}))

        targets = image_targets(part, priors, variances, config)
        positives = jnp.sum(targets.label > 0).astype(jnp.float32)
        grads, (loss_loc, loss_conf, stats) = jax.grad(loss_fn, has_aux=True)(trained)
        return stats, StepSums(grads, loss_loc, loss_conf, positives)

    images = {key: batch[key] for key in BATCH_KEYS}
    if config.grad_accumulation_steps == 1:
        batch_stats, sums = forward_backward(state.batch_stats, images)
    else:
        batch_stats, sums = _accumulate(
            forward_backward, state.batch_stats, images, config.grad_accumulation_steps
        )
    stop = batch["stop"]
    if lax.axis_size(AXIS) > 1:  # on a single device, XLA would copy the arrays
        sums, stop = lax.psum((sums, stop), AXIS)

    norm = jnp.maximum(sums.positives, 1)
    grads, loss_loc, loss_conf, _ = jax.tree.map(lambda total: total / norm, sums)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss_loc) & jnp.isfinite(loss_conf) & jnp.isfinite(grad_norm)
    rate = schedule(state.step, batch["decay_per_step"])

    skip = config.on_nonfinite == "skip"
    good = finite if skip else finite & (state.nonfinite_steps == 0)

    direction, opt_state = optimizer.update(grads, state.opt_state, trained, good=good)
    trained = jax.tree.map(lambda p, d: jnp.where(good, p - rate * d, p), trained, direction)
    params = join_frozen(trained, frozen)
    batch_stats = jax.tree.map(partial(jnp.where, good), batch_stats, state.batch_stats)
    after = state.replace(
        step=state.step + (1 if skip else good),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        nonfinite_steps=state.nonfinite_steps + ~finite,
    )
    if ema_decay:
        ema = update_ema(after, ema_decay)
        after = after.replace(ema=jax.tree.map(partial(jnp.where, good), ema, state.ema))
    metrics = {
        "loss": loss_loc + loss_conf,
        "loss_loc": loss_loc,
        "loss_conf": loss_conf,
        "positives_per_image": sums.positives / (len(batch["image"]) * lax.axis_size(AXIS)),
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "nonfinite": (~finite).astype(jnp.float32),
        "stop": stop,
    }
    return after, metrics


def _accumulate(
    forward_backward: Callable[[Params, Batch], tuple[Params, StepSums]],
    batch_stats: Params,
    batch: Batch,
    parts: int,
) -> tuple[Params, StepSums]:
    """Run `forward_backward` on equal parts of the batch, one after the other, and add the sums."""
    split = {k: jnp.reshape(v, (parts, -1, *v.shape[1:])) for k, v in batch.items()}

    def add(carry: tuple[Params, StepSums], part: Batch) -> tuple[tuple[Params, StepSums], None]:
        stats, sums = forward_backward(carry[0], part)
        return (stats, jax.tree.map(jnp.add, carry[1], sums)), None

    first = {k: v[0] for k, v in split.items()}
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(forward_backward, batch_stats, first)[1],
    )
    return lax.scan(add, (batch_stats, zeros), split)[0]


def update_ema(state: TrainState, decay: float) -> Params:
    """Update the moving averages after a step; the decay is lower in the first steps."""
    step = state.step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    current = {"params": state.params, "batch_stats": state.batch_stats}
    # In this form a constant array, as of a frozen layer, stays bit-identical.
    return jax.tree.map(lambda mean, value: mean + weight * (value - mean), state.ema, current)


def pmap_train_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    devices: Sequence[jax.Device] | None = None,
) -> jax.stages.Wrapped:
    """Map `step` over `devices`, by default all devices of all processes.

    The state is replicated and donated; the batch is [local devices, b, ...].
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def replicate(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """Copy the state to all local `devices`, so that it can be donated to the step."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    return jax.device_put(state, sharding)


def shard_batch(
    batch: Mapping[str, np.ndarray],
    devices: int,
    *,
    stop: bool = False,
    decay_per_step: float | np.float32 = 0.0,
) -> dict[str, np.ndarray]:
    """Split a batch into [devices, b, ...], without the arrays that only the host reads.

    Args:
        batch: arrays [B, ...] of this process.
        devices: number of local devices.
        stop: whether this process asks all processes to stop.
        decay_per_step: argument of the schedule.
    """
    shares = {key: batch[key].reshape(devices, -1, *batch[key].shape[1:]) for key in BATCH_KEYS}
    return shares | {
        "stop": np.full(devices, stop, np.float32),
        "decay_per_step": np.full(devices, decay_per_step, np.float32),
    }
