"""The demo app without its server: detection, rendering and the command line, without gradio."""

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
from ssd_jax.cli.demo import main
from ssd_jax.cli.run import run_main
from ssd_jax.config import UserError
from ssd_jax.data.images import MAX_PIXELS
from ssd_jax.demo.detection import DemoResult, LazyDetector, find_detectors
from ssd_jax.demo.rendering import render_error, render_result
from ssd_jax.demo.server import delete_old_files
from ssd_jax.inference.detector import Detections, Detector, load_image
from ssd_jax.inference.drawing import draw_boxes, encode_image, label_color
from ssd_jax.inference.results import coco_rows
from tests.data.folders import write_image
from tests.runs import write_run
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("<b>a</b>", "${1 + 1}", "ü")})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("demo") / "first", CONFIG)


@pytest.fixture(scope="module")
def demo(run):
    (lazy_detector,) = find_detectors([run]).values()
    return lazy_detector


@pytest.fixture(scope="module")
def detector(demo):
    return demo.load()


def image(seed=1, width=130, height=90):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "photo <1>.png"
    write_image(path, image())
    return path


def assert_equal(a, b):
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.names == b.names


def test_filtered_detections_equal_the_detectors_at_the_same_threshold(demo, detector, file):
    result = demo.detect(file)
    counts = []
    for threshold in (0.01, 0.3, float(result.detections.scores[3]), 0.5, 1):
        expected = detector(file, threshold=threshold)
        assert_equal(result.filter(threshold), expected)
        counts.append(len(expected))
    assert counts[0] > counts[1] > counts[-1] == 0
    two_classes = result.filter(0.3, ["<b>a</b>", "ü"])
    assert set(two_classes.labels.tolist()) == {0, 2}
    all_classes = result.filter(0.3)
    assert_equal(two_classes, all_classes.select(np.isin(all_classes.labels, [0, 2])))


def test_detections_equal_those_of_predict(run, demo, file, tmp_path):
    detections = demo.detect(file).filter(0.4)
    arguments = ["--checkpoint", str(run), "--out", str(tmp_path / "out"), str(file)]
    predict_main.main([*arguments, "--score-threshold", "0.4"])
    expected = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(expected) > 3
    assert coco_rows(detections, image_id=1, file_name=str(file)) == expected


def test_exif_orientation_is_applied(demo, detector, tmp_path):
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06" + bytes(7)
    data = cv2.imencode(".jpg", image())[1].tobytes()
    length = (len(tiff) + 8).to_bytes(2, "big")
    path = tmp_path / "turned.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + length + b"Exif\0\0" + tiff + data[2:])
    result = demo.detect(path)
    assert (result.width, result.height) == (90, 130)
    expected = detector(load_image(path), threshold=0.4)
    assert_equal(result.filter(0.4), expected)


def huge():
    """A small file whose header declares too many pixels."""
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
def test_unreadable_file_gives_one_error_without_its_folder(demo, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        demo.detect(tmp_path / name)
    page = render_error(getattr(error.value, "what", str(error.value)))
    assert html.escape(message) in page
    assert str(tmp_path) not in page
    assert page.count("<p") == 1


def test_deleted_upload_is_reported_before_the_checkpoint_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Detector, "from_checkpoint", None)
    (not_loaded,) = find_detectors([run]).values()
    with pytest.raises(UserError, match=r"gone\.png is no longer on the server; upload it again"):
        not_loaded.detect(tmp_path / "gone.png")


def links(page):
    """Media types and contents of the downloads, by file name."""
    matches = re.findall(r'href="data:([^;]+);base64,([^"]+)" download="([^"]+)"', page)
    return {html.unescape(name): (kind, base64.b64decode(data)) for kind, data, name in matches}


def cells(page):
    """Text of the table's cells, by row."""
    rows = re.findall(r"<tr>(<th><i.*?)</tr>", page, re.DOTALL)
    return [
        [html.unescape(re.sub("<[^>]+>", "", c)) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_result_has_summary_table_and_downloads(demo, file):
    result = demo.detect(file)
    page = render_result(result, 0.4)
    detections = result.filter(0.4)
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    assert cells(page) == [
        [detections.names[label], f"{score:.3f}", *(f"{v:.1f}" for v in (*corners[:2], *side))]
        for label, score, corners, side in zip(
            detections.labels, detections.scores, detections.boxes, sides, strict=True
        )
    ]
    for label in set(detections.labels.tolist()):
        assert "rgb({} {} {})".format(*label_color(label)) in page
    n = int((detections.labels == 0).sum())
    line = f"photo <1>.png (130 x 90 pixels): {len(detections)} detections above 0.40: "
    assert html.escape(line) in page
    assert html.escape(f"{n} <b>a</b>") in page
    assert "<b>" not in page

    kind, data = links(page)["photo <1>-detections.json"]
    assert kind == "application/json"
    assert json.loads(data) == coco_rows(detections, image_id=1, file_name="photo <1>.png")
    kind, data = links(page)["photo <1>-detections.jpg"]
    drawn = draw_boxes(
        *(result.display_image, detections.boxes * 800 / 130, detections.labels),
        *(detections.names, detections.scores),
    )
    assert kind == "image/jpeg"
    assert drawn.shape == (554, 800, 3)
    assert data == encode_image(drawn, ".jpg")


def test_summary_of_zero_and_one_detections(demo, file):
    result = demo.detect(file)
    page = render_result(result, 1.0)
    assert "0 detections above 1.00<" in page
    assert "<table" not in page
    least = np.nextafter(result.detections.scores[0], np.float32(0))
    assert "1 detection above" in render_result(result, float(least))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 900), (4000, 3000)])
