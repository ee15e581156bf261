"""The Python API: the same detections as in an evaluation."""

import dataclasses
import functools
import io

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.config import ConfigError
from ssd_jax.data.errors import DataError
from ssd_jax.data.types import Annotation
from ssd_jax.inference.detect import DetectFn, detect_source
from ssd_jax.inference.detector import Detections, Detector, load_image, turn_upright
from ssd_jax.models.ssd import init_variables, make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change

pytestmark = pytest.mark.smoke

CONFIG = change(TINY, model={"classes": ("a", "b")}, eval={"score_threshold": 0.3})
SIZES = ((40, 20), (64, 64), (31, 90))


@functools.cache
def variables():
    model = make_model(CONFIG.model, CONFIG.priors)
    return init_variables(model, jax.random.key(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("detector") / "run"
    write_checkpoint(run, CONFIG, variables())
    return run


@pytest.fixture(scope="module")
def detector(run):
    return Detector.from_checkpoint(run, batch_size=2, threshold=0.3)


def image(k, width=None, height=None):
    if width is None:
        width, height = SIZES[k]
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [image(k) for k in range(len(SIZES))]


class Images:
    """IMAGES as a source."""

    classes = ("a", "b")

    def __len__(self):
        return len(IMAGES)

    def annotation(self, i):
        width, height = SIZES[i]
        none = np.zeros(0)
        return Annotation(str(i), width, height, none.reshape(0, 4), none, none, none)

    def image(self, i):
        return IMAGES[i]


def test_detections_equal_those_of_an_evaluation(detector):
    model = make_model(CONFIG.model, CONFIG.priors)
    expected = detect_source(
        DetectFn(model, CONFIG), variables(), Images(), image_size=64, batch_size=2
    )
    detections = detector(IMAGES)
    assert len(detections) == 3
    for i, each in enumerate(detections):
        rows = expected.image == i
        assert rows.sum() == len(each) > 0
        np.testing.assert_array_equal(each.scores, expected.score[rows])
        np.testing.assert_array_equal(each.labels, expected.label[rows])
        np.testing.assert_allclose(each.boxes, expected.boxes[rows], rtol=0, atol=1e-5)


def test_dtypes_and_ranges(detector):
    for (width, height), detections in zip(SIZES, detector(IMAGES), strict=True):
        assert detections.boxes.dtype == detections.scores.dtype == np.float32
        assert detections.labels.dtype == np.int32
        assert set(detections.labels.tolist()) <= {0, 1}
        assert detections.names == ("a", "b")
        assert (np.diff(detections.scores) <= 0).all()
        assert (detections.scores > 0.3).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= [width, height, width, height]).all()


def test_single_images_lists_files_and_arrays(detector, tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for file, pixels in zip(files, IMAGES, strict=True):
        write_image(file, pixels[..., ::-1])
    together = detector(IMAGES)
    for k, file in enumerate(files):
        for detections in (*map(detector, (IMAGES[k], file, str(file))), *detector([file])):
            assert isinstance(detections, Detections)
            np.testing.assert_allclose(detections.boxes, together[k].boxes, atol=1e-3)
            np.testing.assert_allclose(detections.scores, together[k].scores, atol=1e-5)
    assert detector([]) == []
    assert len(detector(np.stack([IMAGES[1]] * 3))) == 3


def png(pixels):
    ok, data = cv2.imencode(".png", pixels[..., ::-1])
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("kind", ["jax", "pil", "bytes", "bytearray", "memoryview", "pathlike"])
def test_jax_and_pil_images_bytes_and_paths(detector, tmp_path, kind):
    pil = pytest.importorskip("PIL.Image") if kind == "pil" else None
    make = {
        "jax": jnp.asarray,
        "pil": lambda pixels: pil.fromarray(pixels),
        "bytes": png,
        "bytearray": lambda pixels: bytearray(png(pixels)),
        "memoryview": lambda pixels: memoryview(png(pixels)),
        "pathlike": lambda pixels: File(tmp_path / f"{len(pixels)}.png", png(pixels)),
    }[kind]
    expected = detector(IMAGES)
    alone = detector(IMAGES[0])
    detections = detector(make(IMAGES[0]))
    np.testing.assert_array_equal(detections.boxes, alone.boxes)
    for each, other in zip(detector([make(i) for i in IMAGES]), expected, strict=True):
        np.testing.assert_array_equal(each.boxes, other.boxes)
    if kind == "jax":
        several = detector(jnp.stack([IMAGES[1]] * 3))
        assert [len(each) for each in several] == [len(expected[1])] * 3


class File:
    """A path that is neither a str nor a pathlib.Path."""

    def __init__(self, path, content):
        path.write_bytes(content)
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_pil_modes(detector):
    pil = pytest.importorskip("PIL.Image")
    grey = pil.fromarray(IMAGES[0]).convert("L")
    expected = detector(np.repeat(np.asarray(grey)[..., None], 3, 2))
    for mode in ("L", "RGBA", "P"):
        detections = detector(grey.convert(mode))
        np.testing.assert_array_equal(detections.boxes, expected.boxes)
    with pytest.raises(ValueError, match=r"a PIL image has mode I;16; convert it to RGB"):
        detector(pil.fromarray(np.zeros((4, 4), np.uint16)))
    cut = pil.open(io.BytesIO(png(IMAGES[1])[:-3000]))
    with pytest.raises(DataError, match="a PIL image cannot be read"):
        detector(cut)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, TypeError, "images is None; give an array, a PIL image, the path of an image file"),
        ({"a": 1}, TypeError, "images is of type dict; give"),
        ({1, 2}, TypeError, "images is of type set; give"),
        (3, TypeError, "images is of type int; give"),
        ([None], TypeError, "an image is None; give"),
        ([{}], TypeError, "an image is of type dict; give"),
        ([[1, 2, 3]], TypeError, "an image is of type list; give"),
        ("https://example.org/a.jpg", TypeError, "is the address https://example.org/a.jpg; down"),
        (["s3://bucket/a.jpg"], TypeError, "an image is the address s3://bucket/a.jpg; download"),
        (b"", DataError, "image of 0 bytes is not an image that can be decoded"),
        (b"no image", DataError, "image of 8 bytes is not an image that can be decoded"),
        (np.zeros((4, 4)), ValueError, r"an image is float64 \[4, 4\]; give uint8"),
        (jnp.zeros((4, 4, 3)), ValueError, r"an image is float32 \[4, 4, 3\]; give uint8"),
        (np.uint8(3), ValueError, r"an image is uint8 \[\]; give uint8"),
    ],
    ids=str,
)
def test_unsupported_images_are_errors(detector, images, error, message):
    with pytest.raises(error, match=message):
        detector(images)


