"""Detection: latency, throughput, and the times of network, top-k and NMS."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import torchvision_ssd
from benchmarks.accelerator.context import Context, attempt
from benchmarks.accelerator.timing import milliseconds, throughput
from benchmarks.accelerator.workload import (
    TINY_BATCH,
    config_for,
    detection_programs,
    host_batch,
    initial_state,
)
from benchmarks.inputs import predictions
from ssd_jax.config import Config

BATCHES = (1, 8, 32)
# `background` of benchmarks.inputs.predictions.
TRAINED, UNTRAINED = 12.0, 5.0


def run(context: Context) -> None:
    """Record a row for each type and batch size."""
    for dtype in ("bfloat16",) if context.tiny else ("bfloat16", "float32"):
        for batch in (TINY_BATCH,) if context.tiny else BATCHES:
            config = config_for(dtype=dtype, batch=batch, tiny=context.tiny)
            context.record(f"SSD300, {dtype}, batch {batch}", attempt(measure, context, config))


def run_torchvision(context: Context) -> None:
    """Record the same for torchvision's ssd300_vgg16."""
    context.require("torchvision")
    device, wait = torchvision_ssd.default_device()

    def measure_torchvision(precision: str, batch: int) -> dict[str, float]:
        run = torchvision_ssd.detect(batch, device=device, precision=precision)
        return measure_rates(context, run, wait, batch, calls=2)

    for precision in ("float32",) if context.tiny else ("bfloat16", "TF32"):
        for batch in (1,) if context.tiny else BATCHES:
            name = f"torchvision ssd300_vgg16, {precision}, batch {batch}"
            context.record(name, attempt(measure_torchvision, precision, batch))


def measure_rates(
    context: Context, run: Callable[[], Any], wait: Callable[[Any], Any], batch: int, *, calls: int
) -> dict[str, float]:
    """Measure the latency of single batches, and the images per second of `calls` queued ones."""
    time_calls = partial(throughput, run, wait, seconds=0.0 if context.tiny else 0.7)
    single = time_calls(calls=1, warm_up=1 if context.tiny else 3)
    queued = time_calls(calls=1 if context.tiny else calls, warm_up=1)
    return {**milliseconds(single), "images_per_s": batch / queued["s"]}


def measure(context: Context, config: Config) -> dict[str, Any]:
    """Measure the detection of a batch and its parts; images and results stay on the device."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.kernels.nms import multiclass_nms
    from ssd_jax.models.ssd import model_priors

    batch, wait = config.train.batch_size, jax.block_until_ready
    detect, network, post_process = detection_programs(config)
    inputs = jax.device_put((initial_state(config).variables, host_batch(config)["image"]))
    row = measure_rates(context, partial(detect, *inputs), wait, batch, calls=10)
    seconds = 0.05 if context.tiny else 0.4

    def ms(program: Callable[..., Any], *inputs: Any) -> float:
        return 1e3 * throughput(partial(program, *inputs), wait, seconds=seconds)["s"]

    row["network_ms"] = ms(network, *inputs)
    num_priors = len(model_priors(config.model, config.priors))
    for name, background in (("untrained", UNTRAINED), ("trained", TRAINED)):
        outputs = jax.device_put(
            predictions(batch, num_priors, len(config.model.classes), background=background)
        )
        row[f"post_process_{name}_ms"] = ms(post_process, *outputs)

    loc, conf = outputs
    boxes, scores = jnp.abs(loc), jax.nn.softmax(conf)
    threshold = config.eval.score_threshold
    count = min(config.eval.topk_candidates, num_priors)

    @jax.jit
    @jax.vmap
    def top_k(scores: Any) -> Any:
        by_class = jnp.transpose(scores[:, 1:])
        return jax.lax.top_k(jnp.where(by_class > threshold, by_class, -jnp.inf), count)

    nms = jax.jit(
        jax.vmap(
            partial(
                multiclass_nms,
                score_threshold=threshold,
                iou_threshold=config.eval.nms_iou_threshold,
                topk_candidates=config.eval.topk_candidates,
                detections_per_image=config.eval.detections_per_image,
            )
        )
    )
    row["top_k_ms"] = ms(top_k, scores)
    row["nms_ms"] = max(0.0, ms(nms, boxes, scores) - row["top_k_ms"])
    return row
