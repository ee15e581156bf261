"""The training step and detection on the accelerator, compared with the CPU."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.accelerator.context import Context
from benchmarks.accelerator.workload import TINY_BATCH, config_for, host_batch, initial_state
from ssd_jax.config import Config

STEPS = 5
# (dtype, precision of products) -> largest relative error of a loss, and of the first gradient.
TOLERANCES = {
    ("float32", "highest"): (2e-4, 2e-3),
    ("float32", "default"): (1e-2, 5e-2),
    ("bfloat16", "default"): (5e-2, 2e-1),
}
SAME_BOX_IOU = 0.99
SAME_SCORE = 1e-3


def run(context: Context) -> None:
    """Record how far losses, gradients and detections on the device are from those of the CPU.

    The CPU computes in float32. On NVIDIA GPUs "highest" is float32, "default" is TF32.
    """
    import jax

    config = config_for(batch=TINY_BATCH if context.tiny else 4, tiny=context.tiny)
    config = dataclasses.replace(
        config,
        # No decay: the momentum after the first step is the gradient.
        optim=dataclasses.replace(config.optim, weight_decay=0.0),
        runtime=dataclasses.replace(config.runtime, cpu_conv="direct"),  # compiles twice as fast
    )
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with ThreadPoolExecutor() as pool:  # the CPU beside the accelerator
        reference = pool.submit(five_steps, config, cpu, "highest")
        for dtype, precision in TOLERANCES:
            if context.tiny and (dtype, precision) == ("float32", "default"):
                continue  # the same as "highest" on a CPU
            steps = five_steps(with_dtype(config, dtype), device, precision)
            row = compare_steps(steps, reference.result(), TOLERANCES[dtype, precision])
            context.record(f"step, {dtype}, {precision}", row)
            if "detections" not in context.results:
                context.record("detections", compare_detections(config, device, cpu))


def compare_steps(
    steps: tuple[np.ndarray, dict[str, np.ndarray]],
    reference: tuple[np.ndarray, dict[str, np.ndarray]],
    limits: tuple[float, float],
) -> dict[str, Any]:
    """Relative errors of losses and gradients against the CPU's, see `five_steps`."""
    (losses, gradient), (cpu_losses, cpu_gradient) = steps, reference
    loss_error = float(np.max(np.abs(losses / cpu_losses - 1)))
    errors = {
        name: float(np.linalg.norm(gradient[name] - expected) / np.linalg.norm(expected))
        for name, expected in cpu_gradient.items()
        if np.any(expected)
    }
    worst = max(errors, key=lambda name: errors[name])
    flat, cpu_flat = (
        np.concatenate([one[name].ravel() for name in cpu_gradient])
        for one in (gradient, cpu_gradient)
    )
    total = float(np.linalg.norm(flat - cpu_flat) / np.linalg.norm(cpu_flat))
    return {
        "losses": losses.tolist(),
        "cpu_losses": cpu_losses.tolist(),
        "loss_error": loss_error,
        "loss_limit": limits[0],
        "gradient_error": total,
        "gradient_limit": limits[1],
        "worst_layer": worst,
        "worst_layer_error": errors[worst],
        "ok": bool(loss_error <= limits[0] and total <= limits[1]),
    }


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with another type of the computation."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def five_steps(
    config: Config, device: Any, precision: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses [5] of the first steps on one batch, and the gradient of the first, by layer."""
    import jax
    from flax.traverse_util import flatten_dict

    from ssd_jax.estimate.step_cost import lower_step
    from ssd_jax.training.step import replicate, shard_batch

    size = config.train.batch_size
    with jax.default_matmul_precision(precision):
        step = lower_step(config, [device], size).compile()
    state = replicate(initial_state(config), [device])
    batch = jax.device_put(shard_batch(host_batch(config, size), 1), device)
    losses, gradient = [], {}
    for k in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if k == 0:
            gradient = flatten_dict(jax.device_get(momentum(state)), sep="/")
    return np.array(losses), gradient


def momentum(state: Any) -> Any:
    """The optimizer's trace of gradients."""
    import optax

    return optax.tree.get(state.opt_state, "trace")


def compare_detections(config: Config, device: Any, cpu: Any) -> dict[str, Any]:
    """Detections of the same weights and images on both devices, in float32."""
    import jax

    from ssd_jax.inference.detect import detect_step
    from ssd_jax.models.ssd import make_model, model_priors

    model = make_model(config.model, config.priors)
    run = jax.jit(
        partial(
            detect_step,
            model=model,
            priors=model_priors(config.model, config.priors),
            variances=config.priors.variances,
            config=config.eval,
        )
    )
    variables = initial_state(config).variables
    images = host_batch(config, config.train.batch_size)["image"]
    with jax.default_matmul_precision("highest"):
        ours, theirs = (
            jax.device_get(run(jax.device_put(variables, d), jax.device_put(images, d)))
            for d in (device, cpu)
        )
    counts = theirs.count.astype(int)
    equal = sum(equal_detections(ours, theirs, image) for image in range(len(counts)))
    total = int(counts.sum())
    return {
        "detections": total,
        "found_on_device": equal,
        "count_on_device": int(ours.count.sum()),
        # Boxes whose overlap or score lies on a threshold may differ by rounding.
        "ok": bool(total > 0 and equal >= 0.999 * total),
    }


def equal_detections(ours: Any, theirs: Any, image: int) -> int:
    """How many detections of `theirs` have one of the same class, score and box in `ours`."""
    from ssd_jax.ops.boxes import pairwise_iou

    n, m = int(theirs.count[image]), int(ours.count[image])
    same = (
        (theirs.labels[image, :n, None] == ours.labels[image, None, :m])
        & (np.abs(theirs.scores[image, :n, None] - ours.scores[image, None, :m]) < SAME_SCORE)
        & (pairwise_iou(theirs.boxes[image, :n], ours.boxes[image, :m]) > SAME_BOX_IOU)
    )
    return int(np.sum(same.any(axis=1)))
