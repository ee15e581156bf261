"""The networks, batches and compiled steps that several parts measure."""

import dataclasses
import functools
from typing import Any

import numpy as np

from benchmarks.case import images, objects, voc_config
from ssd_jax.config import Config, ModelConfig, OptimConfig, PriorConfig

TINY_BATCH = 2


def config_for(
    size: int = 300, *, dtype: str = "float32", batch: int = 32, tiny: bool = False
) -> Config:
    """SSD300 or SSD512 for VOC's twenty classes; `tiny`: a network that compiles in seconds.

    The loss of a network with initial weights is large, so the rate is low and gradients are
    clipped: the arithmetic is the same as in any training.
    """
    if tiny:
        config = Config(
            model=ModelConfig(
                classes=("class0", "class1", "class2"),
                image_size=64,
                width_multiplier=0.0625,
                feature_layers=("conv4_3", "conv7"),
                cpu_conv="direct",
            ),
            priors=PriorConfig(sizes=(16, 32, 48), steps=(8, 16), aspect_ratios=((2,), (2,))),
            # As in the comparison with the CPU, so that both use one compiled program.
            optim=OptimConfig(milestones=(), weight_decay=0.0),
        )
        model = config.model
    else:
        config = voc_config(size=size)
        model = config.model
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, dtype=dtype),
        optim=dataclasses.replace(
            config.optim, learning_rate=1e-4, grad_clip_norm=10.0, warmup_steps=0
        ),
        train=dataclasses.replace(config.train, batch_size=batch),
    )


def host_batch(config: Config, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random images with six objects each, as the input pipeline makes them."""
    boxes, labels, mask = objects(
        batch, config.data.max_objects, classes=len(config.model.classes), seed=seed
    )
    size = config.model.image_size
    return {"image": images(batch, size, seed), "boxes": boxes, "labels": labels, "mask": mask}


def initial_state(config: Config) -> Any:
    """The training state of a new network, in the host's memory."""
    # Neither changes the parameters, which take a while to compile.
    return _initial_state(
        dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype="float32"),
            train=dataclasses.replace(config.train, batch_size=1),
        )
    )


@functools.cache
def _initial_state(config: Config) -> Any:
    import jax

    from ssd_jax.training.build import build_training

    return jax.device_get(build_training(config).init_state())
