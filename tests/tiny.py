"""Config that trains in seconds: small synthetic scenes and a narrow network."""

import dataclasses

from ssd_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    PriorConfig,
    TrainConfig,
)

TINY = Config(
    model=ModelConfig(
        image_size=64,
        width_multiplier=0.125,
        feature_layers=("conv4_3", "conv7"),
        extras=(),
        batch_norm=True,
    ),
    priors=PriorConfig(sizes=(16, 32, 64), steps=(), aspect_ratios=((2,), (2,))),
    data=DataConfig(train_split="train:32", eval_split="test:5", max_objects=8),
    optim=OptimConfig(learning_rate=0.01, milestones=()),
    train=TrainConfig(steps=4, batch_size=4, log_every=2, checkpoint_every=2),
    # Few candidates: suppression compiles one block of 32 boxes after the other.
    eval=EvalConfig(batch_size=4, topk_candidates=64, num_visualizations=2, report=False),
)


def change(config, **sections):
    """Replace fields of a config's sections, e.g. change(config, train={"steps": 6})."""
    return dataclasses.replace(
        config,
        **{k: dataclasses.replace(getattr(config, k), **v) for k, v in sections.items()},
    )


def write_config_file(path, config):
    """Write a config file that returns `config`."""
    from ssd_jax.config import to_json

    path.write_text(
        "from ssd_jax.config import from_json\n"
        f"def get_config():\n    return from_json({to_json(config)!r})\n"
    )
    return path


def lively(variables, factor):
    """Scale the class heads so that scores spread from 0 to 1, as after training."""
    params = {
        name: {**layer, "conf": {**layer["conf"], "kernel": factor * layer["conf"]["kernel"]}}
        if name.startswith("head_")
        else layer
        for name, layer in variables["params"].items()
    }
    return {**variables, "params": params}
