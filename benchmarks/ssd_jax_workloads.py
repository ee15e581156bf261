"""Programs of ssd_jax, set up to be timed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.inputs import SIZE, Objects, Outputs, images, objects, predictions, voc_config
from benchmarks.runner import Program


def train(batch: int, path: Any, cache: str = "") -> Program:
    """Set up a training step of SSD300.

    Args:
        batch: images per step.
        path: value of runtime.cpu_conv.
        cache: folder for compiled programs; empty: none.
    """
    import jax

    from ssd_jax.distributed import use_compilation_cache
    from ssd_jax.kernels.conv2d import set_cpu_conv
    from ssd_jax.training.build import build_training
    from ssd_jax.training.step import replicate, shard_batch

    use_compilation_cache(cache)
    set_cpu_conv(path)
    config = voc_config(batch)
    training = build_training(config)
    boxes, labels, mask = objects(batch, config.data.max_objects)
    arrays = {"image": images(batch), "boxes": boxes, "labels": labels, "mask": mask}
    state = replicate(training.init_state(), jax.local_devices())

    def program() -> None:
        nonlocal state
        state, metrics = training.step(state, shard_batch(arrays, jax.local_device_count()))
        jax.block_until_ready((state, metrics))

    return program


def detect(batch: int, path: Any) -> Program:
    """Set up the detection of a batch: network, decoding and NMS, from host to host."""
    import jax

    from ssd_jax.inference.detect import DetectFn
    from ssd_jax.kernels.conv2d import set_cpu_conv
    from ssd_jax.models.ssd import init_variables, make_model

    set_cpu_conv(path)
    config = voc_config()
    model = make_model(config.model, config.priors)
    inputs = images(batch)
    run = DetectFn(model, config)
    variables = run.prepare(init_variables(model, jax.random.key(0)))
    return lambda: jax.device_get(run(variables, inputs))


def suppress(loc: np.ndarray, conf: np.ndarray, size: int = SIZE) -> Program:
    """Set up softmax, decoding and NMS of the network's outputs, from host to host."""
    import jax

    from ssd_jax.inference.detect import make_post_process

    run = make_post_process(voc_config(size=size))
    return lambda: jax.device_get(run(loc, conf))


def match_and_loss(outputs: Outputs, objects: Objects, size: int = SIZE) -> Program:
    """Set up matching, hard-negative mining, loss and gradient of a batch of outputs."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.training.step import image_losses, image_targets

    config = voc_config(size=size)
    priors = model_priors(config.model, config.priors)

    def loss(outputs: Any, batch: Any) -> Any:
        targets = image_targets(batch, priors, config.priors.variances, config.train)
        losses = image_losses(*outputs, targets, config.train)
        positives = jnp.sum(targets.label > 0)
        return (jnp.sum(losses.loc) + jnp.sum(losses.conf)) / jnp.maximum(positives, 1)

    run = jax.jit(jax.value_and_grad(loss))
    # On the device, as the network's outputs are in training.
    outputs = jax.device_put(outputs)
    boxes, labels, mask = objects
    batch = {"boxes": boxes, "labels": labels, "mask": mask}
    return lambda: jax.block_until_ready(run(outputs, batch))


def learn(case: Mapping[str, int], max_objects: int = 64) -> Program:
    """Set up `match_and_loss` of random outputs; `case` has batch, objects, classes, size."""
    outputs = predictions(case["batch"], _priors(case), case["classes"])
    inputs = objects(case["batch"], max_objects, each=case["objects"], classes=case["classes"])
    return match_and_loss(outputs, inputs, size=case["size"])


def find(case: Mapping[str, int]) -> Program:
    """Set up `suppress` of random outputs; `case` has batch, classes, size."""
    outputs = predictions(case["batch"], _priors(case), case["classes"])
    return suppress(*outputs, size=case["size"])


def matching_memory(case: Mapping[str, int], max_objects: int = 64) -> int:
    """Return the temporary memory of a batch's matching (bytes); `case` as in `learn`."""
    import jax

    from ssd_jax.models.ssd import model_priors
    from ssd_jax.training.step import image_targets

    config = voc_config(size=case["size"])
    priors = model_priors(config.model, config.priors)
    boxes, labels, mask = objects(case["batch"], max_objects, each=case["objects"])
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
