"""Convert networks to other programs' names."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax import traverse_util

from ssd_jax.config import Config, ConfigError, ModelConfig, to_json
from ssd_jax.weights import name_maps
from ssd_jax.weights.files import WeightFile
from ssd_jax.weights.importers import CONFIG_KEY
from ssd_jax.weights.layouts import PRIORS, ssd_model

Target = Literal["ssd.pytorch", "torchvision", "safetensors"]


def export_arrays(config: Config, variables: Mapping[str, Any], target: Target) -> WeightFile:
    """Rename the network's arrays for `target`; `import_arrays` restores them bit for bit.

    "safetensors" keeps the names of this project and the config. All targets take RGB.

    Raises:
        ConfigError: the other program has no such network.
    """
    if target == "safetensors":
        flat = traverse_util.flatten_dict(
            {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
            sep="/",
        )
        # One key: safetensors writes several in random order.
        metadata = {CONFIG_KEY: to_json(config)}
        return WeightFile({name: np.asarray(value) for name, value in flat.items()}, metadata)
    model = config.model
    _check_same(model, target)
    get_names = (
        name_maps.ssd_pytorch_names if target == "ssd.pytorch" else name_maps.torchvision_ssd_names
    )
    flat = traverse_util.flatten_dict(variables["params"])
    arrays = {
        name: name_maps.hwio_to_oihw(np.asarray(flat[path]))
        for name, path in get_names(model).items()
    }
    return WeightFile(arrays, {})


def _check_same(model: ModelConfig, target: Target) -> None:
    """Raise ConfigError, naming the field, if `target` cannot hold the network."""
    size = 512 if model.image_size == 512 and target == "ssd.pytorch" else 300
    published = ssd_model(size, model.classes)
    for name in (
        "image_size",
        "width_multiplier",
        "feature_layers",
        "extras",
        "batch_norm",
        "feature_norm",
    ):
        value, required = getattr(model, name), getattr(published, name)
        if value != required:
            raise ConfigError(
                f"--to {target}: model.{name} is {value} and {target} has {required}; "
                "use --to safetensors"
            )


def export_notes(config: Config, target: Target) -> list[str]:
    """List the settings that the user has to make in the other program."""
    if target == "safetensors":
        return []
    notes = []
    classes, priors, mean = config.model.num_classes, config.priors, config.model.image_mean
    voc = target == "ssd.pytorch" and classes == 21
    expected = PRIORS[config.model.image_size, "voc" if voc else "coco"]
    clip = "clip" if target == "ssd.pytorch" else "clip_wh"
    for field in ("sizes", "steps", "aspect_ratios", "variances"):
        if getattr(priors, field) != getattr(expected, field):
            notes.append(
                f"priors: {target} has {field} {getattr(expected, field)} for {classes} classes; "
                f"set {getattr(priors, field)} there"
            )
    for field in ("clip", "clip_wh"):
        if getattr(priors, field) != (field == clip):
            notes.append(f"priors: set {field} to {getattr(priors, field)} in {target}")
    if target == "torchvision":
        notes.append(f"torchvision: image_mean={[round(m / 255, 8) for m in mean]}")
    elif mean != ModelConfig().image_mean:
        notes.append(f"ssd.pytorch: the mean is {mean}, RGB")
    return notes
