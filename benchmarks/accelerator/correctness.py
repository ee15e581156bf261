"""Training step and detection on the accelerator, compared with the CPU."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accelerator.context import Context
from benchmarks.accelerator.workload import (
    TINY_BATCH,
    config_for,
    detection_programs,
    host_batch,
    initial_state,
    step_inputs,
)
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


class Steps(NamedTuple):
    """Results of the first training steps on one batch."""

    losses: np.ndarray
    """float64 [STEPS]."""
    gradient: dict[str, np.ndarray]
    """Gradient of the first step, by parameter."""


def run(context: Context) -> None:
    """Record the errors of losses, gradients and detections relative to the CPU in float32.

    On NVIDIA GPUs the precision "highest" is float32 and "default" is TF32.
    """
    import jax

    config = config_for(batch=TINY_BATCH if context.tiny else 4, tiny=context.tiny)
    config = dataclasses.replace(
        config,
        # Without weight decay the momentum after the first step is the gradient.
        optim=dataclasses.replace(config.optim, weight_decay=0.0),
        runtime=dataclasses.replace(config.runtime, cpu_conv="direct"),  # compiles twice as fast
    )
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with ThreadPoolExecutor() as pool:  # the CPU computes concurrently with the accelerator
        reference = pool.submit(run_steps, config, cpu, "highest")
        for (dtype, precision), limits in TOLERANCES.items():
            if context.tiny and (dtype, precision) == ("float32", "default"):
                continue  # the same as "highest" on a CPU
            model = dataclasses.replace(config.model, dtype=dtype)
            steps = run_steps(dataclasses.replace(config, model=model), device, precision)
            row = compare_steps(steps, reference.result(), limits)
            context.record(f"step, {dtype}, {precision}", row)
            if "detections" not in context.results:
                context.record("detections", compare_detections(config, device, cpu))


def run_steps(config: Config, device: Any, precision: str) -> Steps:
    """Run the first training steps on one batch."""
    import jax
    import optax
    from flax.traverse_util import flatten_dict

    from ssd_jax.estimate.step_cost import lower_step

    with jax.default_matmul_precision(precision):
        step = lower_step(config, [device], config.train.batch_size).compile()
    state, batch = step_inputs(config, device)
    batch = jax.device_put(batch, device)
    losses, gradient = [], {}
    for k in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if k == 0:
            momentum = optax.tree.get(state.opt_state, "trace")
            gradient = flatten_dict(jax.device_get(momentum), sep="/")
    return Steps(np.array(losses), gradient)


def compare_steps(steps: Steps, reference: Steps, limits: tuple[float, float]) -> dict[str, Any]:
    """Return the relative errors of losses and gradient, and whether they are within the limits."""
    loss_error = float(np.max(np.abs(steps.losses / reference.losses - 1)))

    def error(actual: np.ndarray, expected: np.ndarray) -> float:
        return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))

    errors = {
        name: error(steps.gradient[name], expected)
        for name, expected in reference.gradient.items()
        if np.any(expected)
    }
    worst = max(errors, key=lambda name: errors[name])
    total = error(
        *(
            np.concatenate([gradient[name].ravel() for name in reference.gradient])
            for gradient in (steps.gradient, reference.gradient)
        )
    )
    return {
        "losses": steps.losses.tolist(),
        "cpu_losses": reference.losses.tolist(),
        "loss_error": loss_error,
        "loss_limit": limits[0],
        "gradient_error": total,
        "gradient_limit": limits[1],
        "worst_layer": worst,
        "worst_layer_error": errors[worst],
        "ok": bool(loss_error <= limits[0] and total <= limits[1]),
    }


def compare_detections(config: Config, device: Any, cpu: Any) -> dict[str, Any]:
    """Compare the detections of equal weights and images on both devices in float32."""
    import jax

    from ssd_jax.kernels.conv2d import use_cpu_conv

    detect, *_ = detection_programs(config)
    inputs = (initial_state(config).variables, host_batch(config)["image"])
    with jax.default_matmul_precision("highest"), use_cpu_conv(config.runtime.cpu_conv):
        actual, expected = (
            jax.device_get(detect(*jax.device_put(inputs, d))) for d in (device, cpu)
        )
    images = range(len(expected.count))
    total = int(expected.count.sum())
    equal = sum(count_equal_detections(actual, expected, image) for image in images)
    return {
        "detections": total,
        "equal_on_device": equal,
        "count_on_device": int(actual.count.sum()),
        # Boxes whose IoU or score lies on a threshold may differ by rounding.
        "ok": bool(total > 0 and equal >= 0.999 * total),
    }


def count_equal_detections(actual: Any, expected: Any, image: int) -> int:
    """Count an image's expected detections that also occur, by class, score and box, in `actual`.

    Args:
        actual: Detections of a batch.
        expected: Detections of the same batch on the other device.
        image: Index of the image in the batch.
    """
    from ssd_jax.ops.boxes import pairwise_iou

    n, m = int(expected.count[image]), int(actual.count[image])
    same = (
        (expected.labels[image, :n, None] == actual.labels[image, None, :m])
        & (np.abs(expected.scores[image, :n, None] - actual.scores[image, None, :m]) < SAME_SCORE)
        & (pairwise_iou(expected.boxes[image, :n], actual.boxes[image, :m]) > SAME_BOX_IOU)
    )
    return int(np.sum(same.any(axis=1)))
