"""Detection over a source: pixels of the original images, any batch size, any devices."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.data.types import Annotation
from ssd_jax.evaluation.ground_truth import load_ground_truth
from ssd_jax.inference.detect import StoppedError, detect_source, make_detect
from ssd_jax.kernels.winograd import transform_kernel
from ssd_jax.models.ssd import make_model, model_priors
from ssd_jax.ops.boxes import decode_boxes
from ssd_jax.ops.nms import Detections
from tests.tiny import TINY, change

EMPTY = Detections(
    boxes=np.zeros((2, 4), np.float32),
    scores=np.zeros(2, np.float32),
    labels=np.zeros(2, np.int32),
    count=np.int32(0),
)
CONFIG = change(TINY, model={"classes": ("a", "b")}, eval={"score_threshold": 0.3})


class Wide:
    """Three images of 40 x 20 pixels, the middle one without objects."""

    classes = ("a", "b")

    def __len__(self):
        return 3

    def annotation(self, i):
        n = 0 if i == 1 else 2
        return Annotation(
            image_id=str(i),
            width=40,
            height=20,
            boxes_px=np.array([[0, 0, 10, 10], [5, 5, 40, 20]], np.float32)[:n],
            labels=np.array([1, 2], np.int32)[:n],
            difficult=np.zeros(n, bool),
            crowd=np.zeros(n, bool),
        )

    def image(self, i):
        return np.random.default_rng(i).integers(0, 256, (20, 40, 3), np.uint8)

    def __getitem__(self, i):
        raise AssertionError("evaluation reads images and annotations apart")


@functools.cache
def variables():
    model = make_model(CONFIG.model, CONFIG.priors)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def table(batch_size):
    model, weights = variables()
    detect = make_detect(model, CONFIG)
    return detect_source(detect, weights, Wide(), image_size=64, batch_size=batch_size)


@pytest.mark.slow
def test_the_batch_size_does_not_matter():
    one, three = table(1), table(3)
    assert len(one.score) > 0
    np.testing.assert_array_equal(one.image, three.image)
    np.testing.assert_array_equal(one.label, three.label)
    np.testing.assert_allclose(one.score, three.score, rtol=1e-5)
    np.testing.assert_allclose(one.boxes, three.boxes, atol=1e-4)


def test_boxes_are_continuous_pixels_of_the_original_image():
    """The best detection of the first image, worked out by hand."""
    found = table(2)
    model, weights = variables()
    from ssd_jax.data.augment import preprocess_eval

    loc, conf = model.apply(weights, preprocess_eval(Wide().image(0), 64)[None])
    scores = np.asarray(jax.nn.softmax(conf[0]))[:, 1:]
    prior, label = np.unravel_index(scores.argmax(), scores.shape)
    priors = model_priors(CONFIG.model, CONFIG.priors)
    box = np.asarray(decode_boxes(loc[0], priors, (0.1, 0.2)))[prior].clip(0, 1)
    first = np.flatnonzero(found.image == 0)[0]
    assert found.label[first] == label
    np.testing.assert_allclose(found.score[first], scores.max(), rtol=1e-5)
    known = box * [40, 20, 40, 20]
    np.testing.assert_allclose(found.boxes[first], known, atol=1e-3)


def test_ground_truth_has_continuous_pixels_and_class_ids_from_zero():
    truth = load_ground_truth(Wide()).objects
    np.testing.assert_array_equal(truth.image, [0, 0, 2, 2])
    np.testing.assert_array_equal(
        truth.label, Wide().annotation(0).labels.tolist() * 2 - np.ones(4)
    )
    np.testing.assert_array_equal(truth.boxes[0], [0, 0, 10, 10])
    np.testing.assert_array_equal(truth.boxes[1], [5, 5, 40, 20])


def test_it_stops_between_two_batches_when_asked():
    asked = []

    def detect(variables, images):
        return jax.tree.map(lambda x: np.zeros((len(images), *x.shape), x.dtype), EMPTY)

    def stop():
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(StoppedError):
        detect_source(detect, {}, Wide(), image_size=64, batch_size=1, stop=stop)
    assert len(asked) == 2  # of three batches


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


def make_winograd(monkeypatch):
    """Detection with Winograd's form wherever it can be, and the kernels that it transforms."""
    transformed = []

    def transform(kernel):
        transformed.append(kernel.shape)
        return transform_kernel(kernel)

    monkeypatch.setattr("ssd_jax.kernels.conv2d.transform_kernel", transform)
    config = change(CONFIG, model={"cpu_conv": "winograd"})
    return make_detect(make_model(config.model, config.priors), config), transformed


def assert_same(found, known):
    for a, b in zip(found, known, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_kernels_are_transformed_once_for_many_batches(monkeypatch):
    detect, transformed = make_winograd(monkeypatch)
    model, weights = variables()
    known = make_detect(model, CONFIG)(weights, IMAGES)
    assert known.count.min() > 0
    assert_same(detect(weights, IMAGES), known)
    # VGG16's thirteen and two heads, in the program that prepares: that which detects has none.
    assert len(transformed) == 15
    twice = detect(dict(weights), np.concatenate([IMAGES, IMAGES]))  # a program of its own
    assert_same(twice, [np.concatenate([f, f]) for f in known])
    assert len(transformed) == 15


@pytest.mark.parametrize("kind", [jnp.array, np.array])
def test_other_weights_are_prepared_anew(monkeypatch, kind):
    detect, _ = make_winograd(monkeypatch)
    model, weights = variables()
    given = jax.tree.map(kind, weights)
    first = detect(given, IMAGES)
    if kind is np.array:
        for array in jax.tree.leaves(given):
            array *= 0.5  # the same arrays, with other values
    else:
        given = jax.tree.map(lambda a: 0.5 * a, given)
    known = make_detect(model, CONFIG)(jax.tree.map(lambda a: 0.5 * a, weights), IMAGES)
    assert np.abs(first.scores - known.scores).max() > 1e-2
    assert_same(detect(given, IMAGES), known)


def test_what_was_prepared_goes_with_the_weights(monkeypatch):
    detect, _ = make_winograd(monkeypatch)
    _, weights = variables()
    own = jax.tree.map(jnp.array, weights)
    detect(own, IMAGES)
    before = sum(a.nbytes for a in jax.live_arrays())
    held = sum(a.nbytes for a in jax.tree.leaves(own))
    del own
    gc.collect()
    # Winograd's matrices are 24 / 9 as large as the kernels, which are most of the weights.
    assert before - sum(a.nbytes for a in jax.live_arrays()) > 2 * held
