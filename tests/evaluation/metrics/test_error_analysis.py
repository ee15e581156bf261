import numpy as np
import pytest

from ssd_jax.evaluation.metrics.error_analysis import ImageCounts, analyse
from ssd_jax.evaluation.metrics.tide import find_outcomes
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from tests.evaluation.metrics.test_tide import errors_case
from tests.evaluation.metrics.test_voc_ap import table, truth

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("seed", range(10))
def test_images_have_what_the_whole_has(seed):
    det, gt = errors_case(seed)
    found = analyse(det, gt, NAMES, 12, score=0.4)
    told = det.select(det.score >= 0.4)
    for i in range(12):
        here = told.select(told.image == i)
        of_image = gt.image == i
        alone = analyse(
            here,
            type(gt)(gt.image, gt.label, gt.boxes, np.where(of_image, gt.difficult, True)),
            NAMES,
            12,
            score=0,
        )
        assert found.images.right[i] == alone.images.right.sum()
        assert found.images.wrong[i] == alone.images.wrong.sum()
        assert found.images.missing[i] == alone.images.missing.sum()
    assert found.images.right.sum() == np.trace(found.confusion[1:, 1:])
    false = sum(n for kind, n in found.counts.items() if kind != "missed")
    assert found.images.wrong.sum() == false


def test_curves_and_gains_are_of_all_detections():
    det, gt = errors_case(1)
    low, high = (analyse(det, gt, NAMES, 12, score=s) for s in (0.0, 0.7))
    assert low.curves.mean_ap == high.curves.mean_ap == evaluate_voc(det, gt, NAMES).mean_ap
    assert low.gains == high.gains
    assert low.counts != high.counts
    false = [sum(x.counts.values()) - x.counts["missed"] for x in (low, high)]
    assert false[0] > false[1] > 0
    told = det.select(det.score >= 0.7)
    right = np.sum(find_outcomes(told, gt, 4).kind == 0)
    assert high.images.right.sum() == right


def test_a_score_on_the_threshold_counts():
    gt = truth([[0, 1, 1, 1, 10, 10, 0]])
    det = table([[0, 1, 0.3, 1, 1, 10, 10]])
    assert analyse(det, gt, ["a"], 1, score=0.3).images.right.tolist() == [1]
    assert analyse(det, gt, ["a"], 1, score=0.31).images.missing.tolist() == [1]


def test_best_and_worst():
    counts = ImageCounts(
        right=np.array([5, 0, 0, 1, 9, 0]),
        wrong=np.array([0, 0, 3, 1, 0, 0]),
        missing=np.array([0, 0, 1, 0, 0, 2]),
    )
    np.testing.assert_allclose(counts.f1(), [1, np.nan, 0, 2 / 3, 1, 0])
    # An image with nothing in it and nothing told is neither.
    assert counts.worst(8) == [2, 5, 3]
    assert counts.best(8) == [4, 0, 3]
    assert counts.worst(1) == [2]
    assert counts.best(0) == []
