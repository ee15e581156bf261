"""Winograd's form of a 3x3 convolution, F(2x4, 3x3), and its gradients, for CPUs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1: a tile of 2x4
cells of the output takes 24 products instead of 72. A product is a matrix of all tiles times the
channels. The gradient for the input is such a convolution again, that for the kernel goes by the
same tiles, so both save as much. Between their arguments and their results all is float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.kernels.epilogue import bias_gradient, epilogue, relu_gradient
from ssd_jax.kernels.row_blocks import interleave, row_blocks, tile_cells
from ssd_jax.kernels.winograd_transforms import F2, F4, Transform

Factors = Sequence[Sequence[Array]]
"""[column][row]: what is multiplied, or comes of it, by its place in the transformed tile."""

# By rows and columns. Four of both save another quarter of the products, and their transforms take
# more than that.
_TILE = (F2, F4)
_SIZE = (_TILE[0].outputs, _TILE[1].outputs)


def winograd(
    x: Float[Array, "B H W I"],
    u: Factors,
    bias: Float[Array, " O"],
    *,
    relu: bool = False,
) -> Float[Array, "B H W O"]:
    """The cross-correlation of `x`, padded by zeros, with a kernel at stride 1, plus the bias.

    `u` are the factors of the kernel, from `transform_kernel`.
    """
    strips = row_blocks(x)

    def convolve(index: int | Array) -> Array:
        y = _convolve(strips.take(index, x, tile=_SIZE), u)
        return epilogue(y[:, : strips.rows, : x.shape[2]], bias, relu).astype(x.dtype)

    # Without the barriers a pool before would be fused into the transforms and computed again for
    # each of the products.
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
    rows, columns = _TILE
    u = transform_kernel(kernel)
    flipped = [[u[b][a].T for a in rows.flip_permutation] for b in columns.flip_permutation]
    strips = row_blocks(x)
    x, y, grad = lax.optimization_barrier((x, y, grad))
    outputs = (grad,) if y is None else (grad, y)

    def gradients(index: int | Array) -> tuple[tuple[Factors, Array], Array]:
        own = strips.take(index, *outputs, of=relu_gradient, tile=_SIZE)
        d_x = _convolve(own, flipped)[:, : strips.rows, : x.shape[2]]
        own = own[:, 1:-1, 1:-1].astype(jnp.float32)
        v = _transform_input(strips.take(index, x, tile=_SIZE))
        d_m = _transform_map(own, (rows.result_gradient, columns.result_gradient), _SIZE)
        d_u = [
            [_flat(cells).T @ _flat(grads) for cells, grads in zip(*pair, strict=True)]
            for pair in zip(v, d_m, strict=True)
        ]
        return (d_u, bias_gradient(own)), d_x.astype(grad.dtype)

    (d_u, d_bias), d_x = strips.sum_and_map(gradients, like=grad)
    (d_kernel,) = jax.linear_transpose(transform_kernel, kernel)(d_u)
    return d_x.reshape(x.shape), d_kernel, d_bias.astype(grad.dtype)


def _convolve(strip: Array, u: Factors) -> Array:
    rows, columns = _TILE
    m = [
        [_product(cells, matrix) for cells, matrix in zip(*pair, strict=True)]
        for pair in zip(_transform_input(strip), u, strict=True)
    ]
    # In two steps, with the first one's arrays in memory: at once each cell would be added up from
    # 15 products instead of 3 and 5. The same for _transform_map.
    across = lax.optimization_barrier([rows.result(column) for column in m])
    lines = [interleave(columns.result(line), 2) for line in zip(*across, strict=True)]
    return interleave(lines, 1)


def _product(tiles: Array, matrix: Array) -> Array:
    return (_flat(tiles) @ matrix).reshape(*tiles.shape[:3], -1)


def _flat(tiles: Array) -> Array:
    return tiles.reshape(-1, tiles.shape[-1])


def transform_kernel(kernel: Float[Array, "3 3 I O"]) -> Factors:
    """The kernel's factors, float32 [I, O] each."""
    # By additions: as products with the transforms' matrices it takes longer than conv5's own.
    rows, columns = _TILE
    kernel = kernel.astype(jnp.float32)
    across = [columns.kernel([kernel[i, j] for j in range(3)]) for i in range(3)]
    return [rows.kernel(column) for column in zip(*across, strict=True)]


def _transform_input(strip: Array) -> Factors:
    rows, columns = _TILE
    return _transform_map(strip, (rows.inputs, columns.inputs), (_SIZE[0] + 2, _SIZE[1] + 2))


def _transform_map(
    x: Array, transforms: tuple[Transform, Transform], seen: Sequence[int]
) -> Factors:
    """By the two `transforms`, along rows and columns, the cells that a tile has `seen`."""
    (tall, wide), (by_rows, by_columns) = _SIZE, transforms
    across = by_columns(tile_cells(x.astype(jnp.float32), 2, step=wide, size=seen[1]))
    return [
        by_rows(tile_cells(a, 1, step=tall, size=seen[0])) for a in lax.optimization_barrier(across)
    ]
