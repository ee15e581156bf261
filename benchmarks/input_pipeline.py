"""Input pipeline, from JPEGs to batches, against ssd.pytorch's steps in float32."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import reference_augmentation
from benchmarks.report import print_comparison, print_table
from benchmarks.runner import Program, compare_in_process
from ssd_jax.config import DataConfig
from ssd_jax.data.augment import augment_caffe, preprocess_eval
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import SyntheticSource, find_classes, open_source
from ssd_jax.data.ssd_pytorch import augment_ssd_pytorch

IMAGES = 150
EPOCHS = 20
BATCH = 16
SETTINGS = {
    "size": 300,
    "fill": (123.0, 117.0, 104.0),
    "expand_ratio": 4.0,
    "min_crop_scale": 0.3,
    "max_crop_aspect_ratio": 2.0,
    "flip_vertically": False,
}


def run(rounds: int, voc: Path | None = None) -> dict[str, Any]:
    """Print the tables and return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        root = voc or write_scenes(Path(scratch))
        source, _ = open_loader(root, 0, BATCH)
        return {"one core": one_core(source, rounds), "workers": workers(root)}


def one_core(source, rounds: int) -> dict[str, dict[str, float]]:
    """Compare processor times per image of decoding, augmentation and resizing in one thread."""
    cv2.setNumThreads(1)
    n = min(IMAGES, len(source))
    examples = [source[i] for i in range(n)]

    def reference(i, rng):
        example = examples[i]
        reference_augmentation.load(rng, source.file(i), example.boxes, example.labels)

    def augmented(augment):
        def load(i, rng):
            example = source[i]
            augment(rng, example.image, example.boxes, example.labels, **SETTINGS)

        return load

    def all_images(load: Callable[[int, np.random.Generator], Any]) -> Program:
        seeds = itertools.count()

        def program() -> None:
            seed = next(seeds)
            for i in range(n):
                load(i, np.random.default_rng([seed, i]))

        return program

    base = "ssd.pytorch's steps, float32"
    programs = {
        base: reference,
        "augment caffe": augmented(augment_caffe),
        "augment ssd.pytorch": augmented(augment_ssd_pytorch),
        "no augmentation": lambda i, _: preprocess_eval(source.image(i), 300),
        "decoding only": lambda i, _: source.image(i),
    }
    rows = compare_in_process(
        {name: all_images(load) for name, load in programs.items()},
        rounds=rounds,
        clock=time.process_time,
    )
    rows = {name: {key: value / n for key, value in row.items()} for name, row in rows.items()}
    print_comparison("one core, per image", rows, base=base)
    return rows


def workers(root: Path) -> dict[str, dict[str, float]]:
    """Measure images per second by number of worker processes, and memory over the epochs."""
    figures = {}
    for count in (0, 1, 2):
        source, loader = open_loader(root, count, BATCH)
        steps = len(source) // BATCH
        with loader as batches:
            for _ in range(2 * steps):
                next(batches)
            early, started = memory_mb(), time.perf_counter()
            for _ in range((EPOCHS - 2) * steps):
                next(batches)
            figures[str(count)] = {
                "images/s": (EPOCHS - 2) * steps * BATCH / (time.perf_counter() - started),
                "MB after epoch 2": early,
                f"MB after epoch {EPOCHS}": memory_mb(),
            }
    print_table("whole pipeline, by worker processes", figures)
    return figures


def open_loader(root: Path, num_workers: int, batch: int) -> tuple[Any, Any]:
    """Open the trainval split of a VOC folder: its source, and a context of batches."""
    data = DataConfig(
        format="voc",
        root=str(root),
        train_split="trainval",
        max_objects=128,
        num_workers=num_workers,
    )
    source = open_source(data, "trainval", find_classes(data, ()))
    mean = SETTINGS["fill"]
    return source, train_batches(source, data, image_size=300, mean=mean, batch_size=batch, seed=0)


def memory_mb() -> float:
    """Return the proportional set size of this process and its descendants (MB)."""
    processes = [os.getpid()]
    for process in processes:
        children = Path(f"/proc/{process}/task/{process}/children")
        processes += [int(child) for child in children.read_text().split()]
    total = 0
    for process in processes:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += next(
            int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
        )
    return total / 1024


def write_scenes(root: Path) -> Path:
    """Write 200 generated scenes as 500x500 JPEGs to a folder in VOC's layout."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    source = SyntheticSource(200, "benchmark", 500)
    for i in range(len(source)):
        scene = source.annotation(i)
        objects = "".join(
            f"<object><name>{source.classes[label - 1]}</name><bndbox><xmin>{x0 + 1}</xmin>"
            f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in zip(scene.labels, scene.boxes_px, strict=True)
        )
        size = f"<size><width>{scene.width}</width><height>{scene.height}</height></size>"
        (root / f"Annotations/{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        image = cv2.cvtColor(source.image(i), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / f"JPEGImages/{i}.jpg"), image)
    ids = "\n".join(str(i) for i in range(len(source)))
    (root / "ImageSets/Main/trainval.txt").write_text(ids)
    return root
