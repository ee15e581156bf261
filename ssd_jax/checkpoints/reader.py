"""Read networks from checkpoints alone, and write checkpoints without a training run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ssd_jax.checkpoints.items import (
    CheckpointReader,
    checkpoint_args,
    is_finite,
    item_handlers,
    named_arrays,
)
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.config import Config, ConfigError, UserError, from_json, to_json
from ssd_jax.io import exists, reason, staged
from ssd_jax.models.ssd import SSD, make_model, variable_shapes

BEST = "best"
"""File in a run's checkpoints/ that holds the step of the best checkpoint."""
_STEP = re.compile("0|[1-9][0-9]*")


def find_checkpoint(path: Path, *, best: bool = False, field: str = "--checkpoint") -> Path:
    """Find the checkpoint at `path`.

    Args:
        path: a checkpoint; a run or its checkpoints/, for the newest one; or the file
            checkpoints/best.
        best: of a run, return the checkpoint named by checkpoints/best instead.
        field: option that set the path, for error messages.

    Raises:
        ConfigError: no checkpoint was found.
    """
    try:
        if path.name == BEST and path.is_file():
            return _read_best(path)
        if best:
            for folder in (path / "checkpoints", path):
                if (folder / BEST).is_file():
                    return _read_best(folder / BEST)
            raise ConfigError(
                f"--best: {path} has no checkpoints/{BEST}, which a run writes after an "
                "evaluation; name one of its checkpoints/STEP without --best"
            )
        if _is_checkpoint(path):
            return path
        for folder in (path / "checkpoints", path):
            if steps := checkpoint_steps(folder):
                return folder / str(steps[-1])
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {reason(error)}") from None
    raise ConfigError(
        f"{field}: no checkpoint found in {path}; name a run's folder or one of its "
        "checkpoints/STEP"
    )


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps of the checkpoints in a run's checkpoints/, intact or not, in ascending order.

    Files, folders not named like a step, and folders without a checkpoint's items are ignored.
    """
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if _STEP.fullmatch(path.name) and _is_checkpoint(path)
    )


def checkpoint_step(checkpoint: Path) -> int | None:
    """Return the step that a checkpoint's folder is named after; None for any other name."""
    return int(checkpoint.name) if _STEP.fullmatch(checkpoint.name) else None


def _is_checkpoint(path: Path) -> bool:
    items = [(path / item).is_dir() for item in ("state", "config")]
    return all(items) or (any(items) and _STEP.fullmatch(path.name) is not None)


def _read_best(file: Path) -> Path:
    with file.open("rb") as lines:
        name = lines.read(20).decode("ascii", "replace").strip()
    if not _STEP.fullmatch(name) or not _is_checkpoint(file.parent / name):
        raise ConfigError(
            f"{file} does not name a checkpoint; use one of the checkpoints/STEP instead"
        )
    return file.parent / name


def read_config(checkpoint: Path) -> Config:
    """Read the resolved config of a checkpoint, with the local values of LOCAL_FIELDS.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: the config is invalid.
    """
    text = CheckpointReader(checkpoint).json("config")
    try:
        return with_local_fields(from_json(text["config"]))
    except (KeyError, TypeError, UserError) as error:
        raise ConfigError(f"{checkpoint} has no valid config: {error}") from None


def read_variables(checkpoint: Path, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the parameters and batch statistics of a checkpoint.

    They are the moving averages if the checkpoint has some.

    Args:
        checkpoint: folder of the checkpoint.
        like: variables with the expected shapes; None: any shapes.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: a shape differs; names the first array.
    """
    reader = CheckpointReader(checkpoint)
    tree = reader.shapes()
    averages = tree.get("ema")
    tree = averages or tree
    saved = {name: tree.get(name) or {} for name in ("params", "batch_stats")}
    if like is not None:
        check_shapes(checkpoint, saved, like)
    return reader.arrays({"ema": saved})["ema"] if averages else reader.arrays(saved)


def check_shapes(checkpoint: Path, saved: Any, like: Any) -> None:
    """Raise ConfigError if the shapes of two trees differ, naming the first array.

    Args:
        checkpoint: for the error message.
        saved: arrays in the checkpoint; any leaves with a shape.
        like: arrays of the network that the config describes.
    """
    saved_shapes, shapes = (
        {name: leaf.shape for name, leaf in named_arrays(tree).items()} for tree in (saved, like)
    )
    for name in sorted(set(saved_shapes) | set(shapes)):
        if saved_shapes.get(name) != shapes.get(name):
            raise ConfigError(
                f"{checkpoint} does not fit the config: {name} is "
                f"{saved_shapes.get(name, 'absent')} there and {shapes.get(name, 'absent')} by the "
                "config; use the config that the checkpoint was trained with"
            )


def restore_model(checkpoint: Path, config: Config) -> tuple[SSD, dict[str, Any]]:
    """Build the network that `config` describes and read its variables from the checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: a shape differs; names the first array.
    """
    model = make_model(config.model, config.priors)
    return model, read_variables(checkpoint, variable_shapes(model))


def write_checkpoint(run: Path, config: Config, variables: dict[str, Any]) -> None:
    """Write run/config.json and run/checkpoints/0, which `restore_model` reads.

    Raises:
        ConfigError: the folder exists or cannot be written, or an array is not finite.
    """
    if exists(run):
        raise ConfigError(f"--out: {run} exists; name a new folder")
    variables = jax.device_get(variables)
    for name, array in named_arrays(variables).items():
        if not is_finite(array):
            raise ConfigError(f"--out: {name} is not finite, so no checkpoint is written")
    try:
        with (
            staged(run) as part,
            ocp.Checkpointer(ocp.CompositeCheckpointHandler(**item_handlers())) as writer,
        ):
            part.mkdir(parents=True)
            (part / "config.json").write_text(to_json(config), encoding="utf-8")
            writer.save(part / "checkpoints" / "0", args=checkpoint_args(variables, config))
    except OSError as error:
        raise ConfigError(f"--out: {run} cannot be written: {reason(error)}") from None
