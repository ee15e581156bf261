"""Profiler trace of training steps, reduced to a table of kernels and the device's idle time."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerator.context import Context
from benchmarks.accelerator.workload import TINY_BATCH, config_for, step_inputs

STEPS = 10
LONGEST = 15
CATEGORIES = (
    (
        "convolutions and products",
        r"conv(?!ert)|cudnn|cutlass|xmma|implicit|wgrad|dgrad|fprop|gemm|dot",
    ),
    ("transposes", r"transpose|nchwto|nhwcto|tonhwc|tonchw"),
    ("copies", r"copy|memcpy|memset|concatenate|dynamic.update|dynamic.slice"),
    ("sorts", r"sort|top.?k"),
    ("reductions", r"reduce"),
)


class Kernel(NamedTuple):
    """Execution of a kernel on the device; times in ns."""

    name: str
    start: float
    duration: float


def run(context: Context) -> None:
    """Trace ten steps in bfloat16 and record the longest kernels, categories and idle time."""
    import jax

    from ssd_jax.estimate.step_cost import lower_step

    batch = TINY_BATCH if context.tiny else 32
    config = config_for(dtype="bfloat16", batch=batch, tiny=context.tiny)
    device = jax.devices()[0]
    step = lower_step(config, [device], batch).compile()
    state, inputs = step_inputs(config, device)
    inputs = jax.device_put(inputs, device)
    for _ in range(3):
        state, metrics = step(state, inputs)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, metrics = step(state, inputs)
            jax.block_until_ready(metrics)
        kernels = read_kernels(Path(folder))
    for name, value in reduce_trace(kernels, STEPS).items():
        context.record(name, value)


def read_kernels(folder: Path) -> list[Kernel]:
    """Read the kernels of the first device from a profiler's folder.

    Raises:
        ValueError: the trace has no kernels.
    """
    from jax.profiler import ProfileData

    (file,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = sorted(
        (p for p in planes if p.name.startswith("/device:") and "CUSTOM" not in p.name),
        key=lambda plane: plane.name,
    )
    if devices:
        # A GPU has a line per stream, and lines derived from them; a TPU has a line of operations.
        lines = [x for x in devices[0].lines if x.name.startswith("Stream") or x.name == "XLA Ops"]
    else:
        # On a CPU, kernels are events of the host's worker threads.
        lines = [x for p in planes if p.name == "/host:CPU" for x in p.lines if "XLA" in x.name]
    kernels = [
        Kernel(event.name, event.start_ns, event.duration_ns)
        for x in lines
        for event in x.events
        if not event.name.startswith("ThunkExecutor")  # the caller of a CPU's kernels
    ]
    if not kernels:
        names = [(plane.name, [line.name for line in plane.lines]) for plane in planes]
        raise ValueError(f"the trace has no kernels; its planes and lines: {names}")
    return kernels


def reduce_trace(kernels: Iterable[Kernel], steps: int) -> dict[str, Any]:
    """Compute shares of time by kernel and category, and the device's idle time.

    Returns:
        "longest": the LONGEST kernels as {name, category, ms, calls, share}, per step;
        "categories": shares of all kernel time; "device": milliseconds per step from the first
        kernel to the last, busy, and idle in gaps, with the number of gaps above 10 µs.
    """
    kernels = sorted(kernels, key=lambda kernel: kernel.start)
    time, calls, by_category = Counter[str](), Counter[str](), Counter[str]()
    for kernel in kernels:
        time[kernel.name] += kernel.duration
        calls[kernel.name] += 1
        by_category[category(kernel.name)] += kernel.duration
    total = sum(time.values())
    busy, gaps = 0.0, []
    end = first = kernels[0].start
    for kernel in kernels:
        if kernel.start > end:
            gaps.append(kernel.start - end)
        stop = kernel.start + kernel.duration
        busy += max(0.0, stop - max(end, kernel.start))
        end = max(end, stop)
    ms = 1e6 * steps
    return {
        "longest": [
            {
                "name": name,
                "category": category(name),
                "ms": spent / ms,
                "calls": calls[name] / steps,
                "share": spent / total,
            }
            for name, spent in time.most_common(LONGEST)
        ],
        "categories": {name: spent / total for name, spent in by_category.most_common()},
        "device": {
            "ms": (end - first) / ms,
            "busy_ms": busy / ms,
            "idle_ms": sum(gaps) / ms,
            "idle_share": sum(gaps) / (end - first),
            "gaps_above_10us": sum(gap > 1e4 for gap in gaps) / steps,
            "longest_gap_us": max(gaps, default=0.0) / 1e3,
            "kernels": len(kernels) / steps,
        },
    }


def category(name: str) -> str:
    """Return the first of CATEGORIES that matches a kernel's name, or "other"."""
    matches = (label for label, pattern in CATEGORIES if re.search(pattern, name.lower()))
    return next(matches, "other")
