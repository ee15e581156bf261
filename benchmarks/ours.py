"""The project's own programs, set up to be timed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.case import images, objects, voc_config

Program = Callable[[], Any]


def train(batch: int, path: str) -> Program:
    """A training step of SSD300; `path`: a value of model.cpu_conv, or plain for XLA's own."""
    import jax

    from ssd_jax.models.ssd import make_model, model_priors
    from ssd_jax.training import state, step

    config = voc_config("direct" if path == "plain" else path, batch)
    if path == "plain":
        _use_plain_convolutions()
    model = make_model(config.model, config.priors, step.AXIS)
    optimizer = state.make_optimizer(config.optim)
    now = state.create_train_state(model, optimizer, jax.random.key(0))
    run = step.pmap_train_step(
        partial(
            step.train_step,
            model=model,
            optimizer=optimizer,
            schedule=state.make_schedule(config.optim, steps=120_000, batch_size=batch),
            priors=model_priors(config.model, config.priors),
            variances=config.priors.variances,
            config=config.train,
        )
    )
    boxes, labels, mask = objects(batch, config.data.max_objects)
    arrays = {"image": images(batch), "boxes": boxes, "labels": labels, "mask": mask}
    place = [step.replicate(now, jax.local_devices())]

    def program() -> None:
        shared = step.shard_batch(arrays, jax.local_device_count())
        place[0], metrics = run(place[0], shared)
        jax.block_until_ready((place[0], metrics))

    return program


def _use_plain_convolutions() -> None:
    """The network's convolutions by XLA alone, as on a GPU."""
    from ssd_jax.models import conv

    def plain(x: Any, kernel: Any, window: Any, _: str = "auto") -> Any:
        return conv._conv_plain(x, kernel, window=window)

    conv.conv2d = plain


def detect(batch: int, path: str) -> Program:
    """Network, decoding and suppression of a batch, from images in memory to boxes in memory."""
    import jax

    from ssd_jax.evaluation.detect import make_detect
    from ssd_jax.models.ssd import make_model

    config = voc_config(path)
    model = make_model(config.model, config.priors)
    inputs = images(batch)
    variables = jax.device_put(jax.jit(model.init)(jax.random.key(0), inputs[:1]))
    run = make_detect(model, config)
    return lambda: jax.device_get(run(variables, inputs))


def suppress(loc: np.ndarray, conf: np.ndarray) -> Program:
    """Softmax, decoding and suppression alone, of the network's outputs in memory."""
    import jax

    from ssd_jax.evaluation.detect import post_process
    from ssd_jax.models.ssd import model_priors

    config = voc_config()
    run = jax.jit(
        partial(
            post_process,
            priors=model_priors(config.model, config.priors),
            variances=config.priors.variances,
            config=config.eval,
        )
    )
    return lambda: jax.device_get(run(loc, conf))


def match_and_loss(
    loc: np.ndarray,
    conf: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
) -> Program:
    """Matching, hard negatives, loss and the gradient for the network's outputs, of a batch."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.training.step import image_losses, image_targets

    config = voc_config()
    priors = model_priors(config.model, config.priors)

    def loss(outputs: Any, batch: Any) -> Any:
        targets = image_targets(batch, priors, config.priors.variances, config.train)
        found = image_losses(*outputs, targets, config.train)
        positives = jnp.sum(targets.label > 0)
        return (jnp.sum(found.loc) + jnp.sum(found.conf)) / jnp.maximum(positives, 1)

    run = jax.jit(jax.value_and_grad(loss))
    # Where they are in training: on the device, made by the network.
    outputs = jax.device_put((loc, conf))
    batch = {"boxes": boxes, "labels": labels, "mask": mask}
    return lambda: jax.block_until_ready(run(outputs, batch))


def matrix_product(side: int = 3000) -> Program:
    """A product of float32 matrices, the machine's measure of speed: 2 side³ operations."""
    import jax
    import jax.numpy as jnp

    run = jax.jit(jnp.matmul)
    a = jax.device_put(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
    return lambda: jax.block_until_ready(run(a, a))
