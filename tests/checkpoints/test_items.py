"""Damaged checkpoints: every reader reports them in one line and writes nothing."""

import gc
import json
import os
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import evaluate
import predict
from ssd_jax.checkpoints.items import CheckpointError, checkpoint_args, item_handlers
from ssd_jax.checkpoints.reader import (
    checkpoint_step,
    find_checkpoint,
    read_config,
    read_variables,
    write_checkpoint,
)
from ssd_jax.cli import benchmark, export, weights
from ssd_jax.config import ConfigError, to_json
from ssd_jax.demo.detection import LazyDetector
from ssd_jax.inference.detector import Detector
from ssd_jax.weights.finetune import init_from
from tests.runs import write_run
from tests.tiny import TINY, change

pytestmark = pytest.mark.smoke

CONFIG = change(
    TINY,
    model={
        "classes": ("circle", "square", "triangle", "star"),
        "width_multiplier": 0.0625,
        "batch_norm": False,
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole") / "run", CONFIG)


@pytest.fixture
def copy(run, tmp_path):
    """A checkpoint to damage."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run/checkpoints/0"


def data_file(checkpoint):
    """The file that holds most of the weights."""
    return max((checkpoint / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def main_of(module, *more):
    return lambda path: module.main(["--checkpoint", str(path), *map(str, more)])


READERS = {
    "Detector": Detector.from_checkpoint,
    "demo": lambda path: LazyDetector(path).load(),
    "evaluate": main_of(evaluate, "--out", "out"),
    "predict": main_of(predict, "image.png", "--out", "out"),
    "benchmark": main_of(benchmark, "--out", "out"),
    "export": main_of(export, "--to", "stablehlo", "--out", "out"),
    "weights": lambda path: weights.main(
        ["export", str(path), "--to", "safetensors", "--out", "out.safetensors"]
    ),
    "init_from": lambda path: init_from({}, change(CONFIG, model={"init_from": str(path)})),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_verifies_the_arrays(copy, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # by the benchmark
    (tmp_path / "image.png").write_bytes(b"")
    file = data_file(copy)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"checkpoint .*checkpoints/0 is damaged \("
    ) as raised:
        READERS[reader](copy)
    assert "\n" not in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.png", "run"]


def test_changed_array_is_named(copy):
    """A change that the file format itself accepts."""
    file = copy / "checksums/metadata"
    checksums = json.loads(file.read_text())
    checksums["params/base/conv1_1/conv/kernel"] ^= 1
    file.write_text(json.dumps(checksums))
    with pytest.raises(
        CheckpointError, match=r"damaged \(params/base/conv1_1/conv/kernel: checksum mismatch"
    ):
        read_variables(copy)


@pytest.mark.parametrize(
    "checksums",
    [b"", b"\x93\x00\xff", b"[]", b"{}", b"[" * 100_000, b'{"params/base/conv1_1": 1}', None],
)
def test_invalid_checksums_are_an_error(copy, checksums):
    file = copy / "checksums/metadata"
    if checksums is None:
        file.unlink()
    else:
        file.write_bytes(checksums)
    with pytest.raises(CheckpointError, match=r"checkpoints/0 is damaged \("):
        read_variables(copy)


def test_missing_checksums_are_an_error(copy):
    """As in checkpoints of versions that did not write them."""
    shutil.rmtree(copy / "checksums")
    with pytest.raises(CheckpointError, match=r"checkpoints/0 has no checksums .*import it again"):
        read_variables(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_arrays_are_an_error(tmp_path, value):
    variables = {"params": {"a": np.ones(3, np.float32), "b": np.full(3, value, np.float32)}}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**item_handlers())) as writer:
        writer.save(tmp_path / "0", args=checkpoint_args(variables, CONFIG))
    with pytest.raises(CheckpointError, match=r"/0 is damaged \(params/b is not finite\)"):
        read_variables(tmp_path / "0")
    with pytest.raises(ConfigError, match="params/b is not finite"):
        write_checkpoint(tmp_path / "run", CONFIG, variables)
    assert [p.name for p in tmp_path.iterdir()] == ["0"]


def test_changed_config_is_an_error(copy):
    file = copy / "config/metadata"
    text = to_json(change(CONFIG, eval={"nms_iou_threshold": 0.55}))
    file.write_text(json.dumps({"config": text}))
    with pytest.raises(CheckpointError, match=r"\(config: checksum mismatch\); use another"):
        read_config(copy)
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match=r"is damaged \(config: "):
        read_config(copy)
    # Without a checksum.
    text = f'{{"model": {"[" * 100_000}'
    file.write_text(json.dumps({"config": text}))
    checksums = json.loads((copy / "checksums/metadata").read_text())
    del checksums["config"]
    (copy / "checksums/metadata").write_text(json.dumps(checksums))
    with pytest.raises(ConfigError, match="0 has no valid config: the config is not valid JSON"):
        read_config(copy)


def test_missing_file_prints_nothing_else(copy, capfd):
    """Many reads fail at once; warnings are errors, and so are tracebacks of other threads."""
    data_file(copy).unlink()
    with pytest.raises(CheckpointError, match=r"is damaged \(state: "):
        read_variables(copy)
    assert capfd.readouterr().err == ""


def test_unknown_array_type_prints_nothing_else(copy, recwarn):
    file = copy / "state/_METADATA"
    file.write_text(file.read_text()[::-1].replace("yarradn.pn", "zarradn.pn", 1)[::-1])
    with pytest.raises(CheckpointError, match=r"is damaged \(state: "):
        read_variables(copy)
    gc.collect()
    assert not recwarn.list


def test_pipe_is_an_error_at_once(copy):
    file = data_file(copy)
    file.unlink()
    os.mkfifo(file)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"damaged \(checksums: state/.* is not a file\)"):
        read_variables(copy)
    assert time.monotonic() - start < 5


def test_missing_permission_is_not_damage(copy, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(ConfigError, match=r"cannot be read \(checksums: Permission denied\); fix"):
        read_config(copy)


@pytest.mark.parametrize(
    ("name", "step"), [("0", 0), ("120", 120), ("\u00b2", None), ("007", None), ("best", None)]
)
def test_checkpoint_step(tmp_path, name, step):
    assert checkpoint_step(tmp_path / name) == step


def test_find_best_checkpoint(copy):
    shutil.copytree(copy, copy.parent / "7")
    run = copy.parent.parent
    with pytest.raises(ConfigError, match=r"--best: .*run has no checkpoints/best, which a run"):
        find_checkpoint(run, best=True)
    (copy.parent / "best").write_text("0\n")
    assert find_checkpoint(run) == copy.parent / "7"
    assert find_checkpoint(run, best=True) == copy
    assert find_checkpoint(copy.parent, best=True) == copy
    assert find_checkpoint(copy.parent / "best") == copy
    for text in ("8\n", "", "../0\n", "\u0660\n", "x" * 1000):
        (copy.parent / "best").write_text(text)
        with pytest.raises(
            ConfigError, match=r"checkpoints/best does not name a checkpoint; use one"
        ):
            find_checkpoint(run, best=True)
