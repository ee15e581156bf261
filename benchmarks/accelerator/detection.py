"""Detection: latency and throughput, and what the network, top-k and suppression take of it."""

from functools import partial
from typing import Any

from benchmarks import torchvision_ssd
from benchmarks.accelerator.context import Context
from benchmarks.accelerator.timing import latency, throughput
from benchmarks.accelerator.training_step import attempt
from benchmarks.accelerator.workload import TINY_BATCH, config_for, host_batch, initial_state
from benchmarks.case import predictions

BATCHES = (1, 8, 32)
# How far above the others the background's logit is: see benchmarks.case.predictions.
TRAINED, UNTRAINED = 12.0, 5.0


def run(context: Context) -> None:
    """Record a row for each batch size and type."""
    for dtype in ("bfloat16",) if context.tiny else ("bfloat16", "float32"):
        for batch in (TINY_BATCH,) if context.tiny else BATCHES:
            config = config_for(dtype=dtype, batch=batch, tiny=context.tiny)
            context.record(f"SSD300, {dtype}, batch {batch}", attempt(measure, context, config))


def run_torchvision(context: Context) -> None:
    """Record the same for torchvision's ssd300_vgg16."""
    context.require("torchvision")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for precision in ("float32",) if context.tiny else ("bfloat16", "TF32"):
        for batch in (1,) if context.tiny else BATCHES:

            def times(precision: str = precision, batch: int = batch) -> dict[str, float]:
                run = torchvision_ssd.detect(batch, device=device, precision=precision)
                return rates(context, run, lambda _: wait(), batch, calls=2)

            name = f"torchvision ssd300_vgg16, {precision}, batch {batch}"
            context.record(name, attempt(times))


def rates(
    context: Context, run: Any, wait: Any, batch: int, *, calls: int = 10
) -> dict[str, float]:
    """Latency of a batch alone and images a second in a queue of batches."""
    seconds = 0.0 if context.tiny else 0.7
    calls = 1 if context.tiny else calls
    alone = latency(run, wait, seconds=seconds, warm_up=1 if context.tiny else 3)
    queued = throughput(run, wait, seconds=seconds, calls=calls, warm_up=1)
    return {
        "latency_ms": 1e3 * alone["s"],
        "latency_ms_min": 1e3 * alone["s_min"],
        "latency_ms_max": 1e3 * alone["s_max"],
        "images_per_s": batch / queued["s"],
    }


def measure(context: Context, config: Any) -> dict[str, Any]:
    """Detection of one batch, whole and by parts; images and results stay on the device."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.inference.detect import detect_step, post_process
    from ssd_jax.kernels.nms import multiclass_nms
    from ssd_jax.models.ssd import make_model, model_priors

    batch, wait = config.train.batch_size, jax.block_until_ready
    model = make_model(config.model, config.priors)
    priors = model_priors(config.model, config.priors)
    after = {"priors": priors, "variances": config.priors.variances, "config": config.eval}
    variables = jax.device_put(initial_state(config).variables)
    images = jax.device_put(host_batch(config, batch)["image"])

    whole = jax.jit(partial(detect_step, model=model, **after))
    network = jax.jit(model.apply)
    finish = jax.jit(partial(post_process, **after))
    row = rates(context, lambda: whole(variables, images), wait, batch)
    seconds = 0.05 if context.tiny else 0.4

    def ms(run: Any) -> float:
        return 1e3 * throughput(run, wait, seconds=seconds)["s"]

    row["network_ms"] = ms(lambda: network(variables, images))
    classes = len(config.model.classes)
    for name, background in (("untrained", UNTRAINED), ("trained", TRAINED)):
        outputs = jax.device_put(predictions(batch, len(priors), classes, background=background))
        row[f"post_process_{name}_ms"] = ms(lambda o=outputs: finish(*o))
    loc, conf = outputs
    scores = jax.nn.softmax(conf)
    boxes = jnp.abs(loc)

    @jax.jit
    @jax.vmap
    def top_k(scores: Any) -> Any:
        by_class = jnp.transpose(scores[:, 1:])
        return jax.lax.top_k(jnp.where(by_class > 0.01, by_class, -jnp.inf), count)

    count = min(config.eval.topk_candidates, len(priors))
    suppress = jax.jit(
        jax.vmap(
            partial(
                multiclass_nms,
                score_threshold=config.eval.score_threshold,
                iou_threshold=config.eval.nms_iou_threshold,
                topk_candidates=config.eval.topk_candidates,
                detections_per_image=config.eval.detections_per_image,
            )
        )
    )
    row["top_k_ms"] = ms(lambda: top_k(scores))
    row["suppression_ms"] = max(0.0, ms(lambda: suppress(boxes, scores)) - row["top_k_ms"])
    return row
