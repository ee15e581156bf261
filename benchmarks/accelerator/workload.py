"""Networks, batches and training states that several parts measure."""

import dataclasses
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.inputs import images, objects, voc_config
from ssd_jax.config import Config, ModelConfig, OptimConfig, PriorConfig

TINY_BATCH = 2


def config_for(
    size: int = 300, *, dtype: str = "float32", batch: int = 32, tiny: bool = False
) -> Config:
    """Return the config of SSD300 or SSD512 for twenty classes; `tiny`: of a very small network.

    The loss of a network with initial weights is large, so the learning rate is low and gradients
    are clipped; this does not change the amount of computation.
    """
    if tiny:
        config = Config(
            model=ModelConfig(
                classes=("class0", "class1", "class2"),
                image_size=64,
                width_multiplier=0.0625,
                feature_layers=("conv4_3", "conv7"),
            ),
            priors=PriorConfig(sizes=(16, 32, 48), steps=(8, 16), aspect_ratios=((2,), (2,))),
            # As in the part correctness, so that both use one compiled program.
            optim=OptimConfig(milestones=(), weight_decay=0.0),
        )
    else:
        config = voc_config(size=size)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=dtype),
        optim=dataclasses.replace(
            config.optim, learning_rate=1e-4, grad_clip_norm=10.0, warmup_steps=0
        ),
        train=dataclasses.replace(config.train, batch_size=batch),
    )


def host_batch(config: Config) -> dict[str, np.ndarray]:
    """Make a batch of random images with six objects each, as the input pipeline does."""
    batch, size = config.train.batch_size, config.model.image_size
    boxes, labels, mask = objects(batch, config.data.max_objects, classes=len(config.model.classes))
    return {"image": images(batch, size), "boxes": boxes, "labels": labels, "mask": mask}


def step_inputs(config: Config, device: Any) -> tuple[Any, Any]:
    """Return the inputs of a step on one device: the state on it, and the batch on the host."""
    from ssd_jax.training.step import replicate, shard_batch

    return replicate(initial_state(config), [device]), shard_batch(host_batch(config), 1)


def detection_programs(config: Config) -> tuple[Any, Any, Any]:
    """Return compiled functions of one device: detection, and its network and post-processing."""
    import jax

    from ssd_jax.inference.detect import detect_step, detection_settings, make_post_process
    from ssd_jax.models.ssd import make_model

    model = make_model(config.model, config.priors)
    detect = partial(detect_step, model=model, **detection_settings(config))
    return jax.jit(detect), jax.jit(model.apply), make_post_process(config)


def initial_state(config: Config) -> Any:
    """Return the training state of a new network on the host."""
    # Type and batch size do not change the parameters, so one cached state serves all of them.
    return _initial_state(
        dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype="float32"),
            train=dataclasses.replace(config.train, batch_size=1),
        )
    )


@cache
def _initial_state(config: Config) -> Any:
    import jax

    from ssd_jax.training.build import build_training

    return jax.device_get(build_training(config).init_state())
