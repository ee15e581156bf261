"""Winograd's form of a 3x3 convolution, F(2x2, 3x3), and its gradients, for CPUs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1: each 2x2 tile
of the output takes 16 products instead of 36. A product is a matrix of all tiles times the
channels. The gradient for the input is such a convolution again, that for the kernel goes by the
same tiles, so both save as much.
"""

from collections.abc import Callable, Sequence

import jax
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.models.epilogue import bias_gradient, epilogue, relu_gradient
from ssd_jax.models.parts import Square, interleave, strips_of, tile_cells

# Where the four transforms of a kernel's row are among those of the row turned round.
_TURNED = (3, 1, 2, 0)


def winograd(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    bias: Float[Array, " O"],
    *,
    relu: bool = False,
) -> Float[Array, "B H W O"]:
    """The cross-correlation of `x`, padded by zeros, with a kernel at stride 1, plus the bias."""
    u = _transform_kernel(kernel)
    strips = strips_of(x)

    def convolve(index: int | Array) -> Array:
        y = _convolve(strips.take(index, x), u)
        return epilogue(y[:, : strips.rows, : x.shape[2]], bias, relu)

    # Without the barriers a pool before would be fused into the transforms and computed again for
    # each of the 16 products.
    x = lax.optimization_barrier(x)
    y = strips.map(convolve, like=x).reshape(*x.shape[:3], -1)
    return lax.optimization_barrier(y)


def winograd_gradients(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    y: Float[Array, "B H W O"] | None,
    grad: Float[Array, "B H W O"],
) -> tuple[Float[Array, "B H W I"], Float[Array, "3 3 I O"], Float[Array, " O"]]:
    """The gradients of `winograd` for its input, kernel and bias, from that for its output.

    `y` is its output if a ReLU was its end. The input's gradient is the convolution of the output's
    with the kernel turned by 180 degrees.
    """
    u = _transform_kernel(kernel)
    turned = [[u[b][a].T for a in _TURNED] for b in _TURNED]
    strips = strips_of(x)
    x, y, grad = lax.optimization_barrier((x, y, grad))
    outputs = (grad,) if y is None else (grad, y)

    def gradients(index: int | Array) -> tuple[tuple[Square, Array], Array]:
        own = strips.take(index, *outputs, of=relu_gradient)
        d_x = _convolve(own, turned)[:, : strips.rows, : x.shape[2]]
        own = own[:, 1:-1, 1:-1]
        v = _transform_input(strips.take(index, x))
        d_m = _twice(_output_gradient, tile_cells(own, 2))
        d_u = [[_flat(v[b][a]).T @ _flat(d_m[b][a]) for a in range(4)] for b in range(4)]
        return (d_u, bias_gradient(own)), d_x

    (d_u, d_bias), d_x = strips.sum_and_map(gradients, like=grad)
    (d_kernel,) = jax.linear_transpose(_transform_kernel, kernel)(d_u)
    return d_x.reshape(x.shape), d_kernel, d_bias


def _convolve(strip: Array, u: Square) -> Array:
    v = _transform_input(strip)
    m = [[_product(v[b][a], u[b][a]) for a in range(4)] for b in range(4)]
    return interleave(_twice(_output_transform, m))


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
