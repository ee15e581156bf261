"""predict.py: inputs, output files and errors."""

import json
import os
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import jax
import numpy as np
import pytest

import predict as predict_main
from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.cli.run import run_main
from ssd_jax.config import COMPILATION_CACHE_DIR
from ssd_jax.inference.detector import Detections, Detector
from ssd_jax.inference.inputs import find_inputs
from ssd_jax.inference.results import voc_xml
from ssd_jax.inference.video import VideoWriter
from ssd_jax.models.ssd import init_variables, make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("a", "b")})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("predict") / "run"
    model = make_model(CONFIG.model, CONFIG.priors)
    write_checkpoint(run, CONFIG, init_variables(model, jax.random.key(0)))
    return run


@pytest.fixture
def predict(monkeypatch, capfd, checkpoint):
    """Runs predict.py and returns its exit status and the lines of its errors."""

    def run(*arguments):
        line = ["predict.py", "--checkpoint", checkpoint, "--score-threshold", "0.2", *arguments]
        monkeypatch.setattr(sys, "argv", [str(a) for a in line])
        try:
            status = run_main(predict_main.main)
        except SystemExit as exit_:
            status = exit_.code
        return status, capfd.readouterr().err.splitlines()

    return run


def image(k, width=48, height=40):
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


def write_video(path, frames=3, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, size)
    assert writer.isOpened()
    for k in range(frames):
        writer.write(image(k, *size))
    writer.release()
    return path


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_folders_patterns_and_videos_in_one_run(predict, checkpoint, tmp_path):
    """Broken inputs are named and counted, and the others are done."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", image(len(folder)))
    write_image(tmp_path / "two/A.jpg", image(5))
    (tmp_path / "one/notes.txt").write_text("no image")
    (tmp_path / "one/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "one/broken.mp4").write_bytes(b"junk")
    write_video(tmp_path / "clip.avi")
    out = tmp_path / "out"
    status, errors = predict(
        tmp_path / "one", tmp_path / "two" / "*", tmp_path / "clip.avi", tmp_path / "one/a.png",
        "--out", out, "--xml", "--batch-size", "2",
    )  # fmt: skip
    assert status == 1
    assert len(errors) == 3
    assert "broken.jpg" in errors[0]
    assert "broken.mp4 cannot be opened" in errors[1]
    assert "2 of 6 inputs could not be read" in errors[2]
    names = {"a": "one/a.png", "two-A": "two/A.jpg", "a-2": "two/a.png"}
    drawn = [f"{name}.jpg" for name in names]
    xmls = [f"xml/{name}.xml" for name in names]
    assert files_in(out) == sorted([*drawn, *xmls, "clip.mp4", "detections.json"])

    rows = json.loads((out / "detections.json").read_text())
    detector = Detector.from_checkpoint(checkpoint, batch_size=2, threshold=0.2)
    for image_id, (name, file) in enumerate(names.items(), start=1):
        (detections,) = detector([tmp_path / file])
        image_rows = [row for row in rows if row["image_id"] == image_id]
        assert len(image_rows) == len(detections) > 0
        assert {row["file_name"] for row in image_rows} == {str(tmp_path / file)}
        assert all("frame" not in row for row in image_rows)
        xywh = detections.boxes.copy()
        xywh[:, 2:] -= xywh[:, :2]
        np.testing.assert_allclose([row["bbox"] for row in image_rows], xywh, atol=0.02)
        np.testing.assert_allclose(
            [row["score"] for row in image_rows], detections.scores, atol=1e-4
        )
        assert [row["category_id"] for row in image_rows] == [k + 1 for k in detections.labels]
        assert [row["category_name"] for row in image_rows] == ["ab"[k] for k in detections.labels]
        picture = cv2.imread(str(out / f"{name}.jpg"))
        assert picture.shape == (300, 360, 3)  # enlarged, for names to be legible
        root = ElementTree.parse(out / f"xml/{name}.xml").getroot()
        assert len(root.findall("object")) == len(detections)

    frames = [row["frame"] for row in rows if row["file_name"].endswith("clip.avi")]
    assert sorted(set(frames)) == [0, 1, 2]
    assert {row["image_id"] for row in rows} == {1, 2, 3, 4, 5, 6}
    video = cv2.VideoCapture(str(out / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    shapes = []
    while (read := video.read())[0]:
        shapes.append(read[1].shape)
    assert shapes == [(300, 400, 3)] * 3


@pytest.mark.slow
def test_inputs_that_are_not_files_are_reported_and_counted(predict, tmp_path):
    folder = tmp_path / "in"
    (folder / "dir.jpg").mkdir(parents=True)
    write_image(folder / "a.png", image(1))
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop1.jpg").symlink_to("loop2.jpg")
    (folder / "loop2.jpg").symlink_to("loop1.jpg")
    (folder / "self.mp4").symlink_to("self.mp4")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.png").symlink_to("/dev/zero")
    expected = {
        "dir.jpg": "is a folder",
        "dangling.jpg": "is a link to a file that does not exist",
        "loop1.jpg": "is a circular link",
        "loop2.jpg": "is a circular link",
        "self.mp4": "is a circular link",
        "pipe.jpg": "is a pipe or a device",
        "pipe.mp4": "is a pipe or a device",
        "zero.png": "is a pipe or a device",
    }
    for name in (folder, folder / "*"):
        status, errors = predict(name, "--out", tmp_path / "out")
        assert status == 1
        assert sorted(errors[:-1]) == sorted(
            f"predict.py: {folder / name} {defect}" for name, defect in expected.items()
        )
        assert errors[-1] == "predict.py: 8 of 9 inputs could not be read"
        assert files_in(tmp_path / "out") == ["a.jpg", "detections.json"]
    # Named by itself.
    status, errors = predict(folder / "pipe.mp4", "--out", tmp_path / "out")
    assert (status, len(errors)) == (1, 2)
    status, errors = predict(folder / "dangling.jpg", "--out", tmp_path / "out")
    assert status == 2
    assert "file or folder not found" in errors[0]


def test_compilation_cache_dir(predict, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("ssd_jax.distributed.use_compilation_cache", used.append)
    write_image(tmp_path / "x.png", image(0))
    for arguments in (
        [],
        ["--compilation-cache-dir", tmp_path / "mine"],
        ["--compilation-cache-dir", ""],
    ):
        predict(tmp_path / "x.png", "--out", tmp_path / "out", *arguments)
    assert used == [COMPILATION_CACHE_DIR, str(tmp_path / "mine"), ""]


def test_classes_selects_detections(predict, tmp_path):
    write_image(tmp_path / "x.png", image(0))
    status, errors = predict(tmp_path / "x.png", "--out", tmp_path / "out", "--classes", "b")
    assert (status, errors) == (0, [])
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    assert {row["category_name"] for row in rows} == {"b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg"], "file or folder not found: none.jpg"),
        (["empty"], "no images or videos directly in empty"),
        (["empty/*.jpg"], "no image or video matches empty/*.jpg"),
        ([], "an input is missing"),
        (["x.png", "--classes", "a,cat"], "--classes: 'cat' is not one of a, b"),
        (["x.png", "--score-threshold", "50"], "--score-threshold is 50.0; use a number"),
        (["x.png", "--batch-size", "0"], "--batch-size is 0; use a number from 1"),
        (["x.png", "--batch-size", "x"], "--batch-size: invalid literal for int"),
        (["x.png", "--size", "3"], "unknown argument --size; perhaps you meant"),
        (["x.png", "--checkpoint", "empty"], "--checkpoint: no checkpoint found in empty"),
        (["x.jpg", "--out", "."], "x.jpg is an input; name another folder"),
        (["x.png", "--out", "x.jpg"], "--out: "),
    ],
)
def test_invalid_arguments_are_one_line(predict, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "x.png", image(0))
    write_image(tmp_path / "x.jpg", image(0))
    before = files_in(tmp_path)
    status, errors = predict(*arguments)
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert files_in(tmp_path) == before


def test_checkpoint_is_required():
    with pytest.raises(ValueError, match="--checkpoint is missing"):
        predict_main.main(["x.png"])


def test_number_is_a_camera_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").write_bytes(b"")
    camera, file = find_inputs(["0", "1"])
    assert (camera.kind, camera.name, camera.stem) == ("camera", "0", "camera0")
    assert (file.kind, file.name) == ("image", "1")


class Camera:
    """Gives frames until somebody presses Ctrl-C."""

    def __init__(self, source):
        assert source == 0
        self.left = 3

    def isOpened(self):  # OpenCV's name
        return True

    def get(self, _):
        return 0.0

    def read(self):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return True, image(self.left, 320, 300)

    def release(self):
        pass


def test_camera_runs_until_it_is_interrupted(predict, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Camera)
        status, errors = predict("0", "--out", tmp_path, "--batch-size", "1")
    assert (status, errors) == (0, [])
    assert files_in(tmp_path) == ["camera0.mp4", "detections.json"]
    assert cv2.VideoCapture(str(tmp_path / "camera0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_output_names_are_unique(tmp_path):
    names = ["p/a.jpg", "q/a.jpg", "q/A.png", "p/q-a.jpg", "r/q/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    inputs = find_inputs([str(tmp_path / name) for name in names])
    stems = [i.stem for i in inputs]
    assert stems == ["a", "q-a", "A-2", "p-q-a", "a-3"]
    everything = find_inputs([str(tmp_path / "**"), str(tmp_path / "p")])
    assert len(everything) == 5


def test_xml_counts_whole_pixels_from_one():
    detections = Detections(
        boxes=np.array([[0, 0, 10, 20], [29.8, 5.2, 30, 5.3], [3.6, 2.4, 7.4, 8.6]], np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.array([0, 1, 1], np.int32),
        names=("a", "<b>"),
    )
    root = ElementTree.fromstring(
        voc_xml(detections, "folder/x & y.jpg", np.zeros((20, 30, 3), np.uint8))
    )
    assert root.findtext("filename") == "x & y.jpg"
    assert [root.findtext(f"size/{side}") for side in ("width", "height")] == ["30", "20"]
    assert [node.findtext("name") for node in root.findall("object")] == ["a", "<b>", "<b>"]
    boxes = [[int(side.text) for side in node] for node in root.iter("bndbox")]
    assert boxes == [[1, 1, 10, 20], [30, 6, 30, 6], [5, 3, 7, 9]]


def test_duplicate_paths_are_processed_once(predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", image(1))
    (tmp_path / "link.png").symlink_to("a.png")
    write_image(tmp_path / ".hidden.png", image(2))
    status, _ = predict("a.png", tmp_path / "a.png", "./a.png", "link.png", tmp_path, "--out", "o")
    assert status == 0
    assert files_in(tmp_path / "o") == ["a.jpg", "detections.json"]


def first_frame(path):
    there, frame = cv2.VideoCapture(str(path)).read()
    assert there
    return frame.reshape(-1, 3).mean(0)


def test_colours_of_a_video(predict, checkpoint, tmp_path, monkeypatch):
    """The network sees RGB, and the copy has the colours of the film."""
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 220  # OpenCV's order
    writer = cv2.VideoWriter(
        str(tmp_path / "red.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12, (64, 48)
    )
    writer.write(red)
    writer.release()
    seen = []
    true = Detector.__call__

    def call(self, images, **kwargs):
        seen.append(images[0])
        return true(self, images, **kwargs)

    monkeypatch.setattr(Detector, "__call__", call)
    status, _ = predict(
        tmp_path / "red.avi", "--out", tmp_path / "out", "--score-threshold", "0.999"
    )
    assert status == 0
    r, g, b = seen[0].reshape(-1, 3).mean(0)
    assert r > 200 > 50 > max(g, b)
    b, g, r = first_frame(tmp_path / "out/red.mp4")
    assert r > 150 > 60 > max(g, b)


def test_interrupt_removes_the_partial_video(predict, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.avi", frames=5)
    true, calls = Detector.__call__, []

    def call(self, images, **kwargs):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(self, images, **kwargs)

    monkeypatch.setattr(Detector, "__call__", call)
    status, errors = predict(tmp_path / "clip.avi", "--out", tmp_path / "out", "--batch-size", "2")
    assert status == 130
    assert errors == [
        "predict.py: stopped; detections.json has the 2 images and frames done",
        "predict.py: interrupted",
    ]
    assert files_in(tmp_path / "out") == ["detections.json"]
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    assert {row["frame"] for row in rows} == {0, 1}


def test_video_without_frames_is_reported(predict, tmp_path, monkeypatch):
    class Empty:
        def __init__(self, name):
            pass

        def isOpened(self):
            return True

        def get(self, _):
            return 0

        def read(self):
            return False, None

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Empty)
    (tmp_path / "a.mp4").write_bytes(b"x")
    status, errors = predict(tmp_path / "a.mp4", "--out", tmp_path / "out")
    assert status == 1
    assert "a.mp4 has no frame that can be decoded" in errors[0]
    assert files_in(tmp_path / "out") == ["detections.json"]


def test_frames_of_another_size_fit_the_first(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 0) as video:
        video.write(image(1, 64, 48))
        video.write(image(2, 80, 80))
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert [capture.read()[1].shape for _ in range(2)] == [(48, 64, 3)] * 2


def test_boxes_in_xml_have_at_least_a_pixel():
    boxes = np.array([[0, 0, 10.4, 5.6], [10.2, 3, 10.4, 9], [63.8, 47.9, 64, 48]], np.float32)
    detections = Detections(boxes, np.full(3, 0.5, np.float32), np.zeros(3, np.int32), ("a",))
    root = ElementTree.fromstring(voc_xml(detections, "x/p.jpg", image(1, 64, 48)))
    sides = [[int(side.text) for side in box] for box in root.iter("bndbox")]
    # xmin, ymin, xmax, ymax from 1 on, the last one included.
    assert sides == [[1, 1, 10, 6], [11, 4, 11, 9], [64, 48, 64, 48]]
