"""The detector for users: the evaluation's detections, in continuous pixels."""

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
from ssd_jax.inference.detect import detect_source, make_detect
from ssd_jax.inference.detector import Detections, Detector, read_image, turn_upright
from ssd_jax.models.ssd import make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("a", "b")}, eval={"score_threshold": 0.3})
SIZES = ((40, 20), (64, 64), (31, 90))


@functools.cache
def variables():
    model = make_model(CONFIG.model, CONFIG.priors)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


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


def test_the_detections_are_the_evaluations(detector):
    model = make_model(CONFIG.model, CONFIG.priors)
    known = detect_source(
        make_detect(model, CONFIG), variables(), Images(), image_size=64, batch_size=2
    )
    found = detector(IMAGES)
    assert len(found) == 3
    for i, each in enumerate(found):
        rows = known.image == i
        assert rows.sum() == len(each) > 0
        np.testing.assert_array_equal(each.scores, known.score[rows])
        np.testing.assert_array_equal(each.labels, known.label[rows])
        np.testing.assert_allclose(each.boxes, known.boxes[rows], rtol=0, atol=1e-5)


def test_types_and_limits(detector):
    for (width, height), found in zip(SIZES, detector(IMAGES), strict=True):
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.labels.dtype == np.int32
        assert set(found.labels.tolist()) <= {0, 1}
        assert found.names == ("a", "b")
        assert (np.diff(found.scores) <= 0).all()
        assert (found.scores > 0.3).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()


def test_one_image_or_many_files_or_arrays(detector, tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for file, pixels in zip(files, IMAGES, strict=True):
        write_image(file, pixels[..., ::-1])
    together = detector(IMAGES)
    for k, file in enumerate(files):
        for given in (IMAGES[k], file, str(file), [file]):
            (found,) = detector(given)
            np.testing.assert_allclose(found.boxes, together[k].boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, together[k].scores, atol=1e-5)
    assert detector([]) == []
    assert len(detector(np.stack([IMAGES[1]] * 3))) == 3


def png(pixels):
    ok, data = cv2.imencode(".png", pixels[..., ::-1])
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("kind", ["jax", "pil", "bytes", "bytearray", "memoryview", "pathlike"])
def test_images_of_other_libraries_and_encoded_ones(detector, tmp_path, kind):
    pil = pytest.importorskip("PIL.Image") if kind == "pil" else None
    make = {
        "jax": jnp.asarray,
        "pil": lambda pixels: pil.fromarray(pixels),
        "bytes": png,
        "bytearray": lambda pixels: bytearray(png(pixels)),
        "memoryview": lambda pixels: memoryview(png(pixels)),
        "pathlike": lambda pixels: File(tmp_path / f"{len(pixels)}.png", png(pixels)),
    }[kind]
    known = detector(IMAGES)
    (alone,) = detector(IMAGES[0])
    (found,) = detector(make(IMAGES[0]))
    np.testing.assert_array_equal(found.boxes, alone.boxes)
    for each, expected in zip(detector([make(i) for i in IMAGES]), known, strict=True):
        np.testing.assert_array_equal(each.boxes, expected.boxes)
    if kind == "jax":
        several = detector(jnp.stack([IMAGES[1]] * 3))
        assert [len(each) for each in several] == [len(known[1])] * 3


class File:
    """A path that is neither a text nor pathlib's."""

    def __init__(self, path, content):
        path.write_bytes(content)
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_other_modes_of_pil(detector):
    pil = pytest.importorskip("PIL.Image")
    grey = pil.fromarray(IMAGES[0]).convert("L")
    (known,) = detector(np.repeat(np.asarray(grey)[..., None], 3, 2))
    for mode in ("L", "RGBA", "P"):
        (found,) = detector(grey.convert(mode))
        np.testing.assert_array_equal(found.boxes, known.boxes)
    with pytest.raises(ValueError, match=r"a PIL image has mode I;16; convert it to RGB"):
        detector(pil.fromarray(np.zeros((4, 4), np.uint16)))
    cut = pil.open(io.BytesIO(png(IMAGES[1])[:-3000]))
    with pytest.raises(DataError, match="a PIL image cannot be read"):
        detector(cut)


@pytest.mark.parametrize(
    ("given", "error", "message"),
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
def test_what_is_no_image(detector, given, error, message):
    with pytest.raises(error, match=message):
        detector(given)


def test_it_uses_the_compile_cache_of_the_machine(run, monkeypatch):
    used = []
    monkeypatch.setattr(
        "ssd_jax.inference.detector.use_compilation_cache", lambda: used.append("default")
    )
    Detector.from_checkpoint(run)
    assert used == ["default"]


def test_few_programs_are_compiled(detector):
    """Of whatever sizes and however many the images are."""
    detector(IMAGES)
    detector(IMAGES[0])
    with Compilations() as count:
        for n in (1, 2, 3):
            detector([image(7 + n, 50 + n, 33)] * n, threshold=0.1 * n)
        detector(image(9, 21, 20))
    assert count == []


class Compilations:
    """Names of what JAX compiles meanwhile."""

    def __enter__(self):
        self.found = []

        def listen(event, duration, **kwargs):
            if event == "/jax/core/compile/backend_compile_duration":
                self.found.append(event)

        self.listen = listen
        jax.monitoring.register_event_duration_secs_listener(listen)
        return self.found

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.listen)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path, orientation):
    """As OpenCV turns it when it is asked to."""
    stored = cv2.resize(image(1, 3, 2), (48, 32), interpolation=cv2.INTER_NEAREST)
    ok, data = cv2.imencode(".jpg", stored)
    assert ok
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + bytes(7)
    exif = b"Exif\0\0" + tiff
    data = data.tobytes()
    file = tmp_path / "turned.jpg"
    length = (len(exif) + 2).to_bytes(2, "big")
    file.write_bytes(data[:2] + b"\xff\xe1" + length + exif + data[2:])
    known = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    upright = read_image(file)
    np.testing.assert_array_equal(upright, known)
    assert upright.flags["C_CONTIGUOUS"]
    assert upright.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))


