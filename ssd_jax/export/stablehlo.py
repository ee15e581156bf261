"""StableHLO format: the compiled program of the evaluation, by jax.export."""

from pathlib import Path

import numpy as np

from ssd_jax.export.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that run the file."""


def write(network: Network, path: Path, batch: int | None) -> None:
    """Write a program that detects in `batch` images (None: any number), with all weights."""
    import jax
    from jax import export

    (rows,) = export.symbolic_shape("b") if batch is None else (batch,)
    size = network.size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)
    # A tuple, so that readers need no types of this project.
    program = jax.jit(lambda images: tuple(network.detect(network.variables, images)))
    path.write_bytes(export.export(program, platforms=PLATFORMS)(images).serialize())
