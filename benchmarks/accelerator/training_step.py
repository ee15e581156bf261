"""The training step: speed, use of the device, memory and compile time, beside torchvision's."""

import time
from typing import Any

from benchmarks import torchvision_ssd
from benchmarks.accelerator.context import Context
from benchmarks.accelerator.timing import throughput
from benchmarks.accelerator.workload import TINY_BATCH, config_for, host_batch, initial_state
from ssd_jax.config import Config
from ssd_jax.estimate import step_cost
from ssd_jax.estimate.accelerators import ACCELERATORS, Accelerator, parse_target
from ssd_jax.estimate.devices import describe_devices

# (image size, type, precision of products, batch), the most telling ones first. TF32 is what
# JAX makes of float32 on NVIDIA GPUs by default.
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
    """Record a row for each case; a case that fails is recorded and the next one runs."""
    import jax

    for size, dtype, precision, batch in TINY_CASES if context.tiny else CASES:
        name = case_name(size, dtype, precision, batch)
        config = config_for(size, dtype=dtype, batch=batch, tiny=context.tiny)
        with jax.default_matmul_precision(precision):
            context.record(name, attempt(measure, context, config, name))


def case_name(size: int, dtype: str, precision: str, batch: int) -> str:
    """Name of a row, e.g. "SSD300, TF32, batch 32"."""
    return f"SSD{size}, {PRECISIONS.get(dtype, PRECISIONS[precision])}, batch {batch}"


def run_torchvision(context: Context) -> None:
    """Record the same for torchvision's ssd300_vgg16 on the same device, where it is installed."""
    context.require("torchvision")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for precision, batch in (
        [("float32", 1)]
        if context.tiny
        else [("bfloat16", 32), ("bfloat16", 128), ("TF32", 32), ("TF32", 128)]
    ):
        name = f"torchvision ssd300_vgg16, {precision}, batch {batch}"
        context.record(name, attempt(measure_torchvision, context, device, precision, batch))


def attempt(measure: Any, *arguments: Any) -> dict[str, Any]:
    """The result of `measure`, or {"failed": reason} if it raises."""
    try:
        return measure(*arguments)
    except Exception as error:  # out of memory, a missing kernel: the other cases still count
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def measure(context: Context, config: Config, name: str) -> dict[str, Any]:
    """Compile and time the step as the training loop runs it."""
    import jax

    from ssd_jax.training.step import replicate, shard_batch

    device, batch = jax.devices()[0], config.train.batch_size
    started = time.perf_counter()
    lowered = step_cost.lower_step(config, [device], batch)
    lowered_s = time.perf_counter() - started
    compiled = lowered.compile()
    compile_s = time.perf_counter() - started - lowered_s
    cost = step_cost.measure(config, lowered, compiled, batch, compile_s)

    inputs = shard_batch(host_batch(config, batch), 1)
    on_device = jax.device_put(inputs, device)
    states = [replicate(initial_state(config), [device])]

    def step(batch: Any) -> Any:
        states[0], metrics = compiled(states[0], batch)
        return metrics["loss"]

    seconds = 0.1 if context.tiny else 2.0
    times = throughput(lambda: step(on_device), jax.block_until_ready, seconds=seconds)
    fed = throughput(lambda: step(inputs), jax.block_until_ready, seconds=seconds / 2)
    peaks = {
        key: of["flop_per_s"] for key, of in context.read("machine").items() if "product" in key
    }
    peak = peaks.get(f"product, {name.split(', ')[1]}")
    stats = device.memory_stats() or {}
    row = {
        "images_per_s": batch / times["s"],
        "ms": 1e3 * times["s"],
        "ms_min": 1e3 * times["s_min"],
        "ms_max": 1e3 * times["s_max"],
        "images_per_s_from_host": batch / fed["s"],
        "tflop": cost.flops / 1e12,
        "flop_per_s": cost.flops / times["s"],
        "of_measured_peak": cost.flops / times["s"] / peak if peak else None,
        "program_gb": cost.memory / 1e9,
        "peak_gb_so_far": stats.get("peak_bytes_in_use", 0) / 1e9,
        "moved_gb": cost.bytes_accessed / 1e9,
        "transposes": cost.transposes,
        "copies": cost.copies,
        "lower_s": lowered_s,
        "compile_s": compile_s,
    }
    accelerator = accelerator_of(device)
    # The data sheet's float32 is TF32.
    if accelerator and "float32" not in name:
        row["mfu"] = cost.flops / times["s"] / accelerator.peak(config.model.dtype)
        row["prediction"] = attempt(predict, config, accelerator, batch)
    return row


def accelerator_of(device: Any) -> Accelerator | None:
    """Find the data sheet of the device; None if the project has none."""
    return next(
        (a for a in ACCELERATORS.values() if a.kind.startswith(device.device_kind)),
        None,
    )


def predict(config: Config, accelerator: Accelerator, batch: int) -> dict[str, Any]:
    """Predict the step as `python -m ssd_jax.estimate` does, compiled without the device."""
    name = next(name for name, a in ACCELERATORS.items() if a is accelerator)
    cost = step_cost.compile_step(config, describe_devices(parse_target(name)), batch)
    times = cost.times(accelerator, config.model.dtype, 1)
    return {"images_per_s_at_best": batch / times.overlapped, "memory_gb": cost.memory / 1e9}


def measure_torchvision(
    context: Context, device: str, precision: str, batch: int
) -> dict[str, Any]:
    """Time torchvision's step with its own targets, channels last."""
    import torch

    started = time.perf_counter()
    step = torchvision_ssd.train(batch, device=device, precision=precision)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step()
    wait()
    first_s = time.perf_counter() - started
    times = throughput(
        step,
        lambda _: wait(),
        seconds=0.0 if context.tiny else 2.0,
        calls=1 if context.tiny else 2,
        warm_up=0 if context.tiny else 2,
    )
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return {
        "images_per_s": batch / times["s"],
        "ms": 1e3 * times["s"],
        "ms_min": 1e3 * times["s_min"],
        "ms_max": 1e3 * times["s_max"],
        "peak_gb": peak,
        "first_call_s": first_s,
    }
