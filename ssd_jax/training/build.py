"""Model, optimizer and training step, built from a config."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax

from ssd_jax.config import Config
from ssd_jax.models.ssd import SSD, make_model, model_priors
from ssd_jax.training.optimizer import make_optimizer, make_schedule
from ssd_jax.training.state import Params, TrainState, create_train_state
from ssd_jax.training.step import AXIS, pmap_train_step, train_step


@dataclass(frozen=True)
class Training:
    """Parts of a training that follow from its config; see `build_training`."""

    config: Config
    model: SSD
    """Network whose batch norm averages over AXIS."""
    priors: np.ndarray
    """float32 [P, 4] cxcywh."""
    optimizer: optax.GradientTransformationExtraArgs
    step: jax.stages.Wrapped
    """Step over all devices: (replicated state, batch [local devices, b, ...]) -> (state, metrics).

    See `train_step` and `pmap_train_step`.
    """

    def init_state(self) -> TrainState:
        """Create the state before the first step, with weights from `train.seed`."""
        key = jax.random.key(self.config.train.seed)
        ema = self.config.optim.ema_decay > 0
        return create_train_state(self.model, self.optimizer, key, ema=ema)

    def describe(self, params: Params) -> str:
        """Describe the network in one line."""
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        classes = self.config.model.classes
        return (
            f"SSD {self.config.model.image_size}: {count:,} parameters, {len(self.priors):,} "
            f"priors, {len(classes)} classes: {', '.join(classes)}"
        )


def build_training(config: Config, devices: Sequence[jax.Device] | None = None) -> Training:
    """Build model, priors, optimizer and training step.

    Args:
        config: with `model.classes` filled in; `train.batch_size` is that of all devices together.
        devices: devices of the step; None: all devices of all processes.
    """
    model = make_model(config.model, config.priors, AXIS)
    priors = model_priors(config.model, config.priors)
    optimizer = make_optimizer(config.optim)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedule=make_schedule(config.optim, batch_size=config.train.batch_size),
        priors=priors,
        variances=config.priors.variances,
        config=config.train,
        ema_decay=config.optim.ema_decay,
    )
    return Training(config, model, priors, optimizer, pmap_train_step(step, devices))
