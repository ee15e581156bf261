"""Several processes and devices equal one, and a lost process ends the others."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.tiny import TINY, change
from tests.training.launch import finish, lines, run, said, saved, start

# A small rate: rounding errors must not grow until another hard negative is chosen.
SHORT = change(
    TINY,
    optim={"ema_decay": 0.9, "learning_rate": 1e-4},
    train={"steps": 6, "batch_size": 8, "log_every": 2, "checkpoint_every": 3},
)
# At 1e-4 rounding errors grow within a dozen steps until another hard negative is chosen, and later
# steps differ. At this rate, which moves the weights by 1e-4, a wrong sum is still detected.
LONG = change(
    SHORT,
    optim={"learning_rate": 2e-7},
    train={"steps": 50, "log_every": 1, "checkpoint_every": 25},
)


def assert_same_run(one, other, step, tolerance, *, momentum=False):
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["kind"]) == (b["step"], b["kind"])
        if a["kind"] == "train":
            np.testing.assert_allclose(
                [a[n] for n in ("loss", "loss_loc", "loss_conf")],
                [b[n] for n in ("loss", "loss_loc", "loss_conf")],
                rtol=tolerance,
            )
    for name, actual, expected in leaves(saved(one, step), saved(other, step)):
        if momentum or "opt_state" not in name:
            # Relative to the largest value: the rounding error of a sum is that of its terms.
            largest = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(
                actual, expected, atol=tolerance * largest, rtol=0, err_msg=name
            )


def leaves(*trees):
    """Yield the name and the array of each tree, for trees of the same structure."""
    flat = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in trees]
    for rows in zip(*flat, strict=True):
        yield jax.tree_util.keystr(rows[0][0]), *(array for _, array in rows)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    run(SHORT, tmp_path / "one")
    run(SHORT, tmp_path / "two", processes=2)
    assert_same_run(tmp_path / "one", tmp_path / "two", 6, 1e-5, momentum=True)
    assert "step 2 " in said(tmp_path / "two", 0)
    assert "step 2 " not in said(tmp_path / "two", 1)


@pytest.mark.nightly
def test_evaluation_by_two_processes_equals_one(tmp_path):
    """Evaluate five images in batches of four, each image once."""
    run(SHORT, tmp_path / "two", processes=2)
    written = []
    for processes in (1, 2):
        out = tmp_path / f"by-{processes}"
        how = ("--checkpoint", tmp_path / "two", "--out", out)
        run(SHORT, tmp_path / "evaluate", *how, processes=processes, main="evaluate.py")
        written.append((out / "metrics.json").read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0])["num_images"] == 5


@pytest.mark.nightly
def test_fifty_steps_on_several_processes_and_devices(tmp_path):
    run(LONG, tmp_path / "one")
    for processes, devices in ((2, 1), (2, 2), (1, 4)):
        name = f"{processes}x{devices}"
        run(LONG, tmp_path / name, processes=processes, devices=devices)
        assert_same_run(tmp_path / "one", tmp_path / name, 50, 1e-5)


@pytest.mark.nightly
def test_resume_with_another_number_of_processes(tmp_path):
    run(LONG, tmp_path / "one")
    moved = tmp_path / "moved"
    run(change(LONG, train={"steps": 20}), moved, processes=2)
    run(change(LONG, train={"steps": 35}), moved, "--resume")
    run(LONG, moved, "--resume", processes=2)
    # The evaluations at the early ends belong to this test only.
    text = (moved / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [x for x in text if '"kind": "train"' in x or '"step": 50' in x]
    (moved / "metrics.jsonl").write_text("".join(kept))
    assert_same_run(tmp_path / "one", moved, 50, 1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("lost", [0, 1])
def test_lost_process_ends_the_others(tmp_path, lost):
    config = change(SHORT, train={"steps": 5000, "checkpoint_every": 5})
    workdir = tmp_path / "run"
    started = start(config, workdir, "--peer-timeout", "20", processes=2)
    wait_for(workdir, "step 8 ")
    started[lost].kill()
    since = time.monotonic()
    statuses = finish(started, timeout=60)
    assert time.monotonic() - since < 40
    assert statuses[1 - lost] == 76
    assert "another process is lost" in said(workdir, 1 - lost)
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    run(change(config, train={"steps": newest + 2}), workdir, "--resume")


@pytest.mark.nightly
def test_signal_to_one_process_stops_all(tmp_path):
    config = change(SHORT, train={"steps": 5000, "checkpoint_every": 5000})
    workdir = tmp_path / "run"
    started = start(config, workdir, processes=2)
    wait_for(workdir, "step 8 ")
    started[1].send_signal(signal.SIGTERM)
    assert finish(started, timeout=60) == [75, 75]
    (step,) = (int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert f"stopped by a signal after step {step} and saved" in said(workdir, 0)
    assert f"stopped by a signal after step {step} and saved" in said(workdir, 1)


def wait_for(workdir, text, timeout=300):
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if text in said(workdir):
            return
        time.sleep(0.05)
    raise AssertionError(said(workdir))
