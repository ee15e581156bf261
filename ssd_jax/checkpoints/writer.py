"""Write and restore the checkpoints of a training run: state, run progress and resolved config.

`ssd_jax.checkpoints.reader` reads a network from them without any training code.
"""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssd_jax.checkpoints.items import (
    CheckpointError,
    CheckpointReader,
    checkpoint_args,
    item_handlers,
)
from ssd_jax.checkpoints.reader import BEST, check_shapes, checkpoint_steps
from ssd_jax.config import Config, TrainConfig, UserError
from ssd_jax.distributed import broadcast_json, broadcast_tree, is_main_process
from ssd_jax.io import atomic_write, reason

_TEMPORARY = ".orbax-checkpoint-tmp"


class SaveError(UserError):
    """A checkpoint that cannot be written; the message names the newest intact one."""


class State(Protocol):
    """A training state: a pytree with the number of steps taken."""

    step: Any


StateT = TypeVar("StateT", bound=State)


class CheckpointManager:
    """Checkpoints of one run, in WORKDIR/checkpoints/STEP.

    They are saved in the background. A checkpoint appears under its name only when it is complete,
    and holds a checksum of every array. Only the main process reads and writes files: the state is
    the same in all processes, and the others receive it from there.

    The file checkpoints/best holds the step of the best checkpoint by `train.best_metric`.
    """

    def __init__(self, workdir: Path, config: TrainConfig) -> None:
        self._workdir = workdir
        self._folder = (workdir / "checkpoints").absolute()
        self._corrupt = workdir / "corrupt"
        self._config = config
        self._manager: ocp.CheckpointManager | None = None
        self._scores: dict[int, float] = {}
        self._saving: int | None = None

    def open(self, scores: Mapping[int, float] | None = None) -> list[str]:
        """Create the folder and remove what would hinder saving.

        Args:
            scores: values of `train.best_metric` by step, of a resumed run.

        Returns:
            One line for each file or folder removed or moved.

        Raises:
            SaveError: the folder cannot be written.
        """
        if not is_main_process():
            return []
        keep: list[Any] = [policies.LatestN(self._config.max_to_keep)]
        if self._config.keep_period:
            keep.append(policies.EveryNSteps(self._config.keep_period))
        if self._config.keep_best:
            keep.append(_BestN(self._scores, self._config.keep_best))
        main_only = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        # Each error that Orbax logs is raised too, and reported in one line.
        logging.getLogger("absl").addFilter(_is_not_orbax_traceback)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            notes = self._clean_folder()
            self._scores |= scores or {}
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers=item_handlers(main_only),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    multiprocessing_options=main_only,
                    create=False,
                    # Otherwise threads wait for minutes for a folder that cannot be made.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )
            self._write_best()
        except OSError as error:
            raise self._save_error("checkpoints", error) from None
        return notes

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint; None if there is none, and in other processes."""
        steps = _by_score(self._scores, self._steps())
        return (steps[-1], self._scores[steps[-1]]) if steps else None

    def add_score(self, step: int, score: float) -> int | None:
        """Record the score of the state after `step`, before it is saved.

        Returns:
            The best step so far; None in all processes but the main one.
        """
        if self._manager is None:
            return None
        if math.isfinite(score):
            self._scores[step] = score
        saved = {*self._steps(), step} | ({self._saving} if self._saving is not None else set())
        steps = _by_score(self._scores, saved)
        return steps[-1] if steps else None

    def save(self, state: State, run_progress: Mapping[str, Any], config: Config) -> None:
        """Save in the background all that resuming after `state.step` needs.

        Args:
            state: training state.
            run_progress: position of the run apart from the state, as JSON.
            config: resolved config.

        Raises:
            SaveError: this checkpoint, or the previous one in the background, cannot be written.
        """
        if self._manager is None:
            return
        step = int(state.step)
        try:
            self._manager.wait_until_finished()
            self._write_best()
            if step in self._steps():  # resumed and stopped again at once
                return
            args = checkpoint_args(jax.device_get(state), config, run_progress)
            if not self._manager.save(step, args=args):
                raise ValueError("Orbax refused to save it")
            self._saving = step
        except Exception as error:  # tensorstore raises ValueError and others
            raise self._save_error(f"checkpoint {step}", error) from None

    def check(self) -> None:
        """Raise SaveError if a save in the background has failed; do not wait for it."""
        if self._manager is not None:
            try:
                self._manager.check_for_errors()
                if self._saving is not None and (self._folder / str(self._saving)).is_dir():
                    self._saving = None
                    self._write_best()
            except Exception as error:
                raise self._save_error("the last checkpoint", error) from None

    def close(self) -> None:
        """Wait for a save in the background; raise SaveError if it failed."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            try:
                manager.wait_until_finished()
                manager.check_for_errors()
                self._write_best()
            except Exception as error:
                raise self._save_error("the last checkpoint", error) from None
            finally:
                manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except SaveError:
            if error is None:  # do not mask the original exception
                raise

    def restore(self, like: StateT) -> tuple[StateT, dict[str, Any], list[str]] | None:
        """Restore the newest intact checkpoint.

        Damaged checkpoints are reported in a note and moved to WORKDIR/corrupt.

        Args:
            like: state with the expected shapes.

        Returns:
            The state as NumPy arrays, the run progress, and notes, equal in all processes but for
            the notes of the main one; None without a checkpoint.

        Raises:
            ConfigError: a shape differs; names the first array.
            CheckpointError: all checkpoints are damaged.
        """
        restored: tuple[StateT, dict[str, Any], list[str]] | None = None
        failure: UserError | None = None
        if is_main_process():
            try:
                restored = self._read_newest(like)
            except UserError as error:
                failure = error
        outcome = broadcast_json(
            {
                "run_progress": restored and restored[1],
                "failure": str(failure) if failure else None,
            }
        )
        if outcome["failure"] is not None:
            raise failure or CheckpointError(outcome["failure"])
        if outcome["run_progress"] is None:
            return None
        state = broadcast_tree(restored[0] if restored else jax.tree.map(np.zeros_like, like))
        return state, outcome["run_progress"], restored[2] if restored else []

    def _read_newest(self, like: StateT) -> tuple[StateT, dict[str, Any], list[str]] | None:
        damaged: dict[Path, str] = {}
        for step in reversed(self._steps()):
            path = self._folder / str(step)
            try:
                state, run_progress = _read(path, like)
            except CheckpointError as error:
                damaged[path] = str(error)
                continue
            # Move the damaged ones only now that another one is intact.
            notes = [
                f"{why}; moved to {self._quarantine(bad)}, using the previous checkpoint"
                for bad, why in damaged.items()
            ]
            return state, run_progress, notes
        if damaged:
            raise CheckpointError(
                f"{'; '.join(damaged.values())}; no intact checkpoint is left: start a new "
                "run in another --workdir"
            )
        return None

    def _steps(self) -> list[int]:
        return checkpoint_steps(self._folder)

    def _write_best(self) -> None:
        """Write the step of the best checkpoint to checkpoints/best."""
        file = self._folder / BEST
        if self.best is None:
            file.unlink(missing_ok=True)
            return
        text = f"{self.best[0]}\n".encode()
        if not file.is_file() or file.read_bytes() != text:
            atomic_write(file, text)

    def _clean_folder(self) -> list[str]:
        """Remove or move what Orbax would mistake for a checkpoint; return a line for each."""
        notes = []
        for path in sorted(self._folder.glob(f"*{_TEMPORARY}*")):
            shutil.rmtree(path)
            notes.append(f"{path.name} was incomplete when the run ended; removed")
        steps = {str(step) for step in self._steps()}
        for path in sorted(self._folder.iterdir()):
            # Orbax would take it for a step, and save no lower step.
            if path.name.isdecimal() and path.name not in steps:
                notes.append(f"{path} is not a checkpoint; moved to {self._quarantine(path)}")
        return notes

    def _quarantine(self, path: Path) -> Path:
        """Move a file or folder to WORKDIR/corrupt and return its new path."""
        target, count = self._corrupt / path.name, 1
        while target.exists():
            count += 1
            target = self._corrupt / f"{path.name}-{count}"
        try:
            self._corrupt.mkdir(exist_ok=True)
            path.rename(target)
        except OSError as error:
            raise SaveError(f"{path} cannot be moved to {target} ({error.strerror})") from None
        return target

    def _save_error(self, what: str, error: Exception) -> SaveError:
        for path in self._folder.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        steps = self._steps()
        newest = f"the newest intact checkpoint is {steps[-1]}" if steps else "none is saved yet"
        return SaveError(
            f"{what} cannot be written to {self._folder} ({reason(error)}); {newest}; "
            "free some space or fix the permissions, and continue with --resume"
        )


class _BestN:
    """Orbax policy that preserves the `n` checkpoints with the best scores.

    Args:
        scores: score by step; the caller adds more later.
        n: number of checkpoints to preserve.
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
        """Return whether each checkpoint is preserved."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _by_score(self._scores, steps)[-self._n :]
        return [step in best for step in steps]


def _by_score(scores: Mapping[int, float], steps: Iterable[int]) -> list[int]:
    """Sort the steps that have a score by score, then by step."""
    return sorted((s for s in steps if s in scores), key=lambda step: (scores[step], step))


def _is_not_orbax_traceback(record: logging.LogRecord) -> bool:
    """Filter out the tracebacks that Orbax logs for errors which it raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _read(path: Path, like: StateT) -> tuple[StateT, dict[str, Any]]:
    """Read the state and the run progress of one checkpoint.

    Raises:
        ConfigError: a shape differs; names the first array.
        CheckpointError: the checkpoint is damaged.
    """
    reader = CheckpointReader(path, advice="")
    run_progress = reader.json("run_progress")
    check_shapes(path, reader.shapes(), like)
    return reader.arrays(like), run_progress
