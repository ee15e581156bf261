"""Inputs of the benchmarks: configs, images, ground truth and predictions."""

import dataclasses
from pathlib import Path

import numpy as np

from ssd_jax.config import Config
from ssd_jax.config_file import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES = 20
SIZE = 300

Outputs = tuple[np.ndarray, np.ndarray]
"""Box offsets [B, P, 4] and class logits [B, P, C]."""
Objects = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes [B, M, 4] (xyxy in [0, 1]), class ids [B, M] from 0 and mask [B, M]."""


def voc_config(batch_size: int = 4, *, classes: int = CLASSES, size: int = SIZE) -> Config:
    """Return the config of SSD300 or SSD512 with `classes` classes and all layers trained."""
    config = load_config(CONFIGS / f"ssd{size}_voc0712.py")
    names = tuple(f"class{k}" for k in range(classes))
    model = dataclasses.replace(config.model, classes=names, init_from="")
    return dataclasses.replace(
        config, model=model, train=dataclasses.replace(config.train, batch_size=batch_size)
    )


def images(batch: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Make random images, uint8 [B, S, S, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), np.uint8)


def objects(
    batch: int, most: int, *, each: int = 6, classes: int = CLASSES, seed: int = 0
) -> Objects:
    """Make `each` objects per image, padded to `most`."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.7, (batch, most, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, (batch, most, 2))], axis=2)
    mask = np.broadcast_to(np.arange(most) < each, (batch, most))
    boxes = np.where(mask[..., None], boxes, 0).astype(np.float32)
    labels = np.where(mask, rng.integers(0, classes, (batch, most)), 0).astype(np.int32)
    return boxes, labels, np.array(mask)


def predictions(
    batch: int, priors: int, classes: int = CLASSES, *, background: float = 5, seed: int = 0
) -> Outputs:
    """Make outputs of a network in which groups of neighbouring priors detect a class.

    `background` is added to the logit of the background. With 5, more than 400 priors of each
    class have a score above 0.01, as early in training; with 12, about a dozen.
    """
    rng = np.random.default_rng(seed)
    loc = rng.normal(0, 0.7, (batch, priors, 4)).astype(np.float32)
    conf = rng.normal(0, 1, (batch, priors, classes + 1)).astype(np.float32)
    conf[..., 0] += background
    for b in range(batch):
        for start in rng.integers(0, priors - 40, 12):
            conf[b, start : start + 40, rng.integers(1, classes + 1)] += rng.uniform(4, 9, 40)
    return loc, conf
