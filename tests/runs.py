"""Runs with random weights, made without compiling."""

import jax
import numpy as np

from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.models.ssd import make_model, variable_shapes


def write_run(path, config, seed=0):
    """Write a run whose kernels are drawn by NumPy, because compiling `init` takes longer."""
    model = make_model(config.model, config.priors)
    shapes = variable_shapes(model)
    rng = np.random.default_rng(seed)

    def draw(key, leaf):
        name = key[-1].key
        if name == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            scale *= 0.02 if key[-3].key.startswith("head_") else 1  # distinct scores
            return rng.normal(0, scale, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    write_checkpoint(path, config, jax.tree_util.tree_map_with_path(draw, shapes))
    return path
