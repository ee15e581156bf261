"""VGG16's max pools, with gradients that are cheap on a CPU."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ssd_jax.models.parts import interleave, tile_cells


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_2x2(x: Float[Array, "B H W C"], ceil: bool = False) -> Float[Array, "B h w C"]:
    """The maximum of each 2x2 block; an odd last row or column is dropped, or kept with `ceil`.

    The first of equal cells has the gradient. Written as maxima of strided slices, and the gradient
    as one map put together from them: that of `reduce_window` costs a multiple of it on a CPU.
    """
    return reduce(jnp.maximum, _block_cells(x, ceil))


def _pool_forward(x: Array, ceil: bool) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool_2x2(x, ceil)
    return y, (x, y)


def _pool_backward(ceil: bool, saved: tuple[Array, Array], grad: Array) -> tuple[Array]:
    x, y = saved
    taken = jnp.zeros(y.shape, bool)
    cells = []
    for cell in _block_cells(x, ceil):
        largest = (cell == y) & ~taken
        taken |= largest
        cells.append(jnp.where(largest, grad, 0))
    blocks = interleave([cells[:2], cells[2:]])[:, : x.shape[1], : x.shape[2]]
    dropped = [(0, size - have) for size, have in zip(x.shape, blocks.shape, strict=True)]
    return (jnp.pad(blocks, dropped),)


max_pool_2x2.defvjp(_pool_forward, _pool_backward)


def _block_cells(x: Array, ceil: bool) -> list[Array]:
    """The cells of each 2x2 block, row by row."""
    rows, columns = x.shape[1:3]
    if ceil and (rows % 2 or columns % 2):
        x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), constant_values=-jnp.inf)
    return [cell for row in tile_cells(x, 2) for cell in row]


def max_pool_3x3(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The maximum of each cell's 3x3 neighbourhood; the map keeps its size (VGG16's new pool5)."""
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = reduce(jnp.maximum, [x[:, i : i + rows] for i in range(3)])
    return reduce(jnp.maximum, [x[:, :, j : j + columns] for j in range(3)])
