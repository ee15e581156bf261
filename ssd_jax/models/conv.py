"""The one convolution and pooling function of the network, and the CPU's fast path behind it.

XLA's own convolution is right on GPU and TPU. On a CPU it computes the gradient for the weights in
a naive loop, several times slower than the forward pass; there the same gradient is written as
matrix products, and wide 3x3 layers run as Winograd transforms. `jax.lax.platform_dependent`
chooses when the program is lowered, so that a program compiled ahead of time for another platform
is not touched by it.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

CpuConv = Literal["auto", "direct", "winograd"]

# Below this the transforms cost more than they save: at a quarter of VGG16's width the direct path
# was faster, at the full width Winograd's.
WINOGRAD_MIN_CHANNELS = 64


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
            return jax.vjp(partial(_winograd, padding=window.padding), x, kernel)[1](grad)
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
    """The gradient for the kernel: one matrix product for each of its size x size taps."""
    p, s, d = window.padding, window.stride, window.dilation
    x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    rows, columns = grad.shape[1:3]
    grad = grad.reshape(-1, grad.shape[-1])

    def tap(i: int, j: int) -> Array:
        below, right = i * d + s * (rows - 1) + 1, j * d + s * (columns - 1) + 1
        seen = x[:, i * d : below : s, j * d : right : s]
        return seen.reshape(-1, x.shape[-1]).T @ grad

    return jnp.stack([jnp.stack([tap(i, j) for j in range(size)]) for i in range(size)])


# Winograd F(2x2, 3x3), Lavin and Gray 2016, section 4.1: each 2x2 tile of the output takes 16
# products instead of 36.
_KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def _winograd(x: Array, kernel: Array, *, padding: int) -> Array:
    rows, columns = (size + 2 * padding - 2 for size in x.shape[1:3])
    tall, wide = -(-rows // 2), -(-columns // 2)
    # Without the barriers XLA fuses the ReLU or pool before and after into the transforms and
    # computes it again for each of the 16 products.
    x = lax.optimization_barrier(x)
    # Tiles overlap by two cells; the last one may reach past the map.
    x = jnp.pad(
        x,
        (
            (0, 0),
            (padding, 2 * tall + 2 - x.shape[1] - padding),
            (padding, 2 * wide + 2 - x.shape[2] - padding),
            (0, 0),
        ),
    )
    u = jnp.einsum("ai,bj,ijco->abco", _KERNEL_TRANSFORM, _KERNEL_TRANSFORM, kernel)
    # The transforms are float32, and all paths give the type of what comes in.
    u = u.astype(x.dtype)

    def cells(i: int, j: int) -> Array:
        return x[:, i : i + 2 * tall - 1 : 2, j : j + 2 * wide - 1 : 2]

    # Each transform is applied along the columns first and then along the rows: v[b][a].
    v = _twice(_input_transform, [[cells(i, j) for j in range(4)] for i in range(4)])
    m = [[v[b][a].reshape(-1, x.shape[-1]) @ u[a, b] for a in range(4)] for b in range(4)]
    shape = (x.shape[0], tall, wide, kernel.shape[-1])
    tiles = [[cell.reshape(shape) for cell in row] for row in _twice(_output_transform, m)]
    # tiles[p][q] holds the cells at row p, column q of every 2x2 tile.
    y = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)
    y = y.reshape(x.shape[0], 2 * tall, 2 * wide, kernel.shape[-1])
    return lax.optimization_barrier(y[:, :rows, :columns])


def _twice(transform: Callable[[Sequence[Array]], list[Array]], d: list[list[Array]]) -> list:
    """`transform` along the second axis of a square of arrays and then along the first."""
    across = [transform(row) for row in d]
    return [transform(column) for column in zip(*across, strict=True)]


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
