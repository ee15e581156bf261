"""Initialization of a new network from a checkpoint or a file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ssd_jax.checkpoints.reader import BEST, find_checkpoint, read_config, read_variables
from ssd_jax.config import BASE_LAYERS, Config, ConfigError
from ssd_jax.io import is_dir, is_file
from ssd_jax.weights.files import SUFFIXES, WeightsError, read_arrays
from ssd_jax.weights.importers import import_arrays
from ssd_jax.weights.name_maps import detect_format

Flat = dict[tuple[str, ...], Any]


class InitReport(NamedTuple):
    """Result of an initialization."""

    num_loaded: int
    """Number of arrays taken from the checkpoint or file."""
    transferred: tuple[str, ...]
    """Classes whose rows of the class heads are transferred, if the classes differ."""
    new_classes: tuple[str, ...]
    """Classes whose rows are randomly initialized."""
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
        if self.reinitialized:
            parts.append(f"randomly initialized layers: {', '.join(self.reinitialized)}")
        return "; ".join([*parts, *self.notes])


def find_init(path: Path) -> Path:
    """Find the file of weights, or the checkpoint, that model.init_from names.

    Raises:
        ConfigError: it does not exist.
    """
    named_as_file = path.suffix.lower() in SUFFIXES and not is_dir(path)
    if named_as_file or (is_file(path) and path.name != BEST):
        if not is_file(path):
            raise ConfigError(f"model.init_from: file not found: {path}")
        return path
    return find_checkpoint(path, field="model.init_from")


def init_from(variables: Mapping[str, Any], config: Config) -> tuple[dict[str, Any], InitReport]:
    """Initialize a new network from config.model.init_from, a checkpoint or a file of weights.

    Background and the classes of the same name keep their rows of the class heads. All other
    classes, and layers that the checkpoint or file lacks, keep their random initialization.

    Args:
        variables: of the new network, randomly initialized.
        config: of the new network.

    Raises:
        ConfigError: an array has another shape (the first one is named), or the file is invalid.
        CheckpointError: the checkpoint is damaged.
    """
    source = find_init(Path(config.model.init_from))
    if is_file(source):
        saved, saved_config, summary = _read_file(source, variables, config)
    else:
        saved_config, summary = read_config(source), ()
        saved = traverse_util.flatten_dict(read_variables(source))
    if saved and all(path[1] == "base" for path in saved):
        _scale_last_layer(saved, config.model.pretrained_scale)
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
        reinitialized=tuple(reinitialized),
        notes=(*summary, *_differences(config, saved_config, heads=heads)),
    )
    return {"batch_stats": {}} | traverse_util.unflatten_dict(result), report


def _read_file(
    path: Path, variables: Mapping[str, Any], config: Config
) -> tuple[Flat, Config, tuple[str, ...]]:
    """Return the arrays of a file of weights, the config they need, and their description."""
    channels: str | None = config.model.pretrained_channels
    try:
        arrays = read_arrays(path)
        if channels == "auto":
            channels = "bgr" if detect_format(arrays.values) == "vgg16" else None
        network = import_arrays(path, arrays, channels=channels, base=variables["params"]["base"])
    except WeightsError as error:
        raise ConfigError(f"model.init_from: {error}") from None
    tree = {"params": network.params, "batch_stats": network.batch_stats}
    return traverse_util.flatten_dict(tree), network.config, (network.summary,)


def _scale_last_layer(saved: Flat, scale: float) -> None:
    """Scale the output of the last layer of a base network that has no layers after it."""
    last = max((path[2] for path in saved), key=BASE_LAYERS.index)
    for leaf in ("kernel", "bias"):
        path = ("params", "base", last, "conv", leaf)
        saved[path] = saved[path] * np.float32(scale)


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
