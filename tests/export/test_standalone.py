"""The standalone module agrees with the network's preprocessing and NMS."""

import functools

import jax
import numpy as np
import pytest

from ssd_jax.data.augment import preprocess_eval
from ssd_jax.export import standalone
from ssd_jax.export.check import difference
from ssd_jax.inference.detector import Detections
from ssd_jax.ops.nms import multiclass_nms


@pytest.mark.parametrize("seed", range(20))
def test_suppress_equals_multiclass_nms(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 0.5, (60, 2))], 1).astype(np.float32)
    boxes[rng.random(60) < 0.1, 2:] = 0  # without area
    scores = rng.uniform(0, 1, (60, 4)).astype(np.float32)
    if seed % 2:
        scores = np.round(scores, 1)  # ties
    rule = {
        "score_threshold": 0.3,
        "iou_threshold": 0.3,
        "topk_candidates": (8, 60)[seed % 3 == 0],
        "detections_per_image": (10, 100)[seed % 4 == 0],
    }
    expected = jax.jit(functools.partial(multiclass_nms, **rule))(boxes, scores)
    n = int(expected.count)
    actual = standalone.suppress(boxes, scores, **rule)
    assert n > 5
    for x, y in zip(actual, (expected.boxes, expected.scores, expected.labels), strict=True):
        np.testing.assert_array_equal(x, y[:n])


def test_suppress_without_candidates():
    rule = {"iou_threshold": 0.5, "topk_candidates": 5, "detections_per_image": 5}
    boxes, scores, labels = standalone.suppress(
        np.zeros((3, 4), np.float32), np.full((3, 2), 0.5, np.float32), score_threshold=0.6, **rule
    )
    assert boxes.shape == (0, 4)
    assert len(scores) == len(labels) == 0


def test_preprocess_equals_preprocess_eval():
    image = np.random.default_rng(0).integers(0, 256, (37, 91, 3), np.uint8)
    np.testing.assert_array_equal(standalone.preprocess(image, 64), preprocess_eval(image, 64))


def detections(*rows):
    rows = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int32), ("a", "b"))


def test_difference_of_detections():
    measure = functools.partial(difference, threshold=0.1, most=5)
    a = detections((0, 0.9, 0, 0, 10, 10), (1, 0.5, 5, 5, 9, 9))
    assert measure(a, a) == (0, 0, 2)
    moved = detections((0, 0.9, 0, 0.25, 10, 10), (1, 0.5005, 5, 5, 9, 9))
    pixels, score, count = measure(a, moved)
    assert (pixels, count) == (0.25, 2)
    assert score == pytest.approx(5e-4, abs=1e-6)
    assert measure(a, detections((0, 0.9, 0, 0, 10, 10))) is None
    assert measure(detections((0, 0.9, 0, 0, 10, 10)), a) is None
    assert measure(a, detections((0, 0.9, 0, 0, 10, 10), (0, 0.5, 5, 5, 9, 9))) is None
    assert measure(a, detections((0, 0.9, 0, 0, 10, 10), (1, 0.48, 5, 5, 9, 9))) is None
    # Scores at the threshold, or at the end of a full set, are ignored.
    low = detections((0, 0.9, 0, 0, 10, 10), (1, 0.5, 5, 5, 9, 9), (1, 0.1005, 0, 0, 1, 1))
    assert measure(a, low) == (0, 0, 2)
    full = difference(a, low, threshold=0.0, most=3)
    assert full == (0, 0, 2)
