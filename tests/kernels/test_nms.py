"""Suppression of a batch, on CPU one image at a time, equals the reference."""

import functools

import jax
import numpy as np
import pytest

from ssd_jax.kernels import nms as kernel
from ssd_jax.ops import nms as reference
from tests.ops.test_nms import OPTIONS, assert_same, random_case


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["few", "many"])
def test_batched_nms_equals_the_reference(share):
    rng = np.random.default_rng(1)
    boxes, scores = (
        np.stack(part) for part in zip(*(random_case(rng, 300) for _ in range(2)), strict=True)
    )
    scores[1] = np.where(scores[1] > share, 0, scores[1])  # fewer candidates than the other image
    options = OPTIONS | {"topk_candidates": 110}
    expected = jax.vmap(functools.partial(reference.multiclass_nms, **options))(boxes, scores)
    vmapped = jax.vmap(functools.partial(kernel.multiclass_nms, **options))
    for function in (vmapped, functools.partial(kernel.batched_nms, **options)):
        assert_same(jax.jit(function)(boxes, scores), expected)
