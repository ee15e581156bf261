"""Winograd's transforms along one side, against the correlation written out."""

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
def test_outputs_by_two_products_more_than_there_are(tile):
    kernel, inputs = RNG.normal(size=(3, 5)), RNG.normal(size=(tile.outputs + 2, 5))
    products = np.multiply(tile.kernel(kernel), tile.inputs(inputs))
    assert len(products) == tile.outputs + 2
    np.testing.assert_allclose(tile.result(products), correlation(kernel, inputs), atol=1e-12)


@TILES
def test_the_gradient_is_the_transpose(tile):
    products, grads = RNG.normal(size=(tile.outputs + 2, 5)), RNG.normal(size=(tile.outputs, 5))
    assert len(tile.result_gradient(grads)) == len(products)
    there = np.sum(np.multiply(tile.result(products), grads))
    back = np.sum(np.multiply(products, tile.result_gradient(grads)))
    np.testing.assert_allclose(there, back)


@TILES
def test_a_turned_kernel_has_the_same_transforms(tile):
    kernel = RNG.normal(size=(3, 5))
    transforms = tile.kernel(kernel)
    flip_permutation = [transforms[k] for k in tile.flip_permutation]
    np.testing.assert_allclose(flip_permutation, tile.kernel(kernel[::-1]), atol=1e-12)
