"""The StableHLO form: the very program of the evaluation, by jax.export."""

from pathlib import Path

import numpy as np

from ssd_jax.export.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where the file runs."""


def write(network: Network, path: Path, batch: int | None) -> None:
    """Write the detection of `batch` images (None: of any number) with all weights inside."""
    import jax
    from jax import export

    (rows,) = export.symbolic_shape("b") if batch is None else (batch,)
    size = network.size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)
    # A tuple: a reader needs none of our types.
    program = jax.jit(lambda images: tuple(network.detect(network.variables, images)))
    path.write_bytes(export.export(program, platforms=PLATFORMS)(images).serialize())
