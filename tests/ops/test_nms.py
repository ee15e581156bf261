import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.kernels import nms as kernel
from ssd_jax.ops import nms as reference
from ssd_jax.ops.boxes import decode_boxes, pairwise_iou
from ssd_jax.ops.nms import Detections

SEED = 20161208  # of the golden figures
OPTIONS = {
    "score_threshold": 0.3,
    "iou_threshold": 0.45,
    "topk_candidates": 10,
    "detections_per_image": 12,
}

IMPLEMENTATIONS = pytest.mark.parametrize("ops", [reference, kernel], ids=["reference", "kernel"])


@functools.partial(jax.jit, static_argnames=("ops", "topk_candidates", "detections_per_image"))
def detect(ops, boxes, scores, **options):
    return ops.multiclass_nms(boxes, scores, **options)


@functools.partial(jax.jit, static_argnames="ops")
def jit_mask(ops, boxes, valid, iou_threshold):
    return ops.nms_mask(boxes, valid, iou_threshold)


def slow_mask(iou: np.ndarray, valid: np.ndarray, threshold: float) -> np.ndarray:
    keep = np.zeros(len(iou), bool)
    for i in range(len(iou)):
        keep[i] = valid[i] and not any(keep[j] and iou[i, j] > threshold for j in range(i))
    return keep


def slow_nms(
    boxes, scores, *, score_threshold, iou_threshold, topk_candidates, detections_per_image
) -> Detections:
    iou = np.asarray(pairwise_iou(boxes, boxes))
    rows = []
    for label in range(1, scores.shape[1]):
        order = [j for j in range(len(boxes)) if scores[j, label] > score_threshold]
        order = sorted(order, key=lambda j: (-scores[j, label], j))[:topk_candidates]
        keep = slow_mask(iou[np.ix_(order, order)], np.ones(len(order), bool), iou_threshold)
        rows += [(-scores[j, label], label, rank, j) for rank, j in enumerate(order) if keep[rank]]
    rows = sorted(rows)[:detections_per_image]
    result = Detections(
        np.zeros((detections_per_image, 4), np.float32),
        np.zeros(detections_per_image, np.float32),
        np.zeros(detections_per_image, np.int32),
        np.int32(len(rows)),
    )
    for k, (score, label, _, j) in enumerate(rows):
        result.boxes[k], result.scores[k], result.labels[k] = boxes[j], -score, label
    return result


def random_case(rng, priors=40, classes=4, levels=1000):
    corner = rng.uniform(0, 0.7, (priors, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (priors, 2))], axis=1)
    scores = rng.integers(0, levels, (priors, classes)) / levels
    return boxes.astype(np.float32), scores.astype(np.float32)


def assert_same(result: Detections, expected: Detections) -> None:
    for name in Detections._fields:
        ours, theirs = np.asarray(getattr(result, name)), getattr(expected, name)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


@IMPLEMENTATIONS
@pytest.mark.parametrize("levels", [4, 1000], ids=["many ties", "few ties"])
@pytest.mark.parametrize(
    ("topk_candidates", "detections_per_image"), [(10, 12), (100, 500), (1, 2), (40, 7)], ids=str
)
def test_detections_equal_a_slow_loop(ops, levels, topk_candidates, detections_per_image):
    rng = np.random.default_rng(levels)
    options = OPTIONS | {
        "topk_candidates": topk_candidates,
        "detections_per_image": detections_per_image,
    }
    for _ in range(8):
        case = random_case(rng, levels=levels)
        assert_same(detect(ops, *case, **options), slow_nms(*case, **options))


@IMPLEMENTATIONS
@pytest.mark.parametrize("share", [0.05, 0.2, 0.9], ids=["few", "some", "many"])
@pytest.mark.parametrize("levels", [50, 100_000], ids=["many ties", "few ties"])
def test_many_candidates(ops, levels, share):
    case = random_case(np.random.default_rng(0), priors=500, levels=levels)
    options = OPTIONS | {
        "topk_candidates": 150,
        "detections_per_image": 200,
        "score_threshold": 1 - share,
    }
    assert_same(detect(ops, *case, **options), slow_nms(*case, **options))


@IMPLEMENTATIONS
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 200])
def test_nms_mask_equals_a_slow_loop(ops, count):
    rng = np.random.default_rng(count)
    corner = rng.uniform(0, 0.5, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (count, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    for share in (0.3, 1.0):
        valid = rng.random(count) < share
        expected = slow_mask(np.asarray(pairwise_iou(boxes, boxes)), valid, 0.45)
        np.testing.assert_array_equal(jit_mask(ops, boxes, valid, 0.45), expected)


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (12, 2), elements=st.floats(0, 0.5, width=32)),
    hnp.arrays(np.float32, (12, 2), elements=st.floats(0, 0.5, width=32)),
    hnp.arrays(np.bool_, 12),
)
def test_kept_boxes_do_not_overlap_and_suppressed_ones_overlap_a_kept_box(
    ops, corners, sides, valid
):
    boxes = np.concatenate([corners, corners + sides], axis=1)
    keep = np.asarray(jit_mask(ops, boxes, valid, 0.45))
    iou = np.asarray(pairwise_iou(boxes, boxes))
    overlaps = (iou > 0.45) & ~np.eye(12, dtype=bool)
    assert not overlaps[np.ix_(keep, keep)].any()
    assert not keep[~valid].any()
    for i in np.flatnonzero(valid & ~keep):
        assert overlaps[i, :i][keep[:i]].any()
    np.testing.assert_array_equal(keep, slow_mask(iou, valid, 0.45))


