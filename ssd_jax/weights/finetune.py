"""Initialization of a new network from trained weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ssd_jax.checkpoints.reader import read_config, read_variables
from ssd_jax.config import Config, ConfigError
from ssd_jax.io import is_file
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.trained import find_trained, import_file

Flat = dict[tuple[str, ...], Any]

_CONV5_3_SCALE = np.float32(0.02)
"""VGG16's conv5_3 gives values about 50 times as large as randomly initialized layers expect."""


class InitReport(NamedTuple):
    """Result of an initialization."""

    num_loaded: int
    """Number of arrays taken from the checkpoint or file."""
    transferred: tuple[str, ...]
    """Classes whose rows of the class heads are transferred, if the classes differ."""
    new_classes: tuple[str, ...]
    """Classes whose rows are randomly initialized."""
    rescaled: tuple[str, ...]
    """Layers whose output was scaled for the randomly initialized layer that follows."""
    reinitialized: tuple[str, ...]
    """Layers that the checkpoint or file lacks; they are randomly initialized."""
    notes: tuple[str, ...]
    """Origin of the weights, and settings that differ from those of their training."""

    def __str__(self) -> str:
        """Return one line for the log."""
        parts = [f"{self.num_loaded} arrays loaded"]
        if self.transferred or self.new_classes:
            parts.append(
                f"class heads: {', '.join(('background', *self.transferred))} transferred; "
                f"randomly initialized: {', '.join(self.new_classes) or 'none'}"
            )
        if self.rescaled:
            parts.append(f"scaled by {_CONV5_3_SCALE:g}: {', '.join(self.rescaled)}")
        if self.reinitialized:
            parts.append(f"randomly initialized layers: {', '.join(self.reinitialized)}")
        return "; ".join([*parts, *self.notes])


def init_from(variables: Mapping[str, Any], config: Config) -> tuple[dict[str, Any], InitReport]:
    """Initialize a new network from the trained weights that config.model.init_from names.

    Background and the classes of the same name keep their rows of the class heads. All other
    classes, and layers that the checkpoint or file lacks, keep their random initialization.

    Args:
        variables: of the new network, randomly initialized.
        config: of the new network.

    Raises:
        ConfigError: an array has another shape (the first one is named), or the file is invalid.
        CheckpointError: the checkpoint is damaged.
    """
    summary: tuple[str, ...] = ()
    source = find_trained(config.model.init_from, field="model.init_from")
    if is_file(source):
        try:
            imported = import_file(source, base=variables["params"]["base"])
        except WeightsError as error:
            raise ConfigError(f"model.init_from: {error}") from None
        tree = {"params": imported.params, "batch_stats": imported.batch_stats}
        saved_config, summary = imported.config, (imported.summary,)
    else:
        tree, saved_config = read_variables(source), read_config(source)
    saved: Flat = traverse_util.flatten_dict(tree)
    rescaled = _scale_conv5_3(saved)
    classes, saved_classes = config.model.classes, saved_config.model.classes

    result: Flat = {}
    reinitialized: dict[str, None] = {}
    for path, value in traverse_util.flatten_dict(dict(variables)).items():
        loaded = saved.get(path)
        if loaded is None:
            reinitialized["/".join(path[1:-1])] = None
            result[path] = value
            continue
        if classes != saved_classes and _is_class_head(path):
            loaded = _transfer_classes(value, loaded, classes, saved_classes)
        if loaded is None or loaded.shape != value.shape:
            raise ConfigError(
                f"model.init_from: {source} does not fit: {'/'.join(path)} is "
                f"{saved[path].shape} there and {value.shape} here; use the model and priors that "
                "it was trained with"
            )
        result[path] = np.asarray(loaded, value.dtype)
    num_loaded = sum(path in saved for path in result)
    if not num_loaded:
        raise ConfigError(f"model.init_from: {source} has no layer of this network")

    heads = any(path[1].startswith("head_") for path in saved)
    compared = classes if heads and classes != saved_classes else ()
    report = InitReport(
        num_loaded=num_loaded,
        transferred=tuple(name for name in compared if name in saved_classes),
        new_classes=tuple(name for name in compared if name not in saved_classes),
        rescaled=rescaled,
        reinitialized=tuple(reinitialized),
        notes=(*summary, *_differences(config, saved_config, heads=heads)),
    )
    return {"batch_stats": {}} | traverse_util.unflatten_dict(result), report


def _scale_conv5_3(saved: Flat) -> tuple[str, ...]:
    """Scale the output of conv5_3 if it is the last layer of a base network; return the layers."""
    layer = ("params", "base", "conv5_3", "conv")
    if (*layer, "kernel") not in saved or ("params", "base", "conv6", "conv", "kernel") in saved:
        return ()
    for leaf in ("kernel", "bias"):
        saved[*layer, leaf] = saved[*layer, leaf] * _CONV5_3_SCALE
    return ("/".join(layer[1:]),)


def _is_class_head(path: tuple[str, ...]) -> bool:
    return path[0] == "params" and path[1].startswith("head_") and path[2] == "conf"


def _transfer_classes(
    value: Any, loaded: np.ndarray, classes: tuple[str, ...], saved_classes: tuple[str, ...]
) -> np.ndarray | None:
    """Return a head's initial `value` with the rows of `loaded` for classes of the same name.

    The last axis is ordered by box, and for each box by class with background first.

    Returns:
        The array, or None if the number of boxes or channels differs.
    """
    new, old = len(classes) + 1, len(saved_classes) + 1
    boxes = value.shape[-1] // new
    if loaded.shape != (*value.shape[:-1], boxes * old):
        return None
    rows = np.array(value, np.float32).reshape(*value.shape[:-1], boxes, new)
    source = loaded.reshape(*value.shape[:-1], boxes, old)
    rows[..., 0] = source[..., 0]
    for k, name in enumerate(classes, start=1):
        if name in saved_classes:
            rows[..., k] = source[..., saved_classes.index(name) + 1]
    return rows.reshape(value.shape)


def _differences(config: Config, saved: Config, *, heads: bool) -> tuple[str, ...]:
    """List the settings that differ from those with which the weights were trained."""
    notes = []
    if config.model.image_mean != saved.model.image_mean:
        notes.append(
            f"model.image_mean is {config.model.image_mean}; "
            f"the weights were trained with {saved.model.image_mean}"
        )
    if heads and config.priors != saved.priors:
        notes.append("priors differ from those that the weights were trained with")
    return tuple(notes)
