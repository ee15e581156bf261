import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ssd_jax.kernels import matching as kernel
from ssd_jax.ops import matching as reference
from ssd_jax.ops.boxes import cxcywh_to_xyxy, encode_boxes, pairwise_iou

RULES = ("bipartite", "per_object")
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [reference, kernel], ids=["reference", "kernel"])
VARIANCES = (0.1, 0.2)


@functools.partial(jax.jit, static_argnames=("ops", "threshold", "rule"))
def targets_of(ops, priors, boxes, labels, mask, threshold=0.5, rule="bipartite"):
    return ops.make_targets(
        priors, boxes, labels, mask, threshold=threshold, rule=rule, variances=VARIANCES
    )


@functools.partial(jax.jit, static_argnames=("ops", "threshold", "rule"))
def matches_of(ops, iou, valid, threshold, rule):
    """Return the index of each prior's box, or -1."""
    index, positive = ops.match_priors(iou, valid, threshold=threshold, rule=rule)
    return jnp.where(positive, index, -1)


def slow_matches(iou: np.ndarray, valid: np.ndarray, threshold: float, rule: str) -> np.ndarray:
    objects = [i for i in range(len(iou)) if valid[i]]
    priors = range(iou.shape[1])
    result = np.full(iou.shape[1], -1)
    if rule == "bipartite":
        free = list(objects)
        while True:
            best, pair = 1e-6, None
            for i in free:
                for j in priors:
                    if result[j] < 0 and iou[i, j] > best:
                        best, pair = iou[i, j], (i, j)
            if pair is None:
                break
            free.remove(pair[0])
            result[pair[1]] = pair[0]
    else:
        for i in objects:
            best, prior = 0, None
            for j in priors:
                if iou[i, j] > best:
                    best, prior = iou[i, j], j
            if prior is not None:
                result[prior] = i
    for j in priors:
        if result[j] < 0:
            best = 0
            for i in objects:
                if iou[i, j] >= threshold and iou[i, j] > best:
                    best, result[j] = iou[i, j], i
    return result


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [4, 1000], ids=["many ties", "few ties"])
def test_matches_equal_a_slow_loop(ops, rule, levels):
    rng = np.random.default_rng(levels)
    for _ in range(40):
        iou = (rng.integers(0, levels, (7, 23)) / levels).astype(np.float32)
        iou *= rng.random((7, 23)) < 0.4
        valid = rng.random(7) < 0.7
        expected = slow_matches(iou, valid, 0.6, rule)
        np.testing.assert_array_equal(matches_of(ops, iou, valid, 0.6, rule), expected)


@IMPLEMENTATIONS
@pytest.mark.parametrize("k", range(6))
def test_targets_equal_ssd_pytorch(ops, golden, voc_priors, k):
    case = np.load(golden / "matching.npz")
    boxes, labels = case[f"boxes_{k}"], case[f"labels_{k}"].astype(np.int32) + 1
    # Padded to one size, with values that must not matter.
    padding = 41 - len(boxes)
    boxes = np.pad(boxes, ((0, padding), (0, 0)), constant_values=np.nan)
    mask = np.arange(41) < len(labels)
    targets = targets_of(
        ops,
        voc_priors,
        boxes,
        np.pad(labels, (0, padding), constant_values=7),
        mask,
        rule="per_object",
    )
    np.testing.assert_array_equal(targets.label, case[f"conf_{k}"])
    positive = np.flatnonzero(targets.label)
    np.testing.assert_array_equal(positive, case[f"pos_index_{k}"])
    np.testing.assert_allclose(targets.loc[positive], case[f"loc_{k}"], rtol=0, atol=1e-4)


