import dataclasses

import numpy as np
import pytest

from ssd_jax.evaluation.metrics.error_analysis import ImageCounts, analyze_errors
from ssd_jax.evaluation.metrics.tide import TRUE_POSITIVE, classify_outcomes
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from tests.evaluation.metrics.test_tide import errors_case
from tests.evaluation.metrics.test_voc_ap import table, truth

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("seed", range(10))
def test_image_counts_equal_those_of_each_image_alone(seed):
    det, gt = errors_case(seed)
    analysis = analyze_errors(det, gt, NAMES, 12, score_threshold=0.4)
    counted = det.select(det.score >= 0.4)
    images = analysis.images
    for i in range(12):
        difficult = np.where(gt.image == i, gt.difficult, True)
        alone = analyze_errors(
            counted.select(counted.image == i),
            dataclasses.replace(gt, difficult=difficult),
            NAMES,
            12,
            score_threshold=0,
        ).images
        assert images.tp[i] == alone.tp.sum()
        assert images.fp[i] == alone.fp.sum()
        assert images.fn[i] == alone.fn.sum()
    assert images.tp.sum() == np.trace(analysis.confusion[:-1, :-1])
    false_positives = sum(n for kind, n in analysis.counts.items() if kind != "missed")
    assert images.fp.sum() == false_positives


def test_curves_and_delta_ap_are_of_all_detections():
    det, gt = errors_case(1)
    low, high = (analyze_errors(det, gt, NAMES, 12, score_threshold=s) for s in (0.0, 0.7))
    assert low.curves.mean_ap == high.curves.mean_ap == evaluate_voc(det, gt, NAMES).mean_ap
    assert low.delta_ap == high.delta_ap
    assert low.counts != high.counts
    false_positives = [sum(x.counts.values()) - x.counts["missed"] for x in (low, high)]
    assert false_positives[0] > false_positives[1] > 0
    counted = det.select(det.score >= 0.7)
    true_positives = np.sum(classify_outcomes(counted, gt, 4).kind == TRUE_POSITIVE)
    assert high.images.tp.sum() == true_positives


def test_score_equal_to_the_threshold_counts():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.3, 1, 1, 10, 10]])
    assert analyze_errors(det, gt, ["a"], 1, score_threshold=0.3).images.tp.tolist() == [1]
    assert analyze_errors(det, gt, ["a"], 1, score_threshold=0.31).images.fn.tolist() == [1]


def test_best_and_worst_images():
    counts = ImageCounts(
        tp=np.array([5, 0, 0, 1, 9, 0]),
        fp=np.array([0, 0, 3, 1, 0, 0]),
        fn=np.array([0, 0, 1, 0, 0, 2]),
    )
    np.testing.assert_allclose(counts.f1(), [1, np.nan, 0, 2 / 3, 1, 0])
    # An image without objects and detections is neither.
    assert counts.worst(8) == [2, 5, 3]
    assert counts.best(8) == [4, 0, 3]
    assert counts.worst(1) == [2]
    assert counts.best(0) == []
