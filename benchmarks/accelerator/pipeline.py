"""The input pipeline: images a second that the host's cores decode and augment."""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.accelerator.context import Context
from benchmarks.input_pipeline import SETTINGS, write_scenes
from ssd_jax.config import DataConfig
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import find_classes, open_source


def run(context: Context) -> None:
    """Record images a second by number of worker processes, for 500x500 JPEGs."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = write_scenes(Path(folder))
        for workers in (0, 1) if context.tiny else sorted({0, max(1, cores // 2), cores}):
            rate = images_per_s(root, workers, seconds=0.2 if context.tiny else 5.0)
            context.record(
                f"{workers} workers", {"images_per_s": rate, "images_per_s_and_core": rate / cores}
            )


def images_per_s(root: Path, workers: int, *, seconds: float, batch: int = 32) -> float:
    """Images a second of the SSD paper's augmentation, after the first batches."""
    data = DataConfig(
        format="voc", root=str(root), train_split="trainval", max_objects=128, num_workers=workers
    )
    source = open_source(data, "trainval", find_classes(data, ()))
    with train_batches(
        source, data, image_size=300, mean=SETTINGS["fill"], batch_size=batch, seed=0
    ) as batches:
        for _ in range(2 + 2 * workers):
            next(batches)
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or count < 2:
            next(batches)
            count += 1
    return count * batch / elapsed
