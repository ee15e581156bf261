"""Report of an estimate: memory, lower bounds of time, images/s and scaling."""

import math

from ssd_jax.config import Config
from ssd_jax.estimate.accelerators import Accelerator, Target
from ssd_jax.estimate.step_cost import StepCost

# CPU time to decode and augment an image of about 500x375 pixels, by data.augment.
_LOADING_MS = {"caffe": 3.4, "ssd.pytorch": 4.2, "none": 1.3}


def report(
    config: Config,
    target: Target,
    batch: int,
    cost: StepCost | None,
    largest: str,
    efficiency: float,
) -> list[str]:
    """Return the lines of the report; `cost` is None if the compiler ran out of memory."""
    import jax

    accelerator, n, dtype = target.accelerator, target.devices, config.model.dtype
    took = f", compiled in {cost.seconds:.0f} s" if cost else ""
    rows = [
        (
            "PREDICTION",
            "from the compiled program and the accelerator's data sheet; nothing was run",
        ),
        (
            "config",
            f"SSD{config.model.image_size}, {len(config.model.classes)} classes, {dtype}, "
            f"{batch} images per device, {batch * n} per step",
        ),
        ("target", f"{n} x {accelerator.kind}; jax {jax.__version__}{took}"),
    ]
    available = accelerator.memory * accelerator.usable_fraction
    usable = f"{accelerator.usable_fraction:.0%} of its memory: {accelerator.usable_note}"
    of = f"of {available / 1e9:.1f} GB ({usable})"
    if cost is None or cost.memory > available:
        need = f"{cost.memory / 1e9:.1f} GB" if cost else "more"
        rows += [("memory", f"DOES NOT FIT: {need} {of}"), ("largest batch", largest)]
    else:
        rows.append(("memory", f"fits: {cost.memory / 1e9:.1f} GB {of}"))
        if largest:
            rows.append(("largest batch", largest))
    if cost:
        rows += _speed(config, target, cost, efficiency)
    rows.append(("peaks from", accelerator.source))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _speed(
    config: Config, target: Target, cost: StepCost, efficiency: float
) -> list[tuple[str, str]]:
    accelerator, n, dtype = target.accelerator, target.devices, config.model.dtype
    times = cost.times(accelerator, dtype, n)
    rate = cost.batch * n / times.overlapped
    slow = cost.batch * n / (times.single_device / efficiency + times.all_reduce)
    images = config.train.steps * config.train.batch_size
    sums = "none"
    if cost.all_reduces:
        runs = sum(one.times for one in cost.all_reduces)
        sums = f"{runs} a step, {cost.allreduce_bytes / 1e6:.1f} MB together"
    loading = _LOADING_MS[config.data.augment]
    rows = [
        (
            "a step, a device",
            f"{cost.flops / 1e12:.2f} TFLOP in convolutions, {cost.bytes_accessed / 1e9:.1f} GB to "
            f"and from memory; {cost.transposes} transposes, {cost.copies} copies",
        ),
        ("all-reduces", sums),
        (
            "lower bounds",
            f"compute {_ms(times.compute)} ({accelerator.peak(dtype) / 1e12:.0f} TFLOP/s), memory "
            f"{_ms(times.memory)} ({accelerator.bandwidth / 1e9:.0f} GB/s), all-reduce "
            f"{_ms(times.all_reduce)}",
        ),
        ("bound by", times.bound),
        (
            "images/s",
            f"{rate:,.0f} at best, {slow:,.0f} at {efficiency:.0%} of that with the all-reduces "
            "after the rest",
        ),
        (
            "loading",
            f"{slow:,.0f} images/s need {math.ceil(slow * loading / 1e3):,} CPU cores, at "
            f"{loading} ms per image (docs/performance.md)",
        ),
        (
            "schedule",
            f"{images:,} images (the config's {config.train.steps:,} steps of "
            f"{config.train.batch_size}): {_days(images / rate)} at best, "
            f"{_days(images / slow)} at {efficiency:.0%}",
        ),
    ]
    if cost.allreduce_bytes:
        rows += [
            (f"{count:,} devices", scaling_line(cost, accelerator, dtype, count))
            for count in (8, 64, 1024)
        ]
    return rows


def scaling_line(cost: StepCost, accelerator: Accelerator, dtype: str, devices: int) -> str:
    """Describe the speed of a number of devices, and the efficiency relative to a single one."""
    times = cost.times(accelerator, dtype, devices)
    rates = [cost.batch * devices / step for step in (times.sequential, times.overlapped)]
    kept = [times.single_device / step for step in (times.sequential, times.overlapped)]
    return (
        f"{rates[0]:,.0f} to {rates[1]:,.0f} images/s at best, efficiency {kept[0]:.1%} to "
        f"{kept[1]:.1%}: all-reduce {_ms(times.all_reduce)}, after the rest or beside it"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _days(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.2f} hours"
