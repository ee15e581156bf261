"""The page's pure parts, and what the command says before it serves; neither needs gradio."""

import base64
import html
import importlib.util
import json
import re
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

import predict as predict_main
from ssd_jax import demo
from ssd_jax.cli import run_main
from ssd_jax.config import UserError
from ssd_jax.data.images import MAX_PIXELS
from ssd_jax.inference.detector import Detections, Detector, read_image
from ssd_jax.inference.drawing import draw_boxes, encode_image, label_color
from tests.data.folders import write_image
from tests.runs import write_run
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("<b>a</b>", "${1 + 1}", "ü")})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("demo") / "first", CONFIG)


@pytest.fixture(scope="module")
def detector(run):
    return Detector.from_checkpoint(run)


def image(seed=1, width=130, height=90):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "photo <1>.png"
    write_image(path, image())
    return path


def assert_same(a, b):
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.names == b.names


def test_a_threshold_selects_what_the_detector_finds_with_it(detector, file):
    found = demo.detect(detector, file)
    counts = []
    for threshold in (0.01, 0.3, float(found.detections.scores[3]), 0.5, 1):
        (known,) = detector(file, threshold=threshold)
        assert_same(demo.select(found, threshold), known)
        counts.append(len(known))
    assert counts[0] > counts[1] > counts[-1] == 0
    some = demo.select(found, 0.3, ["<b>a</b>", "ü"])
    assert set(some.labels.tolist()) == {0, 2}
    assert_same(
        some, demo.select(found, 0.3).select(np.isin(demo.select(found, 0.3).labels, [0, 2]))
    )


def test_the_detections_are_those_of_predict(run, detector, file, tmp_path, monkeypatch):
    found = demo.detect(detector, file)
    arguments = ["--checkpoint", str(run), "--out", str(tmp_path / "out"), str(file)]
    predict_main.main([*arguments, "--score-threshold", "0.4"])
    known = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(known) > 3
    assert demo.coco_rows(demo.select(found, 0.4), str(file)) == known


def test_a_photograph_is_upright_as_exif_says(detector, tmp_path):
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06" + bytes(7)
    data = cv2.imencode(".jpg", image())[1].tobytes()
    length = (len(tiff) + 8).to_bytes(2, "big")
    path = tmp_path / "turned.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + length + b"Exif\0\0" + tiff + data[2:])
    found = demo.detect(detector, path)
    assert (found.width, found.height) == (90, 130)
    (known,) = detector(read_image(path), threshold=0.4)
    assert_same(demo.select(found, 0.4), known)


def huge():
    """A few bytes that claim many pixels."""
    data = bytearray(cv2.imencode(".png", image())[1].tobytes())
    side = int(MAX_PIXELS**0.5) + 1
    data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text.jpg", b"no image", "text.jpg is not an image that can be decoded (it is none of"),
        ("empty.png", b"", "empty.png is not an image"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg is not an image"),
        ("moving.gif", b"GIF89a" + bytes(40), "moving.gif is not an image"),
        ("cut.jpg", cv2.imencode(".jpg", image())[1].tobytes()[:-90], "cut.jpg ends before"),
        (
            "broken.png",
            cv2.imencode(".png", image())[1].tobytes()[:40],
            "broken.png ends before its image does",
        ),
        ("huge.png", huge(), "huge.png has 8001x8001 pixels; at most 64,000,000 are supported"),
    ],
)
def test_files_that_are_no_images(detector, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        demo.detect(detector, tmp_path / name)
    told = demo.render_error(getattr(error.value, "what", str(error.value)))
    assert html.escape(message) in told
    assert str(tmp_path) not in told
    assert told.count("<p") == 1


def test_an_upload_that_is_gone(detector, tmp_path):
    with pytest.raises(UserError, match=r"gone\.png is no longer on the server; upload it again"):
        demo.detect(detector, tmp_path / "gone.png")


def links(page):
    """Name and content of what the page gives to download."""
    found = re.findall(r'href="data:([^;]+);base64,([^"]+)" download="([^"]+)"', page)
    return {html.unescape(name): (kind, base64.b64decode(data)) for kind, data, name in found}


def cells(page):
    rows = re.findall(r"<tr>(<th><i.*?)</tr>", page)
    return [
        [html.unescape(re.sub("<[^>]+>", "", c)) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_what_is_shown(detector, file):
    found = demo.detect(detector, file)
    page = demo.show(found, 0.4)
    told = demo.select(found, 0.4)
    sides = told.boxes[:, 2:] - told.boxes[:, :2]
    assert cells(page) == [
        [told.names[label], f"{score:.3f}", *(f"{v:.1f}" for v in (*corners[:2], *side))]
        for label, score, corners, side in zip(
            told.labels, told.scores, told.boxes, sides, strict=True
        )
    ]
    for label in set(told.labels.tolist()):
        assert "rgb({} {} {})".format(*label_color(label + 1)) in page
    n = int((told.labels == 0).sum())
    line = f"photo <1>.png (130 x 90 pixels): {len(told)} detections above 0.40: "
    assert html.escape(line) in page
    assert html.escape(f"{n} <b>a</b>") in page
    assert "<b>" not in page

    kind, data = links(page)["photo <1>-detections.json"]
    assert kind == "application/json"
    assert json.loads(data) == demo.coco_rows(told, "photo <1>.png")
    kind, data = links(page)["photo <1>-detections.jpg"]
    drawn = draw_boxes(
        found.picture, told.boxes * 800 / 130, told.labels + 1, told.names, told.scores
    )
    assert kind == "image/jpeg"
    assert drawn.shape == (554, 800, 3)
    assert data == encode_image(drawn, ".jpg")


def test_nothing_found_and_one(detector, file):
    found = demo.detect(detector, file)
    page = demo.show(found, 1.0)
    assert "0 detections above 1.00<" in page
    assert "<table" not in page
    least = np.nextafter(found.detections.scores[0], np.float32(0))
    assert "1 detection above" in demo.show(found, float(least))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 900), (4000, 3000)])
