"""What a run tells: metrics.jsonl, TensorBoard, and lines or a progress bar on the console."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from ssd_jax.visualize import replace_file

_SHOWN = (
    *("loss", "loss_loc", "loss_conf", "learning_rate", "skipped", "images_per_s"),
    "data_wait",
)


class RunLog:
    """The log of one run in WORKDIR; only the first process writes.

    Lines after step `start` are dropped from metrics.jsonl, and one that is there already is not
    written again, so that a run that goes on from a checkpoint has every step once.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, write: bool = True) -> None:
        self.console = Console(quiet=not write, stderr=False, highlight=False, soft_wrap=True)
        self._lines = None
        self._tensorboard = None
        self._written: set[tuple[int, str]] = set()
        if write:
            path = workdir / "metrics.jsonl"
            self._written = _drop_after(path, start)
            self._lines = path.open("a", encoding="utf-8")
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        self._progress: Progress | None = None
        if write and sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("training", total=steps, completed=start)

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._lines:
            self._lines.close()
        if self._tensorboard:
            self._tensorboard.close()

    def advance(self, step: int) -> None:
        """Move the progress bar; touches no device."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float], *, kind: str) -> None:
        """One line of metrics.jsonl with `kind` "train" or "eval", and the same for TensorBoard."""
        if not self._lines or not self._tensorboard or (step, kind) in self._written:
            return
        self._written.add((step, kind))
        # JSON has no nan: a mean over nothing is null.
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, "kind": kind, **line}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        text = "  ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        if self._progress:
            self._progress.update(self._task, description=text)
        elif kind == "train":
            self.say(f"step {step}  {text}")

    def sync(self) -> None:
        """Have the system write metrics.jsonl to its disk: a checkpoint counts on its lines."""
        if self._lines:
            os.fsync(self._lines.fileno())

    def picture(self, step: int, name: str, file: Path) -> None:
        """An image file for TensorBoard; nothing where there is no such file."""
        if self._tensorboard and self._tensorboard.file_writer and file.is_file():
            # As it is: add_image would want Pillow and encode it anew.
            image = Summary.Image(encoded_image_string=file.read_bytes(), colorspace=3)
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            self._tensorboard.file_writer.add_summary(summary, step)

    def say(self, text: str) -> None:
        """A line for the reader."""
        self.console.print(text, markup=False)


def _drop_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Rewrite the file without the lines after `step`; the (step, kind) of the ones that stay."""
    kept: dict[tuple[int, str], str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                if values["step"] <= step:
                    kept[values["step"], values["kind"]] = line + "\n"
            except (ValueError, KeyError, TypeError):  # torn when the run was killed
                continue
        replace_file(path, "".join(kept.values()).encode())
    return set(kept)
