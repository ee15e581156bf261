"""metrics.jsonl has every step once, also after a run that was killed."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ssd_jax.inference.drawing import save_image
from ssd_jax.training.metric_writer import LogError, MetricWriter


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path, start=0) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0}, kind="train")
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # torn by a kill
    with MetricWriter(tmp_path, start=4) as log:
        log.write(6, {"loss": 2.0}, kind="train")
        log.write(4, {"loss": 3.0}, kind="train")  # is there already
    assert steps(path) == [2, 4, 6]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.0


def test_other_processes_write_nothing(tmp_path, capsys):
    with MetricWriter(tmp_path, start=0, write=False) as log:
        log.write(2, {"loss": 1.0}, kind="train")
        log.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with MetricWriter(tmp_path, start=0) as log:
        log.write(2, {"loss": 1.5, "data_wait": 0.25}, kind="train")
    assert capsys.readouterr().out == "step 2  loss 1.5  data_wait 0.25\n"


def events(workdir):
    """(step, what) of everything in TensorBoard's files, read by its record format."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                found.append((event.step, "start"))
            for value in event.summary.value:
                kind = "picture" if value.HasField("image") else round(value.simple_value, 3)
                found.append((event.step, value.tag, kind))
    return found


def test_tensorboard_has_it_too(tmp_path):
    picture = tmp_path / "pictures.jpg"
    save_image(picture, np.zeros((8, 8, 3), np.uint8))
    with MetricWriter(tmp_path, start=4) as log:
        log.write(6, {"loss": 1.5, "grad_norm": 0.25}, kind="train")
        log.picture(6, "detections", picture)
        log.picture(6, "none", tmp_path / "none.jpg")
        # At once: nothing waits for the end.
        assert events(tmp_path) == [
            (5, "start"),
            (6, "train/loss", 1.5),
            (6, "train/grad_norm", 0.25),
            (6, "detections", "picture"),
        ]


def test_what_is_no_number_is_null(tmp_path):
    with MetricWriter(tmp_path, start=0) as log:
        log.write(2, {"loss": math.nan, "skipped": 2.0}, kind="train")
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 2, "kind": "train", "loss": None, "skipped": 2.0}


def test_a_full_disk_is_told(small_disk):
    log = MetricWriter(small_disk, start=0)
    with log:
        (small_disk / "filler").write_bytes(bytes(2_080_000))

        def fill():
            for step in range(1, 1000):
                log.write(step, {"loss": 1.0}, kind="train")

        with pytest.raises(LogError, match=r"cannot be written \(No space left on device\)"):
            fill()
    # Nothing stays open: a file system with an open file cannot be unmounted.
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in open_files if path.is_relative_to(small_disk)]