def test_from_checkpoint_uses_the_compilation_cache(run, monkeypatch):
    used = []
    monkeypatch.setattr(
        "ssd_jax.inference.detector.use_compilation_cache", lambda: used.append("default")
    )
    Detector.from_checkpoint(run)
    assert used == ["default"]


def test_at_most_two_programs_are_compiled(detector):
    """For any number and size of images."""
    detector(IMAGES)
    detector(IMAGES[0])
    with Compilations() as count:
        for n in (1, 2, 3):
            detector([image(7 + n, 50 + n, 33)] * n, threshold=0.1 * n)
        detector(image(9, 21, 20))
    assert count == []


class Compilations:
    """Records the compilations within a block."""

    def __enter__(self):
        self.events = []

        def listen(event, duration, **kwargs):
            if event == "/jax/core/compile/backend_compile_duration":
                self.events.append(event)

        self.listen = listen
        jax.monitoring.register_event_duration_secs_listener(listen)
        return self.events

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.listen)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Compare with OpenCV's handling of EXIF."""
    stored = cv2.resize(image(1, 3, 2), (48, 32), interpolation=cv2.INTER_NEAREST)
    ok, data = cv2.imencode(".jpg", stored)
    assert ok
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + bytes(7)
    exif = b"Exif\0\0" + tiff
    data = data.tobytes()
    file = tmp_path / "turned.jpg"
    length = (len(exif) + 2).to_bytes(2, "big")
    file.write_bytes(data[:2] + b"\xff\xe1" + length + exif + data[2:])
    expected = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    upright = load_image(file)
    np.testing.assert_array_equal(upright, expected)
    assert upright.flags["C_CONTIGUOUS"]
    assert upright.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))


