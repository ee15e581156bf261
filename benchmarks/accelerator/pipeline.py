"""Input pipeline: images per second that the host decodes and augments."""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.accelerator.context import Context
from benchmarks.input_pipeline import open_loader, write_scenes

BATCH = 32


def run(context: Context) -> None:
    """Record images per second by number of worker processes, for 500x500 JPEGs."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = write_scenes(Path(folder))
        for workers in (0, 1) if context.tiny else sorted({0, max(1, cores // 2), cores}):
            rate = images_per_s(root, workers, seconds=0.2 if context.tiny else 5.0)
            context.record(
                f"{workers} workers", {"images_per_s": rate, "images_per_s_per_core": rate / cores}
            )


def images_per_s(root: Path, workers: int, *, seconds: float) -> float:
    """Measure the SSD paper's augmentation after the first batches."""
    _, loader = open_loader(root, workers, BATCH)
    with loader as batches:
        for _ in range(2 + 2 * workers):
            next(batches)
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or count < 2:
            next(batches)
            count += 1
    return count * BATCH / elapsed
