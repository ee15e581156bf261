"""From a JPEG to what a training step eats: ours against ssd.pytorch's steps in float32."""

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import literal_augment
from ssd_jax.config import DataConfig
from ssd_jax.data.augmentation import augment_caffe, preprocess_eval
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import SyntheticSource, find_classes, open_source
from ssd_jax.data.ssd_pytorch import augment_ssd_pytorch

ROUNDS = 5
IMAGES = 150
EPOCHS = 20
SETTINGS = {
    "size": 300,
    "fill": (123.0, 117.0, 104.0),
    "expand_ratio": 4.0,
    "min_crop_scale": 0.3,
    "max_crop_aspect_ratio": 2.0,
    "flip_vertically": False,
}


def run(voc: Path | None) -> dict:
    """Print the tables and return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        root = voc or write_scenes(Path(scratch))
        data = DataConfig(format="voc", root=str(root), train_split="trainval", max_objects=128)
        source = open_source(data, "trainval", find_classes(data, ()))
        return {"one core": one_core(source), "workers": workers(source, data)}


def one_core(source) -> dict:
    """Milliseconds of processor time an image: decode, augment, resize, in one thread."""
    cv2.setNumThreads(1)
    n = min(IMAGES, len(source))
    files = [source.file(i) for i in range(n)]
    known = [source[i] for i in range(n)]

    def literal(i, rng):
        literal_augment.load(rng, files[i], known[i].boxes, known[i].labels)

    def ours(augment):
        def load(i, rng):
            example = source[i]
            augment(rng, example.image, example.boxes, example.labels, **SETTINGS)

        return load

    programs = {
        "ssd.pytorch's steps, float32": literal,
        "augment caffe": ours(augment_caffe),
        "augment ssd.pytorch": ours(augment_ssd_pytorch),
        "no augmentation": lambda i, _: preprocess_eval(source.image(i), 300),
        "decoding alone": lambda i, _: source.image(i),
    }
    times = {name: [] for name in programs}
    for round_ in range(ROUNDS):
        for name, program in programs.items():
            started = time.process_time()
            for i in range(n):
                program(i, np.random.default_rng([round_, i]))
            times[name].append((time.process_time() - started) / n * 1e3)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    base = medians["ssd.pytorch's steps, float32"]
    table = Table("one core, median of 5 rounds", "ms an image", "times as fast")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{base / value:.1f}")
    Console().print(table)
    return medians


def workers(source, data: DataConfig) -> dict:
    """Images a second by number of worker processes, and memory over epochs."""
    table = Table(
        "workers", "images a second", f"MB after epoch 2 / {EPOCHS}", title="whole pipeline"
    )
    figures = {}
    for count in (0, 1, 2):
        config = DataConfig(**{**vars(data), "num_workers": count})
        options = {"image_size": 300, "mean": SETTINGS["fill"], "batch_size": 16, "seed": 0}
        with train_batches(source, config, **options) as batches:
            steps = len(source) // 16
            for _ in range(2 * steps):
                next(batches)
            early, started = memory_mb(), time.perf_counter()
            for _ in range((EPOCHS - 2) * steps):
                next(batches)
            rate = (EPOCHS - 2) * steps * 16 / (time.perf_counter() - started)
            late = memory_mb()
        table.add_row(str(count), f"{rate:.0f}", f"{early:.0f} / {late:.0f}")
        figures[count] = {"images_per_s": rate, "mb_early": early, "mb_late": late}
    Console().print(table)
    return figures


def memory_mb() -> float:
    """Memory of this process and its children that is theirs alone (proportional set size)."""
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
    """A folder in VOC's layout of 200 generated scenes, 500x500 JPEGs."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    source = SyntheticSource(200, "benchmark", 500)
    for i in range(len(source)):
        known = source.annotation(i)
        objects = "".join(
            f"<object><name>{source.classes[label]}</name><bndbox><xmin>{x0 + 1}</xmin>"
            f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in zip(known.labels, known.boxes_px, strict=True)
        )
        size = f"<size><width>{known.width}</width><height>{known.height}</height></size>"
        (root / f"Annotations/{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        picture = cv2.cvtColor(source.image(i), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / f"JPEGImages/{i}.jpg"), picture)
    ids = "\n".join(str(i) for i in range(len(source)))
    (root / "ImageSets/Main/trainval.txt").write_text(ids)
    return root
