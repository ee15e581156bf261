"""A network from a checkpoint alone, its config and its variables, and such a checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssd_jax.config import Config, ConfigError, UserError, from_json, to_json
from ssd_jax.models.ssd import SSD, make_model
from ssd_jax.trust import with_local_fields


class CheckpointError(UserError):
    """A checkpoint that cannot be read; the message names it."""


def find_checkpoint(path: Path, *, field: str = "--checkpoint") -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run or of its checkpoints/.

    Raises ConfigError, naming the `field` that gave the path, if there is none.
    """
    if (path / "state").is_dir() and (path / "config").is_dir():
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            if steps:
                return folder / str(max(steps))
    raise ConfigError(
        f"{field}: there is no checkpoint in {path}; name a run's folder or one of its "
        "checkpoints/STEP"
    )


def read_config(checkpoint: Path) -> Config:
    """The resolved config that lies in a checkpoint, with this machine's own fields."""
    try:
        return with_local_fields(from_json(read_json(checkpoint, "config")["config"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{checkpoint} holds no readable config: {error}") from None


def read_json(checkpoint: Path, item: str) -> Any:
    """An item of a checkpoint that is JSON. Raises OSError or ValueError where it cannot."""
    return ocp.JsonCheckpointHandler().restore((checkpoint / item).absolute())


def read_variables(checkpoint: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The parameters and batch statistics of a checkpoint, shaped as `like`.

    They are the moving averages where the checkpoint has some.

    Raises ConfigError, naming the first array that differs, for a checkpoint of another shape.
    """
    return _read(checkpoint, like)


def read_saved_variables(checkpoint: Path) -> dict[str, Any]:
    """The parameters and batch statistics of a checkpoint, averaged or not, of any shape."""
    return _read(checkpoint, None)


def _read(checkpoint: Path, like: dict[str, Any] | None) -> dict[str, Any]:
    path = (checkpoint / "state").absolute()
    try:
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(path).tree
        averages = tree.get("ema")
        tree = averages or tree
        saved = {name: tree.get(name) or {} for name in ("params", "batch_stats")}
        if like is not None:
            check_shapes(checkpoint, saved, like)
        item = {"ema": saved} if averages else saved
        # As NumPy arrays: where they lay when they were saved does not matter.
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        found = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(item=item, restore_args=arrays, partial_restore=True),
        )
        return found["ema"] if averages else found
    except (OSError, KeyError) as error:
        raise ConfigError(f"{checkpoint} cannot be read: {error}") from None


def check_shapes(checkpoint: Path, saved: Any, like: Any) -> None:
    """Raises ConfigError, naming the first array that differs, if two trees are of other shapes.

    Args:
        checkpoint: for the message.
        saved: what the checkpoint holds: a tree of what has a shape.
        like: what the config asks for: another one.
    """

    def flat(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in leaves
        }

    have, want = flat(saved), flat(like)
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
    if run.exists():
        raise ConfigError(f"--out: {run} exists; name a new folder")
    part = run.absolute().with_name(f".{run.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        (part / "config.json").write_text(to_json(config), encoding="utf-8")
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(
                part / "checkpoints" / "0",
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(variables),
                    config=ocp.args.JsonSave({"config": to_json(config)}),
                ),
            )
        part.rename(run)
    except OSError as error:
        raise ConfigError(f"--out: {run} cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