def test_unknown_orientations_have_no_effect():
    np.testing.assert_array_equal(turn_upright(IMAGES[0], 0), IMAGES[0])
    np.testing.assert_array_equal(turn_upright(IMAGES[0], 9), IMAGES[0])


FOUND = Detections(
    boxes=np.array([[10, 20, 200, 150], [250, 100, 390, 290]], np.float32),
    scores=np.array([0.9, 0.6], np.float32),
    labels=np.array([1, 0], np.int32),
    names=("a", "b"),
)


def test_drawing():
    from ssd_jax.inference.drawing import draw_boxes, label_color

    grey = np.full((300, 400, 3), 128, np.uint8)
    drawn = FOUND.draw(grey)
    expected = draw_boxes(grey, FOUND.boxes, np.array([1, 0]), FOUND.names, FOUND.scores)
    np.testing.assert_array_equal(drawn, expected)
    assert tuple(drawn[100, 10]) == label_color(1)
    twice = FOUND.draw(grey, factor=2)
    assert twice.shape == (600, 800, 3)
    assert tuple(twice[200, 20]) == label_color(1)


def test_select_and_supervision():
    first = FOUND.select(FOUND.scores > 0.7)
    assert len(first) == 1
    assert len(FOUND) == 2
    converted = FOUND.to_supervision()
    assert set(converted) == {"xyxy", "confidence", "class_id", "data"}
    assert converted["xyxy"].shape == (2, 4)
    assert converted["class_id"].dtype == int
    assert converted["class_id"].tolist() == [1, 0]
    assert converted["data"]["class_name"].tolist() == ["b", "a"]
    none = FOUND.select(np.zeros(2, bool)).to_supervision()
    assert none["xyxy"].shape == (0, 4)
    assert none["data"]["class_name"].shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]; give uint8"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]; give uint8"),
        ([np.zeros((8, 8, 4), np.uint8)], r"uint8 \[8, 8, 4\]; give uint8"),
        ([np.zeros((0, 8, 3), np.uint8)], r"uint8 \[0, 8, 3\]; give uint8"),
    ],
)
def test_arrays_of_other_dtypes_and_shapes_are_errors(detector, wrong, message):
    with pytest.raises(ValueError, match=message):
        detector(wrong)


def test_other_errors(detector, run, tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg"):
        detector(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        detector(IMAGES, threshold=1.5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Detector.from_checkpoint(run, batch_size=0)
    with pytest.raises(ConfigError, match="no checkpoint found in"):
        Detector.from_checkpoint(tmp_path)


def test_detections_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FOUND.names = ()


def test_supervision_accepts_and_draws_detections():
    sv = pytest.importorskip("supervision")
    canvas = np.zeros((120, 160, 3), np.uint8)
    for detections in (FOUND, FOUND.select(np.zeros(2, bool))):
        converted = sv.Detections(**detections.to_supervision())
        assert len(converted) == len(detections)
        np.testing.assert_array_equal(converted.xyxy, detections.boxes)
        assert list(converted.data["class_name"]) == [
            detections.names[k] for k in detections.labels
        ]
        drawn = sv.BoxAnnotator().annotate(canvas.copy(), converted)
        drawn = sv.LabelAnnotator().annotate(drawn, converted)
        assert drawn.any() == (len(detections) > 0)
