"""Faults during a run: signals, dead workers, deleted images, changes of the clock."""

import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.tiny import TINY, change
from tests.training.launch import finish, lines, run, said, saved, start
from tests.training.test_killed import checkpoints
from tests.training.test_processes import wait_for

CONFIG = change(
    TINY,
    data={"train_split": "train:200"},
    train={"steps": 40, "log_every": 4, "checkpoint_every": 10},
)
ENDLESS = change(CONFIG, train={"steps": 100_000, "checkpoint_every": 100_000})
"""Run that the test stops and resumes up to a chosen step."""


def assert_resumes_like_an_uninterrupted_run(tmp_path, workdir, config, step):
    """Resume the run up to `step` and compare it with an uninterrupted run."""
    config = change(config, train={"steps": step, "checkpoint_every": 100_000})
    run(config, workdir, "--resume")
    run(config, tmp_path / "straight")
    assert lines(workdir) == lines(tmp_path / "straight")
    jax.tree.map(
        np.testing.assert_array_equal, saved(workdir, step), saved(tmp_path / "straight", step)
    )


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(tmp_path, number):
    workdir = tmp_path / "run"
    started = start(ENDLESS, workdir)
    wait_for(workdir, "step 12 ")
    started[0].send_signal(number)
    since = time.monotonic()
    assert finish(started, timeout=60) == [75], said(workdir)
    assert time.monotonic() - since < 30
    (step,) = checkpoints(workdir)
    assert f"stopped by a signal after step {step} and saved; continue with" in said(workdir)
    assert_resumes_like_an_uninterrupted_run(tmp_path, workdir, ENDLESS, step + 9)


@pytest.mark.nightly
def test_killed_worker_is_restarted(tmp_path):
    config = change(ENDLESS, data={"num_workers": 1})
    workdir = tmp_path / "run"
    started = start(config, workdir)
    wait_for(workdir, "step 12 ")
    for worker in workers_of(started[0].pid):
        os.kill(worker, signal.SIGKILL)
    wait_for(workdir, "a worker process had died; the workers were started again", timeout=60)
    # The whole process group gets the signal, as with Ctrl-C; the workers ignore it.
    for pid in (*workers_of(started[0].pid), started[0].pid):
        os.kill(pid, signal.SIGINT)
    assert finish(started, timeout=60) == [75], said(workdir)
    (step,) = checkpoints(workdir)
    assert_resumes_like_an_uninterrupted_run(tmp_path, workdir, ENDLESS, step + 5)


@pytest.mark.nightly
def test_workers_end_with_a_killed_training(tmp_path):
    config = change(ENDLESS, data={"num_workers": 2})
    started = start(config, tmp_path / "run")
    wait_for(tmp_path / "run", "step 4 ")
    workers = workers_of(started[0].pid)
    assert len(workers) == 2
    started[0].kill()
    finish(started)
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def workers_of(pid):
    """Find the child processes that run Grain's workers."""
    workers = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            workers.append(int(status.parent.name))
    return workers


@pytest.mark.nightly
def test_image_deleted_during_a_run_stops_it_after_saving(tmp_path, shared_data):
    data = tmp_path / "bccd"
    shutil.copytree(shared_data / "bccd", data, ignore=shutil.ignore_patterns("README*"))
    for path in (data, *data.rglob("*")):
        path.chmod(0o755)
    config = change(
        ENDLESS,
        data={
            **{"format": "voc", "root": str(data), "max_objects": 64},
            **{"train_split": "trainval", "eval_split": "test"},
        },
        eval={"num_visualizations": 0},
    )
    workdir = tmp_path / "run"
    started = start(config, workdir)
    wait_for(workdir, "step 8 ")
    gone = [p for p in (data / "JPEGImages").iterdir() if p.stem.endswith("7")]
    for path in gone:
        path.rename(path.with_suffix(".away"))
    assert finish(started, timeout=120) == [2], said(workdir)
    (line,) = (x for x in said(workdir).splitlines() if x.startswith("train.py: "))
    assert any(path.name in line for path in gone), line
    assert "cannot be read (No such file or directory)" in line
    (step,) = checkpoints(workdir)
    for path in gone:
        path.with_suffix(".away").rename(path)
    assert_resumes_like_an_uninterrupted_run(tmp_path, workdir, config, step + 5)


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("faketime"), reason="needs faketime")
def test_changes_of_the_clock_have_no_effect(tmp_path):
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    workdir = tmp_path / "run"
    started = start(ENDLESS, workdir, env=environment)
    wait_for(workdir, "step 8 ")
    clock.write_text("-400d\n")
    wait_for(workdir, "step 20 ")
    clock.write_text("+400d\n")
    wait_for(workdir, "step 32 ")
    started[0].send_signal(signal.SIGTERM)
    assert finish(started, timeout=60) == [75], said(workdir)
    (step,) = checkpoints(workdir)
    assert_resumes_like_an_uninterrupted_run(tmp_path, workdir, ENDLESS, step + 5)