@IMPLEMENTATIONS
def test_matches_equal_caffe(ops, caffe):
    case = caffe["match"]
    iou = pairwise_iou(jnp.array(case["gt"]), jnp.array(case["priors"], jnp.float32))
    nothing = 1.1  # no IoU reaches it: Caffe's BIPARTITE, which has no second phase
    expected = {
        ("all", nothing): case["bipartite_all"],
        ("all", 0.3): case["per_prediction_all_overlap_0.3"],
        ("all", 0.001): case["per_prediction_all_overlap_0.001"],
        ("label 1", nothing): case["bipartite_label_1"],
        ("label 1", 0.3): case["per_prediction_label_1_overlap_0.3"],
    }
    labels = np.array(case["gt_labels"])
    for (which, threshold), matches in expected.items():
        valid = labels == 1 if which == "label 1" else labels > 0
        result = matches_of(ops, iou, valid, threshold, "bipartite")
        np.testing.assert_array_equal(result, matches, err_msg=f"{which}, {threshold}")


@IMPLEMENTATIONS
def test_two_boxes_with_the_same_best_prior(ops):
    iou = jnp.array([[0.4, 0.1, 0.0], [0.3, 0.2, 0.0]])
    both = np.array([True, True])
    # Caffe: the box with the larger IoU gets the prior, the other one its second best.
    np.testing.assert_array_equal(matches_of(ops, iou, both, 0.5, "bipartite"), [0, 1, -1])
    # ssd.pytorch: the later box gets it, the other one none.
    np.testing.assert_array_equal(matches_of(ops, iou, both, 0.5, "per_object"), [1, -1, -1])


@IMPLEMENTATIONS
def test_forced_match_stays_if_another_box_overlaps_the_prior_more(ops):
    iou = jnp.array([[0.9, 0.8], [0.7, 0.0]])
    both = np.array([True, True])
    np.testing.assert_array_equal(matches_of(ops, iou, both, 0.5, "bipartite"), [0, 0])
    np.testing.assert_array_equal(matches_of(ops, iou, both, 0.5, "per_object"), [1, 0])


@IMPLEMENTATIONS
def test_bipartite_matching_of_a_chain_of_dependent_pairs(ops):
    n = 9
    iou = np.zeros((n, n), np.float32)
    for i in range(n):
        iou[i, i] = 0.49 - 0.04 * i
        if i + 1 < n:
            iou[i + 1, i] = 0.47 - 0.04 * i
    every = np.ones(n, bool)
    result = matches_of(ops, iou, every, 0.5, "bipartite")
    np.testing.assert_array_equal(result, np.arange(n))
    np.testing.assert_array_equal(result, slow_matches(iou, every, 0.5, "bipartite"))


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
def test_box_without_area_is_not_matched_and_targets_are_finite(ops, voc_priors, rule):
    boxes = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.6, 0.7]])
    targets = targets_of(
        ops, voc_priors, boxes, jnp.array([3, 5]), jnp.array([True, True]), rule=rule
    )
    assert set(np.unique(targets.label)) == {0, 5}
    assert np.all(np.isfinite(targets.loc))


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
def test_boxes_below_the_threshold_still_get_a_prior(ops, voc_priors, rule):
    boxes = jnp.array([[0.5, 0.5, 0.51, 0.51], [0.1, 0.1, 0.12, 0.11]])
    targets = targets_of(
        ops, voc_priors, boxes, jnp.array([3, 5]), jnp.array([True, True]), rule=rule
    )
    assert sorted(np.asarray(targets.label)[np.flatnonzero(targets.label)]) == [3, 5]


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
def test_image_without_objects_is_background(ops, voc_priors, rule):
    padding = (np.full((3, 4), np.nan, np.float32), np.full(3, 9, np.int32), np.zeros(3, bool))
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    for boxes, labels, mask in (padding, nothing):
        loc, label = targets_of(ops, voc_priors, boxes, labels, mask, rule=rule)
        assert loc.dtype == jnp.float32
        assert label.dtype == jnp.int32
        np.testing.assert_array_equal(loc, np.zeros((8732, 4)))
        np.testing.assert_array_equal(label, np.zeros(8732))
    index, positive = ops.match_priors(
        jnp.zeros((0, 5)), jnp.zeros(0, bool), threshold=0.5, rule=rule
    )
    assert index.shape == positive.shape == (5,)
    assert not positive.any()


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("number", [np.nan, np.inf, 0.5, -1e30])
def test_values_in_padding_do_not_matter(ops, rule, number):
    rng = np.random.default_rng(4)
    priors = np.concatenate(
        [rng.uniform(0.2, 0.8, (50, 2)), rng.uniform(0.1, 0.4, (50, 2))], axis=1
    ).astype(np.float32)
    boxes = np.asarray(cxcywh_to_xyxy(priors[[3, 20, 44]])) + np.float32(0.01)
    labels = np.array([1, 2, 3], np.int32)
    alone = targets_of(ops, priors, boxes, labels, np.ones(3, bool), rule=rule)
    # Padding in front, too: a box's position must not matter.
    padded = np.full((6, 4), number, np.float32)
    padded[[1, 2, 4]] = boxes
    mask = np.isin(np.arange(6), [1, 2, 4])
    result = targets_of(
        ops, priors, padded, np.array([9, 1, 2, 9, 3, 9], np.int32), mask, rule=rule
    )
    np.testing.assert_array_equal(result.label, alone.label)
    np.testing.assert_array_equal(result.loc, alone.loc)
    assert alone.label.max() == 3


