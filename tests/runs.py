"""Checkpoints to detect with, made in no time."""

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.models.ssd import make_model


def write_run(path, config, seed=0):
    """A run's folder whose network has kernels drawn by NumPy: compiling `init` takes longer."""
    model = make_model(config.model, config.priors)
    size = config.model.image_size
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(seed)

    def draw(key, leaf):
        name = key[-1].key
        if name == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            scale *= 0.02 if key[-3].key.startswith("head_") else 1  # scores unlike each other
            return rng.normal(0, scale, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    write_checkpoint(path, config, jax.tree_util.tree_map_with_path(draw, like))
    return path
