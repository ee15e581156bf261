"""Initialization from a checkpoint with the same or other classes."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.config import ConfigError, ExtraBlock
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.weights.finetune import init_from
from tests.tiny import TINY, change

OLD = change(TINY, model={"classes": ("cat", "dog", "cow")})


def variables(config, seed):
    """Variables in which every array differs, biases too."""
    tree = variable_shapes(make_model(config.model, config.priors))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder and its variables."""
    run = tmp_path_factory.mktemp("old") / "run"
    old = variables(OLD, 0)
    write_checkpoint(run, OLD, old)
    return run, old


def start(saved, config):
    run, old = saved
    config = change(config, model={"init_from": str(run)})
    new = variables(config, 1)
    result, report = init_from(new, config)
    return [traverse_util.flatten_dict(tree) for tree in (old, new, result)], report


def test_same_classes_load_every_array(saved):
    (old, _, result), report = start(saved, OLD)
    assert report.num_loaded == len(old) == len(result)
    assert report[1:] == ((), (), (), (), ())
    for path, value in old.items():
        np.testing.assert_array_equal(result[path], value)


def test_other_classes_transfer_rows_by_name(saved):
    classes = ("bird", "cow", "cat", "fish", "fly")
    (old, new, result), report = start(saved, change(OLD, model={"classes": classes}))
    assert report.transferred == ("cow", "cat")
    assert report.new_classes == ("bird", "fish", "fly")
    assert "background, cow, cat transferred; randomly initialized: bird, fish, fly" in str(report)
    assert any(path[0] == "batch_stats" for path in result)
    heads = 0
    for path, value in result.items():
        if path[1].startswith("head_") and path[2] == "conf":
            heads += 1
            for box in range(4):
                for k, name in enumerate(("background", *classes)):
                    row = value[..., 6 * box + k]
                    names = ("background", *OLD.model.classes)
                    if name in names:
                        expected = old[path][..., 4 * box + names.index(name)]
                    else:
                        expected = new[path][..., 6 * box + k]
                    np.testing.assert_array_equal(row, expected)
        else:
            np.testing.assert_array_equal(value, old[path])
    assert heads == 4


def test_reordered_classes_are_matched_by_name(saved):
    classes = ("dog", "cow", "cat")
    (old, _, result), report = start(saved, change(OLD, model={"classes": classes}))
    assert report.transferred == classes
    path = ("params", "head_conv7", "conf", "bias")
    np.testing.assert_array_equal(result[path][:4], old[path][[0, 2, 3, 1]])


def test_additional_feature_layer_is_reinitialized(saved):
    more = change(
        OLD,
        model={
            "feature_layers": ("conv4_3", "conv7", "conv8_2"),
            "extras": (ExtraBlock(8, 8, stride=2, padding=1),),
        },
        priors={"sizes": (16, 32, 64, 90), "aspect_ratios": ((2,), (2,), (2,))},
    )
    (old, new, result), report = start(saved, more)
    assert "extras/conv8_1/conv" in report.reinitialized
    assert "head_conv8_2/loc" in report.reinitialized
    path = ("params", "head_conv8_2", "loc", "kernel")
    np.testing.assert_array_equal(result[path], new[path])
    assert report.num_loaded == len(old)
    assert "priors differ from those" in str(report)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": {"width_multiplier": 0.25}}, "does not fit: .* there and .* here"),
        ({"priors": {"aspect_ratios": ((2,), (2, 3))}}, "does not fit: params/head_conv7"),
    ],
)
def test_different_shape_is_an_error(saved, more, message):
    with pytest.raises(ConfigError, match=message):
        start(saved, change(OLD, **more))


def test_different_mean_is_reported(saved):
    _, report = start(saved, change(OLD, model={"image_mean": (1.0, 2.0, 3.0)}))
    assert "the weights were trained with (123.0, 117.0, 104.0)" in str(report)


def test_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"model.init_from: no checkpoint found in"):
        init_from({}, change(OLD, model={"init_from": str(tmp_path)}))