@IMPLEMENTATIONS
def test_padding_produces_no_intermediate_nan(ops):
    boxes = jnp.array([[0.1, 0.1, 0.6, 0.6], [np.nan] * 4])
    arguments = {"threshold": 0.5, "rule": "per_object", "variances": VARIANCES}
    priors = jnp.array([[0.4, 0.4, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2]])
    with jax.debug_nans(True):
        result = ops.make_targets(
            priors, boxes, jnp.array([2, 9]), jnp.array([True, False]), **arguments
        )
    np.testing.assert_array_equal(result.label, [2, 0])


@IMPLEMENTATIONS
@pytest.mark.parametrize("rule", RULES)
def test_jit_and_vmap_equal_eager(ops, golden, voc_priors, rule):
    case = np.load(golden / "matching.npz")
    priors = voc_priors[::3]
    boxes = np.stack([case["boxes_3"], case["boxes_4"][:8]])
    labels = np.stack([case["labels_3"], case["labels_4"][:8]]).astype(np.int32) + 1
    mask = np.array([[True] * 8, [True] * 5 + [False] * 3])
    arguments = {"threshold": 0.5, "rule": rule, "variances": VARIANCES}
    function = functools.partial(ops.make_targets, **arguments)
    batched = jax.jit(jax.vmap(function, (None, 0, 0, 0)))(priors, boxes, labels, mask)
    for k in range(2):
        eager = function(priors, boxes[k], labels[k], mask[k])
        np.testing.assert_array_equal(batched.label[k], eager.label)
        np.testing.assert_allclose(batched.loc[k], eager.loc, rtol=1e-5, atol=1e-5)
        iou = np.asarray(pairwise_iou(boxes[k], cxcywh_to_xyxy(priors)))
        slow = slow_matches(iou, mask[k], 0.5, rule)
        np.testing.assert_array_equal(eager.label, np.where(slow >= 0, labels[k][slow], 0))
        positive = slow >= 0
        offsets = encode_boxes(boxes[k][slow[positive]], priors[positive], VARIANCES)
        np.testing.assert_allclose(eager.loc[positive], offsets, rtol=1e-5, atol=1e-5)


@IMPLEMENTATIONS
def test_unknown_rule_is_reported(ops, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would report it first
    with pytest.raises(ValueError, match="'bipartite' or 'per_object'"):
        ops.match_priors(jnp.zeros((1, 2)), jnp.ones(1, bool), threshold=0.5, rule="best")
