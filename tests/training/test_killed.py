"""A training that is killed at random moments is bit-identical to an uninterrupted one."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from configs import quickstart
from tests.tiny import change
from tests.training.launch import finish, lines, run, said, saved, start
from tests.training.test_processes import wait_for

KILLS = 20
# Saved every few seconds, so that many kills interrupt a save; logged and saved at different steps,
# so that a log line may span a kill.
CONFIG = change(
    quickstart.get_config(),
    optim={"ema_decay": 0.99},
    train={"steps": 600, "checkpoint_every": 5, "eval_every": 200, "log_every": 7},
    eval={"num_visualizations": 0},
)


@pytest.mark.nightly
def test_killed_at_twenty_random_moments(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(CONFIG, straight)
    rng = random.Random(0)
    during_saves = steps = 0
    for _ in range(KILLS):
        (process,) = start(CONFIG, killed, "--resume")
        wait_for(killed, "first step after")
        time.sleep(rng.uniform(0, 6))
        if process.poll() is not None:
            break  # the run had ended
        process.send_signal(signal.SIGKILL)
        finish([process])
        during_saves += any((killed / "checkpoints").glob("*tmp*"))
        steps = max([steps, *checkpoints(killed)])
    print(f"{during_saves} of {KILLS} kills during a save, the last one after step {steps}")
    assert during_saves > 0
    assert process.returncode == -signal.SIGKILL, said(killed)
    run(CONFIG, killed, "--resume")
    assert lines(killed) == lines(straight)
    expected = saved(straight, 600)
    jax.tree.map(np.testing.assert_array_equal, saved(killed, 600), expected)
    assert {"params", "opt_state", "batch_stats", "ema"} <= set(expected)


def checkpoints(workdir):
    return [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
