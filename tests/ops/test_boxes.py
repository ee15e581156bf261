import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.ops.boxes import (
    cxcywh_to_xyxy,
    decode_boxes,
    encode_boxes,
    pairwise_iou,
    xyxy_to_cxcywh,
)

pytestmark = pytest.mark.smoke

VARIANCES = (0.1, 0.2)


def boxes_of(n: int, smallest: float = 0.0) -> st.SearchStrategy[np.ndarray]:
    """n boxes [n, 4] (xyxy) in the image with sides of at least `smallest`."""
    corners = hnp.arrays(np.float32, (n, 2), elements=st.floats(0, 0.5, width=32))
    sides = hnp.arrays(
        np.float32, (n, 2), elements=st.floats(np.float32(smallest).item(), 0.5, width=32)
    )
    return st.tuples(corners, sides).map(lambda c: np.concatenate([c[0], c[0] + c[1]], axis=1))


def slow_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.zeros((len(a), len(b)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.astype(np.float64)):
        for j, (bx1, by1, bx2, by2) in enumerate(b.astype(np.float64)):
            width = min(ax2, bx2) - max(ax1, bx1)
            height = min(ay2, by2) - max(ay1, by1)
            if width > 0 and height > 0:
                both = width * height
                union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both
                result[i, j] = both / union
    return result


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corners = np.sort(rng.uniform(0, 1, (n, 2, 2)), axis=1)
    return corners.reshape(n, 4).astype(np.float32)


def test_conversion_of_a_box():
    xyxy = jnp.array([[[0.1, 0.2, 0.5, 0.4]]])
    np.testing.assert_allclose(xyxy_to_cxcywh(xyxy), [[[0.3, 0.3, 0.4, 0.2]]], atol=1e-7)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(xyxy)), xyxy, atol=1e-7)


def test_iou_equals_a_double_loop():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 20)
    np.testing.assert_allclose(pairwise_iou(a, b), slow_iou(a, b), atol=1e-6)


def test_iou_equals_caffe(caffe):
    case = caffe["jaccard"]
    iou = pairwise_iou(jnp.array([case["box"]]), jnp.array(case["others"], jnp.float32))
    np.testing.assert_allclose(iou[0], case["iou"], atol=1e-6)


def test_pairwise_iou_equals_caffe(caffe):
    case = caffe["match"]
    iou = pairwise_iou(jnp.array(case["gt"]), jnp.array(case["priors"], jnp.float32))
    np.testing.assert_allclose(iou.max(axis=0), case["overlaps_all_labels"], atol=1e-6)
    np.testing.assert_allclose(iou[0], case["overlaps_label_1"], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(boxes_of(6), boxes_of(5))
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    iou = np.asarray(pairwise_iou(a, b))
    assert np.all((iou >= 0) & (iou <= 1))
    np.testing.assert_array_equal(iou, np.asarray(pairwise_iou(b, a)).T)


@settings(deadline=None, max_examples=60)
@given(boxes_of(6, smallest=1e-4))
def test_iou_of_a_box_with_itself_is_1(boxes):
    np.testing.assert_array_equal(np.diag(pairwise_iou(boxes, boxes)), 1)


def test_box_without_area_has_zero_iou_and_gradient():
    point, line, inverted = [0.5, 0.5, 0.5, 0.5], [0.2, 0.5, 0.8, 0.5], [0.8, 0.8, 0.2, 0.2]
    flat = jnp.array([point, line, inverted])
    full = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(pairwise_iou(flat, full), np.zeros((3, 1)))
    np.testing.assert_array_equal(pairwise_iou(flat, flat), np.zeros((3, 3)))
    gradient = jax.jit(jax.grad(lambda b: pairwise_iou(b, b).sum()))(flat)
    np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


def test_iou_is_bit_identical_under_jit(golden, voc_priors):
    """Symmetric priors tie; contracted arithmetic would break the ties by compilation."""
    boxes = np.load(golden / "matching.npz")["boxes_5"]
    priors = np.asarray(cxcywh_to_xyxy(voc_priors))
    eager = np.asarray(pairwise_iou(boxes, priors))
    iou, best = jax.jit(lambda a, b: (pairwise_iou(a, b), pairwise_iou(a, b).max(axis=1)))(
        boxes, priors
    )
    np.testing.assert_array_equal(iou, eager)
    np.testing.assert_array_equal(best, eager.max(axis=1))


def test_offsets_equal_caffe(caffe):
    for name in ("encode center-size", "decode center-size"):
        case = caffe[name]
        prior = xyxy_to_cxcywh(jnp.array([case["prior"]]))
        variances = (case["variance"][0], case["variance"][2])
        box, offsets = jnp.array([case["box"]], jnp.float32), jnp.array([case["encoded"]])
        np.testing.assert_allclose(encode_boxes(box, prior, variances), offsets, atol=1e-5)
        np.testing.assert_allclose(decode_boxes(offsets, prior, variances), box, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(boxes_of(5, smallest=1e-3), boxes_of(5, smallest=1e-2))
def test_decode_inverts_encode(boxes, priors):
    priors = xyxy_to_cxcywh(priors)
    offsets = encode_boxes(boxes, priors, VARIANCES)
    np.testing.assert_allclose(decode_boxes(offsets, priors, VARIANCES), boxes, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (5, 4), elements=st.floats(-4, 4, width=32)),
    boxes_of(5, smallest=0.0625),
)
def test_encode_inverts_decode(offsets, priors):
    priors = xyxy_to_cxcywh(priors)
    again = encode_boxes(decode_boxes(offsets, priors, VARIANCES), priors, VARIANCES)
    np.testing.assert_allclose(again, offsets, atol=1e-3)


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [0.1, 0.3, 0.7, 0.3], [0.6, 0.6, 0.4, 0.4]])
def test_box_without_area_has_finite_offsets_and_gradient(box):
    priors = jnp.array([[0.5, 0.5, 0.2, 0.2]])
    assert np.all(np.isfinite(encode_boxes(jnp.array([box]), priors, VARIANCES)))
    gradient = jax.grad(lambda b: encode_boxes(b, priors, VARIANCES).sum())(jnp.array([box]))
    assert np.all(np.isfinite(gradient))


def test_jit_and_vmap_equal_eager():
    rng = np.random.default_rng(1)
    boxes = np.stack([random_boxes(rng, 7), random_boxes(rng, 7)])
    priors = np.asarray(xyxy_to_cxcywh(random_boxes(rng, 7)))
    for function in (encode_boxes, decode_boxes):
        batched = jax.jit(jax.vmap(lambda x, f=function: f(x, priors, VARIANCES)))(boxes)
        for k in range(2):
            eager = function(boxes[k], priors, VARIANCES)
            np.testing.assert_allclose(batched[k], eager, rtol=1e-5, atol=1e-5)


def test_max_box_scale_limits_the_sides():
    priors = np.array([[0.5, 0.5, 0.1, 0.2]], np.float32)
    offsets = np.array([[0, 0, 20, 1]], np.float32)
    limited = np.asarray(decode_boxes(offsets, priors, VARIANCES, max_box_scale=5))[0]
    np.testing.assert_allclose(limited[2] - limited[0], 0.5, rtol=1e-5)
    free = np.asarray(decode_boxes(offsets, priors, VARIANCES))[0]
    np.testing.assert_allclose(free[2] - free[0], 0.1 * np.exp(4), rtol=1e-5)
    np.testing.assert_array_equal(limited[[1, 3]], free[[1, 3]])
