"""Configs: every file loads, JSON round-trips, errors name the field."""

import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest

from ssd_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    ExtraBlock,
    ModelConfig,
    OptimConfig,
    PriorConfig,
    Range,
    TrainConfig,
    from_json,
    to_json,
)
from ssd_jax.config_file import load_config
from ssd_jax.models.ssd import model_priors

pytestmark = pytest.mark.smoke

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_config_file_loads_fits_and_survives_json(path):
    config = load_config(path)
    assert from_json(to_json(config)) == config
    assert hash(config) == hash(from_json(to_json(config)))
    assert len(model_priors(config.model, config.priors)) > 0


def test_published_configs_have_the_published_priors():
    counts = {"ssd300_voc0712": 8732, "ssd300_coco": 8732, "ssd512_coco": 24_564}
    for name, count in counts.items():
        config = load_config(FILES[0].parent / f"{name}.py")
        assert len(model_priors(config.model, config.priors)) == count
    assert len(load_config(FILES[0].parent / "ssd300_coco.py").model.classes) == 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(feature_layers=("conv9",)), "model.feature_layers names 'conv9'"),
        (lambda: ModelConfig(feature_layers=("conv7", "conv4_3")), "from fine to coarse"),
        (lambda: ModelConfig(feature_layers=()), "model.feature_layers is empty"),
        (lambda: ModelConfig(freeze_before="conv9"), "model.freeze_before is 'conv9'"),
        (lambda: ModelConfig(classes=("a", "a")), "model.classes names a class twice"),
        (lambda: ModelConfig(width_multiplier=0), "model.width_multiplier is 0"),
        (
            lambda: ModelConfig(extras=(ExtraBlock(1, 2, kernel_size=0),)),
            "model.extras.kernel_size is 0; use a whole number from 1 to 32",
        ),
        (lambda: ModelConfig(extras=((1, 2, 3, 1, 1),)), "model.extras has .*; give an ExtraBlock"),
        (lambda: PriorConfig(sizes=(1,)), "priors.sizes is"),
        (lambda: PriorConfig(aspect_ratios=()), "priors.aspect_ratios has 0 entries"),
        (lambda: PriorConfig(steps=(1,)), "priors.steps has 1 entries"),
        (lambda: PriorConfig(variances=(0, 1)), "priors.variances has 0; use a number from 0.001"),
        (lambda: DataConfig(format="voc"), "data.root is empty"),
        (lambda: DataConfig(max_objects=0), "data.max_objects is 0"),
        (lambda: DataConfig(min_crop_scale=0), "data.min_crop_scale is 0"),
        (lambda: DataConfig(max_crop_aspect_ratio=0.5), "data.max_crop_aspect_ratio is 0.5"),
        (lambda: OptimConfig(learning_rate=-1), "optim.learning_rate is -1"),
        (lambda: OptimConfig(learning_rate=float("nan")), "optim.learning_rate is nan"),
        (lambda: OptimConfig(momentum=1), "optim.momentum is 1"),
        (lambda: OptimConfig(milestones=(5, 5)), "optim.milestones is"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size is 0"),
        (lambda: TrainConfig(match_iou_threshold=0), "train.match_iou_threshold is 0"),
        (lambda: EvalConfig(nms_iou_threshold=2), "eval.nms_iou_threshold is 2"),
        (lambda: Config(train=TrainConfig(steps=90_000)), r"optim.milestones has \[100000\], past"),
        (
            lambda: Config(
                optim=OptimConfig(milestones=(), warmup_steps=9), train=TrainConfig(steps=9)
            ),
            "optim.warmup_steps is 9 and train.steps 9",
        ),
        (
            lambda: Config(model=ModelConfig(feature_layers=("conv4_3",))),
            "priors.sizes has 7 entries and model.feature_layers 1",
        ),
    ],
)
def test_impossible_values_name_the_field(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["optim"].update(lerning_rate=1), "optim has unknown fields: lerning_"),
        (lambda t: t["model"].update(image_size="300"), "model.image_size is '300'"),
        (lambda t: t["model"].update(batch_norm=1), "model.batch_norm is 1; give a bool"),
        (lambda t: t["model"].update(dtype="f16"), "model.dtype is 'f16'; use one of"),
        (
            lambda t: t["model"].update(image_mean=[1, 2]),
            "model.image_mean is .* give 3 values",
        ),
        (lambda t: t.update(model=3), "model is 3; give an object"),
    ],
)
def test_json_of_an_invalid_config_names_the_field(change, message):
    tree = json.loads(to_json(Config()))
    change(tree)
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(tree))


