"""Metrics of a run in metrics.jsonl, TensorBoard and on the console."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from ssd_jax.config import UserError
from ssd_jax.io import atomic_write
from ssd_jax.training.display import Display
from ssd_jax.training.tensorboard import EventFile

_CONSOLE_METRICS = (
    *("loss", "loss_loc", "loss_conf", "learning_rate", "skipped", "images_per_s"),
    "data_wait",
)


class LogError(UserError):
    """Error of a log file that cannot be read or written."""


@contextlib.contextmanager
def _as_log_error(workdir: Path) -> Iterator[None]:
    """Convert errors of the operating system to LogError."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"the log in {workdir} cannot be written ({error.strerror or error}); free some "
            "space or fix the permissions, and continue with --resume"
        ) from None


class MetricWriter:
    """Writes the metrics of one run to WORKDIR; only the main process writes.

    Lines after step `start` are dropped from metrics.jsonl, and a line that it has already is not
    written again, so that a resumed run logs every step once. Methods raise LogError if a file
    cannot be written, or if metrics.jsonl was deleted meanwhile.

    Args:
        workdir: folder of the run.
        start: step from which the run starts or resumes.
        enabled: whether this process writes.
        display: console; None: a new one.
    """

    def __init__(
        self, workdir: Path, *, start: int, enabled: bool = True, display: Display | None = None
    ) -> None:
        self._display = display or Display(quiet=not enabled)
        self._workdir = workdir
        self._lines = None
        self._tensorboard = None
        self._written: set[tuple[int, str]] = set()
        if enabled:
            path = workdir / "metrics.jsonl"
            with _as_log_error(workdir):
                self._written = _drop_after(path, start)
                self._lines = path.open("a", encoding="utf-8")
                self._tensorboard = EventFile(workdir / "tensorboard", start=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in (self._lines, self._tensorboard):
            # A failed write was reported already.
            with contextlib.suppress(OSError):
                if file:
                    file.close()

    def write(self, step: int, values: Mapping[str, float], *, kind: str) -> None:
        """Write the metrics of a step; `kind` is "train" or "eval"."""
        if not self._lines or not self._tensorboard or (step, kind) in self._written:
            return
        self._written.add((step, kind))
        # JSON has no NaN.
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with _as_log_error(self._workdir):
            self._lines.write(json.dumps({"step": step, "kind": kind, **line}) + "\n")
            self._lines.flush()
            if not _is_open_file(self._workdir / "metrics.jsonl", self._lines.fileno()):
                raise FileNotFoundError("metrics.jsonl was deleted or replaced")
            self._tensorboard.write_scalars(step, {f"{kind}/{k}": v for k, v in values.items()})
        if kind == "train":
            self._display.show(values)
            if not self._display.live:
                shown = [
                    f"{name} {values[name]:.4g}" for name in _CONSOLE_METRICS if name in values
                ]
                self._display.info(f"step {step}  {'  '.join(shown)}")

    def write_image(self, step: int, name: str, file: Path) -> None:
        """Write an image file to TensorBoard, if it exists."""
        if self._tensorboard and file.is_file():
            with _as_log_error(self._workdir):
                self._tensorboard.write_image(step, name, file.read_bytes())

    def sync(self) -> None:
        """Force metrics.jsonl to disk before a checkpoint, which relies on its lines."""
        if self._lines:
            with _as_log_error(self._workdir):
                os.fsync(self._lines.fileno())


def _is_open_file(path: Path, descriptor: int) -> bool:
    """Check that the file at `path` is the open one."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))


def read_scores(workdir: Path, metric: str) -> dict[int, float]:
    """Read the values of a metric from the evaluations in WORKDIR/metrics.jsonl, by step.

    Raises:
        LogError: the file cannot be read.
    """
    scores = {}
    with _as_log_error(workdir):
        lines = _read_lines(workdir / "metrics.jsonl")
    for line in lines.values():
        values = json.loads(line)
        if values["kind"] == "eval" and isinstance(values.get(metric), float | int):
            scores[values["step"]] = values[metric]
    return scores


def _drop_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Rewrite the file without lines after `step`; return the (step, kind) of the others."""
    lines = {key: line for key, line in _read_lines(path).items() if key[0] <= step}
    if path.exists():
        atomic_write(path, "".join(lines.values()).encode())
    return set(lines)


def _read_lines(path: Path) -> dict[tuple[int, str], str]:
    """Read the complete lines by (step, kind); of two, the later one is kept."""
    lines: dict[tuple[int, str], str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                lines[int(values["step"]), values["kind"]] = line + "\n"
            except (ValueError, KeyError, TypeError):  # cut off when the run was killed
                continue
    return lines
