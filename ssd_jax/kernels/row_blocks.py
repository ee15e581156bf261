"""A map in parts: the cells of its tiles, and strips of rows that follow one another."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32

Sums = TypeVar("Sums")

# Rows from which a CPU works on a map an image, or a strip of rows, at a time: what comes of it
# then stays in the cache, and no memory for the whole batch is asked of the system.
LARGE_MAP = 40

# The most cells of a strip: Winograd's form makes 6 MB of so many with 64 channels. With too few
# rows the neighbours' rows, which are read as well, tell.
_STRIP_CELLS = 7_500
_STRIP_ROWS = 8


class Strips(NamedTuple):
    """The parts of a batch of maps: so many rows of one image, a whole image, or all of them."""

    images: int
    rows: int
    number: int

    def take(
        self,
        index: int | Array,
        *maps: Float[Array, "B H W C"],
        of: Callable[..., Array] = lambda cells: cells,
        tile: tuple[int, int],
    ) -> Float[Array, "b h w C"]:
        """`of(*maps)` at strip `index` and one cell around it; outside of the map it is 0.

        Rows and columns of 0 follow, so that whole tiles of so many, `tile`, fill a map. Where it
        has several strips, their rows must be whole tiles: the next strip's would follow else.
        """
        _, rows, columns, _ = maps[0].shape
        height = self.rows + -self.rows % tile[0] + 2
        per_image = rows // self.rows
        image, strip = (index, 0) if per_image == 1 else (index // per_image, index % per_image)
        return slice_padded_rows(
            *maps,
            of=of,
            begin=(image * self.images, strip * self.rows - 1),
            size=(self.images, height),
            beyond=(1, height - self.rows - 1),
            sides=(1, 1 + -columns % tile[1]),
        )

    def map(self, function: Callable[[int | Array], Array], like: Array) -> Array:
        """The results for all strips' indices, [number, ...]; they depend on an array `like`."""
        return self.sum_and_map(lambda index: ((), function(index)), like)[1]

    def sum_and_map(
        self, function: Callable[[int | Array], tuple[Sums, Array]], like: Array
    ) -> tuple[Sums, Array]:
        """Of each strip's results the sum of the first, arrays in a tree, and all of the second.

        It is summed up in float32. `like` is an array that the results depend on.
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
        # Any values, for all are written. Zeros would be one array for all loops of a program,
        # and copied for each.
        parts = jnp.broadcast_to(like.ravel()[0].astype(part.dtype), (self.number, *part.shape))
        total, parts = lax.fori_loop(0, self.number, add, (zeros, parts))
        return jax.tree.map(lambda a, known: a.astype(known.dtype), total, sums), parts


def row_blocks(x: Float[Array, "B H W C"]) -> Strips:
    """The strips by which a CPU goes through maps like `x`."""
    batch, rows, columns, _ = x.shape
    if rows < LARGE_MAP:
        return Strips(batch, rows, 1)
    height = rows
    if rows * columns > _STRIP_CELLS:
        heights = range(_STRIP_ROWS, _STRIP_CELLS // columns + 1, 2)
        height = max((n for n in heights if rows % n == 0), default=rows)
    return Strips(1, height, batch * (rows // height))


def slice_padded_rows(
    *maps: Float[Array, "B H W C"],
    begin: tuple[int | Array, int | Array],
    size: tuple[int, int],
    beyond: tuple[int, int],
    sides: tuple[int, int],
    of: Callable[..., Array] = lambda cells: cells,
) -> Float[Array, "b h w C"]:
    """`of(*maps)` of so many images and rows, `size`, from an image and row on, `begin`.

    Rows may lie above and below the map, as many as `beyond` says at most: there it is 0, as in the
    columns of zeros that are put at the two `sides`.
    """
    images, height = size
    image, first = begin
    taken = min(height, maps[0].shape[1])
    top = jnp.clip(first, 0, maps[0].shape[1] - taken)
    cells = of(
        *(lax.dynamic_slice(x, (image, top, 0, 0), (images, taken, *x.shape[2:])) for x in maps)
    )
    cells = jnp.pad(cells, ((0, 0), beyond, (0, 0), (0, 0)))
    cells = lax.dynamic_slice_in_dim(cells, first - top + beyond[0], height, axis=1)
    # The sides come last because XLA writes padded arrays to memory. Slices that begin at a row
    # known only when it runs it would take anew, and slowly, for each use.
    return lax.optimization_barrier(jnp.pad(cells, ((0, 0), (0, 0), sides, (0, 0))))


def tile_cells(x: Float[Array, "B H W C"], axis: int, *, step: int, size: int) -> list[Array]:
    """The first to last of the cells, [B, h, w, C], of all whole tiles of `size` along an axis.

    A tile begins at every `step`-th cell, so those of a larger size overlap.
    """
    tiles = (x.shape[axis] - size) // step + 1
    return [lax.slice_in_dim(x, i, i + (tiles - 1) * step + 1, step, axis) for i in range(size)]


def interleave(cells: Sequence[Array], axis: int) -> Float[Array, "B H W C"]:
    """The map whose tiles, side by side along an axis, have `cells` in order, [B, h, w, C] each."""
    y = jnp.stack(cells, axis + 1)
    return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])


def zeros_varying_like(shape: tuple[int, ...], like: Array) -> Float32[Array, "..."]:
    """What a sum over parts of `like` begins with, in a loop.

    It is made from `like`: shard_map wants a loop's state to vary over the devices as its input.
    """
    zero = jnp.where(like.ravel()[0] > 0, 0.0, 0.0)
    return jnp.zeros(shape, jnp.float32) + zero
