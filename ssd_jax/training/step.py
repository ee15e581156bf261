"""The training step: pure, aware of its axis, and the one place with `jax.pmap`.

Each device holds the whole state and a share of the batch. The loss is normalised by the positives
of the global batch and the gradients are added up, so that any number of devices takes the same
step.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssd_jax.config import TrainConfig
from ssd_jax.models.ssd import SSD
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.ops.matching import make_targets
from ssd_jax.training.state import Params, TrainState, join_frozen, split_frozen

AXIS = "batch"

Batch = Mapping[str, Array | np.ndarray]
Metrics = dict[str, Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: SSD,
    optimizer: optax.GradientTransformation,
    priors: np.ndarray,
    variances: tuple[float, float],
    config: TrainConfig,
) -> tuple[TrainState, Metrics]:
    """The state after one step, and the step's metrics over the global batch.

    To be run under an axis named AXIS. `batch` is this device's share: image [b, S, S, 3] of 0 to
    255, boxes [b, M, 4] xyxy in [0, 1], labels [b, M], mask [b, M].
    """
    targets = jax.vmap(
        partial(
            make_targets,
            threshold=config.match_iou,
            rule=config.matching,
            variances=variances,
        ),
        in_axes=(None, 0, 0, 0),
    )(priors, batch["boxes"], batch["labels"], batch["mask"])
    num_positives = lax.psum(jnp.sum(targets.label > 0), AXIS)
    # Frozen layers are no argument of the gradient, so none is computed for them.
    trained, frozen = split_frozen(state.params, model.config.frozen_layers)

    def loss_fn(trained: Params) -> tuple[Array, tuple[Array, Array, Params]]:
        variables = {"params": join_frozen(trained, frozen), "batch_stats": state.batch_stats}
        (loc, conf), updates = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        loss = jax.vmap(
            partial(multibox_loss, negative_ratio=config.negative_ratio),
            in_axes=(0, 0, 0, None),
        )(loc, conf, targets, num_positives)
        loss_loc, loss_conf = jnp.sum(loss.loc), jnp.sum(loss.conf)
        return loss_loc + loss_conf, (loss_loc, loss_conf, updates.get("batch_stats", {}))

    grads, (loss_loc, loss_conf, batch_stats) = jax.grad(loss_fn, has_aux=True)(trained)
    grads, loss_loc, loss_conf = lax.psum((grads, loss_loc, loss_conf), AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    state = TrainState(
        step=state.step + 1,
        params=join_frozen(trained, frozen),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    metrics = {
        "loss": loss_loc + loss_conf,
        "loss_loc": loss_loc,
        "loss_conf": loss_conf,
        "positives": num_positives,
        "grad_norm": optax.tree.norm(grads),
    }
    return state, metrics


def pmap_train_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step` over all devices: the state replicated and donated, the batch [devices, b, ...]."""
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def replicate(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """The state on all local `devices`, placed so that the step can take over its memory."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    return jax.device_put(state, sharding)


def shard_batch(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """The batch as [devices, b, ...], without the arrays that only the host reads."""
    keys = ("image", "boxes", "labels", "mask")
    return {key: batch[key].reshape(devices, -1, *batch[key].shape[1:]) for key in keys}
