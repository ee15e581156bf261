"""The one convolution and pooling function of the network, and the CPU's fast path behind it.

XLA's own convolution is right on GPU and TPU. On a CPU it computes the gradient for the weights in
a naive loop, several times slower than the forward pass; there the same gradient is written as
matrix products, and wide 3x3 layers run as Winograd transforms. `jax.lax.platform_dependent`
chooses when the program is lowered, so that a program compiled ahead of time for another platform
is not touched by it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

CpuConv = Literal["auto", "direct", "winograd"]

# With fewer channels Winograd's transforms cost more than they save.
WINOGRAD_MIN_CHANNELS = 128

# Rows or columns from which a map is worked on an image, or a strip, at a time: what comes of it
# then stays in the cache, and no memory for the whole batch is asked of the system.
_LARGE_MAP = 30
_STRIP_ROWS = 10


class Window(NamedTuple):
    """Geometry of a convolution: the same in both directions, as everywhere in SSD."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def output_size(self, size: int, kernel: int) -> int:
        """Cells along one side of the output for `size` cells of the input."""
        reach = (kernel - 1) * self.dilation + 1
        return (size + 2 * self.padding - reach) // self.stride + 1


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    window: Window,
    cpu_conv: CpuConv = "auto",
) -> Float[Array, "B h w O"]:
    """The cross-correlation of `x` with `kernel` (NHWC, HWIO), zero-padded.

    `cpu_conv` only matters on a CPU; results agree with the plain path to float32 rounding.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_conv_cpu, window=window, cpu_conv=cpu_conv),
        default=partial(_conv_plain, window=window),
    )


def _conv_plain(x: Array, kernel: Array, *, window: Window) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride,) * 2,
        padding=[(window.padding,) * 2] * 2,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_forward(x: Array, kernel: Array, window: Window, cpu_conv: CpuConv) -> tuple:
    return conv2d(x, kernel, window, cpu_conv), (x, kernel)


def _conv_backward(
    window: Window, cpu_conv: CpuConv, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = saved

    def plain(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_conv_plain, window=window), x, kernel)[1](grad)

    def cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        if _uses_winograd(x.shape, kernel.shape, window, cpu_conv):
            return _winograd_gradients(x, kernel, grad, padding=window.padding)
        to_input = jax.vjp(lambda x: _conv_plain(x, kernel, window=window), x)[1]
        return to_input(grad)[0], _weight_gradient(x, grad, kernel.shape[0], window)

    return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=plain)


conv2d.defvjp(_conv_forward, _conv_backward)


def _conv_cpu(x: Array, kernel: Array, *, window: Window, cpu_conv: CpuConv) -> Array:
    if _uses_winograd(x.shape, kernel.shape, window, cpu_conv):
        return _winograd(x, kernel, padding=window.padding)
    return _conv_plain(x, kernel, window=window)


def _uses_winograd(
    x: Sequence[int], kernel: Sequence[int], window: Window, cpu_conv: CpuConv
) -> bool:
    fits = kernel[0] == 3 and window.stride == 1 and window.dilation == 1
    if not fits or cpu_conv == "direct":
        return False
    # Small maps make small products: the transforms then cost more than they save.
    pays = min(kernel[2:]) >= WINOGRAD_MIN_CHANNELS and x[1] >= 16
    return cpu_conv == "winograd" or pays


def _weight_gradient(x: Array, grad: Array, size: int, window: Window) -> Array:
    """The gradient for the kernel: a matrix product for each of its size x size taps.

    Of a large map, one for each strip of rows and all taps; their sums are float32.
    """
    p, s, d = window.padding, window.stride, window.dilation
    x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    rows, columns = grad.shape[1:3]

    def seen(x: Array, i: int, j: int, rows: int) -> Array:
        """The cells that tap (i, j) sees from so many rows of the output."""
        below, right = i * d + s * (rows - 1) + 1, j * d + s * (columns - 1) + 1
        return x[:, i * d : below : s, j * d : right : s].reshape(-1, x.shape[-1])

    taps = [(i, j) for i in range(size) for j in range(size)]
    shape = (size, size, x.shape[-1], grad.shape[-1])
    if rows < _LARGE_MAP:
        flat = grad.reshape(-1, grad.shape[-1])
        return jnp.stack([seen(x, i, j, rows).T @ flat for i, j in taps]).reshape(shape)

    strips = -(-rows // _STRIP_ROWS)
    missing = strips * _STRIP_ROWS - rows
    grad = jnp.pad(grad, ((0, 0), (0, missing), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, missing * s), (0, 0), (0, 0)))
    reach = s * (_STRIP_ROWS - 1) + (size - 1) * d + 1

    def add_strip(k: Array, total: Array) -> Array:
        """All taps in one product, of the cells that they see side by side."""
        image, row = k // strips, k % strips * _STRIP_ROWS
        part = lax.dynamic_slice(x, (image, row * s, 0, 0), (1, reach, *x.shape[2:]))
        own = lax.dynamic_slice(grad, (image, row, 0, 0), (1, _STRIP_ROWS, *grad.shape[2:]))
        cells = jnp.concatenate([seen(part, i, j, _STRIP_ROWS) for i, j in taps], axis=-1)
        cells, own = lax.optimization_barrier(cells), own.reshape(-1, own.shape[-1])
        return total + jnp.matmul(cells.T, own, preferred_element_type=jnp.float32)

    zeros = jnp.zeros((math.prod(shape[:3]), shape[3]), jnp.float32) + _zero(grad)
    total = lax.fori_loop(0, len(x) * strips, add_strip, zeros)
    return total.astype(grad.dtype).reshape(shape)


def _zero(x: Array) -> Array:
    """0, made from `x`: shard_map wants a loop's state to vary over the devices as its input."""
    return jnp.where(x.ravel()[0] > 0, 0.0, 0.0)


