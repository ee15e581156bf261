"""The convolution of the network: XLA's own, and faster paths for CPUs behind one function.

XLA's own convolution is right on GPU and TPU. On a CPU its gradient for the weights takes longer
than the same sums written as matrix products, and all of a wide 3x3 layer longer than Winograd's
form (docs/performance.md). `jax.lax.platform_dependent` chooses when the program is lowered, so
that a program compiled ahead of time for another platform is not touched by it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.kernels.epilogue import bias_gradient, epilogue, relu_gradient
from ssd_jax.kernels.row_blocks import LARGE_MAP, slice_padded_rows, zeros_varying_like
from ssd_jax.kernels.winograd import transform_kernel, winograd, winograd_gradients

CpuConv = Literal["auto", "direct", "winograd", "plain"]

# With fewer channels (in, out), or fewer rows, Winograd's transforms cost more than they save.
_WINOGRAD_CHANNELS = (64, 32)
_WINOGRAD_ROWS = 16

# Rows of a strip, of the output.
_STRIP_ROWS = 10


class ConvGeometry(NamedTuple):
    """Geometry of a convolution: the same in both directions, as everywhere in SSD."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def output_size(self, size: int, kernel: int) -> int:
        """Cells along one side of the output for `size` cells of the input."""
        reach = (kernel - 1) * self.dilation + 1
        return (size + 2 * self.padding - reach) // self.stride + 1


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def conv2d(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    window: ConvGeometry,
    relu: bool = False,
    cpu_conv: CpuConv = "auto",
) -> Float[Array, "B h w O"]:
    """The cross-correlation of zero-padded `x` with `kernel` (NHWC, HWIO), plus the bias.

    With `relu`, what is below 0 becomes 0. `cpu_conv` only matters on a CPU; results agree with
    the plain path to float32 rounding.
    """
    return lax.platform_dependent(
        x,
        kernel,
        bias,
        cpu=partial(_conv_cpu, window=window, relu=relu, cpu_conv=cpu_conv),
        default=partial(_conv_default, window=window, relu=relu),
    )


def _conv_default(
    x: Array, kernel: Array, bias: Array, *, window: ConvGeometry, relu: bool
) -> Array:
    return epilogue(_conv_plain(x, kernel, window=window), bias, relu)


def _conv_plain(x: Array, kernel: Array, *, window: ConvGeometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride,) * 2,
        padding=[(window.padding,) * 2] * 2,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_forward(
    x: Array, kernel: Array, bias: Array, window: ConvGeometry, relu: bool, cpu_conv: CpuConv
) -> tuple[Array, tuple]:
    y = conv2d(x, kernel, bias, window, relu, cpu_conv)
    return y, (x, kernel, y if relu else None)


def _conv_backward(
    window: ConvGeometry,
    relu: bool,
    cpu_conv: CpuConv,
    saved: tuple[Array, Array, Array | None],
    grad: Array,
) -> tuple[Array, Array, Array]:
    x, kernel, y = saved

    def default(x: Array, kernel: Array, y: Array | None, grad: Array) -> tuple:
        grad = relu_gradient(grad, y)
        _, to_arguments = jax.vjp(partial(_conv_plain, window=window), x, kernel)
        return *to_arguments(grad), bias_gradient(grad)

    def cpu(x: Array, kernel: Array, y: Array | None, grad: Array) -> tuple:
        if cpu_conv == "plain":
            return default(x, kernel, y, grad)
        if _use_winograd(x.shape, kernel.shape, window, cpu_conv):
            return winograd_gradients(x, kernel, y, grad)
        grad = relu_gradient(grad, y)
        if _use_per_tap_matmul(window):
            by_taps = partial(_per_tap_matmul, window=window)
            d_x, d_kernel = jax.vjp(by_taps, x, kernel)[1](grad)
        else:
            (d_x,) = jax.vjp(lambda x: _conv_plain(x, kernel, window=window), x)[1](grad)
            d_kernel = _weight_gradient(x, grad, kernel.shape[0], window)
        return d_x, d_kernel, bias_gradient(grad)

    return lax.platform_dependent(x, kernel, y, grad, cpu=cpu, default=default)


conv2d.defvjp(_conv_forward, _conv_backward)


def _conv_cpu(
    x: Array, kernel: Array, bias: Array, *, window: ConvGeometry, relu: bool, cpu_conv: CpuConv
) -> Array:
    matrices = kernel_matrices(x, kernel, window, cpu_conv)
    if matrices is None:
        return _conv_default(x, kernel, bias, window=window, relu=relu)
    return conv_by_matrices(x, matrices, bias, window=window, relu=relu)


def kernel_matrices(
    x: Array, kernel: Array, window: ConvGeometry, cpu_conv: CpuConv
) -> Sequence[Sequence[Array]] | None:
    """What the products for an input like `x` take of the kernel; None: XLA's own convolution."""
    if cpu_conv == "plain":
        return None
    if _use_winograd(x.shape, kernel.shape, window, cpu_conv):
        return transform_kernel(kernel)
    return [list(row) for row in kernel] if _use_per_tap_matmul(window) else None


