"""The training state, the optimizer and its schedule."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax import Array

from ssd_jax.config import OptimConfig
from ssd_jax.models.ssd import SSD

Params: TypeAlias = dict[str, Any]


class TrainState(struct.PyTreeNode):
    """All that a step changes."""

    step: Array
    """Steps taken: int32 scalar."""
    params: Params
    """Parameters of every layer."""
    batch_stats: Params
    """Running means and variances; empty without batch norm."""
    opt_state: optax.OptState
    """Momentum of the parameters that are trained."""
    ema: Params
    """Moving averages {"params": ..., "batch_stats": ...}; empty without them."""
    bad_steps: Array
    """Steps whose loss or gradient was not finite: int32 scalar."""

    @property
    def variables(self) -> Params:
        """What to evaluate: the moving averages where there are some."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def split_frozen(params: Params, frozen: tuple[str, ...]) -> tuple[Params, Params]:
    """(trained, frozen): the parameters without and with the `frozen` layers of the base."""
    base = params["base"]
    trained = {name: layer for name, layer in base.items() if name not in frozen}
    return {**params, "base": trained}, {name: base[name] for name in frozen}


def join_frozen(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_frozen`."""
    return {**trained, "base": {**trained["base"], **frozen}}


def decay_per_step(config: OptimConfig, *, steps: int) -> np.float32:
    """Return the share of the cosine decay that one step takes in a run of `steps`.

    It is an argument of the schedule, so that runs of different lengths share one compiled step. It
    is the reciprocal in float32, by which XLA also replaces a division by a constant.
    """
    return np.float32(1) / np.float32(steps - config.warmup_steps)


def make_schedule(
    config: OptimConfig, *, batch_size: int
) -> Callable[[Array | int, Array | np.ndarray | np.float32], Array]:
    """Return the function from a step, counted from 0, and `decay_per_step` to the learning rate.

    The warm-up rises linearly and ends at the full rate; multistep falls at the milestones as in
    the paper, cosine falls to 0 at the last step. With `base_batch_size` the rate grows linearly
    with the batch (Goyal et al., 2017, section 2.1).
    """
    scale = batch_size / config.base_batch_size if config.base_batch_size else 1.0

    def schedule(step: Array | int, per_step: Array | np.ndarray | np.float32) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.schedule == "cosine":
            done = (step - config.warmup_steps) * per_step
            decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        else:
            passed = jnp.sum(step >= jnp.asarray(config.milestones, jnp.float32))
            decay = config.gamma**passed
        return config.learning_rate * scale * warmup * decay

    return schedule


def _is_bias(params: Params) -> Params:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: path[-1] == "bias" for path in flat})


def _is_no_bias(params: Params) -> Params:
    return jax.tree.map(lambda bias: not bias, _is_bias(params))


def _momentum(decay: float) -> optax.GradientTransformationExtraArgs:
    """`optax.trace` that leaves the momentum as it is where the argument `good` is false."""

    def update(
        grads: Params, state: optax.TraceState, params: Params | None = None, *, good: Any = True
    ) -> tuple[Params, optax.TraceState]:
        del params
        # Chosen here and not afterwards: the parameters then follow what is kept, and neither they
        # nor the old momentum are copied, to be read when the new one has taken its place.
        trace = jax.tree.map(lambda g, m: jnp.where(good, g + decay * m, m), grads, state.trace)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(optax.trace(decay).init, update)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """The direction of SGD with momentum; the step takes it times the rate.

    Decay joins the gradient before the momentum, as in Caffe and PyTorch. Biases move at
    `bias_lr_multiplier` times the rate, and decay only with `decay_biases`. The rate is
    applied by the step, which also counts the steps that it skips. An update with `good=False`
    leaves the momentum as it is.
    """
    mask = None if config.decay_biases else _is_no_bias
    parts = [
        optax.clip_by_global_norm(config.grad_clip_norm)
        if config.grad_clip_norm
        else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask),
        _momentum(config.momentum),
    ]
    if config.bias_lr_multiplier != 1:
        parts.append(optax.masked(optax.scale(config.bias_lr_multiplier), _is_bias))
    return optax.chain(*parts)


def create_train_state(
    model: SSD, optimizer: optax.GradientTransformation, key: Array, *, ema: bool = False
) -> TrainState:
    """Initial parameters from `key` and an optimizer state for those that are trained."""
    size = model.config.image_size
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    variables = jax.jit(model.init)(key, image)
    trained, _ = split_frozen(variables["params"], model.config.frozen_layers)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(trained),
        ema={},
        bad_steps=jnp.zeros((), jnp.int32),
    )
    return start_from(state, state.variables, ema=ema)


def start_from(state: TrainState, variables: Params, *, ema: bool) -> TrainState:
    """The state with other parameters and batch statistics, its averages starting from them."""
    # A copy: an array that is in the state twice could not be given to the step for good.
    averages = jax.tree.map(jnp.array, variables) if ema else {}
    return state.replace(**variables, ema=averages)