def test_extreme_image_sizes(demo, tmp_path, width, height):
    write_image(tmp_path / "odd.png", image(2, width, height))
    result = demo.detect(tmp_path / "odd.png")
    assert (
        max(result.display_image.shape) == (800 if max(width, height) < 800 else 1600)
        or height == 900
    )
    assert f"({width} x {height} pixels)" in render_result(result, 0.2)


def test_class_and_file_names_are_escaped():
    detections = Detections(
        np.zeros((1, 4), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int32),
        ("<script>&",),
    )
    page = render_result(DemoResult('"><b>.png', 130, 90, image(), 1.0, detections), 0.5)
    assert cells(page)[0][0] == "<script>&"
    assert "<script" not in page
    assert "<b>" not in page
    assert set(links(page)) == {'"><b>-detections.jpg', '"><b>-detections.json'}
    assert render_error("<img src=x>") == (
        '<p class="message error" role="alert">&lt;img src=x&gt;</p>'
    )


def test_checkpoints_of_runs_and_folders_are_found_once(run, tmp_path):
    runs = tmp_path / "runs"
    for name, steps in (("a", (1, 2, 10)), ("b", (5,))):
        for step in steps:
            shutil.copytree(run / "checkpoints/0", runs / name / "checkpoints" / str(step))
    (runs / "empty/checkpoints").mkdir(parents=True)
    (runs / "notes.txt").write_text("")
    assert list(find_detectors([runs])) == ["a, step 10", "b, step 5"]
    assert list(find_detectors([runs / "a/checkpoints/2", runs / "b", runs])) == [
        *("a, step 2", "b, step 5", "a, step 10")
    ]
    shutil.copytree(runs / "b", tmp_path / "b")
    twice = find_detectors([runs / "b", tmp_path / "b"])
    assert [(name, c.checkpoint) for name, c in twice.items()] == [
        (f"b, step 5 ({p})", p) for p in (runs / "b/checkpoints/5", tmp_path / "b/checkpoints/5")
    ]
    assert twice.popitem()[1].names == CONFIG.model.classes


def test_concurrent_users_share_one_detector(run, monkeypatch):
    loaded = []

    def load(path):
        time.sleep(0.1)  # meanwhile the other users call it
        loaded.append(path)
        return lambda image: None

    monkeypatch.setattr(Detector, "from_checkpoint", load)
    lazy_detector = LazyDetector(run / "checkpoints/0")
    with ThreadPoolExecutor(8) as users:
        detectors = set(users.map(lambda _: lazy_detector.load(), range(8)))
    assert len(detectors) == len(loaded) == 1


def test_old_files_are_deleted(tmp_path):
    (tmp_path / "folder").mkdir()
    upload = tmp_path / "folder/upload.jpg"
    upload.write_bytes(b"")
    delete_old_files(tmp_path, 60)
    assert upload.exists()
    delete_old_files(tmp_path, -1)
    assert not upload.exists()
    assert upload.parent.exists()


@pytest.fixture
def failing(monkeypatch, capfd):
    """Run the command and return its error of one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
        assert run_main(main) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def with_gradio(monkeypatch):
    """Pretend that gradio is installed: the errors under test precede its import."""
    find = importlib.util.find_spec
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "gradio" else find(name)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint is missing (Runs, folders of runs"),
        (["--checkpoint", "x", "--port", "0"], "--port is 0; use a number from 1 to 65,535"),
        (
            ["--checkpoint", "x", "--port", "a"],
            "--port: invalid literal for int() with base 10: 'a'",
        ),
        (
            ["--checkpoint", "x", "--max-upload-mb", "0"],
            "--max-upload-mb is 0; use a number from 1 to",
        ),
        (
            ["--checkpoint", "x", "--score-threshold", "0"],
            "--score-threshold is 0.0; use a number from 0.01 to 1",
        ),
        (["--checkpoint", "runs/none"], "no checkpoint found in runs/none"),
        (["--checkpoint", "x", "--allow-host", "http://a"], "--allow-host is 'http://a'; must be"),
        (["--share"], "unknown argument --share"),
    ],
)
@pytest.mark.usefixtures("with_gradio")
def test_invalid_arguments_give_one_error_line(failing, arguments, message):
    assert message in failing(*arguments)


@pytest.mark.usefixtures("with_gradio")
def test_folder_without_checkpoint_and_damaged_config(failing, run, tmp_path):
    assert f"no checkpoint found in {tmp_path}" in failing("--checkpoint", run, tmp_path)
    shutil.copytree(run, tmp_path / "broken")
    for path in (tmp_path / "broken/checkpoints/0/config").iterdir():
        path.write_text("{")
    assert "checkpoints/0 is damaged (config: " in failing("--checkpoint", tmp_path / "broken")


@pytest.mark.usefixtures("with_gradio")
def test_addresses_that_cannot_be_listened_on(failing, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = failing("--checkpoint", run, "--port", port)
    assert f"--port: cannot listen on 127.0.0.1:{port}: Address already in use; " in message
    assert f"try --port {port + 1}" in message
    assert "--host: cannot resolve no.such.host.invalid: " in failing(
        "--checkpoint", run, "--host", "no.such.host.invalid"
    )
    assert "cannot listen on 192.0.2.1:7860: " in failing(
        "--checkpoint", run, "--host", "192.0.2.1"
    )


def test_missing_gradio_gives_one_error_line(failing, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = failing("--checkpoint", "x")
    assert message == "demo: the demo app needs gradio; run pip install 'ssd_jax[demo]'\n"
