"""Non-finite steps: the saved state, the diagnosis and replay files."""

import json
import math

import jax
import numpy as np
import pytest

import train as train_main
from ssd_jax.config import ConfigError
from ssd_jax.data import pipeline
from ssd_jax.data.pipeline import TrainBatches
from ssd_jax.training import nonfinite
from ssd_jax.training.loop import train
from ssd_jax.training.nonfinite import (
    NonFiniteError,
    NonFiniteStep,
    describe,
    diagnose,
    read_replay,
    write_replay,
)
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps
from tests.tiny import TINY, change
from tests.training.launch import lines, saved

CONFIG = change(TINY, train={"steps": 4, "log_every": 4, "checkpoint_every": 4})


class Poisoned(TrainBatches):
    """Batches as float32, with a NaN pixel in the second image of the third batch."""

    poison = True

    def __next__(self):
        third = self.get_state()["position"] == 8
        batch = super().__next__()
        batch["image"] = batch["image"].astype(np.float32)
        if third and self.poison:
            batch["image"][1, 10, 10, 0] = np.nan
        return batch


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    monkeypatch.setattr(pipeline, "TrainBatches", Poisoned)
    monkeypatch.setattr(Poisoned, "poison", True)
    return Poisoned


@pytest.mark.slow
def test_run_stops_with_the_state_before_the_nonfinite_step(tmp_path, poisoned, capsys):
    config = CONFIG
    with pytest.raises(NonFiniteError) as raised:
        train(config, tmp_path / "run")
    message = str(raised.value)
    file = tmp_path / "run/nonfinite/step3-process0.npz"
    assert "step 3: loss_loc and loss_conf not finite; image train-" in message
    assert f"ssd-jax train --replay {file}" in message

    # The saved state is bit-identical to that after two steps.
    poisoned.poison = False
    short = change(config, train={"steps": 2, "log_every": 2, "checkpoint_every": 2})
    train(short, tmp_path / "short")
    jax.tree.map(
        np.testing.assert_array_equal, saved(tmp_path / "run", 2), saved(tmp_path / "short", 2)
    )

    step = read_replay(file)
    assert step.step == 3
    assert np.isnan(step.batch["image"][1]).any()
    assert step.image_ids[1] in message
    capsys.readouterr()
    assert train_main.main(["--replay", str(file)]) == 1
    said = capsys.readouterr().out
    assert "step 3: loss_loc and loss_conf not finite" in said
    assert said.count("not finite") == 2  # its row, and the line

    # Without the NaN the run continues and ends like an uninterrupted one.
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "straight")
    jax.tree.map(
        np.testing.assert_array_equal, saved(tmp_path / "run", 4), saved(tmp_path / "straight", 4)
    )
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def test_nonfinite_step_is_skipped_and_counted(tmp_path):
    config = change(CONFIG, train={"on_nonfinite": "skip"})
    train(config, tmp_path / "run")
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert line["skipped"] == 1
    assert math.isfinite(line["loss"])
    state = saved(tmp_path / "run", 4)
    assert state["step"] == 4
    assert state["nonfinite_steps"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def metrics(loss, nonfinite=0.0):
    return {"loss": loss, "learning_rate": 0.1 * loss, "nonfinite": nonfinite, "stop": 0.0}


def test_mean_of_skipped_steps_is_nan():
    pending = PendingSteps([metrics(math.nan, nonfinite=1.0)])
    mean = pending.pop_mean()
    assert math.isnan(mean["loss"])
    assert mean["skipped"] == 1
    assert pending.completed == []


def test_mean_continues_after_a_restart():
    first = PendingSteps([])
    for k, value in enumerate((1.0, 2.0)):
        first.add(PendingStep(jax.device_put(metrics(value)), {}, k))
    first.flush()
    assert first.nonfinite is None
    second = PendingSteps(json.loads(json.dumps(first.completed)))
    second.add(PendingStep(jax.device_put(metrics(6.0)), {}, 2))
    second.flush()
    mean = second.pop_mean()
    assert mean["loss"] == 3.0
    assert mean["learning_rate"] == pytest.approx(0.6)
    assert "skipped" not in mean


def test_steps_after_a_nonfinite_one_do_not_complete():
    pending = PendingSteps([])
    for k, flag in enumerate((0.0, 1.0, 0.0)):
        pending.add(PendingStep(jax.device_put(metrics(k + 1.0, flag)), {}, 8 * k))
    pending.flush()
    assert pending.nonfinite.position == 8
    assert [m["loss"] for m in pending.completed] == [1.0]


def make_step(**batch):
    """Build a finite step of a network with initial weights."""
    from ssd_jax.models.ssd import init_variables, make_model

    config = change(CONFIG, model={"classes": ("a", "b"), "batch_norm": False})
    model = make_model(config.model, config.priors)
    variables = jax.device_get(init_variables(model, jax.random.key(0)))
    arrays = {
        "image": np.zeros((2, 64, 64, 3), np.uint8),
        "boxes": np.tile(np.float32([0.1, 0.1, 0.6, 0.6]), (2, 8, 1)),
        "labels": np.zeros((2, 8), np.int32),
        "mask": np.tile(np.arange(8) < 1, (2, 1)),
    }
    variables = {"params": jax.tree.map(np.array, variables["params"]), "batch_stats": {}}
    return NonFiniteStep(7, ("first", "second"), arrays | batch, variables, config)


@pytest.mark.slow
def test_finite_step_names_no_image():
    diagnosis = diagnose(make_step())
    assert diagnosis.finite
    assert diagnosis.nonfinite_images == ()
    assert describe(make_step(), diagnosis).startswith("step 7: finite in this share of the batch")


@pytest.mark.slow
def test_overflowing_weights_name_no_single_image():
    step = make_step()
    step.variables["params"]["head_conv7"]["conf"]["bias"][:] = np.inf
    diagnosis = diagnose(step)
    assert diagnosis.terms == ("loss_conf",)
    assert describe(step, diagnosis) == (
        "step 7: loss_conf not finite; no single image of first, second"
    )


@pytest.mark.slow
def test_nonfinite_gradient_with_finite_losses():
    step = make_step()
    # Tiny values times huge weights are finite in the forward pass; the gradient overflows.
    base, rng = step.variables["params"]["base"], np.random.default_rng(0)
    base["conv6"]["conv"]["kernel"][:] = 0
    base["conv6"]["conv"]["bias"][:] = 1e-37
    kernel = base["conv7"]["conv"]["kernel"]
    kernel[:] = 1e38 * rng.choice([-1, 1], kernel.shape)
    step.variables["params"]["head_conv7"]["conf"]["kernel"] *= 100
    diagnosis = diagnose(step)
    assert diagnosis.terms == ("gradient",), diagnosis
    assert "the gradient of " in describe(step, diagnosis)


@pytest.mark.parametrize("content", [b"PK\x03\x04 nothing", b"# a page", b""])
def test_invalid_replay_file(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--replay: .*x.npz is not a replay file; name one in"):
        read_replay(tmp_path / "x.npz")


def test_replay_file_with_huge_contents_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", step=np.zeros(10_000))
    assert (tmp_path / "x.npz").stat().st_size < 5000
    monkeypatch.setattr(nonfinite, "MAX_BYTES", 5000)
    with pytest.raises(ConfigError, match=r"--replay: .*x.npz: it would unpack to .* GiB; name"):
        read_replay(tmp_path / "x.npz")


def test_missing_replay_file(tmp_path):
    with pytest.raises(ConfigError, match=r"y.npz cannot be read \(No such file or directory\)"):
        read_replay(tmp_path / "y.npz")


def test_replay_file_round_trip(tmp_path):
    step = make_step()
    write_replay(tmp_path / "z.npz", step)
    again = read_replay(tmp_path / "z.npz")
    assert (again.step, again.image_ids, again.config) == (step.step, step.image_ids, step.config)
    jax.tree.map(np.testing.assert_array_equal, again.batch, step.batch)
    jax.tree.map(np.testing.assert_array_equal, again.variables["params"], step.variables["params"])
