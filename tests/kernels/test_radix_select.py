import functools

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.kernels.radix_select import _bisect_bits, float_sort_key, kth_largest

NUMBERS = st.floats(width=32, allow_nan=False, allow_subnormal=False)

find = jax.jit(kth_largest)
FINDERS = {
    "this platform": find,
    "accelerators": jax.jit(functools.partial(_bisect_bits, early_exit=False)),
}


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, 20, elements=NUMBERS))
def test_sort_keys_have_the_order_of_the_floats(x):
    bits = np.asarray(float_sort_key(x)).astype(np.int64)
    np.testing.assert_array_equal(bits[:, None] < bits[None], x[:, None] < x[None])
    np.testing.assert_array_equal(bits[:, None] == bits[None], x[:, None] == x[None])
    assert bits.min() > 0


@pytest.mark.parametrize("most", [3, 100, 2**32 - 1])
@pytest.mark.parametrize("rows", [1, 31, 32, 100])
@pytest.mark.parametrize("finder", FINDERS.values(), ids=FINDERS)
def test_exactly_k_values_reach_the_threshold_without_ties(finder, most, rows):
    rng = np.random.default_rng(rows)
    values = rng.integers(0, most, (rows, 5), dtype=np.uint32)
    for k in {1, rows // 3 + 1, rows}:
        least = np.asarray(finder(values, k))
        falling = -np.sort(-values.astype(np.int64), axis=0)
        for column in range(5):
            reach = np.sum(values[:, column] >= least[column])
            if k < rows and falling[k - 1, column] == falling[k, column]:
                assert least[column] == falling[k - 1, column]
            else:
                assert reach == k


def test_one_k_per_column():
    values = np.arange(40, dtype=np.uint32)[:, None] * np.ones(3, np.uint32)
    least = np.asarray(find(values, np.array([1, 7, 40])))
    np.testing.assert_array_equal(np.sum(values >= least, axis=0), [1, 7, 40])


def test_threshold_is_zero_if_k_is_above_n():
    assert find(np.full((3, 1), 9, np.uint32), 4) == 0


def test_both_zeros_have_the_same_key():
    for function in (float_sort_key, jax.jit(float_sort_key)):
        bits = function(np.array([-0.0, 0.0], np.float32))
        assert bits[0] == bits[1]
