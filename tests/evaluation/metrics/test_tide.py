import math

import numpy as np
import pytest

from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.metrics.tide import (
    ERRORS,
    OUTCOMES,
    classify_outcomes,
    confusion_matrix,
    count_errors,
    delta_ap,
)
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from tests.evaluation.metrics.test_voc_ap import random_case, table, truth

CLASSES = 4


def errors_case(seed):
    """A random case in which every other detection lies on an object of its image and class."""
    det, gt = random_case(seed)
    if len(gt.label):
        rng = np.random.default_rng(seed)
        rows = rng.random(len(det.label)) < 0.5
        k = rng.integers(0, len(gt.label), rows.sum())
        det.image[rows] = gt.image[k]
        det.label[rows] = gt.label[k]
        det.boxes[rows] = gt.boxes[k]
    return det, gt


def iou(a, b):
    """IoU of two boxes in continuous pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def by_loop(det, gt):
    """Outcome names, objects and the set of detected objects, one detection at a time."""
    kinds, objects, detected = [None] * len(det.label), [-1] * len(det.label), set()
    ranked = sorted(range(len(det.label)), key=lambda i: -det.score[i])
    for i in ranked:
        here = [k for k in range(len(gt.label)) if gt.image[k] == det.image[i]]
        overlap = {k: iou(det.boxes[i], gt.boxes[k]) for k in here}
        same = max((k for k in here if gt.label[k] == det.label[i]), key=overlap.get, default=None)
        other = max((k for k in here if gt.label[k] != det.label[i]), key=overlap.get, default=None)
        of_same = 0 if same is None else overlap[same]
        of_other = 0 if other is None else overlap[other]
        if of_same >= 0.5 and gt.difficult[same]:
            kinds[i] = "ignored"
        elif of_same >= 0.5 and same not in detected:
            kinds[i], objects[i] = "true positive", same
            detected.add(same)
        elif of_same >= 0.5:
            kinds[i] = "duplicate"
        elif of_same >= 0.1:
            kinds[i], objects[i] = "localization", same
        elif of_other >= 0.5:
            kinds[i], objects[i] = "classification", other
        elif of_other >= 0.1:
            kinds[i] = "both"
        else:
            kinds[i] = "background"
    return kinds, objects, detected


@pytest.mark.parametrize("seed", range(50))
def test_outcomes_equal_the_loop(seed):
    det, gt = errors_case(seed)
    got = classify_outcomes(det, gt, CLASSES)
    kinds, objects, detected = by_loop(det, gt)
    assert [OUTCOMES[k] for k in got.kind] == kinds
    assert got.object.tolist() == objects
    assert set(np.flatnonzero(got.detected)) == detected
    missed = {
        k
        for k in range(len(gt.label))
        if not gt.difficult[k] and k not in detected and k not in objects
    }
    assert set(np.flatnonzero(got.missed)) == missed
    counts = count_errors(got)
    assert list(counts) == list(ERRORS)
    assert counts == {**{k: kinds.count(k) for k in OUTCOMES[2:]}, "missed": len(missed)}


def test_random_cases_reach_every_outcome():
    seen = {kind for seed in range(50) for kind in by_loop(*errors_case(seed))[0]}
    assert seen == set(OUTCOMES)


def ap_by_loop(rows, objects):
    """Area under the decreasing precision of (score, true positive) by descending score."""
    if objects == 0:
        return 1.0
    points, tp = [], 0
    for n, (_, is_tp) in enumerate(rows, start=1):
        tp += is_tp
        points.append((tp / objects, tp / n))
    area, before = 0.0, 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[k:])
        before = recall
    return area


def delta_ap_by_loop(det, gt):
    """Correct the errors of each type by its rule; return the increases and the mean AP before."""
    kinds, objects, detected = by_loop(det, gt)
    missed = [
        k
        for k in range(len(gt.label))
        if not gt.difficult[k] and k not in detected and k not in objects
    ]
    ranked = sorted(range(len(kinds)), key=lambda i: -det.score[i])

    def mean_ap(corrected):
        rows = {label: [] for label in range(CLASSES)}
        left = dict.fromkeys(rows, 0)
        for k in range(len(gt.label)):
            left[gt.label[k]] += not gt.difficult[k]
        required = [label for label in rows if left[label]]
        taken = set(detected)
        for i in ranked:
            label, is_tp = det.label[i], kinds[i] == "true positive"
            if kinds[i] == "ignored":
                continue
            if kinds[i] == corrected:
                k = objects[i]
                if k < 0 or k in taken or gt.difficult[k]:
                    continue
                taken.add(k)
                label, is_tp = gt.label[k], True
            rows[label].append((det.score[i], is_tp))
        if corrected == "missed":
            for k in missed:
                left[gt.label[k]] -= 1
        aps = [ap_by_loop(rows[label], left[label]) for label in required]
        return sum(aps) / len(aps) if aps else math.nan

    return {kind: mean_ap(kind) - mean_ap(None) for kind in ERRORS}, mean_ap(None)


@pytest.mark.parametrize("seed", range(50))
def test_delta_ap_equals_the_loop(seed):
    det, gt = errors_case(seed)
    expected, before = delta_ap_by_loop(det, gt)
    got = delta_ap(det, gt, CLASSES, classify_outcomes(det, gt, CLASSES))
    assert list(got) == list(ERRORS)
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=0, atol=1e-12)
    # The increases are relative to the reported mean AP.
    reported = evaluate_voc(det, gt, ["a", "b", "c", "d"]).mean_ap
    np.testing.assert_allclose(before, reported, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(50))
def test_confusion_matrix_equals_the_loop(seed):
    det, gt = errors_case(seed)
    kinds, objects, detected = by_loop(det, gt)
    expected = np.zeros((CLASSES + 1, CLASSES + 1), int)
    taken = set(detected)
    for i in sorted(range(len(kinds)), key=lambda i: -det.score[i]):
        k, label = objects[i], det.label[i]
        if kinds[i] == "true positive":
            expected[label, label] += 1
        elif kinds[i] == "classification" and k not in taken and not gt.difficult[k]:
            expected[gt.label[k], label] += 1
            taken.add(k)
        elif kinds[i] != "ignored":
            expected[CLASSES, label] += 1
    for k in range(len(gt.label)):
        expected[gt.label[k], CLASSES] += k not in taken and not gt.difficult[k]
    got = confusion_matrix(det, gt, CLASSES, classify_outcomes(det, gt, CLASSES))
    np.testing.assert_array_equal(got, expected)
    # Every object that is not difficult is in the row of its class, once.
    objects = np.bincount(gt.label[~gt.difficult], minlength=CLASSES)
    np.testing.assert_array_equal(got.sum(1)[:CLASSES], objects)


def test_perfect_detections_have_no_error():
    gt = truth([[0, 0, 1, 1, 10, 10, 0], [0, 1, 30, 30, 60, 60, 0], [1, 0, 5, 5, 20, 9, 0]])
    det = DetectionTable(gt.image, gt.label, [0.9, 0.8, 0.7], gt.boxes)
    outcomes = classify_outcomes(det, gt, 2)
    assert set(count_errors(outcomes).values()) == {0}
    assert set(delta_ap(det, gt, 2, outcomes).values()) == {0.0}
    np.testing.assert_array_equal(
        confusion_matrix(det, gt, 2, outcomes), [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    )


@pytest.mark.parametrize("objects", [0, 2])
@pytest.mark.parametrize("detections", [0, 2])
def test_no_true_positives(objects, detections):
    gt = truth([[0, 0, 1, 1, 10, 10, 0], [1, 0, 5, 5, 20, 9, 0]][:objects])
    det = table([[0, 0, 0.9, 50, 50, 60, 60], [2, 0, 0.8, 1, 1, 9, 9]][:detections])
    outcomes = classify_outcomes(det, gt, 1)
    assert count_errors(outcomes)["background"] == detections
    assert count_errors(outcomes)["missed"] == objects
    increases = delta_ap(det, gt, 1, outcomes)
    # If all objects are missed, none is left to detect; without objects there is no AP.
    assert increases["missed"] == 1 if objects else math.isnan(increases["missed"])


def test_higher_iou_threshold_gives_localization_errors():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.9, 1, 1, 10, 14]])
    assert OUTCOMES[classify_outcomes(det, gt, 1).kind[0]] == "true positive"
    strict = classify_outcomes(det, gt, 1, iou_threshold=0.8)
    assert OUTCOMES[strict.kind[0]] == "localization"
    assert not strict.missed.any()
    assert delta_ap(det, gt, 1, strict)["localization"] == 1


def test_tables_without_rows():
    gt = GroundTruth([], [], [], [])
    outcomes = classify_outcomes(table([]), gt, 0)
    assert set(count_errors(outcomes).values()) == {0}
    assert confusion_matrix(table([]), gt, 0, outcomes).tolist() == [[0]]


def test_iou_equal_to_the_threshold_suffices():
    gt = truth([[0, 0, 1, 1, 10, 10, 0], [1, 1, 1, 1, 10, 10, 0]])
    half = [1, 1, 10, 20]
    det = table([[0, 0, 0.9, *half], [0, 0, 0.8, *half], [1, 0, 0.7, *half]])
    outcomes = classify_outcomes(det, gt, 2)
    kinds = [OUTCOMES[k] for k in outcomes.kind]
    assert kinds == ["true positive", "duplicate", "classification"]


def test_classification_error_has_the_first_of_equal_objects():
    gt = truth([[0, 2, 1, 1, 10, 10, 0], [0, 1, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.9, 1, 1, 10, 10]])
    assert classify_outcomes(det, gt, 3).object.tolist() == [0]