def test_an_unknown_orientation_changes_nothing():
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
    known = draw_boxes(grey, FOUND.boxes, np.array([1, 0]), FOUND.names, FOUND.scores)
    np.testing.assert_array_equal(drawn, known)
    assert tuple(drawn[100, 10]) == label_color(1)
    twice = FOUND.draw(grey, factor=2)
    assert twice.shape == (600, 800, 3)
    assert tuple(twice[200, 20]) == label_color(1)


def test_select_and_supervision():
    first = FOUND.select(FOUND.scores > 0.7)
    assert len(first) == 1
    assert len(FOUND) == 2
    given = FOUND.to_supervision()
    assert set(given) == {"xyxy", "confidence", "class_id", "data"}
    assert given["xyxy"].shape == (2, 4)
    assert given["class_id"].dtype == int
    assert given["class_id"].tolist() == [1, 0]
    assert given["data"]["class_name"].tolist() == ["b", "a"]
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
def test_images_of_another_kind(detector, wrong, message):
    with pytest.raises(ValueError, match=message):
        detector(wrong)


def test_other_errors(detector, run, tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg"):
        detector(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        detector(IMAGES, threshold=1.5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Detector.from_checkpoint(run, batch_size=0)
    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        Detector.from_checkpoint(tmp_path)


def test_a_detection_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FOUND.names = ()


def test_supervision_takes_and_draws_them():
    sv = pytest.importorskip("supervision")
    canvas = np.zeros((120, 160, 3), np.uint8)
    for found in (FOUND, FOUND.select(np.zeros(2, bool))):
        given = sv.Detections(**found.to_supervision())
        assert len(given) == len(found)
        np.testing.assert_array_equal(given.xyxy, found.boxes)
        assert list(given.data["class_name"]) == [found.names[k] for k in found.labels]
        drawn = sv.BoxAnnotator().annotate(canvas.copy(), given)
        drawn = sv.LabelAnnotator().annotate(drawn, given)
        assert drawn.any() == (len(found) > 0)
