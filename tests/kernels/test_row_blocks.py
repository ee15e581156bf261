"""Blocks of rows: every cell once, with its neighbours, and zeros outside of the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.kernels.row_blocks import RowBlocks, row_blocks, slice_padded_rows


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((8, 19, 19, 512), RowBlocks(8, 19, 1)),
        ((8, 75, 75, 256), RowBlocks(1, 75, 8)),
        ((8, 150, 150, 128), RowBlocks(1, 50, 24)),
        ((8, 300, 300, 64), RowBlocks(1, 20, 120)),
        ((2, 512, 512, 64), RowBlocks(1, 8, 128)),
        ((2, 301, 301, 64), RowBlocks(1, 301, 2)),
        ((2, 302, 302, 64), RowBlocks(1, 302, 2)),
    ],
)
def test_small_maps_are_one_block_and_large_ones_several(shape, blocks):
    assert row_blocks(jax.ShapeDtypeStruct(shape, "float32")) == blocks


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    images=st.integers(1, 3),
    rows=st.integers(1, 6),
    per_image=st.integers(1, 4),
    columns=st.integers(1, 5),
)
def test_block_is_a_slice_of_the_padded_map(images, rows, per_image, columns):
    if per_image > 1:
        rows = 2 * rows + 2
    maps = np.random.default_rng(0).normal(size=(2, images, rows * per_image, columns, 2))
    maps = maps.astype(np.float32)
    padded = np.pad(maps[0] - maps[1], ((0, 0), (1, 3), (1, 1 + -columns % 4), (0, 0)))
    blocks = RowBlocks(1, rows, images * per_image)
    results = blocks.map(
        lambda index: blocks.take(index, *maps, of=jnp.subtract, tile=(2, 4)), maps[0]
    )
    assert len(results) == images * per_image
    for index, block in enumerate(results):
        first = index % per_image * rows
        expected = padded[index // per_image, first : first + rows + rows % 2 + 2]
        np.testing.assert_array_equal(block[0], expected)


def test_all_images_in_one_block():
    x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4, 1)
    blocks = RowBlocks(2, 3, 1)
    expected = np.pad(x, ((0, 0), (1, 2), (1, 1), (0, 0)))
    np.testing.assert_array_equal(blocks.take(0, x, tile=(2, 2)), expected)


@pytest.mark.parametrize("first", [-3, 0, 4, 9])
def test_rows_outside_of_the_map_are_zero(first):
    x = jnp.arange(1.0, 21.0).reshape(1, 10, 2, 1)
    results = jax.jit(
        lambda first: slice_padded_rows(
            x, begin=(0, first), size=(1, 5), beyond=(3, 4), sides=(2, 0)
        )
    )(first)
    padded = np.pad(x, ((0, 0), (3, 4), (2, 0), (0, 0)))
    np.testing.assert_array_equal(results, padded[:, first + 3 : first + 8])


@pytest.mark.parametrize("number", [1, 3])
def test_sums_are_accumulated_in_float32(number):
    ones = jnp.ones((1, 1), jnp.bfloat16)

    def part(index):
        return {"sum": 1 + ones * index / 512}, ones * index

    sums, parts = RowBlocks(1, 1, number).sum_and_map(part, like=ones)
    assert sums["sum"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(parts.ravel(), np.arange(number))
    expected = sum(np.asarray(part(i)[0]["sum"], np.float32) for i in range(number))
    assert sums["sum"] == expected.astype(jnp.bfloat16)
