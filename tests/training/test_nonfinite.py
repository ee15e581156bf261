"""A loss that is not finite: the state before it, whose image it was, and the step once more."""

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
from ssd_jax.training.loop import TrainingError, train
from ssd_jax.training.nonfinite import (
    NonFiniteStep,
    describe,
    diagnose,
    read_bad_step,
    write_bad_step,
)
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps
from tests.tiny import TINY, change
from tests.training.launch import lines, saved

CONFIG = change(TINY, train={"steps": 4, "log_every": 4, "checkpoint_every": 4})


class Poisoned(TrainBatches):
    """Batches as float32, with a pixel that is no number in the third one's second image."""

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
def test_it_stops_before_the_state_is_touched(tmp_path, poisoned, capsys):
    config = CONFIG
    with pytest.raises(TrainingError) as raised:
        train(config, tmp_path / "run")
    message = str(raised.value)
    file = tmp_path / "run/nonfinite/step3-process0.npz"
    assert "step 3: loss_loc and loss_conf not finite; image train-" in message
    assert f"train.py --replay {file}" in message

    # What is saved is what two steps give, to the bit.
    poisoned.poison = False
    short = change(config, train={"steps": 2, "log_every": 2, "checkpoint_every": 2})
    train(short, tmp_path / "short")
    ours, known = saved(tmp_path / "run", 2), saved(tmp_path / "short", 2)
    jax.tree.map(np.testing.assert_array_equal, ours, known)

    bad = read_bad_step(file)
    assert bad.step == 3
    assert np.isnan(bad.batch["image"][1]).any()
    assert bad.image_ids[1] in message
    capsys.readouterr()
    assert train_main.main(["--replay", str(file)]) == 1
    said = capsys.readouterr().out
    assert "step 3: loss_loc and loss_conf not finite" in said
    assert said.count("not finite") == 2  # its row, and the line

    # The poison is gone: the run goes on from there and ends as if nothing had been.
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "straight")
    jax.tree.map(
        np.testing.assert_array_equal, saved(tmp_path / "run", 4), saved(tmp_path / "straight", 4)
    )
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def test_it_can_be_skipped_and_counted(tmp_path):
    config = change(CONFIG, train={"on_nonfinite": "skip"})
    train(config, tmp_path / "run")
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert line["skipped"] == 1
    assert math.isfinite(line["loss"])
    state = saved(tmp_path / "run", 4)
    assert state["step"] == 4
    assert state["bad_steps"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def metrics(loss, bad=0.0):
    return {"loss": loss, "learning_rate": 0.1 * loss, "bad": bad, "stop": 0.0}


def test_a_window_of_skipped_steps_has_no_mean():
    window = PendingSteps([metrics(math.nan, bad=1.0)])
    mean = window.pop_mean()
    assert math.isnan(mean["loss"])
    assert mean["skipped"] == 1
    assert window.known == []


def test_a_window_goes_on_where_another_one_stopped():
    first = PendingSteps([])
    for k, value in enumerate((1.0, 2.0)):
        first.add(PendingStep(jax.device_put(metrics(value)), {}, k))
    first.settle()
    assert first.bad is None
    second = PendingSteps(json.loads(json.dumps(first.known)))
    second.add(PendingStep(jax.device_put(metrics(6.0)), {}, 2))
    second.settle()
    mean = second.pop_mean()
    assert mean["loss"] == 3.0
    assert mean["learning_rate"] == pytest.approx(0.6)
    assert "skipped" not in mean


def test_steps_after_a_bad_one_do_not_become_known():
    window = PendingSteps([])
    for k, bad in enumerate((0.0, 1.0, 0.0)):
        window.add(PendingStep(jax.device_put(metrics(k + 1.0, bad)), {}, 8 * k))
    window.settle()
    assert window.bad.position == 8
    assert [m["loss"] for m in window.known] == [1.0]


def bad_step(**batch):
    """A step of a network whose weights explode in the last layers."""
    from ssd_jax.models.ssd import make_model

    config = change(CONFIG, model={"classes": ("a", "b"), "batch_norm": False})
    init = jax.jit(make_model(config.model, config.priors).init)
    variables = jax.device_get(init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.uint8)))
    arrays = {
        "image": np.zeros((2, 64, 64, 3), np.uint8),
        "boxes": np.tile(np.float32([0.1, 0.1, 0.6, 0.6]), (2, 8, 1)),
        "labels": np.zeros((2, 8), np.int32),
        "mask": np.tile(np.arange(8) < 1, (2, 1)),
    }
    variables = {"params": jax.tree.map(np.array, variables["params"]), "batch_stats": {}}
    return NonFiniteStep(7, ("first", "second"), arrays | batch, variables, config)


def test_a_finite_step_blames_nobody():
    found = diagnose(bad_step())
    assert found.finite
    assert found.bad_images == ()
    assert describe(bad_step(), found).startswith("step 7: finite in this share of the batch")


def test_weights_that_overflow_are_nobodys_image():
    bad = bad_step()
    bad.variables["params"]["head_conv7"]["conf"]["bias"][:] = np.inf
    found = diagnose(bad)
    assert found.terms == ("loss_conf",)
    assert describe(bad, found) == (
        "step 7: loss_conf not finite; no single image of first, second"
    )


def test_a_gradient_alone_can_be_bad():
    bad = bad_step()
    # Tiny values through huge weights are harmless; a gradient on its way back is not.
    base, rng = bad.variables["params"]["base"], np.random.default_rng(0)
    base["conv6"]["conv"]["kernel"][:] = 0
    base["conv6"]["conv"]["bias"][:] = 1e-37
    kernel = base["conv7"]["conv"]["kernel"]
    kernel[:] = 1e38 * rng.choice([-1, 1], kernel.shape)
    bad.variables["params"]["head_conv7"]["conf"]["kernel"] *= 100
    found = diagnose(bad)
    assert found.terms == ("gradient",), found
    assert "the gradient of " in describe(bad, found)


@pytest.mark.parametrize("content", [b"PK\x03\x04 nothing", b"# a page", b""])
def test_a_file_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--replay: .*x.npz is no file of a step; name one of"):
        read_bad_step(tmp_path / "x.npz")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", step=np.zeros(10_000))
    assert (tmp_path / "x.npz").stat().st_size < 5000
    monkeypatch.setattr(nonfinite, "MAX_BYTES", 5000)
    with pytest.raises(ConfigError, match=r"--replay: .*x.npz: it would unpack to .* GiB; name"):
        read_bad_step(tmp_path / "x.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"y.npz cannot be read \(No such file or directory\)"):
        read_bad_step(tmp_path / "y.npz")


def test_a_step_is_read_as_it_was_written(tmp_path):
    bad = bad_step()
    write_bad_step(tmp_path / "z.npz", bad)
    again = read_bad_step(tmp_path / "z.npz")
    assert (again.step, again.image_ids, again.config) == (bad.step, bad.image_ids, bad.config)
    jax.tree.map(np.testing.assert_array_equal, again.batch, bad.batch)
    jax.tree.map(np.testing.assert_array_equal, again.variables["params"], bad.variables["params"])
