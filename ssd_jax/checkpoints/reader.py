"""A network from a checkpoint alone, its config and its variables, and such a checkpoint."""

import os
import re
import shutil
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
    reason,
)
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.config import Config, ConfigError, UserError, from_json, to_json
from ssd_jax.io import exists
from ssd_jax.models.ssd import SSD, make_model

BEST = "best"
"""File in a run's checkpoints/ that holds the step of the best one."""
_STEP = re.compile("0|[1-9][0-9]*")


def find_checkpoint(path: Path, *, best: bool = False, field: str = "--checkpoint") -> Path:
    """Find the checkpoint that `path` means.

    Args:
        path: a checkpoint, a run or its checkpoints/, of which the newest is taken, or the file
            checkpoints/best.
        best: of a run take the one that checkpoints/best names instead.
        field: what gave the path, for the message.

    Raises:
        ConfigError: there is none.
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
        f"{field}: there is no checkpoint in {path}; name a run's folder or one of its "
        "checkpoints/STEP"
    )


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps of the checkpoints in a run's checkpoints/, whole or damaged, ascending.

    A file, or a folder of another name or without a checkpoint's items, is ignored.
    """
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if _STEP.fullmatch(path.name) and _is_checkpoint(path)
    )


def checkpoint_step(checkpoint: Path) -> int | None:
    """Return the step in the name of a checkpoint's folder; None if it has another name."""
    return int(checkpoint.name) if _STEP.fullmatch(checkpoint.name) else None


def _is_checkpoint(path: Path) -> bool:
    items = [(path / item).is_dir() for item in ("state", "config")]
    return all(items) or (any(items) and _STEP.fullmatch(path.name) is not None)


def _read_best(file: Path) -> Path:
    with file.open("rb") as lines:
        name = lines.read(20).decode("ascii", "replace").strip()
    if not _STEP.fullmatch(name) or not _is_checkpoint(file.parent / name):
        raise ConfigError(f"{file} names no checkpoint; name one of the checkpoints/STEP instead")
    return file.parent / name


def read_config(checkpoint: Path) -> Config:
    """Read the resolved config of a checkpoint, with this machine's own fields.

    Raises CheckpointError for a damaged checkpoint, ConfigError for a config that is not valid.
    """
    text = CheckpointReader(checkpoint).json("config")
    try:
        return with_local_fields(from_json(text["config"]))
    except (KeyError, TypeError, UserError) as error:
        raise ConfigError(f"{checkpoint} has no valid config: {error}") from None


def read_variables(checkpoint: Path, like: dict[str, Any]) -> dict[str, Any]:
    """Read the parameters and batch statistics of a checkpoint, shaped as `like`.

    They are the moving averages where the checkpoint has some.

    Raises CheckpointError for a damaged checkpoint, ConfigError, naming the first array that
    differs, for one of another shape.
    """
    return _read(checkpoint, like)


def read_saved_variables(checkpoint: Path) -> dict[str, Any]:
    """Read the parameters and batch statistics of a checkpoint, averaged or not, of any shape.

    Raises CheckpointError for a damaged checkpoint.
    """
    return _read(checkpoint, None)


def _read(checkpoint: Path, like: dict[str, Any] | None) -> dict[str, Any]:
    reader = CheckpointReader(checkpoint)
    tree = reader.shapes()
    averages = tree.get("ema")
    tree = averages or tree
    saved = {name: tree.get(name) or {} for name in ("params", "batch_stats")}
    if like is not None:
        check_shapes(checkpoint, saved, like)
    return reader.arrays({"ema": saved})["ema"] if averages else reader.arrays(saved)


def check_shapes(checkpoint: Path, saved: Any, like: Any) -> None:
    """Raises ConfigError, naming the first array that differs, if two trees are of other shapes.

    Args:
        checkpoint: for the message.
        saved: what the checkpoint holds: a tree of what has a shape.
        like: what the config asks for: another one.
    """
    have, want = (
        {name: leaf.shape for name, leaf in named_arrays(tree).items()} for tree in (saved, like)
    )
    for name in sorted(set(have) | set(want)):
        if have.get(name) != want.get(name):
            raise ConfigError(
                f"{checkpoint} does not fit the config: {name} is "
                f"{have.get(name, 'absent')} there and {want.get(name, 'absent')} by the config; "
                "use the config that the checkpoint was trained with"
            )


def restore_model(checkpoint: Path, config: Config) -> tuple[SSD, dict[str, Any]]:
    """The network that `config` describes and its variables from the checkpoint.

    Raises ConfigError, naming the first array that differs, if they are of another shape.
    """
    model = make_model(config.model, config.priors)
    size = config.model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), "uint8")
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    return model, read_variables(checkpoint, like)


def write_checkpoint(run: Path, config: Config, variables: dict[str, Any]) -> None:
    """Write run/config.json and run/checkpoints/0, which `restore_model` reads.

    The folder appears under its name only when it is complete. Raises ConfigError if it exists or
    cannot be written.
    """
    if exists(run):
        raise ConfigError(f"--out: {run} exists; name a new folder")
    part = run.absolute().with_name(f".{run.name}.{os.getpid()}.part")
    variables = jax.device_get(variables)
    for name, array in named_arrays(variables).items():
        if not is_finite(array):
            raise ConfigError(f"--out: {name} is not finite, so no checkpoint is written")
    try:
        part.mkdir(parents=True)
        (part / "config.json").write_text(to_json(config), encoding="utf-8")
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**item_handlers())) as writer:
            writer.save(
                part / "checkpoints" / "0",
                args=checkpoint_args(variables, config),
            )
        part.rename(run)
    except OSError as error:
        raise ConfigError(f"--out: {run} cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
