"""Training state and its parameters, split into trained and frozen ones."""

from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from ssd_jax.models.ssd import SSD, init_variables

Params: TypeAlias = dict[str, Any]


class TrainState(struct.PyTreeNode):
    """State of a training, replaced by each step."""

    step: Array
    """Number of steps taken: int32 scalar."""
    params: Params
    """Parameters of all layers."""
    batch_stats: Params
    """Running means and variances; empty without batch norm."""
    opt_state: optax.OptState
    """Momentum of the trained parameters."""
    ema: Params
    """Moving averages {"params": ..., "batch_stats": ...}; empty without EMA."""
    nonfinite_steps: Array
    """Number of steps with a non-finite loss or gradient: int32 scalar."""

    @property
    def variables(self) -> Params:
        """Variables for evaluation: the moving averages if EMA is enabled."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}

    def replace_variables(self, variables: Params) -> Self:
        """Replace parameters and batch statistics, and restart the moving averages from them."""
        return self.replace(**variables, ema=_copy(variables) if self.ema else {})


def _copy(variables: Params) -> Params:
    """Copy the arrays: one that is in the state twice could not be donated to the step."""
    return jax.tree.map(jnp.array, variables)


def create_train_state(
    model: SSD, optimizer: optax.GradientTransformation, key: Array, *, ema: bool = False
) -> TrainState:
    """Initialize the parameters from `key`, and the optimizer for those that are trained."""
    variables = init_variables(model, key)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    trained, _ = split_frozen(params, model.config.frozen_layers)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trained),
        ema=_copy({"params": params, "batch_stats": batch_stats}) if ema else {},
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )


def split_frozen(params: Params, frozen_layers: tuple[str, ...]) -> tuple[Params, Params]:
    """Split the parameters into trained ones and those of the base's `frozen_layers`."""
    base = params["base"]
    trained = {name: layer for name, layer in base.items() if name not in frozen_layers}
    return {**params, "base": trained}, {name: base[name] for name in frozen_layers}


def join_frozen(trained: Params, frozen: Params) -> Params:
    """Invert `split_frozen`."""
    return {**trained, "base": {**trained["base"], **frozen}}