def conv_by_matrices(
    x: Array, matrices: Sequence[Sequence[Array]], bias: Array, *, window: ConvGeometry, relu: bool
) -> Array:
    """`conv2d` on a CPU with the kernel as `kernel_matrices` gives it."""
    if _use_per_tap_matmul(window):
        return epilogue(_per_tap_matmul(x, matrices, window=window), bias, relu)
    return winograd(x, matrices, bias, relu=relu)


def _use_per_tap_matmul(window: ConvGeometry) -> bool:
    return window.dilation > 1 and window.stride == 1


def _per_tap_matmul(
    x: Array, kernel: Array | Sequence[Sequence[Array]], *, window: ConvGeometry
) -> Array:
    """A matrix product for each tap with the cells it sees, at stride 1.

    A dilated kernel sees much padding: at conv6's 19x19 cells two thirds of the products are of
    cells.
    """
    size = len(kernel)
    rows, columns = (window.output_size(cells, size) for cells in x.shape[1:3])

    def seen(cells: int, outputs: int, tap: int) -> tuple[int, int, int]:
        """The first and last + 1 output for which the tap is on the map, and its place there."""
        shift = tap * window.dilation - window.padding
        first, last = max(0, -shift), min(outputs, cells - shift)
        return first, max(first, last), first + shift

    y = jnp.zeros((x.shape[0], rows, columns, kernel[0][0].shape[-1]), jnp.float32)
    for i in range(size):
        top, bottom, row = seen(x.shape[1], rows, i)
        for j in range(size):
            left, right, column = seen(x.shape[2], columns, j)
            if top == bottom or left == right:
                continue
            part = x[:, row : row + bottom - top, column : column + right - left]
            products = jnp.matmul(
                part.reshape(-1, x.shape[-1]), kernel[i][j], preferred_element_type=jnp.float32
            )
            place = ((0, 0), (top, rows - bottom), (left, columns - right), (0, 0))
            y += jnp.pad(products.reshape(*part.shape[:3], -1), place)
    return y.astype(x.dtype)


def _use_winograd(
    x: Sequence[int], kernel: Sequence[int], window: ConvGeometry, cpu_conv: CpuConv
) -> bool:
    if kernel[0] != 3 or window != ConvGeometry(1, 1) or cpu_conv == "direct":
        return False
    enough = zip(kernel[2:], _WINOGRAD_CHANNELS, strict=True)
    pays = x[1] >= _WINOGRAD_ROWS and all(have >= least for have, least in enough)
    return cpu_conv == "winograd" or pays


def _weight_gradient(x: Array, grad: Array, size: int, window: ConvGeometry) -> Array:
    """The gradient for the kernel: a matrix product for each of its size x size taps.

    Of a large map, one for each strip of rows and all taps; their sums are float32.
    """
    p, s, d = window.padding, window.stride, window.dilation
    rows, columns = grad.shape[1:3]

    def seen(x: Array, i: int, j: int, rows: int) -> Array:
        """The cells that tap (i, j) sees from so many rows of the output."""
        below, right = i * d + s * (rows - 1) + 1, j * d + s * (columns - 1) + 1
        return x[:, i * d : below : s, j * d : right : s].reshape(-1, x.shape[-1])

    taps = [(i, j) for i in range(size) for j in range(size)]
    shape = (size, size, x.shape[-1], grad.shape[-1])
    if rows < LARGE_MAP:
        x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        flat = grad.reshape(-1, grad.shape[-1])
        return jnp.stack([seen(x, i, j, rows).T @ flat for i, j in taps]).reshape(shape)

    strips = -(-rows // _STRIP_ROWS)
    missing = strips * _STRIP_ROWS - rows
    grad = jnp.pad(grad, ((0, 0), (0, missing), (0, 0), (0, 0)))
    reach = s * (_STRIP_ROWS - 1) + (size - 1) * d + 1
    below = max(0, (strips - 1) * _STRIP_ROWS * s - p + reach - x.shape[1])

    def add_strip(k: Array, total: Array) -> Array:
        """All taps in one product, of the cells that they see side by side."""
        image, row = k // strips, k % strips * _STRIP_ROWS
        part = slice_padded_rows(
            x, begin=(image, row * s - p), size=(1, reach), beyond=(p, below), sides=(p, p)
        )
        own = lax.dynamic_slice(grad, (image, row, 0, 0), (1, _STRIP_ROWS, *grad.shape[2:]))
        cells = jnp.concatenate([seen(part, i, j, _STRIP_ROWS) for i, j in taps], axis=-1)
        cells, own = lax.optimization_barrier(cells), own.reshape(-1, own.shape[-1])
        return total + jnp.matmul(cells.T, own, preferred_element_type=jnp.float32)

    zeros = zeros_varying_like((math.prod(shape[:3]), shape[3]), like=grad)
    total = lax.fori_loop(0, x.shape[0] * strips, add_strip, zeros)
    return total.astype(grad.dtype).reshape(shape)
