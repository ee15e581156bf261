"""A new network from a checkpoint's, with the same classes or with others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ssd_jax.checkpoints.reader import find_checkpoint, read_config, read_saved_variables
from ssd_jax.config import Config, ConfigError


class InitReport(NamedTuple):
    """What a checkpoint gave to a new network."""

    taken: int
    """Arrays that are the checkpoint's."""
    carried: tuple[str, ...]
    """Classes whose rows of the class heads are the checkpoint's, where the classes differ."""
    new_classes: tuple[str, ...]
    """Classes whose rows start fresh."""
    fresh: tuple[str, ...]
    """Layers that the checkpoint does not have."""
    notes: tuple[str, ...]
    """Where the configs differ in what the weights are used to."""

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f"{self.taken} arrays taken"]
        if self.carried or self.new_classes:
            parts.append(
                f"class heads: background{''.join(f', {name}' for name in self.carried)} carried "
                f"over; start fresh: {', '.join(self.new_classes) or 'none'}"
            )
        if self.fresh:
            parts.append(f"layers that start fresh: {', '.join(self.fresh)}")
        return "; ".join([*parts, *self.notes])


def init_from(variables: Mapping[str, Any], config: Config) -> tuple[dict[str, Any], InitReport]:
    """A copy of a new network's `variables` with those of the checkpoint config.model.init_from.

    Where the classes differ, background and the classes of the same name keep their rows of the
    class heads, and the others start fresh. Layers that the checkpoint does not have start fresh
    too, as all but the base where it holds a base alone.

    Raises ConfigError, naming the first array that differs, for a checkpoint of another shape.
    """
    checkpoint = find_checkpoint(Path(config.model.init_from), field="model.init_from")
    saved_config = read_config(checkpoint)
    saved = traverse_util.flatten_dict(read_saved_variables(checkpoint))
    classes, saved_classes = config.model.classes, saved_config.model.classes
    other_classes = classes != saved_classes

    result: dict[tuple[str, ...], Any] = {}
    fresh: dict[str, None] = {}
    taken = 0
    for path, value in traverse_util.flatten_dict(dict(variables)).items():
        have = saved.get(path)
        if have is None:
            fresh["/".join(path[1:-1])] = None
            result[path] = value
            continue
        if other_classes and _is_class_head(path):
            have = _carry_over(value, have, classes, saved_classes)
        if have is None or have.shape != value.shape:
            raise ConfigError(
                f"model.init_from: {checkpoint} does not fit: {'/'.join(path)} is "
                f"{saved[path].shape} there and {value.shape} here; use the model and priors that "
                "it was trained with"
            )
        result[path] = np.asarray(have, value.dtype)
        taken += 1
    if not taken:
        raise ConfigError(f"model.init_from: {checkpoint} has no layer of this network")

    heads = other_classes and any(_is_class_head(path) for path in saved)
    carried = tuple(name for name in classes if heads and name in saved_classes)
    report = InitReport(
        taken=taken,
        carried=carried,
        new_classes=tuple(name for name in classes if heads and name not in saved_classes),
        fresh=tuple(fresh),
        notes=_differences(config, saved_config, heads=any(p[1].startswith("head") for p in saved)),
    )
    return {"batch_stats": {}} | traverse_util.unflatten_dict(result), report


def _is_class_head(path: tuple[str, ...]) -> bool:
    return path[0] == "params" and path[1].startswith("head_") and path[2] == "conf"


def _carry_over(
    value: Any, have: np.ndarray, classes: tuple[str, ...], saved_classes: tuple[str, ...]
) -> np.ndarray | None:
    """A head's fresh `value` with the rows of `have` where names are equal, None if it can't be.

    The last axis is box by box, and in a box background and then the classes.
    """
    new, old = len(classes) + 1, len(saved_classes) + 1
    boxes = value.shape[-1] // new
    if have.shape != (*value.shape[:-1], boxes * old):
        return None
    rows = np.array(value, np.float32).reshape(*value.shape[:-1], boxes, new)
    source = have.reshape(*value.shape[:-1], boxes, old)
    rows[..., 0] = source[..., 0]
    for k, name in enumerate(classes, start=1):
        if name in saved_classes:
            rows[..., k] = source[..., saved_classes.index(name) + 1]
    return rows.reshape(value.shape)


def _differences(config: Config, saved: Config, *, heads: bool) -> tuple[str, ...]:
    """What the weights were trained with and the config has otherwise, one line each."""
    notes = []
    if config.model.image_mean != saved.model.image_mean:
        notes.append(
            f"model.image_mean is {config.model.image_mean}; "
            f"the checkpoint was trained with {saved.model.image_mean}"
        )
    if heads and config.priors != saved.priors:
        notes.append("priors are not those that the checkpoint was trained with")
    return tuple(notes)