@IMPLEMENTATIONS
def test_chain_of_boxes_keeps_every_other(ops):
    left = np.arange(75) * 0.3
    boxes = np.stack([left, np.zeros(75), left + 1, np.ones(75)], axis=1).astype(np.float32)
    keep = jit_mask(ops, boxes, np.ones(75, bool), 0.5)  # neighbours overlap by 0.7 / 1.3
    np.testing.assert_array_equal(keep, np.arange(75) % 2 == 0)
    # A box that is not valid suppresses nothing, so the rhythm starts again behind it.
    keep = jit_mask(ops, boxes, np.arange(75) != 4, 0.5)
    np.testing.assert_array_equal(np.flatnonzero(keep), [0, 2, *range(5, 75, 2)])


@IMPLEMENTATIONS
def test_detections_equal_ssd_pytorch(ops, golden, voc_priors):
    case = np.load(golden / "detect.npz")
    rng = np.random.default_rng([SEED, 6])
    loc = rng.normal(0, 0.7, (2, 8732, 4)).astype(np.float32)
    logits = rng.normal(0, 1, (2, 8732, 21)).astype(np.float32)
    logits[..., 0] += 4
    hot = rng.random((2, 8732)) < 0.02
    logits[hot, rng.integers(1, 21, hot.sum())] += 7

    @jax.jit
    @jax.vmap
    def detect_images(loc, logits):
        return ops.multiclass_nms(
            decode_boxes(loc, voc_priors, (0.1, 0.2)),
            jax.nn.softmax(logits),
            score_threshold=0.01,
            iou_threshold=0.45,
            topk_candidates=200,
            detections_per_image=21 * 200,
        )

    result = jax.tree.map(np.asarray, detect_images(loc, logits))
    np.testing.assert_array_equal(result.count, case["counts"].sum(axis=1))
    for image in range(2):
        for label in range(1, 21):
            chosen = result.labels[image] == label
            count = case["counts"][image, label]
            assert chosen.sum() == count
            ours = np.column_stack([result.scores[image][chosen], result.boxes[image][chosen]])
            np.testing.assert_allclose(ours, case["out"][image, label, :count], atol=1e-5)


@IMPLEMENTATIONS
def test_detections_equal_caffe(ops, caffe):
    boxes = jnp.array(caffe["nms"]["boxes"])
    scores = np.array(caffe["nms"]["scores"], np.float32)
    for case in caffe["nms"]["cases"]:
        result = detect(
            ops,
            boxes,
            np.stack([1 - scores, scores], axis=1),
            score_threshold=case["score_threshold"],
            iou_threshold=case["nms_threshold"],
            topk_candidates=len(scores) if case["top_k"] < 0 else case["top_k"],
            detections_per_image=4,
        )
        assert result.count == len(case["kept"]), case
        np.testing.assert_array_equal(result.scores[: len(case["kept"])], scores[case["kept"]])


@IMPLEMENTATIONS
def test_thresholds_are_strict(ops):
    half = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.4375]], np.float32)
    np.testing.assert_array_equal(jit_mask(ops, half[:2], np.ones(2, bool), 0.5), [True, True])
    np.testing.assert_array_equal(jit_mask(ops, half[1:], np.ones(2, bool), 0.5), [True, False])
    scores = np.array([[0, 0.5], [0, 0.75]], np.float32)
    options = OPTIONS | {"score_threshold": 0.5, "iou_threshold": 1.0}
    assert detect(ops, half[:2], scores, **options).count == 1


@IMPLEMENTATIONS
def test_no_candidates_gives_all_padding(ops):
    boxes, scores = random_case(np.random.default_rng(1))
    result = detect(ops, boxes, scores * 0.2, **OPTIONS)
    assert result.count == 0
    for part in (result.boxes, result.scores, result.labels):
        np.testing.assert_array_equal(part, np.zeros_like(part))
    assert result.boxes.shape == (12, 4)


@IMPLEMENTATIONS
def test_boxes_without_area_and_nan_scores(ops):
    boxes = np.array([[0.5, 0.5, 0.5, 0.5]] * 2 + [[0, 0, np.inf, np.inf]] * 2, np.float32)
    scores = np.array([[0, 0.9], [0, 0.8], [0, 0.7], [0, np.nan]], np.float32)
    result = detect(ops, boxes, scores, **OPTIONS)
    assert result.count == 3
    np.testing.assert_array_equal(result.scores[:4], np.float32([0.9, 0.8, 0.7, 0]))


@IMPLEMENTATIONS
def test_jit_and_vmap_equal_eager(ops):
    rng = np.random.default_rng(2)
    cases = [random_case(rng) for _ in range(3)]
    boxes, scores = (np.stack(part) for part in zip(*cases, strict=True))
    scores[1] *= 0.1  # an image without detections beside others
    batched = jax.jit(jax.vmap(functools.partial(ops.multiclass_nms, **OPTIONS)))(boxes, scores)
    for k in range(3):
        eager = ops.multiclass_nms(boxes[k], scores[k], **OPTIONS)
        assert_same(jax.tree.map(lambda x, k=k: x[k], batched), eager)
        assert eager.scores.dtype == jnp.float32
        assert eager.labels.dtype == eager.count.dtype == jnp.int32


@IMPLEMENTATIONS
def test_background_as_only_class_is_an_error(ops):
    with pytest.raises(ValueError, match="at least one class"):
        ops.multiclass_nms(jnp.zeros((3, 4)), jnp.zeros((3, 1)), **OPTIONS)
