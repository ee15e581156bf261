"""Runs that start from a checkpoint with other classes."""

import jax
import numpy as np
import pytest

from ssd_jax.checkpoints.reader import find_checkpoint, read_config, restore_model, write_checkpoint
from ssd_jax.config import ConfigError
from ssd_jax.models.ssd import init_variables, make_model
from ssd_jax.training.loop import train
from tests.tiny import TINY, change

SHORT = change(
    TINY,
    train={"steps": 1, "log_every": 1, "checkpoint_every": 1},
    eval={"num_visualizations": 1},
    optim={"learning_rate": 1e-12},
)


@pytest.mark.slow
def test_run_starts_from_a_checkpoint(tmp_path, capsys):
    config = change(SHORT, model={"classes": ("moon", "star")})
    model = make_model(config.model, config.priors)
    old = jax.device_get(init_variables(model, jax.random.key(7)))
    old["params"]["head_conv7"]["conf"]["bias"] = np.arange(12, dtype=np.float32)
    write_checkpoint(tmp_path / "old", config, old)

    train(change(SHORT, model={"init_from": str(tmp_path / "old")}), tmp_path / "new")
    said = " ".join(capsys.readouterr().out.split())
    assert "background, star transferred; randomly initialized: circle, square, triangle" in said
    checkpoint = find_checkpoint(tmp_path / "new")
    new = restore_model(checkpoint, read_config(checkpoint))[1]
    base = [v["params"]["base"] for v in (old, new)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *base)
    bias = new["params"]["head_conv7"]["conf"]["bias"].reshape(4, 5)
    expected = [[3 * box, 0, 0, 0, 3 * box + 2] for box in range(4)]
    np.testing.assert_allclose(bias, expected, atol=1e-6)


def test_missing_checkpoint_stops_before_anything_is_written(tmp_path):
    config = change(SHORT, model={"init_from": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"model.init_from: no checkpoint found"):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
