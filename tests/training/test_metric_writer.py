"""Metrics in metrics.jsonl, TensorBoard and on the console."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ssd_jax.inference.drawing import save_image
from ssd_jax.training.metric_writer import LogError, MetricWriter, read_scores


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path, start=0) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": 1.0}, kind="train")
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # cut off when the run was killed
    with MetricWriter(tmp_path, start=4) as writer:
        writer.write(6, {"loss": 2.0}, kind="train")
        writer.write(4, {"loss": 3.0}, kind="train")  # in the file already
    assert steps(path) == [2, 4, 6]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.0


def test_other_processes_write_nothing(tmp_path, capsys):
    with MetricWriter(tmp_path, start=0, enabled=False) as writer:
        writer.write(2, {"loss": 1.0}, kind="train")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    with MetricWriter(tmp_path, start=0) as writer:
        writer.write(2, {"loss": 1.5, "data_wait": 0.25}, kind="train")
    assert capsys.readouterr().out == "step 2  loss 1.5  data_wait 0.25\n"


def events(workdir):
    """Read TensorBoard's files: (step, "start"), (step, tag, value) or (step, tag, "image")."""
    rows = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                rows.append((event.step, "start"))
            for value in event.summary.value:
                kind = "image" if value.HasField("image") else round(value.simple_value, 3)
                rows.append((event.step, value.tag, kind))
    return rows


def test_tensorboard_events(tmp_path):
    image = tmp_path / "images.jpg"
    save_image(image, np.zeros((8, 8, 3), np.uint8))
    with MetricWriter(tmp_path, start=4) as writer:
        writer.write(6, {"loss": 1.5, "grad_norm": 0.25}, kind="train")
        writer.write_image(6, "detections", image)
        writer.write_image(6, "none", tmp_path / "none.jpg")
        # Written before the writer is closed.
        assert events(tmp_path) == [
            (5, "start"),
            (6, "train/loss", 1.5),
            (6, "train/grad_norm", 0.25),
            (6, "detections", "image"),
        ]


def test_nan_is_null_in_json(tmp_path):
    with MetricWriter(tmp_path, start=0) as writer:
        writer.write(2, {"loss": math.nan, "skipped": 2.0}, kind="train")
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 2, "kind": "train", "loss": None, "skipped": 2.0}


def test_full_disk_is_reported(small_disk):
    writer = MetricWriter(small_disk, start=0)
    with writer:
        (small_disk / "filler").write_bytes(bytes(2_080_000))

        def fill():
            for step in range(1, 1000):
                writer.write(step, {"loss": 1.0}, kind="train")

        with pytest.raises(LogError, match=r"cannot be written \(No space left on device\)"):
            fill()
    # No file stays open, which would prevent unmounting.
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in open_files if path.is_relative_to(small_disk)]


def test_scores_are_read_up_to_a_truncated_line(tmp_path):
    lines = [
        '{"step": 1, "kind": "eval", "mAP": 0.2}',
        '{"step": 2, "kind": "train", "loss": 3.0}',
        '{"step": 2, "kind": "eval", "mAP": 0.3}',
        '{"st',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_scores(tmp_path, "mAP") == {1: 0.2, 2: 0.3}
    assert read_scores(tmp_path, "AP/cat") == {}


def test_scores_of_an_unreadable_file_are_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(LogError, match="Is a directory"):
        read_scores(tmp_path, "mAP")