def test_metrics_are_named_once_each():
    with pytest.raises(ConfigError, match=r"eval\.metrics is \('voc', 'voc'\)"):
        EvalConfig(metrics=("voc", "voc"))


def test_invalid_json_is_reported():
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_json("<html>")


def numbers(kind, value, replace, path):
    """Every number of a config: its field, its annotation, and a way to replace it in JSON."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        for name, each in typing.get_type_hints(kind, include_extras=True).items():

            def replace_field(new, name=name):
                return replace({**value, name: new})

            yield from numbers(each, value[name], replace_field, f"{path}.{name}")
    elif origin is tuple:
        for k, each in enumerate(args[:1] if args[-1] is ... else args):

            def replace_part(new, k=k):
                return replace([*value[:k], new, *value[k + 1 :]])

            part = value[k] if k < len(value) else None
            yield from numbers(each, part, replace_part, path)
    elif origin is typing.Annotated or kind in (int, float):
        yield path.removeprefix("config."), kind, replace


TREE = json.loads(to_json(Config()))
NUMBERS = list(numbers(Config, TREE, lambda tree: tree, "config"))


def test_every_number_declares_a_finite_range():
    assert len(NUMBERS) > 50
    for path, kind, _ in NUMBERS:
        assert typing.get_origin(kind) is typing.Annotated, path
        limits = typing.get_args(kind)[1]
        assert isinstance(limits, Range), path
        assert math.isfinite(limits.low), path
        assert math.isfinite(limits.high), path


def outside(kind):
    number, limits = typing.get_args(kind)
    values = [limits.low - 1, limits.high * 2 + 1, 10**12 * limits.high, 10**400, True, "1"]
    values += [limits.low] * limits.above + [limits.high] * limits.below
    return values + ([math.nan, math.inf, -math.inf] if number is float else [0.5, 2**64])


@pytest.mark.parametrize(("path", "kind", "replace"), NUMBERS, ids=[n[0] for n in NUMBERS])
def test_numbers_out_of_range_are_rejected_in_every_field(path, kind, replace):
    section, name = path.rsplit(".", 1)
    for value in outside(kind):
        tree = replace(value)
        with pytest.raises(ConfigError, match=f"{section}.{name} (is|has) ") as error:
            from_json(json.dumps(tree))
        assert len(str(error.value)) < 300
        # As a config file makes the section.
        if section == "model.extras":
            with pytest.raises(ConfigError, match=f"model.extras.{name} is .*; use a "):
                ModelConfig(extras=(ExtraBlock(**{name: value}),))
            continue
        part, make = tree, Config
        for key in section.split("."):
            make, part = typing.get_type_hints(make)[key], part[key]
        if make is not Config and isinstance(part[name], (int, float, str)):
            with pytest.raises(ConfigError, match=f"{section}.{name} is .*; use a "):
                make(**{name: value})


def test_too_many_priors_are_rejected():
    model = ModelConfig(image_size=4096, feature_layers=("conv1_1", "conv7"), extras=())
    priors = PriorConfig(sizes=(30, 60, 90), steps=(), aspect_ratios=((2,), (2,)))
    with pytest.raises(ConfigError, match=r"model.image_size 4096 .* has 67,.* priors, above 2,0"):
        model_priors(model, priors)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"train": {"seed": ' + "9" * 5000 + "}}"])
def test_json_beyond_python_limits_is_reported(text):
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_json(text)
