"""Commands on a dataset in YOLO format."""

import json
import sys

import numpy as np
import pytest

import ssd_jax
from ssd_jax.cli import data as data_main
from ssd_jax.cli.run import run_main
from tests.data.folders import write_image, write_yolo
from tests.tiny import TINY, change, write_config_file


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    splits = {"train": {}, "val": {}}
    for k in range(12):
        file = tmp_path / f"images/{k}.png"
        write_image(file, rng.integers(0, 256, (80, 100, 3), np.uint8))
        x, y = rng.integers(0, 40, 2).tolist()
        objects = [(("cat", "dog")[k % 2], (x, y, x + 40, y + 30))]
        splits["train" if k < 8 else "val"][file] = ((100, 80), objects)
    root = write_yolo(tmp_path / "data", "images/SPLIT", splits, ("cat", "dog"))
    data = {"format": "auto", "root": str(root), "train_split": "train", "eval_split": "val"}
    return change(TINY, data=data, train={"steps": 20, "checkpoint_every": 20})


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Runs `ssd-jax data`: exit status, output, error stream."""

    def run(config, command, *arguments):
        path = write_config_file(tmp_path / "config.py", config)
        arguments = ["ssd-jax data", command, "--config", path, *arguments]
        monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
        return run_main(data_main.main), *capfd.readouterr()

    return run


def test_check(run, config):
    status, out, err = run(config, "check")
    assert (status, err) == (0, "")
    assert "training: train, 8 images, 8 objects" in out
    assert "evaluation: val, 4 images, 4 objects" in out
    assert "0 errors, 0 warnings, 0 notes: training can start" in out


def test_check_lists_errors(run, config, tmp_path):
    labels = tmp_path / "data/labels/train"
    (labels / "0.txt").write_text("2 .5 .5 .5 .5\n0 .5 .5\n0 50 50 20 20\n")
    (labels / "1.txt").write_text("0 .5 .5 0 .5\n")
    (tmp_path / "data/images/train/2.png").unlink()
    (tmp_path / "data/images/train/2.png").write_bytes(b"no image")
    status, _, _ = run(config, "check", "--fix-report", tmp_path / "report.json")
    assert status == 1
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    wrong = {(f["kind"], f["record"], f["object"]) for f in findings if f["severity"] != "note"}
    assert wrong == {
        ("unknown_class", "0", "line 1"),
        ("annotation", "0", "line 2"),
        ("annotation", "0", "line 3"),
        ("no_area", "1", "line 1"),
        ("unreadable_image", "2", ""),
    }


def test_show(run, config, tmp_path):
    status, out, err = run(config, "show", "--out", tmp_path / "out", "--count", "2")
    assert (status, err) == (0, "")
    assert "2 objects" in out
    assert (tmp_path / "out/samples.jpg").is_file()


@pytest.mark.slow
def test_training_and_evaluation(config, tmp_path):
    score = ssd_jax.train(config, tmp_path / "run")
    evaluation = ssd_jax.evaluate(tmp_path / "run")
    assert 0 <= score <= 1
    assert [c.name for c in evaluation.results[0].classes] == ["cat", "dog"]
    assert evaluation.results[0].mean_ap == pytest.approx(score, abs=1e-6)
