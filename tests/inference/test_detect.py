"""Detection over a source: boxes in original pixels, for any batch size."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.data.types import Annotation
from ssd_jax.evaluation.ground_truth import load_ground_truth
from ssd_jax.inference.detect import DetectFn, StoppedError, detect_source
from ssd_jax.kernels.conv2d import use_cpu_conv
from ssd_jax.kernels.winograd import transform_kernel
from ssd_jax.models.ssd import init_variables, make_model, model_priors
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
    return model, init_variables(model, jax.random.key(0))


def table(batch_size):
    model, weights = variables()
    detect = DetectFn(model, CONFIG)
    return detect_source(detect, weights, Wide(), image_size=64, batch_size=batch_size)


@pytest.mark.slow
def test_batch_size_does_not_matter():
    one, three = table(1), table(3)
    assert len(one.score) > 0
    np.testing.assert_array_equal(one.image, three.image)
    np.testing.assert_array_equal(one.label, three.label)
    np.testing.assert_allclose(one.score, three.score, rtol=1e-5)
    np.testing.assert_allclose(one.boxes, three.boxes, atol=1e-4)


def test_boxes_are_continuous_pixels_of_the_original_image():
    """The best detection of the first image, worked out by hand."""
    detections = table(2)
    model, weights = variables()
    from ssd_jax.data.augmentation import preprocess_eval

    loc, conf = model.apply(weights, preprocess_eval(Wide().image(0), 64)[None])
    scores = np.asarray(jax.nn.softmax(conf[0]))[:, 1:]
    prior, label = np.unravel_index(scores.argmax(), scores.shape)
    priors = model_priors(CONFIG.model, CONFIG.priors)
    box = np.asarray(decode_boxes(loc[0], priors, (0.1, 0.2)))[prior].clip(0, 1)
    first = np.flatnonzero(detections.image == 0)[0]
    assert detections.label[first] == label
    np.testing.assert_allclose(detections.score[first], scores.max(), rtol=1e-5)
    expected = box * [40, 20, 40, 20]
    np.testing.assert_allclose(detections.boxes[first], expected, atol=1e-3)


def test_ground_truth_has_continuous_pixels_and_class_ids_from_zero():
    truth = load_ground_truth(Wide()).objects
    np.testing.assert_array_equal(truth.image, [0, 0, 2, 2])
    np.testing.assert_array_equal(truth.label, Wide().annotation(0).labels.tolist() * 2)
    np.testing.assert_array_equal(truth.boxes[0], [0, 0, 10, 10])
    np.testing.assert_array_equal(truth.boxes[1], [5, 5, 40, 20])


def test_detection_stops_between_batches_on_request():
    asked = []

    class Detect:
        def prepare(self, variables):
            return variables

        def __call__(self, variables, images):
            return jax.tree.map(lambda x: np.zeros((len(images), *x.shape), x.dtype), EMPTY)

    def stop():
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(StoppedError):
        detect_source(Detect(), {}, Wide(), image_size=64, batch_size=1, stop=stop)
    assert len(asked) == 2  # of three batches


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


@pytest.fixture
def transformed(monkeypatch):
    """Shapes of the kernels that are transformed; Winograd is used wherever it can be."""
    shapes = []

    def transform(kernel):
        shapes.append(kernel.shape)
        return transform_kernel(kernel)

    variables()  # cached: its initialization must not transform kernels here
    monkeypatch.setattr("ssd_jax.kernels.conv2d.transform_kernel", transform)
    with use_cpu_conv("winograd"):
        yield shapes


def detect_directly(weights, images):
    model, _ = variables()
    with use_cpu_conv("direct"):
        return DetectFn(model, CONFIG)(weights, images)


def assert_close(detections, expected):
    for a, b in zip(detections, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_kernels_of_prepared_variables_are_transformed_once(transformed):
    model, weights = variables()
    expected = detect_directly(weights, IMAGES)
    assert expected.count.min() > 0
    detect = DetectFn(model, CONFIG)
    prepared = detect.prepare(weights)
    # VGG16's thirteen and two heads.
    assert len(transformed) == 15
    assert_close(detect(prepared, IMAGES), expected)
    twice = detect(prepared, np.concatenate([IMAGES, IMAGES]))  # another program
    assert_close(twice, [np.concatenate([f, f]) for f in expected])
    assert len(transformed) == 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", [jnp.array, np.array])
def test_variables_are_prepared_for_their_current_values(transformed, kind):
    model, weights = variables()
    detect = DetectFn(model, CONFIG)
    inputs = jax.tree.map(kind, weights)
    first = detect(detect.prepare(inputs), IMAGES)
    if kind is np.array:
        for array in jax.tree.leaves(inputs):
            array *= 0.5  # the same arrays, with other values
    else:
        inputs = jax.tree.map(lambda a: 0.5 * a, inputs)
    expected = detect_directly(jax.tree.map(lambda a: 0.5 * a, weights), IMAGES)
    assert np.abs(first.scores - expected.scores).max() > 1e-2
    assert_close(detect(detect.prepare(inputs), IMAGES), expected)
    assert_close(detect(inputs, IMAGES), expected)  # without preparation


@pytest.mark.slow
def test_transformed_kernels_are_freed_with_the_prepared_variables(transformed):
    model, weights = variables()
    detect = DetectFn(model, CONFIG)
    prepared = detect.prepare(jax.tree.map(jnp.array, weights))
    detect(prepared, IMAGES)
    before = sum(a.nbytes for a in jax.live_arrays())
    size = sum(a.nbytes for a in jax.tree.leaves(weights))
    del prepared
    gc.collect()
    # Winograd's matrices are 24 / 9 as large as the kernels, which are most of the weights.
    assert before - sum(a.nbytes for a in jax.live_arrays()) > 2 * size
