"""What a run tells: metrics.jsonl, TensorBoard, and lines or a progress bar on the console."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ssd_jax.config import UserError
from ssd_jax.io import atomic_write
from ssd_jax.training.progress import Display
from ssd_jax.training.tensorboard import EventFile

_SHOWN = (
    *("loss", "loss_loc", "loss_conf", "learning_rate", "skipped", "images_per_s"),
    "data_wait",
)


class LogError(UserError):
    """A log that cannot be written; the message says where and why."""


@contextlib.contextmanager
def _as_log_error(workdir: Path) -> Iterator[None]:
    """Errors of the system as a line for the user."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"the log in {workdir} cannot be written ({error.strerror or error}); make room or "
            "fix the permissions, and continue with --resume"
        ) from None


class MetricWriter:
    """The log of one run in WORKDIR; only the first process writes.

    Lines after step `start` are dropped from metrics.jsonl, and one that is there already is not
    written again, so that a run that goes on from a checkpoint has every step once. What cannot be
    written raises LogError, also where metrics.jsonl was deleted under the run.

    Lines for the reader go to `display`, by default one of the log's own.
    """

    def __init__(
        self, workdir: Path, *, start: int, write: bool = True, display: Display | None = None
    ) -> None:
        self._display = display or Display(quiet=not write)
        self._workdir = workdir
        self._lines = None
        self._tensorboard = None
        self._written: set[tuple[int, str]] = set()
        if write:
            path = workdir / "metrics.jsonl"
            with _as_log_error(workdir):
                self._written = _drop_after(path, start)
                self._lines = path.open("a", encoding="utf-8")
                self._tensorboard = EventFile(workdir / "tensorboard", start=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._lines, self._tensorboard):
            # What cannot be written was told when it was tried.
            with contextlib.suppress(OSError):
                if file:
                    file.close()

    def write(self, step: int, values: Mapping[str, float], *, kind: str) -> None:
        """One line of metrics.jsonl with `kind` "train" or "eval", and the same for TensorBoard."""
        if not self._lines or not self._tensorboard or (step, kind) in self._written:
            return
        self._written.add((step, kind))
        # JSON has no nan: a mean over nothing is null.
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with _as_log_error(self._workdir):
            self._lines.write(json.dumps({"step": step, "kind": kind, **line}) + "\n")
            self._lines.flush()
            if not _is_open_file(self._workdir / "metrics.jsonl", self._lines.fileno()):
                raise FileNotFoundError("metrics.jsonl was deleted or replaced")
            self._tensorboard.scalars(step, {f"{kind}/{k}": v for k, v in values.items()})
        text = "  ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        if kind == "train":
            self._display.show(values)
            if not self._display.live:
                self._display.say(f"step {step}  {text}")

    def sync(self) -> None:
        """Have the system write metrics.jsonl to its disk: a checkpoint counts on its lines."""
        if self._lines:
            with _as_log_error(self._workdir):
                os.fsync(self._lines.fileno())

    def picture(self, step: int, name: str, file: Path) -> None:
        """An image file for TensorBoard; nothing where there is no such file."""
        if self._tensorboard and file.is_file():
            with _as_log_error(self._workdir):
                self._tensorboard.picture(step, name, file.read_bytes())

    def say(self, text: str) -> None:
        """A line for the reader."""
        self._display.say(text)


def _is_open_file(path: Path, file: int) -> bool:
    """Whether the file at `path` is the open one."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file))


def read_scores(workdir: Path, metric: str) -> dict[int, float]:
    """Read the values of a metric from the evaluations in WORKDIR/metrics.jsonl, by step."""
    scores = {}
    for line in _read_lines(workdir / "metrics.jsonl").values():
        values = json.loads(line)
        if values["kind"] == "eval" and isinstance(values.get(metric), float | int):
            scores[values["step"]] = values[metric]
    return scores


def _drop_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Rewrite the file without the lines after `step`; the (step, kind) of the ones that stay."""
    lines = _read_lines(path)
    kept = {key: line for key, line in lines.items() if key[0] <= step}
    if path.exists():
        atomic_write(path, "".join(kept.values()).encode())
    return set(kept)


def _read_lines(path: Path) -> dict[tuple[int, str], str]:
    """The lines of the file by their (step, kind); of two the later one, and none that is torn."""
    lines: dict[tuple[int, str], str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                lines[int(values["step"]), values["kind"]] = line + "\n"
            except (ValueError, KeyError, TypeError):  # torn when the run was killed
                continue
    return lines
