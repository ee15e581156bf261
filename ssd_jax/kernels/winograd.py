"""Winograd's algorithm for 3x3 convolutions, F(2x4, 3x3), and its gradients, for CPUs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1: a tile of 2x4
outputs takes 24 products instead of 72; each product is a matrix of all tiles by channels. The
gradient for the input is such a convolution again, and the gradient for the kernel uses the same
tiles, so both save the same. Intermediate values are float32.
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
"""Factors or results of the products, by position in the transformed tile: column, then row."""

# Along rows and columns. F4 along both would save another quarter of the products, but its
# transforms cost more than that.
_TILE = (F2, F4)
_SIZE = (_TILE[0].outputs, _TILE[1].outputs)


def winograd(
    x: Float[Array, "B H W I"],
    u: Factors,
    bias: Float[Array, " O"],
    *,
    relu: bool = False,
) -> Float[Array, "B H W O"]:
    """Cross-correlate zero-padded `x` with a 3x3 kernel, add the bias, apply a ReLU.

    `u` are the factors of the kernel, from `transform_kernel`.
    """
    blocks = row_blocks(x)

    def convolve(index: int | Array) -> Array:
        y = _convolve(blocks.take(index, x, tile=_SIZE), u)
        return epilogue(y[:, : blocks.rows, : x.shape[2]], bias, relu).astype(x.dtype)

    # Without the barriers a preceding pool would be fused into the transforms and computed again
    # for each of the products.
    x = lax.optimization_barrier(x)
    y = blocks.map(convolve, like=x).reshape(*x.shape[:3], -1)
    return lax.optimization_barrier(y)


def winograd_gradients(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    y: Float[Array, "B H W O"] | None,
    grad: Float[Array, "B H W O"],
) -> tuple[Float[Array, "B H W I"], Float[Array, "3 3 I O"], Float[Array, " O"]]:
    """Compute the gradients for input, kernel and bias from the gradient for the output.

    `y` is the output if it went through a ReLU. The gradient for the input is a convolution of the
    output's gradient with the kernel rotated by 180 degrees.
    """
    rows, columns = _TILE
    u = transform_kernel(kernel)
    flipped = [[u[b][a].T for a in rows.flip_permutation] for b in columns.flip_permutation]
    blocks = row_blocks(x)
    x, y, grad = lax.optimization_barrier((x, y, grad))
    outputs = (grad,) if y is None else (grad, y)

    def gradients(index: int | Array) -> tuple[tuple[Factors, Array], Array]:
        d_y = blocks.take(index, *outputs, of=relu_gradient, tile=_SIZE)
        d_x = _convolve(d_y, flipped)[:, : blocks.rows, : x.shape[2]]
        d_y = d_y[:, 1:-1, 1:-1].astype(jnp.float32)
        v = _transform_input(blocks.take(index, x, tile=_SIZE))
        d_m = _transform_map(d_y, (rows.result_gradient, columns.result_gradient), _SIZE)
        d_u = [
            [_flat(cells).T @ _flat(grads) for cells, grads in zip(*pair, strict=True)]
            for pair in zip(v, d_m, strict=True)
        ]
        return (d_u, bias_gradient(d_y)), d_x.astype(grad.dtype)

    (d_u, d_bias), d_x = blocks.sum_and_map(gradients, like=grad)
    (d_kernel,) = jax.linear_transpose(transform_kernel, kernel)(d_u)
    return d_x.reshape(x.shape), d_kernel, d_bias.astype(grad.dtype)


def _convolve(block: Array, u: Factors) -> Array:
    rows, columns = _TILE
    m = [
        [_product(cells, matrix) for cells, matrix in zip(*pair, strict=True)]
        for pair in zip(_transform_input(block), u, strict=True)
    ]
    # In two steps, the first one's results in memory: in one step each cell would be a sum of 15
    # products instead of 3 and 5. The same holds for _transform_map.
    across = lax.optimization_barrier([rows.result(column) for column in m])
    lines = [interleave(columns.result(line), 2) for line in zip(*across, strict=True)]
    return interleave(lines, 1)


def _product(tiles: Array, matrix: Array) -> Array:
    return (_flat(tiles) @ matrix).reshape(*tiles.shape[:3], -1)


def _flat(tiles: Array) -> Array:
    return tiles.reshape(-1, tiles.shape[-1])


def transform_kernel(kernel: Float[Array, "3 3 I O"]) -> Factors:
    """Compute the factors of a kernel, float32 [I, O] each."""
    # By additions: products with the transforms' matrices take longer than conv5's own products.
    rows, columns = _TILE
    kernel = kernel.astype(jnp.float32)
    across = [columns.kernel([kernel[i, j] for j in range(3)]) for i in range(3)]
    return [rows.kernel(column) for column in zip(*across, strict=True)]


def _transform_input(block: Array) -> Factors:
    rows, columns = _TILE
    return _transform_map(block, (rows.inputs, columns.inputs), (_SIZE[0] + 2, _SIZE[1] + 2))


def _transform_map(
    x: Array, transforms: tuple[Transform, Transform], sizes: Sequence[int]
) -> Factors:
    """Transform tiles with these `sizes` along rows and columns."""
    (tall, wide), (by_rows, by_columns) = _SIZE, transforms
    across = by_columns(tile_cells(x.astype(jnp.float32), 2, step=wide, size=sizes[1]))
    return [
        by_rows(tile_cells(a, 1, step=tall, size=sizes[0]))
        for a in lax.optimization_barrier(across)
    ]
