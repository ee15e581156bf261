"""Max pools against loops over blocks, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.kernels.max_pool import max_pool_2x2, max_pool_3x3


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("cells", [4, 5, 75])
def test_max_pool_2x2(cells, ceil):
    x = np.random.default_rng(0).normal(size=(2, cells, cells, 3)).astype(np.float32)
    out = -(-cells // 2) if ceil else cells // 2
    expected = np.empty((2, out, out, 3), np.float32)
    for i in range(out):
        for j in range(out):
            expected[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x), ceil=ceil), expected)


def test_max_pool_3x3():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(5):
        for j in range(5):
            block = x[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            expected[:, i, j] = block.max((1, 2))
    np.testing.assert_array_equal(max_pool_3x3(jnp.asarray(x)), expected)


@pytest.mark.parametrize("ceil", [False, True])
def test_first_of_equal_cells_gets_the_gradient(ceil):
    x = np.random.default_rng(0).integers(3, size=(2, 7, 5, 3)).astype(np.float32)
    pooled, vjp = jax.vjp(partial(max_pool_2x2, ceil=ceil), jnp.asarray(x))
    grad = np.random.default_rng(1).normal(size=pooled.shape).astype(np.float32)
    expected = np.zeros_like(x)
    for b, i, j, c in np.ndindex(pooled.shape):
        block = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = np.unravel_index(block.argmax(), block.shape)
        expected[b, 2 * i + row, 2 * j + column, c] = grad[b, i, j, c]
    np.testing.assert_array_equal(vjp(grad)[0], expected)


def test_gradients_go_to_a_maximum():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    for pool in (max_pool_2x2, max_pool_3x3):
        grad = jax.grad(lambda x, pool=pool: jnp.sum(pool(x)))(x)
        assert float(grad.sum()) == pool(x).size
        assert set(np.asarray(x[grad > 0])) == set(np.asarray(pool(x)).ravel())
