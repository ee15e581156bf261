"""Training step: speed, utilisation, memory and compile time, against torchvision's."""

import time
from functools import partial
from typing import Any

from benchmarks import torchvision_ssd
from benchmarks.accelerator.context import Context, attempt
from benchmarks.accelerator.timing import milliseconds, throughput
from benchmarks.accelerator.workload import TINY_BATCH, config_for, step_inputs
from ssd_jax.config import Config
from ssd_jax.estimate import step_cost
from ssd_jax.estimate.accelerators import ACCELERATORS, parse_target
from ssd_jax.estimate.devices import describe_devices

# (image size, type, precision of products, batch), the most informative ones first. On NVIDIA
# GPUs JAX computes float32 products in TF32 by default.
CASES = (
    (300, "bfloat16", "default", 32),
    (300, "bfloat16", "default", 128),
    (300, "float32", "default", 32),
    (512, "bfloat16", "default", 32),
    (300, "float32", "default", 128),
    (300, "float32", "highest", 32),
    (300, "float32", "highest", 128),
)
TINY_CASES = ((300, "bfloat16", "default", TINY_BATCH), (300, "float32", "highest", TINY_BATCH))
PRECISIONS = {"bfloat16": "bfloat16", "default": "TF32", "highest": "float32"}


def run(context: Context) -> None:
    """Record a row for each case; after a failed case the next one runs."""
    import jax

    for size, dtype, precision, batch in TINY_CASES if context.tiny else CASES:
        used = PRECISIONS.get(dtype, PRECISIONS[precision])
        config = config_for(size, dtype=dtype, batch=batch, tiny=context.tiny)
        with jax.default_matmul_precision(precision):
            row = attempt(measure, context, config, used)
        context.record(f"SSD{size}, {used}, batch {batch}", row)


def run_torchvision(context: Context) -> None:
    """Record the same for torchvision's ssd300_vgg16 on the same device."""
    context.require("torchvision")
    cases = [("bfloat16", 32), ("bfloat16", 128), ("TF32", 32), ("TF32", 128)]
    for precision, batch in [("float32", 1)] if context.tiny else cases:
        name = f"torchvision ssd300_vgg16, {precision}, batch {batch}"
        context.record(name, attempt(measure_torchvision, context, precision, batch))


def measure(context: Context, config: Config, precision: str) -> dict[str, Any]:
    """Compile and time the step as the training loop runs it.

    Args:
        context: The part's context.
        config: The network and its batch size.
        precision: A value of PRECISIONS.
    """
    import jax

    device, batch = jax.devices()[0], config.train.batch_size
    started = time.perf_counter()
    lowered = step_cost.lower_step(config, [device], batch)
    lower_s = time.perf_counter() - started
    compiled = lowered.compile()
    compile_s = time.perf_counter() - started - lower_s
    cost = step_cost.measure(config, lowered, compiled, batch, compile_s)
    state, host = step_inputs(config, device)

    def step(batch: Any) -> Any:
        nonlocal state  # the step donates it
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    seconds = 0.1 if context.tiny else 2.0
    wait = jax.block_until_ready
    times = throughput(partial(step, jax.device_put(host, device)), wait, seconds=seconds)
    fed = throughput(partial(step, host), wait, seconds=seconds / 2)
    flop_per_s = cost.flops / times["s"]
    product = context.read("machine").get(f"product, {precision}")
    row = {
        "images_per_s": batch / times["s"],
        **milliseconds(times),
        "images_per_s_from_host": batch / fed["s"],
        "tflop": cost.flops / 1e12,
        "flop_per_s": flop_per_s,
        "matmul_share": flop_per_s / product["flop_per_s"] if product else None,
        "memory_gb": cost.memory / 1e9,
        "peak_gb_so_far": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9,
        "accessed_gb": cost.bytes_accessed / 1e9,
        "transposes": cost.transposes,
        "copies": cost.copies,
        "lower_s": lower_s,
        "compile_s": compile_s,
    }
    name = target_of(device)
    # The published float32 peak is that of TF32.
    if name and precision != "float32":
        row["mfu"] = flop_per_s / ACCELERATORS[name].peak(config.model.dtype)
        row["prediction"] = attempt(predict, config, name)
    return row


def target_of(device: Any) -> str | None:
    """Return the name of the device in ACCELERATORS, or None."""
    matches = (
        name for name, one in ACCELERATORS.items() if one.kind.startswith(device.device_kind)
    )
    return next(matches, None)


def predict(config: Config, target: str) -> dict[str, Any]:
    """Predict the step's speed and memory as `ssd-jax estimate` does."""
    batch = config.train.batch_size
    cost = step_cost.compile_step(config, describe_devices(parse_target(target)), batch)
    times = cost.times(ACCELERATORS[target], config.model.dtype, 1)
    return {"images_per_s_at_best": batch / times.overlapped, "memory_gb": cost.memory / 1e9}


def measure_torchvision(context: Context, precision: str, batch: int) -> dict[str, Any]:
    """Time torchvision's step with its own matching, channels last."""
    import torch

    device, wait = torchvision_ssd.default_device()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step = torchvision_ssd.train(batch, device=device, precision=precision)
    wait(step())
    first_call_s = time.perf_counter() - started
    times = throughput(
        step,
        wait,
        seconds=0.0 if context.tiny else 2.0,
        calls=1 if context.tiny else 2,
        warm_up=0 if context.tiny else 2,
    )
    return {
        "images_per_s": batch / times["s"],
        **milliseconds(times),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "compile_s": first_call_s,
    }
