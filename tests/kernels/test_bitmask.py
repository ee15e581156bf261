import jax
import numpy as np
import pytest

from ssd_jax.kernels.bitmask import mask_to_indices, pack_bits, popcount, top_k_mask, unpack_bits

ROWS = [1, 31, 32, 33, 100]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", ROWS)
def test_packing_counting_and_indexing_a_mask(rows, share):
    chosen = np.random.default_rng(rows).random((rows, 4)) < share
    words = pack_bits(chosen)
    np.testing.assert_array_equal(popcount(words), chosen.sum(axis=0))
    for label in range(4):
        np.testing.assert_array_equal(unpack_bits(words[:, label], rows), chosen[:, label])
    priors, filled = jax.jit(mask_to_indices, static_argnums=1)(words, rows + 2)
    assert priors.shape == filled.shape == (4, rows + 2)
    for label in range(4):
        count = chosen[:, label].sum()
        np.testing.assert_array_equal(filled[label], np.arange(rows + 2) < count)
        np.testing.assert_array_equal(priors[label, :count], np.flatnonzero(chosen[:, label]))
        assert not np.any(priors[label, count:])


@pytest.mark.parametrize("levels", [1, 3, 1000], ids=["all equal", "many ties", "few ties"])
@pytest.mark.parametrize("rows", ROWS)
def test_top_k_mask_equals_a_sort(rows, levels):
    rng = np.random.default_rng(levels)
    choose = jax.jit(top_k_mask, static_argnums=2)
    for share in (0.2, 1.0):
        scores = (rng.integers(-levels, levels, (rows, 4)) / levels).astype(np.float32)
        candidate = rng.random((rows, 4)) < share
        for count in {1, 5, rows}:
            words = choose(scores, candidate, count)
            for label in range(4):
                order = [p for p in range(rows) if candidate[p, label]]
                order = sorted(order, key=lambda p, k=label: (-scores[p, k], p))[:count]
                kept = np.flatnonzero(unpack_bits(words[:, label], rows))
                np.testing.assert_array_equal(kept, sorted(order))


def test_nan_is_never_selected():
    scores = np.array([[np.nan], [0.5], [np.nan], [-np.inf]], np.float32)
    words = top_k_mask(scores, np.asarray(scores > -1), 3)
    np.testing.assert_array_equal(unpack_bits(words[:, 0], 4), [False, True, False, False])
