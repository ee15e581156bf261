"""Training of SSD300 from VGG16's ImageNet weights on photographs, for the remaining time."""

import dataclasses
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.context import Context, SkipPartError
from benchmarks.inputs import CONFIGS
from ssd_jax.config import Config
from ssd_jax.config_file import load_config

PHOTOGRAPHS, WEIGHTS = "photographs.zip", "vgg16_int8.npz"
PUBLISHED = {"Kou et al., 2021": 0.714, "github.com/Gmy12138/SSD-RefineDet": 0.640}
"""mAP of SSD300-VGG16 on NEU-DET, on other splits and schedules."""
START_S, END_S = 60.0, 25.0
"""Time reserved for start and compilation, and for evaluation and report (s)."""
MAX_STEPS, MIN_STEPS = 12_000, 100


def run(context: Context) -> None:
    """Train, evaluate, and record the curve, the mAP and the share of time spent waiting for data.

    Raises:
        SkipPartError: the prepared folder is missing.
    """
    from ssd_jax.training.loop import train

    config = tiny_config() if context.tiny else full_config(context)
    workdir = context.out / "finetune"
    started = time.perf_counter()
    context.record(
        "setup",
        {"steps": config.train.steps, "batch_size": config.train.batch_size, "published": PUBLISHED}
        | {"num_workers": config.data.num_workers, "dtype": config.model.dtype},
    )
    mean_ap = train(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in lines if "loss" in line]
    evaluation = lines[-1] if "loss" not in lines[-1] else {}
    steady = [line for line in curve[1:] or curve if "images_per_s" in line]
    context.record(
        "training",
        {
            "mAP": mean_ap,
            "seconds": time.perf_counter() - started,
            "images_per_s": float(np.median([line["images_per_s"] for line in steady])),
            "data_wait": float(np.mean([line["data_wait"] for line in steady])),
            "evaluation": {k: v for k, v in evaluation.items() if isinstance(v, float)},
        },
    )
    context.record("curve", [{k: line[k] for k in ("step", "loss")} for line in curve])


def tiny_config() -> Config:
    """Return the quickstart's config with six steps."""
    config = load_config(CONFIGS / "quickstart.py")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width_multiplier=0.0625, batch_norm=False),
        data=dataclasses.replace(config.data, train_split="train:64", eval_split="test:8"),
        optim=dataclasses.replace(config.optim, warmup_steps=0),
        train=dataclasses.replace(config.train, steps=6, log_every=2, checkpoint_every=6),
        eval=dataclasses.replace(config.eval, report=False, num_visualizations=2),
        runtime=dataclasses.replace(config.runtime, compilation_cache_dir=""),
    )


def full_config(context: Context) -> Config:
    """Return NEU-DET's config in bfloat16 with a schedule that fits the remaining time."""
    if context.bundle is None:
        raise SkipPartError(
            "the prepared folder is missing; make it with --prepare and pass it as --bundle"
        )
    root = unpack(context.bundle / PHOTOGRAPHS, context.out / "photographs")
    weights = expand_weights(context.bundle / WEIGHTS, context.out / "vgg16.npz")
    config = load_config(CONFIGS / "neu_det.py")
    steps = affordable_steps(context, config.train.batch_size)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="bfloat16", init_from=str(weights)),
        data=dataclasses.replace(
            config.data, root=str(root), num_workers=max(1, len(os.sched_getaffinity(0)) - 1)
        ),
        train=dataclasses.replace(
            config.train,
            steps=steps,
            log_every=max(1, steps // 100),
            checkpoint_every=steps,
            # An intermediate evaluation, in case the part is cut short.
            eval_every=max(1, steps // 2),
        ),
        eval=dataclasses.replace(config.eval, batch_size=32, report=False),
        runtime=dataclasses.replace(config.runtime, compilation_cache_dir=""),
    )


def affordable_steps(context: Context, batch: int) -> int:
    """Compute how many steps fit, from the measured speeds of the step and the pipeline."""
    step = context.read("training_step").get(f"SSD300, bfloat16, batch {batch}", {})
    pipeline = context.read("pipeline")
    # These photographs have a sixth of the pixels of those in the part pipeline.
    rates = [2.0 * row["images_per_s"] for row in pipeline.values()]
    fastest_step = step.get("images_per_s", 400.0)
    rate = min([0.7 * fastest_step, *([max(rates)] if rates else [])])
    steps = int((context.seconds_left - START_S - END_S) * 0.85 * rate / batch)
    return min(MAX_STEPS, max(MIN_STEPS, steps))


def unpack(archive: Path, folder: Path) -> Path:
    """Extract the photographs to a folder in VOC's layout."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


def compact_weights(source: Path, target: Path) -> None:
    """Write convolutions as 8-bit integers with a scale for each output channel."""
    compact: dict[str, Any] = {}
    with np.load(source) as arrays:
        for name in arrays.files:
            value = arrays[name]
            if value.ndim == 1:
                compact[name] = value
                continue
            scale = np.abs(value).max(axis=(0, 1, 2)) / 127
            compact[name] = np.rint(value / scale).astype(np.int8)
            compact[f"{name}:scale"] = scale.astype(np.float32)
    np.savez_compressed(target, **compact)


def expand_weights(source: Path, target: Path) -> Path:
    """Write the float32 weights of a file that `compact_weights` wrote."""
    with np.load(source) as arrays:
        full = {
            name: arrays[name].astype(np.float32) * arrays[f"{name}:scale"]
            if f"{name}:scale" in arrays.files
            else arrays[name]
            for name in arrays.files
            if not name.endswith(":scale")
        }
    np.savez(target, **full)
    return target
