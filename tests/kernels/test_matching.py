"""Matching for one platform equals the reference, also where boxes tie or have no area."""

import jax
import numpy as np
import pytest

from ssd_jax.kernels import matching as kernel
from ssd_jax.ops import matching as reference
from ssd_jax.ops.boxes import pairwise_iou


@pytest.mark.parametrize("rule", ["bipartite", "per_object"])
@pytest.mark.parametrize("priors", [5, 40], ids=["more boxes than priors", "more priors"])
def test_sequential_and_parallel_matching_equal_the_reference(rule, priors):
    def match_all_ways(boxes, corners, valid):
        iou = pairwise_iou(boxes, corners)
        options = {"threshold": 0.5, "rule": rule}
        return (
            iou,
            reference.match_priors(iou, valid, **options),
            kernel.match_priors(iou, valid, **options),
            kernel.match_boxes(boxes, corners, valid, **options),  # sequential on CPU
        )

    # Few coordinates for the corners: many boxes are equal, or tie, or have no area.
    rng = np.random.default_rng(priors)
    corners = np.sort(rng.integers(0, 5, (60, 2, priors, 2)), axis=1) / np.float32(4)
    corners = np.concatenate([corners[:, 0], corners[:, 1]], axis=-1)
    boxes = np.sort(rng.integers(0, 5, (60, 2, 12, 2)), axis=1) / np.float32(4)
    boxes = np.concatenate([boxes[:, 0], boxes[:, 1]], axis=-1)
    valid = rng.random((60, 12)) < rng.random((60, 1))
    iou, *results = jax.jit(jax.vmap(match_all_ways))(boxes, corners, valid)
    expected, *matches = [np.where(positive, index, -1) for index, positive in results]
    for result in matches:
        np.testing.assert_array_equal(result, expected)
    best_prior = np.argmax(iou, axis=2)  # [60, 12]
    matched_box = np.take_along_axis(expected, best_prior, axis=1)
    assert np.sum((matched_box != np.arange(12)) & valid) > 60  # often not the best prior
