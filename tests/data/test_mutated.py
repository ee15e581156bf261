"""Datasets gone wrong (mutate.py): one line that names the file, or a record that can be used."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from ssd_jax.config import DataConfig
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.pipeline import train_batches
from tests.data import mutate
from tests.data.folders import CLASSES
from tests.tiny import TINY, change, write_config_file


class Hang(BaseException):
    """Not an Exception, and no OSError as TimeoutError is: no reader may take it for its own."""


@pytest.fixture(autouse=True)
def no_hang():
    """A reader that waits for a pipe would wait for ever."""

    def give_up(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated") / "voc"
    mutate.make_voc(root)
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated") / "coco"
    mutate.make_coco(root)
    return root


def test_number_of_mutants():
    assert len(mutate.VOC) >= 200
    assert len(mutate.COCO) >= 200


def read(kind, root, split, *on_finding):
    """Open the split and read all of its records; `on_finding` receives errors if given."""
    source = kind(root, split, CLASSES, *on_finding)
    for i in range(len(source)):
        try:
            source[i]
        except DataError as error:
            if not on_finding:
                raise
            on_finding[0](error.finding)


def check(mutant, kind, root, split, names):
    """One line with one of the names where training stops; all lines where they are collected."""
    try:
        read(kind, root, split)
    except DataError as error:
        line = str(error)
        assert mutant.outcome != "fine", line
        assert line.isprintable()
        assert any(name in line for name in names)
        assert len(line) < 1200
    else:
        assert mutant.outcome != "refused"

    findings = []
    try:
        read(kind, root, split, findings.append)
    except DataError as error:  # no record is left
        findings.append(error.finding)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert {"refused": bool(errors), "fine": not errors, "either": True}[mutant.outcome]


@pytest.mark.parametrize("name", mutate.VOC)
def test_voc(voc, name):
    mutant = mutate.VOC[name]
    names = [f"{name}{mutant.suffix}", f"{name}.xml", f"{name}.jpg"]
    check(mutant, VocSource, voc, name, names)


@pytest.mark.parametrize("name", mutate.COCO)
def test_coco(coco, name):
    names = [f"instances_{name}.json", f"{coco}/JPEGImages/"]
    check(mutate.COCO[name], CocoSource, coco, name, names)


def check_folder(root, tmp_path, **data):
    """Exit status, findings, output and peak memory (bytes) of the command."""
    config = change(TINY, model={"classes": CLASSES}, data={"root": str(root), **data})
    command = [sys.executable, "-W", "error", "-m", "ssd_jax", "data", "check"]
    command += ["--config", write_config_file(tmp_path / "config.py", config)]
    command += ["--fix-report", tmp_path / "report.json"]
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    report = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "out.txt").read_text()
    assert "Traceback" not in text
    return process.returncode, report["findings"], text, usage.ru_maxrss * scale


def test_check_reports_every_voc_mutant(voc, tmp_path):
    status, findings, text, peak = check_folder(
        voc, tmp_path, format="voc", train_split="train", eval_split="good_2", max_objects=5000
    )
    assert status == 1
    assert peak < 2e9
    wrong = {f["record"] for f in findings if f["severity"] == "error"}
    assert {n for n, m in mutate.VOC.items() if m.outcome == "refused"} <= wrong
    assert not {n for n, m in mutate.VOC.items() if m.outcome == "fine"} & wrong
    assert all(f["message"].isprintable() for f in findings)
    assert "training would stop" in text


def test_check_reports_every_coco_mutant(coco, tmp_path):
    status, findings, _, peak = check_folder(
        coco, tmp_path, format="coco", train_split="everything", eval_split="good"
    )
    assert status == 1
    assert peak < 2e9
    assert len([f for f in findings if f["severity"] == "error"]) > 100
    assert {"annotation", "duplicate", "missing_image", "no_area", "outside"} <= {
        f["kind"] for f in findings
    }


@pytest.mark.parametrize("split", ["images", "image_pipe"])
def test_worker_errors_end_with_one_line(voc, split):
    """Training runs until a worker reads an image that cannot be decoded."""
    source = VocSource(voc, split, CLASSES, lambda error: None)
    data = DataConfig(num_workers=2, max_objects=5000)
    start = time.perf_counter()
    batches = train_batches(source, data, image_size=32, mean=(0, 0, 0), batch_size=8, seed=0)
    with batches, pytest.raises(DataError) as caught:
        take(batches, len(source))
    assert f"{voc}/JPEGImages/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []
    assert time.perf_counter() - start < 60


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_mutants_are_deterministic():
    for make in (mutate.mutate_images, mutate.mutate_xml, mutate.mutate_json):
        one, two = (
            {n: m.data for n, m in make(3).items() if isinstance(m.data, bytes)} for _ in range(2)
        )
        assert one == two
