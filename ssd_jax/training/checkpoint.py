"""Orbax checkpoints: state, place in the run and resolved config, saved together.

`ssd_jax.models.restore` reads a network back without any of the training.
"""

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssd_jax.config import Config, TrainConfig, UserError, to_json
from ssd_jax.models.restore import CheckpointError, check_shapes, read_json
from ssd_jax.runtime import broadcast_json, broadcast_tree, is_first_process
from ssd_jax.training.state import TrainState

_TEMPORARY = ".orbax-checkpoint-tmp"


class SaveError(UserError):
    """A checkpoint that could not be written; the message says why and what there is."""


class Checkpoints:
    """The checkpoints of one run, in WORKDIR/checkpoints/STEP.

    Saving goes on in the background. A checkpoint appears under its name only when it is
    complete, and holds a checksum of every array. The first process alone reads and writes files:
    the state is the same in all of them, and the others get it from there.
    """

    def __init__(self, workdir: Path, config: TrainConfig) -> None:
        self._folder = (workdir / "checkpoints").absolute()
        self._aside = workdir / "damaged"
        self._config = config
        self._manager: ocp.CheckpointManager | None = None

    def open(self) -> list[str]:
        """Get ready to save, making the folder; what was found there, one line each.

        Raises SaveError where the folder cannot be written.
        """
        if not is_first_process():
            return []
        unfinished = sorted(self._folder.glob(f"*{_TEMPORARY}*"))
        keep: list[Any] = [policies.LatestN(self._config.keep)]
        if self._config.keep_every:
            keep.append(policies.EveryNSteps(self._config.keep_every))
        if self._config.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["best"],
                    n=self._config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in unfinished:
                shutil.rmtree(path)
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=0, active_processes={0}
                    ),
                    create=False,
                    # Else a folder that cannot be made keeps threads waiting for it for minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )
        except OSError as error:
            raise self._save_error("checkpoints", error) from None
        return [f"{path.name} was not finished when the run ended; removed" for path in unfinished]

    def save(
        self,
        state: TrainState,
        place: Mapping[str, Any],
        config: Config,
        *,
        score: float | None = None,
    ) -> None:
        """Save what the run needs to go on after `state.step`, in the background.

        Args:
            state: of the training.
            place: of the run beside the state, as JSON takes it; `restore` gives it back.
            config: the resolved one.
            score: what the best checkpoints are kept by; None: not evaluated at this step.

        Raises SaveError if this checkpoint, or the one before in the background, cannot be
        written.
        """
        if self._manager is None:
            return
        step = int(state.step)
        try:
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():  # resumed, and stopped again at once
                return
            host = jax.device_get(state)
            self._manager.save(
                step,
                metrics=None if score is None else {"best": score},
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(host),
                    place=ocp.args.JsonSave(dict(place)),
                    checksums=ocp.args.JsonSave(_checksums(host)),
                    config=ocp.args.JsonSave({"config": to_json(config)}),
                ),
            )
        except Exception as error:  # tensorstore's come as ValueError and others
            raise self._save_error(f"checkpoint {step}", error) from None

    def check(self) -> None:
        """Raises SaveError if a save in the background has failed; does not wait for one."""
        if self._manager is not None:
            try:
                self._manager.check_for_errors()
            except Exception as error:
                raise self._save_error("the last checkpoint", error) from None

    def close(self) -> None:
        """Wait for a save in the background. Raises SaveError if it failed."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
            except Exception as error:
                raise self._save_error("the last checkpoint", error) from None
            finally:
                manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except SaveError:
            if error is None:  # else that is told, and this follows from it or matters less
                raise

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """The newest whole checkpoint: state shaped as `like`, place, and notes; None without any.

        The state is of NumPy arrays, equal in all processes. A damaged checkpoint is named in a
        note and moved to WORKDIR/damaged, and the one before it is taken.

        Raises:
            ConfigError: the state is of another shape; names the first array that differs.
            CheckpointError: there are checkpoints, and none can be read.
        """
        found: tuple[TrainState, dict[str, Any], list[str]] | None = None
        failure: UserError | None = None
        if is_first_process():
            try:
                found = self._read_newest(like)
            except UserError as error:
                failure = error
        told = broadcast_json(
            {"place": found and found[1], "failure": str(failure) if failure else None}
        )
        if told["failure"] is not None:
            raise failure or CheckpointError(told["failure"])
        if told["place"] is None:
            return None
        state = broadcast_tree(found[0] if found else jax.tree.map(np.zeros_like, like))
        return state, told["place"], found[2] if found else []

    def _read_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        steps = sorted(
            (int(p.name) for p in self._folder.glob("*") if p.name.isdigit()), reverse=True
        )
        damaged: dict[Path, str] = {}
        for step in steps:
            path = self._folder / str(step)
            try:
                state, place = _read(path, like)
            except CheckpointError as error:
                damaged[path] = str(error)
                continue
            # Only now, when it is known that another one can be used.
            notes = [self._set_aside(bad, why) for bad, why in damaged.items()]
            return state, place, notes
        if damaged:
            raise CheckpointError(
                f"{'; '.join(damaged.values())}; no checkpoint is left to go on from: start a new "
                "run in another --workdir"
            )
        return None

    def _set_aside(self, path: Path, why: str) -> str:
        self._aside.mkdir(exist_ok=True)
        place, count = self._aside / path.name, 1
        while place.exists():
            count += 1
            place = self._aside / f"{path.name}-{count}"
        path.rename(place)
        return f"{why}; moved to {place}, going on from the one before it"

    def _save_error(self, what: str, error: Exception) -> SaveError:
        for path in self._folder.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        steps = [int(p.name) for p in self._folder.glob("*") if p.name.isdigit()]
        kept = f"the newest whole one is {max(steps)}" if steps else "there is none yet"
        return SaveError(
            f"{what} cannot be written to {self._folder} ({_reason(error)}); {kept}; make room or "
            "mend the permissions, and go on with --resume"
        )


def _reason(error: BaseException) -> str:
    """What the system said, out of messages of many lines."""
    text = str(error)
    for known in ("No space left on device", "Permission denied", "Read-only file system"):
        if known in text:
            return known
    return text.splitlines()[0][:200] if text else type(error).__name__


def _checksums(state: TrainState) -> dict[str, int]:
    """CRC-32 of each array's bytes, by the array's path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(
            np.ascontiguousarray(leaf).view(np.uint8).data
        )
        for path, leaf in leaves
    }


def _read(path: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """State and place of one checkpoint.

    Raises ConfigError for a state of another shape, CheckpointError for one that is damaged.
    """
    try:
        known = read_json(path, "checksums")
        place = read_json(path, "place")
        reader = ocp.PyTreeCheckpointHandler()
        metadata = reader.metadata(path / "state").tree
    except Exception as error:  # whatever a file with other bytes in it makes of its reader
        raise _damaged(path, _reason(error)) from None
    check_shapes(path, metadata, like)
    try:
        state = reader.restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                item=like,
                restore_args=jax.tree.map(
                    lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like
                ),
            ),
        )
    except Exception as error:
        raise _damaged(path, _reason(error)) from None
    for name, value in _checksums(state).items():
        if known.get(name) != value:
            raise _damaged(path, f"{name} is not what was saved")
    return state, place


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path.name} is damaged ({why})")
