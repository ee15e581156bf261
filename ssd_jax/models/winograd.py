"""Winograd's form of a 3x3 convolution, F(2x2, 3x3), and its gradients, for CPUs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1: each 2x2 tile
of the output takes 16 products instead of 36. A product is a matrix of all tiles times the
channels. The gradients are those of the same steps in turn, so they save as much.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.models.epilogue import epilogue, epilogue_gradients
from ssd_jax.models.parts import LARGE_MAP, Square, interleave, tile_cells, zero_sum


def winograd(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    bias: Float[Array, " O"],
    *,
    padding: int,
    relu: bool = False,
) -> Float[Array, "B h w O"]:
    """The cross-correlation of zero-padded `x` with a 3x3 kernel at stride 1, plus the bias."""
    u = _transform_kernel(kernel)

    def convolve(x: Array) -> Array:
        return epilogue(_convolve(x, u, padding), bias, relu)

    # Without the barriers a pool before would be fused into the transforms and computed again for
    # each of the 16 products.
    x = lax.optimization_barrier(x)
    if x.shape[1] < LARGE_MAP:
        y = convolve(x)
    else:
        y = lax.map(lambda image: convolve(image[None])[0], x)
    return lax.optimization_barrier(y)


def winograd_gradients(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    y: Float[Array, "B h w O"] | None,
    grad: Float[Array, "B h w O"],
    *,
    padding: int,
) -> tuple[Float[Array, "B H W I"], Float[Array, "3 3 I O"], Float[Array, " O"]]:
    """The gradients of `winograd` for its input, kernel and bias, from that for its output.

    `y` is its output if a ReLU was its end.
    """
    u, to_kernel = jax.vjp(_transform_kernel, kernel)
    x, y, grad = lax.optimization_barrier((x, y, grad))

    def gradients(x: Array, y: Array | None, grad: Array) -> tuple[Array, tuple[Square, Array]]:
        grad, d_bias = epilogue_gradients(y, grad)
        d_x, d_u = _gradients(x, u, grad, padding)
        return d_x, (d_u, d_bias)

    if x.shape[1] < LARGE_MAP:
        d_x, sums = gradients(x, y, grad)
    else:

        def add_image(total: tuple, image: tuple) -> tuple[tuple, Array]:
            d_x, parts = gradients(*jax.tree.map(lambda a: a[None], image))
            return jax.tree.map(jnp.add, total, parts), d_x[0]

        shapes = jax.eval_shape(gradients, x, y, grad)[1]
        zeros = jax.tree.map(lambda a: zero_sum(a.shape, like=grad), shapes)
        total, d_x = lax.scan(add_image, zeros, (x, y, grad))
        sums = jax.tree.map(lambda a: a.astype(grad.dtype), total)
    d_u, d_bias = sums
    return d_x, to_kernel(d_u)[0], d_bias


def _convolve(x: Array, u: Square, padding: int) -> Array:
    rows, columns = (size + 2 * padding - 2 for size in x.shape[1:3])
    v = _transform_input(_whole_tiles(x, padding))
    m = [[_product(v[b][a], u[b][a]) for a in range(4)] for b in range(4)]
    return interleave(_twice(_output_transform, m))[:, :rows, :columns]


def _gradients(x: Array, u: Square, grad: Array, padding: int) -> tuple[Array, Square]:
    """The gradients of `_convolve` for its input and the transformed kernel."""
    rows, columns = x.shape[1:3]
    tiles = _whole_tiles(x, padding)
    missing = [
        size - 2 - cells for size, cells in zip(tiles.shape[1:3], grad.shape[1:3], strict=True)
    ]
    grad = jnp.pad(grad, ((0, 0), *((0, n) for n in missing), (0, 0)))
    v = _transform_input(tiles)
    d_m = _twice(_output_gradient, tile_cells(lax.optimization_barrier(grad), 2))
    d_u = [[_flat(v[b][a]).T @ _flat(d_m[b][a]) for a in range(4)] for b in range(4)]
    d_v = [[_product(d_m[b][a], u[b][a].T) for a in range(4)] for b in range(4)]
    # Along the rows first: d_v is [b][a] as all transforms are.
    across = [_input_gradient(row, axis=1) for row in d_v]
    d_cells = [_input_gradient(column, axis=2) for column in zip(*across, strict=True)]
    d_x = interleave(d_cells)
    return d_x[:, padding : padding + rows, padding : padding + columns], d_u


def _whole_tiles(x: Array, padding: int) -> Array:
    """`x` padded to tiles of 4x4 cells that overlap by two; the last may reach past the map."""
    sides = [(padding, size % 2 + padding) for size in x.shape[1:3]]
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *sides, (0, 0))))


def _product(tiles: Array, matrix: Array) -> Array:
    return (_flat(tiles) @ matrix).reshape(*tiles.shape[:3], -1)


def _flat(tiles: Array) -> Array:
    return tiles.reshape(-1, tiles.shape[-1])


def _twice(transform: Callable[[Sequence[Array]], list[Array]], d: Square) -> Square:
    """`transform` along the columns and then along the rows; the result is by column first."""
    across = [transform(row) for row in d]
    return [transform(column) for column in zip(*across, strict=True)]


def _transform_kernel(kernel: Array) -> Square:
    # By additions: as a product with the 4x3 matrix it took longer than conv5's own products.
    return _twice(_kernel_transform, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _transform_input(tiles: Array) -> Square:
    return _twice(_input_transform, tile_cells(tiles, 4))


def _kernel_transform(g: Sequence[Array]) -> list[Array]:
    ends, middle = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], ends + middle, ends - middle, g[2]]


def _input_transform(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output_transform(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_gradient(y: Sequence[Array]) -> list[Array]:
    """The gradients for m of `_output_transform`, from those for its two outputs."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _input_gradient(v: Sequence[Array], axis: int) -> list[Array]:
    """The gradients for the even and the odd cells of a padded map, along `axis`.

    A tile begins at every other cell and has four, so each cell is in two tiles: in the one that
    begins here and in the one before, two places further on. Written out, it is a sum of whole
    arrays; the gradient of the strided slices would be 16 scattered additions.
    """

    def padded(a: Array, low: int, high: int) -> Array:
        return jnp.pad(a, [(low, high) if k == axis else (0, 0) for k in range(a.ndim)])

    def here(a: Array) -> Array:
        return padded(a, 0, 1)

    def before(a: Array) -> Array:
        return padded(a, 1, 0)

    return [
        here(v[0]) + before(v[1] + v[2] - v[0]),
        here(v[1] - v[2] + v[3]) - before(v[3]),
    ]