Square = list[list[Array]]
"""Arrays by row and column of a tile."""


# Winograd F(2x2, 3x3), Lavin and Gray 2016, section 4.1: each 2x2 tile of the output takes 16
# products instead of 36.


def _winograd(x: Array, kernel: Array, *, padding: int) -> Array:
    rows, columns = (size + 2 * padding - 2 for size in x.shape[1:3])
    # Without the barriers XLA fuses the ReLU or pool before and after into the transforms and
    # computes it again for each of the 16 products.
    x = _whole_tiles(lax.optimization_barrier(x), padding=padding)
    u = _transform_kernel(kernel)
    if rows < _LARGE_MAP:
        y = _winograd_tiles(x, u)
    else:
        y = lax.map(lambda image: _winograd_tiles(image[None], u)[0], x)
    return lax.optimization_barrier(y[:, :rows, :columns])


def _winograd_gradients(
    x: Array, kernel: Array, grad: Array, *, padding: int
) -> tuple[Array, Array]:
    """The gradients of `_winograd` for both arguments."""
    tiles, to_x = jax.vjp(partial(_whole_tiles, padding=padding), lax.optimization_barrier(x))
    u, to_kernel = jax.vjp(_transform_kernel, kernel)
    missing = [
        size - 2 - cells for size, cells in zip(tiles.shape[1:3], grad.shape[1:3], strict=True)
    ]
    grad = jnp.pad(lax.optimization_barrier(grad), ((0, 0), *((0, n) for n in missing), (0, 0)))

    def gradients(tiles: Array, grad: Array) -> tuple[Array, Square]:
        return jax.vjp(_winograd_tiles, tiles, u)[1](grad)

    if grad.shape[1] < _LARGE_MAP:
        d_tiles, d_u = gradients(tiles, grad)
    else:

        def add_image(total: Square, image: tuple[Array, Array]) -> tuple[Square, Array]:
            d_tiles, d_u = gradients(*(part[None] for part in image))
            return jax.tree.map(jnp.add, total, d_u), d_tiles[0]

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32) + _zero(grad), u)
        total, d_tiles = lax.scan(add_image, zeros, (tiles, grad))
        d_u = jax.tree.map(lambda a: a.astype(grad.dtype), total)
    return to_x(d_tiles)[0], to_kernel(d_u)[0]


def _whole_tiles(x: Array, *, padding: int) -> Array:
    """`x` padded to tiles of 4x4 cells that overlap by two; the last may reach past the map."""
    sides = [(padding, size % 2 + padding) for size in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *sides, (0, 0)))


def _winograd_tiles(x: Array, u: Square) -> Array:
    """The convolution of whole tiles with a transformed kernel, without padding."""
    tall, wide = (size // 2 - 1 for size in x.shape[1:3])

    def cells(i: int, j: int) -> Array:
        return x[:, i : i + 2 * tall - 1 : 2, j : j + 2 * wide - 1 : 2]

    # Each transform is applied along the columns first and then along the rows: u[b][a].
    v = _twice(_input_transform, [[cells(i, j) for j in range(4)] for i in range(4)])
    m = [[v[b][a].reshape(-1, x.shape[-1]) @ u[b][a] for a in range(4)] for b in range(4)]
    shape = (len(x), tall, wide, u[0][0].shape[-1])
    tiles = [[cell.reshape(shape) for cell in row] for row in _twice(_output_transform, m)]
    # tiles[p][q] holds the cells at row p, column q of every 2x2 tile.
    y = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)
    return y.reshape(len(x), 2 * tall, 2 * wide, shape[-1])


def _transform_kernel(kernel: Array) -> Square:
    return _twice(_kernel_transform, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _twice(transform: Callable[[Sequence[Array]], list[Array]], d: Square) -> Square:
    """`transform` along the second axis of a square of arrays and then along the first."""
    across = [transform(row) for row in d]
    return [transform(column) for column in zip(*across, strict=True)]


def _kernel_transform(g: Sequence[Array]) -> list[Array]:
    ends, middle = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], ends + middle, ends - middle, g[2]]


def _input_transform(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output_transform(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def max_pool_2x2(x: Float[Array, "B H W C"], *, ceil: bool = False) -> Float[Array, "B h w C"]:
    """The maximum of each 2x2 block; an odd last row or column is dropped, or kept with `ceil`.

    Written as maxima of strided slices: the gradient of `reduce_window` costs a multiple of it on
    a CPU. Equal cells share the gradient.
    """
    rows, columns = x.shape[1:3]
    if ceil and (rows % 2 or columns % 2):
        x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), constant_values=-jnp.inf)
    tall, wide = x.shape[1] // 2, x.shape[2] // 2
    cells = [x[:, i : 2 * tall : 2, j : 2 * wide : 2] for i in range(2) for j in range(2)]
    return reduce(jnp.maximum, cells)


def max_pool_3x3(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The maximum of each cell's 3x3 neighbourhood; the map keeps its size (VGG16's new pool5)."""
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = reduce(jnp.maximum, [x[:, i : i + rows] for i in range(3)])
    return reduce(jnp.maximum, [x[:, :, j : j + columns] for j in range(3)])


class Conv(nn.Module):
    """A convolution with a bias; parameters float32, computed in `dtype`.

    New layers start as Caffe's "xavier": uniform in +-sqrt(3 / fan_in), bias 0.
    """

    features: int
    size: int = 3
    window: Window = Window()
    dtype: jnp.dtype = jnp.float32
    cpu_conv: CpuConv = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """The convolution of `x` plus the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.window, self.cpu_conv)
        return y + bias.astype(self.dtype)[None, None, None]
