"""Programs of ssd_jax, set up to be timed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.inputs import SIZE, images, objects, predictions, voc_config

Program = Callable[[], Any]


def train(batch: int, path: str, cache: str = "") -> Program:
    """A training step of SSD300; `path`: a value of model.cpu_conv.

    `cache` is a folder for compiled programs, as a run's runtime.compilation_cache_dir.
    """
    import jax

    from ssd_jax.distributed import use_compilation_cache
    from ssd_jax.models.ssd import make_model, model_priors
    from ssd_jax.training import state, step

    use_compilation_cache(cache)
    config = voc_config(path, batch)
    model = make_model(config.model, config.priors, step.AXIS)
    optimizer = state.make_optimizer(config.optim)
    now = state.create_train_state(model, optimizer, jax.random.key(0))
    run = step.pmap_train_step(
        partial(
            step.train_step,
            model=model,
            optimizer=optimizer,
            schedule=state.make_schedule(config.optim, batch_size=batch),
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


def detect(batch: int, path: str) -> Program:
    """Set up the detection of a batch: network, decoding and NMS, from host to host."""
    import jax

    from ssd_jax.inference.detect import make_detect
    from ssd_jax.models.ssd import make_model

    config = voc_config(path)
    model = make_model(config.model, config.priors)
    inputs = images(batch)
    variables = jax.device_put(jax.jit(model.init)(jax.random.key(0), inputs[:1]))
    run = make_detect(model, config)
    return lambda: jax.device_get(run(variables, inputs))


def suppress(loc: np.ndarray, conf: np.ndarray, size: int = SIZE) -> Program:
    """Set up softmax, decoding and NMS of the network's outputs, from host to host."""
    import jax

    from ssd_jax.inference.detect import post_process
    from ssd_jax.models.ssd import model_priors

    config = voc_config(size=size)
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
    size: int = SIZE,
) -> Program:
    """Set up matching, hard-negative mining, loss and gradient of a batch of outputs."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.training.step import image_losses, image_targets

    config = voc_config(size=size)
    priors = model_priors(config.model, config.priors)

    def loss(outputs: Any, batch: Any) -> Any:
        targets = image_targets(batch, priors, config.priors.variances, config.train)
        found = image_losses(*outputs, targets, config.train)
        positives = jnp.sum(targets.label > 0)
        return (jnp.sum(found.loc) + jnp.sum(found.conf)) / jnp.maximum(positives, 1)

    run = jax.jit(jax.value_and_grad(loss))
    # On the device, as the network's outputs are in training.
    outputs = jax.device_put((loc, conf))
    batch = {"boxes": boxes, "labels": labels, "mask": mask}
    return lambda: jax.block_until_ready(run(outputs, batch))


def learn(case: Mapping[str, int], places: int = 64) -> Program:
    """Set up `match_and_loss` of random outputs; `case` has batch, objects, classes, size."""
    outputs = predictions(case["batch"], _priors(case), case["classes"])
    given = objects(case["batch"], places, each=case["objects"], classes=case["classes"])
    return match_and_loss(*outputs, *given, size=case["size"])


def find(case: Mapping[str, int]) -> Program:
    """Set up `suppress` of random outputs; `case` has batch, classes, size."""
    outputs = predictions(case["batch"], _priors(case), case["classes"])
    return suppress(*outputs, size=case["size"])


def matching_memory(case: Mapping[str, int], places: int = 64) -> int:
    """Return the temporary memory of a batch's matching (bytes); `case` as in `learn`."""
    import jax

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.training.step import image_targets

    config = voc_config(size=case["size"])
    priors = model_priors(config.model, config.priors)
    boxes, labels, mask = objects(case["batch"], places, each=case["objects"])
    match = jax.jit(lambda b: image_targets(b, priors, config.priors.variances, config.train))
    program = match.lower({"boxes": boxes, "labels": labels, "mask": mask}).compile()
    return int(program.memory_analysis().temp_size_in_bytes)


def _priors(case: Mapping[str, int]) -> int:
    from ssd_jax.models.ssd import model_priors

    config = voc_config(size=case["size"])
    return len(model_priors(config.model, config.priors))


def matrix_product(side: int = 3000) -> Program:
    """Set up a product of float32 matrices, 2 side³ FLOP, to measure the machine's speed."""
    import jax
    import jax.numpy as jnp

    run = jax.jit(jnp.matmul)
    a = jax.device_put(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
    return lambda: jax.block_until_ready(run(a, a))
