"""SGD with momentum and its learning rate schedule."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array

from ssd_jax.config import OptimConfig
from ssd_jax.training.state import Params

Schedule: TypeAlias = Callable[[Array | int, Array | np.ndarray | np.float32], Array]
"""Learning rate of a step, counted from 0, with `decay_per_step` as second argument."""


def decay_per_step(config: OptimConfig, *, steps: int) -> np.float32:
    """Return the fraction of the cosine decay that one step takes in a run of `steps`.

    The reciprocal in float32 is the factor by which XLA replaces a division by a constant.
    """
    return np.float32(1) / np.float32(steps - config.warmup_steps)


def make_schedule(config: OptimConfig, *, batch_size: int) -> Schedule:
    """Build the learning rate schedule.

    The warm-up rises linearly and ends at the full rate. Then `multistep` drops at the milestones
    as in the paper, and `cosine` falls to 0 at the last step. With `base_batch_size` the rate is
    proportional to the batch size (Goyal et al., 2017, section 2.1).
    """
    scale = batch_size / config.base_batch_size if config.base_batch_size else 1.0

    # Not optax's schedules: those take the number of steps as a Python number, so that runs of
    # different lengths could not share a compiled step, and they round differently.
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


def make_optimizer(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Build SGD with momentum, without the learning rate, which the step applies.

    Weight decay is added to the gradient before the momentum, as in Caffe and PyTorch. Biases have
    `bias_lr_multiplier` times the learning rate, and decay only with `decay_biases`. An update with
    `good=False` leaves the momentum unchanged.
    """
    parts = [
        optax.clip_by_global_norm(config.grad_clip_norm)
        if config.grad_clip_norm
        else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, None if config.decay_biases else _is_weight),
        _momentum(config.momentum),
    ]
    if config.bias_lr_multiplier != 1:
        parts.append(optax.masked(optax.scale(config.bias_lr_multiplier), _is_bias))
    return optax.chain(*parts)


def _momentum(decay: float) -> optax.GradientTransformationExtraArgs:
    """Build an `optax.trace` that is left unchanged where the argument `good` is false."""

    def update(
        grads: Params, state: optax.TraceState, params: Params | None = None, *, good: Any = True
    ) -> tuple[Params, optax.TraceState]:
        del params
        # Select here and not after the update: XLA then updates momentum and parameters in place,
        # without copies of the old ones.
        trace = jax.tree.map(lambda g, m: jnp.where(good, g + decay * m, m), grads, state.trace)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(optax.trace(decay).init, update)


def _is_bias(params: Params) -> Mapping[str, Any]:
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "bias", params)


def _is_weight(params: Params) -> Mapping[str, Any]:
    return traverse_util.path_aware_map(lambda path, _: path[-1] != "bias", params)
