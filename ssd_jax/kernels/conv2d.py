"""Convolution of the networks: XLA's own, and faster algorithms for CPUs behind one function.

XLA's convolution is fast on GPU and TPU. On CPU its weight gradient takes longer than the same sums
written as matrix products, and all of a wide 3x3 layer takes longer than Winograd's algorithm
(docs/performance.md). `jax.lax.platform_dependent` selects when a program is lowered, so programs
compiled ahead of time for other platforms are not affected.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from ssd_jax.kernels.epilogue import bias_gradient, epilogue, relu_gradient
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.kernels.row_blocks import LARGE_MAP, slice_padded_rows, zeros_varying_like
from ssd_jax.kernels.winograd import transform_kernel, winograd, winograd_gradients

CpuConv = Literal["auto", "direct", "winograd", "plain"]
"""Algorithm of convolutions on CPU; see `ssd_jax.config.RuntimeConfig`."""

# Part of the key of JAX's caches: a program traced with one algorithm is never used for another.
_cpu_conv = jax.make_user_context("auto")

# Below this number of channels (in, out) or rows, Winograd's transforms cost more than they save.
_WINOGRAD_CHANNELS = (64, 32)
_WINOGRAD_ROWS = 16

# Rows of output in a block of the weight gradient.
_BLOCK_ROWS = 10


def set_cpu_conv(algorithm: CpuConv) -> None:
    """Set the algorithm of convolutions on CPU for the process; "auto" by default.

    Programs read it when they are traced. Functions under `jax.jit` are traced again after a
    change.
    """
    _cpu_conv.set_global(algorithm)


def use_cpu_conv(algorithm: CpuConv) -> AbstractContextManager[None]:
    """Use an algorithm within a `with` block, in this thread; see `set_cpu_conv`."""
    return _cpu_conv(algorithm)


def conv2d(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    geometry: ConvGeometry,
    relu: bool = False,
) -> Float[Array, "B h w O"]:
    """Cross-correlate zero-padded `x` with `kernel` (NHWC, HWIO), add the bias, apply a ReLU.

    On CPU the algorithm is that of `set_cpu_conv`; all agree to float32 rounding.
    """
    return _conv2d(x, kernel, bias, geometry, relu, _cpu_conv.value)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv2d(
    x: Array, kernel: Array, bias: Array, geometry: ConvGeometry, relu: bool, algorithm: CpuConv
) -> Array:
    def default(x: Array, kernel: Array, bias: Array) -> Array:
        return epilogue(_conv_xla(x, kernel, geometry), bias, relu)

    def cpu(x: Array, kernel: Array, bias: Array) -> Array:
        prepared = _prepare_kernel(x, kernel, geometry, algorithm)
        if prepared is None:
            return default(x, kernel, bias)
        return conv2d_prepared(x, prepared, bias, geometry, relu)

    return lax.platform_dependent(x, kernel, bias, cpu=cpu, default=default)


def _conv_xla(x: Array, kernel: Array, geometry: ConvGeometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(geometry.stride,) * 2,
        padding=[(geometry.padding,) * 2] * 2,
        rhs_dilation=(geometry.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_forward(
    x: Array, kernel: Array, bias: Array, geometry: ConvGeometry, relu: bool, algorithm: CpuConv
) -> tuple[Array, tuple]:
    y = _conv2d(x, kernel, bias, geometry, relu, algorithm)
    return y, (x, kernel, y if relu else None)


def _conv_backward(
    geometry: ConvGeometry,
    relu: bool,
    algorithm: CpuConv,
    saved: tuple[Array, Array, Array | None],
    grad: Array,
) -> tuple[Array, Array, Array]:
    x, kernel, y = saved

    def default(x: Array, kernel: Array, y: Array | None, grad: Array) -> tuple:
        grad = relu_gradient(grad, y)
        _, vjp = jax.vjp(lambda x, kernel: _conv_xla(x, kernel, geometry), x, kernel)
        return *vjp(grad), bias_gradient(grad)

    def cpu(x: Array, kernel: Array, y: Array | None, grad: Array) -> tuple:
        if algorithm == "plain":
            return default(x, kernel, y, grad)
        if _use_winograd(x.shape, kernel.shape, geometry, algorithm):
            return winograd_gradients(x, kernel, y, grad)
        grad = relu_gradient(grad, y)
        if _use_per_tap_matmul(geometry):
            _, vjp = jax.vjp(lambda x, kernel: _per_tap_matmul(x, kernel, geometry), x, kernel)
            d_x, d_kernel = vjp(grad)
        else:
            (d_x,) = jax.vjp(lambda x: _conv_xla(x, kernel, geometry), x)[1](grad)
            d_kernel = _weight_gradient(x, grad, kernel.shape[0], geometry)
        return d_x, d_kernel, bias_gradient(grad)

    return lax.platform_dependent(x, kernel, y, grad, cpu=cpu, default=default)


_conv2d.defvjp(_conv_forward, _conv_backward)

PreparedKernel = Sequence[Sequence[Array]]
"""Matrices that a kernel contributes to the products of a convolution on CPU."""


def prepare_kernel(x: Array, kernel: Array, geometry: ConvGeometry) -> PreparedKernel | None:
    """Compute the part of `conv2d` on CPU that depends on the kernel alone, for inputs like `x`.

    None if the convolution is XLA's own.
    """
    return _prepare_kernel(x, kernel, geometry, _cpu_conv.value)


def _prepare_kernel(
    x: Array, kernel: Array, geometry: ConvGeometry, algorithm: CpuConv
) -> PreparedKernel | None:
    if algorithm == "plain":
        return None
    if _use_winograd(x.shape, kernel.shape, geometry, algorithm):
        return transform_kernel(kernel)
    return [list(row) for row in kernel] if _use_per_tap_matmul(geometry) else None


def conv2d_prepared(
    x: Array, prepared: PreparedKernel, bias: Array, geometry: ConvGeometry, relu: bool = False
) -> Array:
    """Compute `conv2d` on CPU with a kernel from `prepare_kernel`; not for gradients."""
    if _use_per_tap_matmul(geometry):
        return epilogue(_per_tap_matmul(x, prepared, geometry), bias, relu)
    return winograd(x, prepared, bias, relu=relu)


def _use_per_tap_matmul(geometry: ConvGeometry) -> bool:
    return geometry.dilation > 1 and geometry.stride == 1


def _per_tap_matmul(x: Array, kernel: Array | PreparedKernel, geometry: ConvGeometry) -> Array:
    """Convolve at stride 1 with a matrix product per tap of the kernel, without padding.

    A dilated kernel covers much padding: for conv6's 19x19 cells only two thirds of the products
    are of cells.
    """
    size = len(kernel)
    rows, columns = (geometry.output_size(cells, size) for cells in x.shape[1:3])

    def overlap(cells: int, outputs: int, tap: int) -> tuple[int, int, int]:
        """Return the range of outputs for which the tap is on the map, and its first input."""
        shift = tap * geometry.dilation - geometry.padding
        first, last = max(0, -shift), min(outputs, cells - shift)
        return first, max(first, last), first + shift

    y = jnp.zeros((x.shape[0], rows, columns, kernel[0][0].shape[-1]), jnp.float32)
    for i in range(size):
        top, bottom, row = overlap(x.shape[1], rows, i)
        for j in range(size):
            left, right, column = overlap(x.shape[2], columns, j)
            if top == bottom or left == right:
                continue
            part = x[:, row : row + bottom - top, column : column + right - left]
            products = jnp.matmul(
                part.reshape(-1, x.shape[-1]), kernel[i][j], preferred_element_type=jnp.float32
            )
            padding = ((0, 0), (top, rows - bottom), (left, columns - right), (0, 0))
            y += jnp.pad(products.reshape(*part.shape[:3], -1), padding)
    return y.astype(x.dtype)


def _use_winograd(
    x: Sequence[int], kernel: Sequence[int], geometry: ConvGeometry, algorithm: CpuConv
) -> bool:
    if kernel[0] != 3 or geometry != ConvGeometry(1, 1) or algorithm == "direct":
        return False
    enough = zip(kernel[2:], _WINOGRAD_CHANNELS, strict=True)
    pays = x[1] >= _WINOGRAD_ROWS and all(have >= least for have, least in enough)
    return algorithm == "winograd" or pays


def _weight_gradient(x: Array, grad: Array, size: int, geometry: ConvGeometry) -> Array:
    """Compute the gradient for the kernel with a matrix product per tap.

    For large maps, with one per block of rows for all taps, summed in float32.
    """
    p, s, d = geometry.padding, geometry.stride, geometry.dilation
    rows, columns = grad.shape[1:3]

    def tap_inputs(x: Array, i: int, j: int, rows: int) -> Array:
        """Return the inputs of tap (i, j) for a number of rows of the output."""
        below, right = i * d + s * (rows - 1) + 1, j * d + s * (columns - 1) + 1
        return x[:, i * d : below : s, j * d : right : s].reshape(-1, x.shape[-1])

    taps = [(i, j) for i in range(size) for j in range(size)]
    shape = (size, size, x.shape[-1], grad.shape[-1])
    if rows < LARGE_MAP:
        x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        flat = grad.reshape(-1, grad.shape[-1])
        return jnp.stack([tap_inputs(x, i, j, rows).T @ flat for i, j in taps]).reshape(shape)

    blocks = -(-rows // _BLOCK_ROWS)
    missing = blocks * _BLOCK_ROWS - rows
    grad = jnp.pad(grad, ((0, 0), (0, missing), (0, 0), (0, 0)))
    reach = s * (_BLOCK_ROWS - 1) + (size - 1) * d + 1
    below = max(0, (blocks - 1) * _BLOCK_ROWS * s - p + reach - x.shape[1])

    def add_block(k: Array, total: Array) -> Array:
        """Add the product of a block's inputs, those of all taps side by side, and gradients."""
        image, row = k // blocks, k % blocks * _BLOCK_ROWS
        part = slice_padded_rows(
            x, begin=(image, row * s - p), size=(1, reach), beyond=(p, below), sides=(p, p)
        )
        d_y = lax.dynamic_slice(grad, (image, row, 0, 0), (1, _BLOCK_ROWS, *grad.shape[2:]))
        cells = jnp.concatenate([tap_inputs(part, i, j, _BLOCK_ROWS) for i, j in taps], axis=-1)
        cells, d_y = lax.optimization_barrier(cells), d_y.reshape(-1, d_y.shape[-1])
        return total + jnp.matmul(cells.T, d_y, preferred_element_type=jnp.float32)

    zeros = zeros_varying_like((math.prod(shape[:3]), shape[3]), like=grad)
    total = lax.fori_loop(0, x.shape[0] * blocks, add_block, zeros)
    return total.astype(grad.dtype).reshape(shape)
