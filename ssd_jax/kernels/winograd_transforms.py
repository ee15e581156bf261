"""Winograd's transforms of tiles along one axis of a map.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4: F(m, 3) computes
m outputs of a kernel of size 3 from m + 2 inputs with m + 2 products. Inputs and kernel are treated
as polynomials, whose values at m + 1 points and at infinity are multiplied.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array

Transform = Callable[[Sequence[Array]], list[Array]]


class WinogradTransform(NamedTuple):
    """Transforms of F(outputs, 3), each of a list of arrays of one shape."""

    outputs: int
    """Outputs of a tile."""
    kernel: Transform
    """Factors of the products from the kernel."""
    inputs: Transform
    """Factors of the products from the inputs."""
    result: Transform
    """Outputs from the products."""
    result_gradient: Transform
    """Gradients for the products from those for the outputs."""
    flip_permutation: tuple[int, ...]
    """Order of the kernel's factors that gives those of the reversed kernel."""


def _kernel_2(g: Sequence[Array]) -> list[Array]:
    ends, middle = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], ends + middle, ends - middle, g[2]]


def _inputs_2(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _result_2(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _result_gradient_2(y: Sequence[Array]) -> list[Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


F2 = WinogradTransform(2, _kernel_2, _inputs_2, _result_2, _result_gradient_2, (3, 1, 2, 0))
"""F(2, 3) at the points 0, 1 and -1."""


# The points 1 and 2 of the paper give two to three times the largest error. Reversing a kernel
# swaps the points a and 1 / a, so the factors are the same in another order.
_NEAR, _FAR = 0.5**0.5, 2**0.5


def _kernel_4(g: Sequence[Array]) -> list[Array]:
    near, far = (g[0] + g[2] / 2) / 1.5, (g[0] + 2 * g[2]) / 3
    by_near, by_far = g[1] * (_NEAR / 1.5), g[1] * (_FAR / 3)
    return [g[0], near + by_near, near - by_near, far + by_far, far - by_far, g[2]]


def _inputs_4(d: Sequence[Array]) -> list[Array]:
    near, by_near = 2 * d[2] - d[4], _NEAR * (2 * d[1] - d[3])
    far, by_far = d[4] / 2 - d[2] / 4, _NEAR * (d[3] - d[1] / 2)
    first, last = d[0] - 2.5 * d[2] + d[4], d[1] - 2.5 * d[3] + d[5]
    return [first, near + by_near, near - by_near, far + by_far, far - by_far, last]


def _result_4(m: Sequence[Array]) -> list[Array]:
    near, by_near = m[1] + m[2], _NEAR * (m[1] - m[2])
    far, by_far = m[3] + m[4], _FAR * (m[3] - m[4])
    return [
        m[0] + near + far,
        by_near + by_far,
        near / 2 + 2 * far,
        by_near / 2 + 2 * by_far + m[5],
    ]


def _result_gradient_4(y: Sequence[Array]) -> list[Array]:
    near, by_near = y[0] + y[2] / 2, _NEAR * (y[1] + y[3] / 2)
    far, by_far = y[0] + 2 * y[2], _FAR * (y[1] + 2 * y[3])
    return [y[0], near + by_near, near - by_near, far + by_far, far - by_far, y[3]]


F4 = WinogradTransform(4, _kernel_4, _inputs_4, _result_4, _result_gradient_4, (5, 3, 4, 1, 2, 0))
"""F(4, 3) at the points 0, the square roots of 1/2, and the square roots of 2."""
