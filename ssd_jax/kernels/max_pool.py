"""Max pools of VGG16, with gradients that are fast on CPU."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.kernels.row_blocks import tile_cells


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_2x2(x: Float[Array, "B H W C"], ceil: bool = False) -> Float[Array, "B h w C"]:
    """Compute the maximum of each 2x2 block; `ceil` keeps an odd last row or column.

    The first of equal cells gets the gradient. Implemented with strided slices, and the gradient
    with the position of the maximum: `reduce_window` and its gradient are many times slower on CPU.
    """
    return reduce(jnp.maximum, _block_cells(x, ceil))


def _pool_forward(x: Array, ceil: bool) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool_2x2(x, ceil)
    return y, (x, y)


def _pool_backward(ceil: bool, saved: tuple[Array, Array], grad: Array) -> tuple[Array]:
    x, y = saved
    cells = _block_cells(x, ceil)
    largest = jnp.full(y.shape, 3, jnp.int8)  # the last cell, unless one before has the maximum
    for k in (2, 1, 0):
        largest = jnp.where(cells[k] == y, k, largest)
    # Computed per cell of the result, which is then written once; joining four arrays would write
    # it three times.
    shape = (y.shape[0], y.shape[1], 2, y.shape[2], 2, y.shape[3])
    row, column = (lax.broadcasted_iota(jnp.int8, shape, axis) for axis in (2, 4))
    largest, grad = (a[:, :, None, :, None] for a in (largest, grad))
    blocks = jnp.where(largest == 2 * row + column, grad, 0)
    blocks = blocks.reshape(shape[0], 2 * shape[1], 2 * shape[3], shape[5])
    blocks = blocks[:, : x.shape[1], : x.shape[2]]
    dropped = [(0, size - have) for size, have in zip(x.shape, blocks.shape, strict=True)]
    return (jnp.pad(blocks, dropped),)


max_pool_2x2.defvjp(_pool_forward, _pool_backward)


def _block_cells(x: Array, ceil: bool) -> list[Array]:
    """Return the four cells of each 2x2 block, by rows."""
    rows, columns = x.shape[1:3]
    if ceil and (rows % 2 or columns % 2):
        x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), constant_values=-jnp.inf)
    return [
        c for row in tile_cells(x, 1, step=2, size=2) for c in tile_cells(row, 2, step=2, size=2)
    ]


def max_pool_3x3(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Compute the maximum of each 3x3 neighbourhood at stride 1 (SSD's pool5)."""
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = reduce(jnp.maximum, [x[:, i : i + rows] for i in range(3)])
    return reduce(jnp.maximum, [x[:, :, j : j + columns] for j in range(3)])
