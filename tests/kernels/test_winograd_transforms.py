"""Winograd's transforms along one axis, against a direct correlation."""

import numpy as np
import pytest

from ssd_jax.kernels.winograd_transforms import F2, F4

TILES = pytest.mark.parametrize("tile", [F2, F4])
RNG = np.random.default_rng(0)


def correlation(kernel, inputs):
    return [
        sum(kernel[i] * inputs[start + i] for i in range(3)) for start in range(len(inputs) - 2)
    ]


@TILES
def test_outputs_from_two_products_more(tile):
    kernel, inputs = RNG.normal(size=(3, 5)), RNG.normal(size=(tile.outputs + 2, 5))
    products = np.multiply(tile.kernel(kernel), tile.inputs(inputs))
    assert len(products) == tile.outputs + 2
    np.testing.assert_allclose(tile.result(products), correlation(kernel, inputs), atol=1e-12)


@TILES
def test_result_gradient_is_the_transpose_of_result(tile):
    products, grads = RNG.normal(size=(tile.outputs + 2, 5)), RNG.normal(size=(tile.outputs, 5))
    assert len(tile.result_gradient(grads)) == len(products)
    forward = np.sum(np.multiply(tile.result(products), grads))
    backward = np.sum(np.multiply(products, tile.result_gradient(grads)))
    np.testing.assert_allclose(forward, backward)


@TILES
def test_reversed_kernel_has_the_same_factors(tile):
    kernel = RNG.normal(size=(3, 5))
    transforms = tile.kernel(kernel)
    flipped = [transforms[k] for k in tile.flip_permutation]
    np.testing.assert_allclose(flipped, tile.kernel(kernel[::-1]), atol=1e-12)
