"""A map in parts: the cells of its tiles, images or strips one after another, and their sums."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

# Rows from which a CPU works on a map an image, or a strip of rows, at a time: what comes of it
# then stays in the cache, and no memory for the whole batch is asked of the system.
LARGE_MAP = 30

Square = list[list[Array]]
"""Arrays by row and column: of the cells of all tiles, or, in Winograd's form, of what comes of
them."""


def tile_cells(x: Float[Array, "B H W C"], size: int) -> Square:
    """[i][j]: row i, column j, [B, h, w, C], of every whole tile of size x size cells of `x`.

    A tile begins at every other cell: tiles of 2x2 lie side by side, of 4x4 overlap by two.
    """
    tall, wide = (cells // 2 - size // 2 + 1 for cells in x.shape[1:3])
    return [
        [x[:, i : i + 2 * tall - 1 : 2, j : j + 2 * wide - 1 : 2] for j in range(size)]
        for i in range(size)
    ]


def interleave(cells: Square) -> Float[Array, "B H W C"]:
    """The map whose 2x2 tiles have `cells`, 2x2 arrays [B, h, w, C] by row and column."""
    y = jnp.stack([jnp.stack(row, axis=3) for row in cells], axis=2)
    batch, tall, _, wide, _, channels = y.shape
    return y.reshape(batch, 2 * tall, 2 * wide, channels)


def zero_sum(shape: tuple[int, ...], like: Array) -> Float32[Array, "..."]:
    """What a sum over parts of `like` begins with, in a loop.

    It is made from `like`: shard_map wants a loop's state to vary over the devices as its input.
    """
    zero = jnp.where(like.ravel()[0] > 0, 0.0, 0.0)
    return jnp.zeros(shape, jnp.float32) + zero
