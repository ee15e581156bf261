"""Blocks of rows, for work on a part of a feature map at a time, and cells of tiles."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32

Sums = TypeVar("Sums")

# From this number of rows on, a CPU processes one image or one block of rows at a time, so that
# intermediate results stay in the cache and the whole batch needs no extra memory.
LARGE_MAP = 40

# Largest number of cells of a block; with 64 channels Winograd's products take 6 MB for as many.
# With fewer rows, reading the neighbouring rows as well costs too much.
_MAX_BLOCK_CELLS = 7_500
_MIN_BLOCK_ROWS = 8


class RowBlocks(NamedTuple):
    """Division of a batch of maps into blocks: rows of one image, an image, or all images."""

    images: int
    """Images of a block."""
    rows: int
    """Rows of a block."""
    number: int
    """Number of blocks."""

    def take(
        self,
        index: int | Array,
        *maps: Float[Array, "B H W C"],
        of: Callable[..., Array] = lambda cells: cells,
        tile: tuple[int, int],
    ) -> Float[Array, "b h w C"]:
        """Return `of(*maps)` at a block, with a border of one cell; 0 outside of the maps.

        Zeros are appended to fill whole tiles of `tile` cells. If a map has several blocks, their
        rows must be whole tiles.
        """
        _, rows, columns, _ = maps[0].shape
        height = self.rows + -self.rows % tile[0] + 2
        per_image = rows // self.rows
        image, block = (index, 0) if per_image == 1 else (index // per_image, index % per_image)
        return slice_padded_rows(
            *maps,
            of=of,
            begin=(image * self.images, block * self.rows - 1),
            size=(self.images, height),
            beyond=(1, height - self.rows - 1),
            sides=(1, 1 + -columns % tile[1]),
        )

    def map(self, function: Callable[[int | Array], Array], like: Array) -> Array:
        """Stack the results for all blocks' indices, [number, ...]; see `sum_and_map`."""
        return self.sum_and_map(lambda index: ((), function(index)), like)[1]

    def sum_and_map(
        self, function: Callable[[int | Array], tuple[Sums, Array]], like: Array
    ) -> tuple[Sums, Array]:
        """Sum the first results of all blocks, a tree of arrays, and stack the second ones.

        Sums are accumulated in float32. The results must depend on the array `like`.
        """
        if self.number == 1:
            sums, part = function(0)
            return sums, part[None]

        def add(index: Array, state: tuple[Sums, Array]) -> tuple[Sums, Array]:
            sums, part = function(index)
            total, parts = state
            parts = lax.dynamic_update_index_in_dim(parts, part, index, 0)
            return jax.tree.map(jnp.add, total, sums), parts

        sums, part = jax.eval_shape(function, 0)
        zeros = jax.tree.map(lambda a: zeros_varying_like(a.shape, like), sums)
        # Any values, since all are overwritten. Zeros would be one array for all loops of a program
        # and copied for each.
        parts = jnp.broadcast_to(like.ravel()[0].astype(part.dtype), (self.number, *part.shape))
        total, parts = lax.fori_loop(0, self.number, add, (zeros, parts))
        return jax.tree.map(lambda a, shape: a.astype(shape.dtype), total, sums), parts


def row_blocks(x: Float[Array, "B H W C"]) -> RowBlocks:
    """Divide maps like `x` into blocks for a CPU."""
    batch, rows, columns, _ = x.shape
    if rows < LARGE_MAP:
        return RowBlocks(batch, rows, 1)
    height = rows
    if rows * columns > _MAX_BLOCK_CELLS:
        heights = range(_MIN_BLOCK_ROWS, _MAX_BLOCK_CELLS // columns + 1, 2)
        height = max((n for n in heights if rows % n == 0), default=rows)
    return RowBlocks(1, height, batch * (rows // height))


def slice_padded_rows(
    *maps: Float[Array, "B H W C"],
    begin: tuple[int | Array, int | Array],
    size: tuple[int, int],
    beyond: tuple[int, int],
    sides: tuple[int, int],
    of: Callable[..., Array] = lambda cells: cells,
) -> Float[Array, "b h w C"]:
    """Return a slice of images and rows of `of(*maps)`, padded with zeros.

    Args:
        maps: the arrays to slice.
        begin: first image and row.
        size: number of images and rows.
        beyond: largest number of rows of the slice above and below the maps, which are 0.
        sides: columns of zeros to add on the left and right.
        of: elementwise function of the slices.
    """
    images, height = size
    image, first = begin
    count = min(height, maps[0].shape[1])
    top = jnp.clip(first, 0, maps[0].shape[1] - count)
    cells = of(
        *(lax.dynamic_slice(x, (image, top, 0, 0), (images, count, *x.shape[2:])) for x in maps)
    )
    cells = jnp.pad(cells, ((0, 0), beyond, (0, 0), (0, 0)))
    cells = lax.dynamic_slice_in_dim(cells, first - top + beyond[0], height, axis=1)
    # The sides come last because XLA writes padded arrays to memory. A slice with a dynamic start
    # would be computed again, and slowly, for each use.
    return lax.optimization_barrier(jnp.pad(cells, ((0, 0), (0, 0), sides, (0, 0))))


def tile_cells(x: Float[Array, "B H W C"], axis: int, *, step: int, size: int) -> list[Array]:
    """Return the first to last cell, [B, h, w, C] each, of all whole tiles along an axis.

    Tiles start at every `step`-th cell; those with a larger `size` overlap.
    """
    tiles = (x.shape[axis] - size) // step + 1
    return [lax.slice_in_dim(x, i, i + (tiles - 1) * step + 1, step, axis) for i in range(size)]


def interleave(cells: Sequence[Array], axis: int) -> Float[Array, "B H W C"]:
    """Join tiles along an axis, given their first to last cells, [B, h, w, C] each."""
    y = jnp.stack(cells, axis + 1)
    return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])


def zeros_varying_like(shape: tuple[int, ...], like: Array) -> Float32[Array, "..."]:
    """Return the initial value of a sum over parts of `like` in a loop.

    It is computed from `like`, because shard_map requires that a loop's state varies over the
    devices like its input.
    """
    zero = jnp.where(like.ravel()[0] > 0, 0.0, 0.0)
    return jnp.zeros(shape, jnp.float32) + zero