def test_odd_sizes(detector, tmp_path, width, height):
    write_image(tmp_path / "odd.png", image(2, width, height))
    found = demo.detect(detector, tmp_path / "odd.png")
    assert max(found.picture.shape) == (800 if max(width, height) < 800 else 1600) or height == 900
    assert f"({width} x {height} pixels)" in demo.show(found, 0.2)


def test_class_names_are_text():
    one = np.zeros(1, np.int32)
    told = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), one, ("<script>&",))
    assert "&lt;script&gt;&amp;" in demo._table(told)
    assert demo.render_error("<img src=x>") == (
        '<p class="line wrong" role="alert">&lt;img src=x&gt;</p>'
    )


def test_which_checkpoints_there_are(run, tmp_path):
    runs = tmp_path / "runs"
    for name, steps in (("a", (1, 2, 10)), ("b", (5,))):
        for step in steps:
            shutil.copytree(run / "checkpoints/0", runs / name / "checkpoints" / str(step))
    (runs / "empty/checkpoints").mkdir(parents=True)
    (runs / "notes.txt").write_text("")
    assert list(demo.find_choices([runs])) == ["a, step 10", "b, step 5"]
    assert list(demo.find_choices([runs / "a/checkpoints/2", runs / "b", runs])) == [
        *("a, step 2", "b, step 5", "a, step 10")
    ]
    shutil.copytree(runs / "b", tmp_path / "b")
    twice = demo.find_choices([runs / "b", tmp_path / "b"])
    assert [(name, c.checkpoint) for name, c in twice.items()] == [
        (f"b, step 5 ({p})", p) for p in (runs / "b/checkpoints/5", tmp_path / "b/checkpoints/5")
    ]
    assert twice.popitem()[1].names == CONFIG.model.classes


def test_a_detector_is_loaded_once_for_several_users(run, monkeypatch):
    loaded = []

    def load(path):
        time.sleep(0.1)  # the others come meanwhile
        loaded.append(path)
        return lambda image: None

    monkeypatch.setattr(Detector, "from_checkpoint", load)
    (choice,) = demo.find_choices([run]).values()
    with ThreadPoolExecutor(8) as users:
        detectors = set(users.map(lambda _: choice.detector(), range(8)))
    assert len(detectors) == len(loaded) == 1


def test_old_files_are_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    upload = tmp_path / "folder/upload.jpg"
    upload.write_bytes(b"")
    demo.remove_old(tmp_path, 60)
    assert upload.exists()
    demo.remove_old(tmp_path, -1)
    assert not upload.exists()
    assert upload.parent.exists()


@pytest.fixture
def failing(monkeypatch, capfd):
    """Runs the command and returns its one line of error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
        assert run_main(demo.main) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def with_gradio(monkeypatch):
    """The command, as where gradio is installed: what is tested comes before it is imported."""
    find = importlib.util.find_spec
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: spec if name == "gradio" else find(name)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint is missing; name a run's folder"),
        (["--checkpoint", "x", "--port", "0"], "--port is 0; use 1 to 65535"),
        (["--checkpoint", "x", "--port", "a"], "--port: invalid int value"),
        (["--checkpoint", "x", "--max-upload-mb", "0"], "--max-upload-mb is 0; use 1 or more"),
        (["--checkpoint", "x", "--score-threshold", "0"], "--score-threshold is 0.0; use"),
        (["--checkpoint", "none"], "there is no checkpoint in none"),
        (["--checkpoint", "x", "--allow-host", "http://a"], "--allow-host is 'http://a'; write a"),
        (["--share"], "unrecognized arguments: --share"),
    ],
)
@pytest.mark.usefixtures("with_gradio")
def test_wrong_commands(failing, arguments, message):
    assert message in failing(*arguments)


@pytest.mark.usefixtures("with_gradio")
def test_a_folder_that_is_no_checkpoint(failing, run, tmp_path):
    assert f"there is no checkpoint in {tmp_path}" in failing("--checkpoint", run, tmp_path)
    shutil.copytree(run, tmp_path / "broken")
    for path in (tmp_path / "broken/checkpoints/0/config").iterdir():
        path.write_text("{")
    assert "checkpoints/0 is damaged (config: " in failing("--checkpoint", tmp_path / "broken")


@pytest.mark.usefixtures("with_gradio")
def test_addresses_that_cannot_be_served(failing, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = failing("--checkpoint", run, "--port", port)
    assert f"--port: 127.0.0.1:{port} cannot be served: " in message
    assert f"try --port {port + 1}" in message
    assert "--host: no.such.host.invalid is no address" in failing(
        "--checkpoint", run, "--host", "no.such.host.invalid"
    )
    assert "192.0.2.1:7860 cannot be served" in failing("--checkpoint", run, "--host", "192.0.2.1")


def test_without_gradio(failing, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    message = failing("--checkpoint", "x")
    assert message == "demo: the page needs gradio; pip install 'ssd_jax[demo]'\n"
