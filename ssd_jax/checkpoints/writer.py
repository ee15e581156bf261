"""Orbax checkpoints: state, place in the run and resolved config, saved together.

`ssd_jax.checkpoints.reader` reads a network back without any of the training.
"""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssd_jax.checkpoints.items import (
    CheckpointError,
    CheckpointReader,
    checkpoint_args,
    item_handlers,
    reason,
)
from ssd_jax.checkpoints.reader import BEST, check_shapes, checkpoint_steps
from ssd_jax.config import Config, TrainConfig, UserError
from ssd_jax.distributed import broadcast_json, broadcast_tree, is_main_process
from ssd_jax.io import atomic_write
from ssd_jax.training.metric_writer import read_scores
from ssd_jax.training.state import TrainState

_TEMPORARY = ".orbax-checkpoint-tmp"


class SaveError(UserError):
    """A checkpoint that could not be written; the message says why and what there is."""


class CheckpointManager:
    """The checkpoints of one run, in WORKDIR/checkpoints/STEP.

    Saving goes on in the background. A checkpoint appears under its name only when it is
    complete, and holds a checksum of every array. The first process alone reads and writes files:
    the state is the same in all of them, and the others get it from there.

    The file checkpoints/best holds the step of the best checkpoint by `train.best_metric`.
    """

    def __init__(self, workdir: Path, config: TrainConfig) -> None:
        self._workdir = workdir
        self._folder = (workdir / "checkpoints").absolute()
        self._aside = workdir / "damaged"
        self._config = config
        self._manager: ocp.CheckpointManager | None = None
        self._scores: dict[int, float] = {}
        self._saving: int | None = None

    def open(self) -> list[str]:
        """Get ready to save, making the folder; what was found there, one line each.

        Raises SaveError where the folder cannot be written.
        """
        if not is_main_process():
            return []
        keep: list[Any] = [policies.LatestN(self._config.max_to_keep)]
        if self._config.keep_period:
            keep.append(policies.EveryNSteps(self._config.keep_period))
        if self._config.keep_best:
            keep.append(_BestN(self._scores, self._config.keep_best))
        first = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        # Each error that Orbax logs is raised too, and reported in one line.
        logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            notes = self._clear()
            self._scores |= read_scores(self._workdir, self._config.best_metric)
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers=item_handlers(first),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    multiprocessing_options=first,
                    create=False,
                    # Else a folder that cannot be made keeps threads waiting for it for minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )
            self._point_to_best()
        except OSError as error:
            raise self._save_error("checkpoints", error) from None
        return notes

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint; None without any, and in all other processes."""
        steps = _by_score(self._scores, self._steps())
        return (steps[-1], self._scores[steps[-1]]) if steps else None

    def add_score(self, step: int, score: float) -> int | None:
        """Record the score of the state after `step`, before it is saved.

        Returns the best step until now; None in all processes but the first.
        """
        if self._manager is None:
            return None
        if math.isfinite(score):
            self._scores[step] = score
        saved = {*self._steps(), step} | ({self._saving} if self._saving is not None else set())
        steps = _by_score(self._scores, saved)
        return steps[-1] if steps else None

    def save(self, state: TrainState, place: Mapping[str, Any], config: Config) -> None:
        """Save what the run needs to go on after `state.step`, in the background.

        Args:
            state: of the training.
            place: of the run beside the state, as JSON takes it; `restore` gives it back.
            config: the resolved one.

        Raises SaveError if this checkpoint, or the one before in the background, cannot be
        written.
        """
        if self._manager is None:
            return
        step = int(state.step)
        try:
            self._manager.wait_until_finished()
            self._point_to_best()
            if step in self._steps():  # resumed, and stopped again at once
                return
            args = checkpoint_args(jax.device_get(state), config, place)
            if not self._manager.save(step, args=args):
                raise ValueError("Orbax refused to save it")
            self._saving = step
        except Exception as error:  # tensorstore's come as ValueError and others
            raise self._save_error(f"checkpoint {step}", error) from None

    def check(self) -> None:
        """Raises SaveError if a save in the background has failed; does not wait for one."""
        if self._manager is not None:
            try:
                self._manager.check_for_errors()
                if self._saving is not None and (self._folder / str(self._saving)).is_dir():
                    self._saving = None
                    self._point_to_best()
            except Exception as error:
                raise self._save_error("the last checkpoint", error) from None

    def close(self) -> None:
        """Wait for a save in the background. Raises SaveError if it failed."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
                self._point_to_best()
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
        if is_main_process():
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
        damaged: dict[Path, str] = {}
        for step in reversed(self._steps()):
            path = self._folder / str(step)
            try:
                state, place = _read(path, like)
            except CheckpointError as error:
                damaged[path] = str(error)
                continue
            # Only now, when it is known that another one can be used.
            notes = [self._quarantine(bad, why) for bad, why in damaged.items()]
            return state, place, notes
        if damaged:
            raise CheckpointError(
                f"{'; '.join(damaged.values())}; no checkpoint is left to go on from: start a new "
                "run in another --workdir"
            )
        return None

    def _steps(self) -> list[int]:
        return checkpoint_steps(self._folder)

    def _point_to_best(self) -> None:
        """Write the step of the best checkpoint to checkpoints/best."""
        file = self._folder / BEST
        if self.best is None:
            file.unlink(missing_ok=True)
            return
        text = f"{self.best[0]}\n".encode()
        if not file.is_file() or file.read_bytes() != text:
            atomic_write(file, text)

    def _clear(self) -> list[str]:
        """Remove from checkpoints/ what Orbax would stumble over; one line for each."""
        notes = []
        for path in sorted(self._folder.glob(f"*{_TEMPORARY}*")):
            shutil.rmtree(path)
            notes.append(f"{path.name} was not finished when the run ended; removed")
        steps = {str(step) for step in self._steps()}
        for path in sorted(self._folder.iterdir()):
            # It would be taken for a step, and nothing be saved before it.
            if path.name.isdecimal() and path.name not in steps:
                notes.append(f"{path} is not a checkpoint; moved to {self._move_aside(path)}")
        return notes

    def _quarantine(self, path: Path, why: str) -> str:
        return f"{why}; moved to {self._move_aside(path)}, going on from the one before it"

    def _move_aside(self, path: Path) -> Path:
        place, count = self._aside / path.name, 1
        while place.exists():
            count += 1
            place = self._aside / f"{path.name}-{count}"
        try:
            self._aside.mkdir(exist_ok=True)
            path.rename(place)
        except OSError as error:
            raise SaveError(f"{path} cannot be moved to {place} ({error.strerror})") from None
        return place

    def _save_error(self, what: str, error: Exception) -> SaveError:
        for path in self._folder.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        steps = self._steps()
        kept = f"the newest whole one is {steps[-1]}" if steps else "there is none yet"
        return SaveError(
            f"{what} cannot be written to {self._folder} ({reason(error)}); {kept}; make room or "
            "fix the permissions, and continue with --resume"
        )


class _BestN:
    """Orbax's policy to preserve the `n` checkpoints with the best scores.

    Args:
        scores: by step; more may come.
        n: checkpoints to preserve.
    """

    def __init__(self, scores: Mapping[int, float], n: int) -> None:
        self._scores = scores
        self._n = n

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """Tell of each checkpoint whether it is preserved."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _by_score(self._scores, steps)[-self._n :]
        return [step in best for step in steps]


def _by_score(scores: Mapping[int, float], steps: Iterable[int]) -> list[int]:
    """List the steps that have a score in ascending order of it, equal ones in that of steps."""
    return sorted((s for s in steps if s in scores), key=lambda step: (scores[step], step))


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a record is not what Orbax logs of an error, which it raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _read(path: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """State and place of one checkpoint.

    Raises ConfigError for a state of another shape, CheckpointError for one that is damaged.
    """
    reader = CheckpointReader(path, advice="")
    place = reader.json("place")
    check_shapes(path, reader.shapes(), like)
    return reader.arrays(like), place
