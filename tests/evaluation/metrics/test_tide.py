import math

import numpy as np
import pytest

from ssd_jax.evaluation.metrics.tide import (
    ERRORS,
    OUTCOMES,
    confusion_matrix,
    count_errors,
    find_outcomes,
    gains,
)
from ssd_jax.evaluation.metrics.voc_ap import GroundTruth, evaluate_voc
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
    """Of inclusive pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def by_loop(det, gt):
    """Outcome names, objects and the set of found objects, one detection at a time."""
    kinds, objects, found = [None] * len(det.label), [-1] * len(det.label), set()
    ranked = sorted(range(len(det.label)), key=lambda i: -det.score[i])
    for i in ranked:
        here = [k for k in range(len(gt.label)) if gt.image[k] == det.image[i]]
        overlap = {k: iou(det.boxes[i], gt.boxes[k]) for k in here}
        same = max((k for k in here if gt.label[k] == det.label[i]), key=overlap.get, default=None)
        other = max((k for k in here if gt.label[k] != det.label[i]), key=overlap.get, default=None)
        of_same = 0 if same is None else overlap[same]
        of_other = 0 if other is None else overlap[other]
        if of_same >= 0.5 and gt.difficult[same]:
            kinds[i] = "set aside"
        elif of_same >= 0.5 and same not in found:
            kinds[i], objects[i] = "right", same
            found.add(same)
        elif of_same >= 0.5:
            kinds[i] = "duplicate"
        elif of_same >= 0.1:
            kinds[i], objects[i] = "poor box", same
        elif of_other >= 0.5:
            kinds[i], objects[i] = "wrong class", other
        elif of_other >= 0.1:
            kinds[i] = "wrong class and poor box"
        else:
            kinds[i] = "background"
    return kinds, objects, found


@pytest.mark.parametrize("seed", range(50))
def test_outcomes_equal_the_loop(seed):
    det, gt = errors_case(seed)
    got = find_outcomes(det, gt, CLASSES)
    kinds, objects, found = by_loop(det, gt)
    assert [OUTCOMES[k] for k in got.kind] == kinds
    assert got.object.tolist() == objects
    assert set(np.flatnonzero(got.found)) == found
    missed = {
        k
        for k in range(len(gt.label))
        if not gt.difficult[k] and k not in found and k not in objects
    }
    assert set(np.flatnonzero(got.missed)) == missed
    counts = count_errors(got)
    assert list(counts) == list(ERRORS)
    assert counts == {**{k: kinds.count(k) for k in OUTCOMES[2:]}, "missed": len(missed)}


def test_the_random_cases_reach_every_outcome():
    seen = {kind for seed in range(50) for kind in by_loop(*errors_case(seed))[0]}
    assert seen == set(OUTCOMES)


def ap_by_loop(rows, objects):
    """Area under the precision that is made to fall, of (score, right) by falling score."""
    if objects == 0:
        return 1.0
    points, right = [], 0
    for n, (_, is_right) in enumerate(rows, start=1):
        right += is_right
        points.append((right / objects, right / n))
    area, before = 0.0, 0.0
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[k:])
        before = recall
    return area


def gains_by_loop(det, gt):
    """Each error mended by its rule, and mean AP from the start."""
    kinds, objects, found = by_loop(det, gt)
    missed = [
        k
        for k in range(len(gt.label))
        if not gt.difficult[k] and k not in found and k not in objects
    ]
    ranked = sorted(range(len(kinds)), key=lambda i: -det.score[i])

    def mean_ap(mend):
        rows = {label: [] for label in range(1, CLASSES + 1)}
        left = dict.fromkeys(rows, 0)
        for k in range(len(gt.label)):
            left[gt.label[k]] += not gt.difficult[k]
        asked = [label for label in rows if left[label]]
        taken = set(found)
        for i in ranked:
            label, right = det.label[i], kinds[i] == "right"
            if kinds[i] == "set aside":
                continue
            if kinds[i] == mend:
                k = objects[i]
                if k < 0 or k in taken or gt.difficult[k]:
                    continue
                taken.add(k)
                label, right = gt.label[k], True
            rows[label].append((det.score[i], right))
        if mend == "missed":
            for k in missed:
                left[gt.label[k]] -= 1
        aps = [ap_by_loop(rows[label], left[label]) for label in asked]
        return sum(aps) / len(aps) if aps else math.nan

    return {kind: mean_ap(kind) - mean_ap(None) for kind in ERRORS}, mean_ap(None)


@pytest.mark.parametrize("seed", range(50))
def test_gains_equal_the_loop(seed):
    det, gt = errors_case(seed)
    want, before = gains_by_loop(det, gt)
    got = gains(det, gt, CLASSES, find_outcomes(det, gt, CLASSES))
    assert list(got) == list(ERRORS)
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=0, atol=1e-12)
    # What is gained is gained on the figure that is reported.
    known = evaluate_voc(det, gt, ["a", "b", "c", "d"]).mean_ap
    np.testing.assert_allclose(before, known, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(50))
def test_confusions_equal_the_loop(seed):
    det, gt = errors_case(seed)
    kinds, objects, found = by_loop(det, gt)
    want = np.zeros((CLASSES + 1, CLASSES + 1), int)
    taken = set(found)
    for i in sorted(range(len(kinds)), key=lambda i: -det.score[i]):
        k, told = objects[i], det.label[i]
        if kinds[i] == "right":
            want[told, told] += 1
        elif kinds[i] == "wrong class" and k not in taken and not gt.difficult[k]:
            want[gt.label[k], told] += 1
            taken.add(k)
        elif kinds[i] != "set aside":
            want[0, told] += 1
    for k in range(len(gt.label)):
        want[gt.label[k], 0] += k not in taken and not gt.difficult[k]
    got = confusion_matrix(det, gt, CLASSES, find_outcomes(det, gt, CLASSES))
    np.testing.assert_array_equal(got, want)
    # Every object that is asked for is in its row, once.
    asked = np.bincount(gt.label[~gt.difficult], minlength=CLASSES + 1)
    np.testing.assert_array_equal(got.sum(1)[1:], asked[1:])


def test_perfect_detections_have_no_error():
    gt = truth([[0, 1, 1, 1, 10, 10, 0], [0, 2, 30, 30, 60, 60, 0], [1, 1, 5, 5, 20, 9, 0]])
    det = table(np.column_stack([gt.image, gt.label, [0.9, 0.8, 0.7], gt.boxes]))
    outcomes = find_outcomes(det, gt, 2)
    assert set(count_errors(outcomes).values()) == {0}
    assert set(gains(det, gt, 2, outcomes).values()) == {0.0}
    np.testing.assert_array_equal(
        confusion_matrix(det, gt, 2, outcomes), [[0, 0, 0], [0, 2, 0], [0, 0, 1]]
    )


@pytest.mark.parametrize("objects", [0, 2])
@pytest.mark.parametrize("found", [0, 2])
def test_nothing_found_and_nothing_there(objects, found):
    gt = truth([[0, 1, 1, 1, 10, 10, 0], [1, 1, 5, 5, 20, 9, 0]][:objects])
    det = table([[0, 1, 0.9, 50, 50, 60, 60], [2, 1, 0.8, 1, 1, 9, 9]][:found])
    outcomes = find_outcomes(det, gt, 1)
    assert count_errors(outcomes)["background"] == found
    assert count_errors(outcomes)["missed"] == objects
    gained = gains(det, gt, 1, outcomes)
    # Nothing is left to find where all objects were missed; without any there is no figure.
    assert gained["missed"] == 1 if objects else math.isnan(gained["missed"])


def test_a_higher_threshold_makes_poor_boxes():
    gt = truth([[0, 1, 1, 1, 10, 10, 0]])
    det = table([[0, 1, 0.9, 1, 1, 10, 14]])
    assert OUTCOMES[find_outcomes(det, gt, 1).kind[0]] == "right"
    strict = find_outcomes(det, gt, 1, iou_threshold=0.8)
    assert OUTCOMES[strict.kind[0]] == "poor box"
    assert not strict.missed.any()
    assert gains(det, gt, 1, strict)["poor box"] == 1


def test_tables_without_rows():
    gt = GroundTruth([], [], [], [])
    outcomes = find_outcomes(table([]), gt, 0)
    assert set(count_errors(outcomes).values()) == {0}
    assert confusion_matrix(table([]), gt, 0, outcomes).tolist() == [[0]]


def test_the_threshold_itself_is_enough():
    gt = truth([[0, 1, 1, 1, 10, 10, 0], [1, 2, 1, 1, 10, 10, 0]])
    half = [1, 1, 10, 20]
    det = table([[0, 1, 0.9, *half], [0, 1, 0.8, *half], [1, 1, 0.7, *half]])
    outcomes = find_outcomes(det, gt, 2)
    assert [OUTCOMES[k] for k in outcomes.kind] == ["right", "duplicate", "wrong class"]


def test_of_equal_objects_the_first_is_the_one_of_a_wrong_class():
    gt = truth([[0, 3, 1, 1, 10, 10, 0], [0, 2, 1, 1, 10, 10, 0]])
    det = table([[0, 1, 0.9, 1, 1, 10, 10]])
    assert find_outcomes(det, gt, 3).object.tolist() == [0]
