"""Latency and throughput of detection with a checkpoint.

Detection in a batch has three stages: preprocessing (reading and resizing on the host), the
network, and postprocessing (softmax, decoding, suppression). The whole is timed as `Detector` runs
it, with the last two stages in one program; for their shares, each stage is compiled and timed
separately.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssd_jax.data.augmentation import preprocess_eval
from ssd_jax.data.sources import SyntheticSource
from ssd_jax.inference.detect import DetectFn, make_post_process
from ssd_jax.inference.detector import Detector, load_image
from ssd_jax.inference.drawing import Image
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.weights.trained import read_trained_config, restore_trained

if TYPE_CHECKING:
    from rich.console import Console

STAGES = ("pre", "network", "post")
"""Preprocessing; the network; postprocessing."""

_SCENES = 32
_SCENE_SIDE = 500
# Enough for a median and for the 5th and 95th percentiles to average several values.
_MIN_ROUNDS, _MAX_ROUNDS, _MIN_SECONDS = 5, 60, 5.0


def benchmark(
    checkpoint: Path, batch_sizes: Sequence[int], files: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the detection speed of a checkpoint at each batch size.

    Args:
        checkpoint: result of `find_trained`.
        batch_sizes: to measure.
        files: images to detect in; none: generated scenes in memory.

    Returns:
        The measurements, serializable as JSON; see docs/predict.md.

    Raises:
        ConfigError: the checkpoint cannot be read.
        DataError: an image cannot be read.
    """
    # The compile times are not to be shortened by cached programs.
    jax.config.update("jax_compilation_cache_dir", None)
    config = read_trained_config(checkpoint)
    set_cpu_conv(config.runtime.cpu_conv)
    model, variables = restore_trained(checkpoint, config)
    images: list[Image | str] = list(files) or list(_scenes())
    for file in files:
        load_image(file)
    device = jax.devices()[0]
    figures: dict[str, Any] = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "jax": version("jax"),
        "image_size": config.model.image_size,
        "classes": len(config.model.classes),
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "dtype": config.model.dtype,
        "images": f"{len(files)} files"
        if files
        else f"{_SCENES} generated scenes of {_SCENE_SIDE}x{_SCENE_SIDE}, in memory",
        "batches": {},
    }
    post_process = make_post_process(config)
    prepared = DetectFn(model, config).prepare(variables)
    network = jax.jit(model.apply)
    for size in batch_sizes:
        detector = Detector(model, config, prepared, batch_size=size)
        batch = [images[k % len(images)] for k in range(size)]
        started = time.perf_counter()
        detector(batch)
        first = time.perf_counter() - started
        inputs = jax.device_put(_preprocess(batch, config.model.image_size))
        outputs = network(prepared, inputs)
        programs: dict[str, Callable[[], Any]] = {
            "whole": partial(detector, batch),
            "pre": partial(_preprocess, batch, config.model.image_size),
            "network": partial(network, prepared, inputs),
            "post": partial(post_process, *outputs),
        }
        times = _time_alternately(programs)
        figures["batches"][str(size)] = _summary(size, first, times)
    figures["peak_memory_mb"] = _peak_memory_mb(device)
    return figures


def _time_alternately(programs: dict[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
    """Measure the seconds of many calls of each program, in alternation."""
    for program in programs.values():
        jax.block_until_ready(program())
    times: dict[str, list[float]] = {name: [] for name in programs}
    start = time.perf_counter()
    for k in range(_MAX_ROUNDS):
        if k >= _MIN_ROUNDS and time.perf_counter() - start > _MIN_SECONDS:
            break
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in times.items()}


def _summary(size: int, first: float, times: dict[str, np.ndarray]) -> dict[str, Any]:
    whole = float(np.median(times["whole"]))
    parts = {name: float(np.median(times[name])) for name in STAGES}
    total = sum(parts.values())
    return {
        "latency_ms": 1e3 * whole,
        "latency_ms_p5": 1e3 * float(np.quantile(times["whole"], 0.05)),
        "latency_ms_p95": 1e3 * float(np.quantile(times["whole"], 0.95)),
        "images_per_s": size / whole,
        "parts_ms": {name: 1e3 * seconds for name, seconds in parts.items()},
        "shares": {name: seconds / total for name, seconds in parts.items()},
        "parts_of_whole": total / whole,
        "compile_s": max(0.0, first - float(times["whole"].min())),
        "calls": len(times["whole"]),
    }


def print_benchmark(figures: dict[str, Any], console: "Console") -> None:
    """Print the measurements of `benchmark` as a table."""
    from rich import box
    from rich.table import Table

    console.print(
        f"{figures['parameters']:,} parameters, {figures['classes']} classes, "
        f"{figures['image_size']} pixels, {figures['dtype']}; {figures['device']} "
        f"({figures['platform']}), jax {figures['jax']}; {figures['images']}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    names = ("batch", "ms", "5 to 95 %", "images/s", "pre", "network", "post", "compile s")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for size, row in figures["batches"].items():
        table.add_row(
            size,
            _ms(row["latency_ms"]),
            f"{_ms(row['latency_ms_p5'])} to {_ms(row['latency_ms_p95'])}",
            f"{row['images_per_s']:.1f}",
            *(f"{row['shares'][name]:.0%}" for name in STAGES),
            f"{row['compile_s']:.1f}",
        )
    console.print(table)
    console.print(
        "ms: median of a batch, from image to boxes. pre, network, post: shares of the stages, "
        f"timed separately. Peak memory: {figures['peak_memory_mb']:,.0f} MB",
        markup=False,
    )


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _preprocess(batch: Sequence[Image | str], size: int) -> np.ndarray:
    """Preprocess a batch as the detector does."""
    images = [load_image(image) if isinstance(image, str) else image for image in batch]
    return np.stack([preprocess_eval(image, size) for image in images])


def _scenes() -> list[Image]:
    source = SyntheticSource(_SCENES, "benchmark", _SCENE_SIDE)
    return [source.image(k) for k in range(len(source))]


def _peak_memory_mb(device: jax.Device) -> float:
    """Return the peak memory of the device, or of the process if the device does not report it."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
