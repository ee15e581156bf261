"""Configs: every file loads, JSON gives back what was saved, errors name the field."""

import json
from pathlib import Path

import pytest

from ssd_jax.cli import load_config
from ssd_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    PriorConfig,
    TrainConfig,
    from_json,
    to_json,
)
from ssd_jax.models.ssd import model_priors

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
        (lambda: ModelConfig(sources=("conv9",)), "model.sources names 'conv9'"),
        (lambda: ModelConfig(sources=("conv7", "conv4_3")), "from fine to coarse"),
        (lambda: ModelConfig(sources=()), "model.sources is empty"),
        (lambda: ModelConfig(trainable_from="conv9"), "model.trainable_from is 'conv9'"),
        (lambda: ModelConfig(classes=("a", "a")), "model.classes names a class twice"),
        (lambda: ModelConfig(width=0), "model.width is 0"),
        (
            lambda: ModelConfig(sources=("conv7",), extras=((1, 2, 0, 1, 1),)),
            "model.extras has",
        ),
        (lambda: PriorConfig(sizes=(1,)), "priors.sizes is"),
        (lambda: PriorConfig(aspect_ratios=()), "priors.aspect_ratios has 0 entries"),
        (lambda: PriorConfig(steps=(1,)), "priors.steps has 1 entries"),
        (lambda: PriorConfig(variances=(0, 1)), "priors.variances is"),
        (lambda: DataConfig(format="voc"), "data.root is empty"),
        (lambda: DataConfig(max_objects=0), "data.max_objects is 0"),
        (lambda: DataConfig(crop_scale=0), "data.crop_scale is 0"),
        (lambda: DataConfig(crop_aspect=0.5), "data.crop_aspect is 0.5"),
        (lambda: OptimConfig(learning_rate=-1), "optim.learning_rate is -1"),
        (lambda: OptimConfig(learning_rate=float("nan")), "optim.learning_rate is nan"),
        (lambda: OptimConfig(momentum=1), "optim.momentum is 1"),
        (lambda: OptimConfig(milestones=(5, 5)), "optim.milestones is"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size is 0"),
        (lambda: TrainConfig(match_iou=0), "train.match_iou is 0"),
        (lambda: EvalConfig(nms_iou=2), "eval.nms_iou is 2"),
        (lambda: Config(train=TrainConfig(steps=90_000)), r"optim.milestones has \[100000\], past"),
        (
            lambda: Config(
                optim=OptimConfig(milestones=(), warmup_steps=9), train=TrainConfig(steps=9)
            ),
            "optim.warmup_steps is 9 and train.steps 9",
        ),
        (
            lambda: Config(model=ModelConfig(sources=("conv4_3",))),
            "priors.sizes has 7 entries and model.sources 1",
        ),
    ],
)
def test_impossible_values_name_the_field(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["optim"].update(lerning_rate=1), "config.optim has unknown fields: lerning_"),
        (lambda t: t["model"].update(image_size="300"), "config.model.image_size is '300'"),
        (lambda t: t["model"].update(batch_norm=1), "config.model.batch_norm is 1; expected bool"),
        (lambda t: t["model"].update(dtype="f16"), "config.model.dtype is 'f16'; use one of"),
        (lambda t: t["model"].update(mean=[1, 2]), "config.model.mean is .* expected 3 values"),
        (lambda t: t.update(model=3), "config.model is 3; expected an object"),
    ],
)
def test_json_that_is_no_config_names_the_field(change, message):
    tree = json.loads(to_json(Config()))
    change(tree)
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(tree))


def test_a_config_from_before_several_metrics_is_read():
    tree = json.loads(to_json(Config()))
    del tree["eval"]["metrics"]
    tree["eval"]["metric"] = "voc07"
    assert from_json(json.dumps(tree)).eval.metrics == ("voc07",)
    with pytest.raises(ConfigError, match=r"eval\.metrics is \('voc', 'voc'\)"):
        EvalConfig(metrics=("voc", "voc"))


def test_text_that_is_no_json():
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_json("<html>")
