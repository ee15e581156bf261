"""What a run shows while it goes: lines, and on a terminal a live line below them."""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

_BAR = 16
"""Cells of the bar, where there is room for it."""
_SHOWN = {
    "loss": "loss {:.4g}",
    "images_per_s": "{:.3g} images/s",
    "skipped": "{:.0f} skipped",
    "loss_loc": "loc {:.4g}",
    "loss_conf": "conf {:.4g}",
    "learning_rate": "rate {:.3g}",
    "data_wait": "waits {:.0%}",
}
"""Values of the live line, the most important first, and how they look."""
_DAY = 86_400.0
_PATIENCE = 5.0
"""Time until a line says what goes on (seconds)."""


class Pace:
    """The time that a step takes, by the last ones that were completed."""

    def __init__(self, steps: int = 50) -> None:
        self._completed: deque[tuple[int, float]] = deque(maxlen=steps + 1)

    def add(self, step: int, now: float) -> None:
        """Note that `step` steps are completed at time `now` (seconds)."""
        if not self._completed or step > self._completed[-1][0]:
            self._completed.append((step, now))

    def pause(self, seconds: float) -> None:
        """Leave out a time in which no step was taken."""
        self._completed = deque(
            ((step, at + seconds) for step, at in self._completed), self._completed.maxlen
        )

    @property
    def seconds_per_step(self) -> float | None:
        """The mean time of a step; None before two steps are completed."""
        if len(self._completed) < 2:
            return None
        (first, since), (last, until) = self._completed[0], self._completed[-1]
        return (until - since) / (last - first)

    @property
    def settled(self) -> bool:
        """Whether there are steps enough to tell how long a run takes: of 10 s, or fifty."""
        if len(self._completed) < 3:
            return False
        elapsed = self._completed[-1][1] - self._completed[0][1]
        return elapsed >= 10 or len(self._completed) == self._completed.maxlen


class Display:
    """The console of a run, for a `with` block; only the first process of several speaks.

    Args:
        quiet: whether nothing is shown.
        console: by default that of standard output.
        live: whether there is a live line; by default on a terminal.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, live: bool | None = None
    ) -> None:
        self.console = console or Console(
            quiet=quiet, stderr=False, highlight=False, soft_wrap=True
        )
        self.live = not quiet and (sys.stdout.isatty() if live is None else live)
        """Whether there is a live line."""
        self._phase, self._since = "", 0.0
        self._step, self._steps = 0, 0
        self._left: float | None = None
        self._values: Mapping[str, float] = {}
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self.live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show what goes on within the block.

        On a terminal it is shown with its elapsed time. Elsewhere a line is printed once the block
        has taken _PATIENCE seconds, so that an error found at once stands alone.
        """
        self._phase, self._since = name, time.perf_counter()
        line = threading.Timer(_PATIENCE, self.say, [name])
        line.daemon = True
        if not self.live:
            line.start()
        try:
            yield
        finally:
            line.cancel()
            self._phase = ""

    def advance(self, step: int, steps: int, seconds_per_step: float | None = None) -> None:
        """Show that `step` of `steps` are completed."""
        self._step, self._steps = step, steps
        self._left = None if seconds_per_step is None else (steps - step) * seconds_per_step

    def show(self, values: Mapping[str, float]) -> None:
        """Show the latest metrics."""
        self._values = values

    def _render(self) -> Text:
        return Text(self.line(self.console.width), no_wrap=True, overflow="crop")

    def line(self, width: int) -> str:
        """Return the live line, in at most `width` cells as long as the count fits."""
        if self._phase:
            return f"{self._phase}  {_clock(time.perf_counter() - self._since)}"
        if not self._steps:
            return ""
        left = "-:--:--" if self._left is None else _clock(self._left)
        parts = [f"{self._step}/{self._steps}", f"{left} left"]
        room = width - len("  ".join(parts)) - 2
        if room >= _BAR:
            full, empty = ("━", "╌") if self.console.encoding.startswith("utf") else ("#", ".")
            done = _BAR * self._step // self._steps
            parts.insert(0, full * done + empty * (_BAR - done))
            room -= _BAR + 2
        for name, form in _SHOWN.items():
            if name in self._values:
                text = form.format(self._values[name])
                if len(text) > room:
                    break
                parts.append(text)
                room -= len(text) + 2
        return "  ".join(parts)


class Progress:
    """The completed steps of a run on its display, and once a line with the expected duration.

    Args:
        display: to show them on.
        first: steps that were completed before this start.
        steps: of the whole run.
        platform: of the devices.
    """

    def __init__(self, display: Display, *, first: int, steps: int, platform: str) -> None:
        self._display = display
        self._first = first
        self._steps = steps
        self._platform = platform
        self._pace = Pace()
        self._announced = False
        self.update(first)

    def update(self, completed: int) -> None:
        """Show that `completed` steps of the run are."""
        if completed > self._first:  # before that it is compiled
            self._pace.add(completed, time.perf_counter())
        seconds = self._pace.seconds_per_step
        self._display.advance(completed, self._steps, seconds)
        left = self._steps - completed
        if seconds is not None and left and self._pace.settled and not self._announced:
            self._announced = True
            self._display.say(expected_duration(left, seconds, platform=self._platform))

    def pause(self, seconds: float) -> None:
        """Leave out a time in which no step was taken, as of an evaluation."""
        self._pace.pause(seconds)


def expected_duration(steps: int, seconds_per_step: float, *, platform: str) -> str:
    """Return the line that tells how long the next `steps` take; on a CPU perhaps too long."""
    seconds = steps * seconds_per_step
    line = (
        f"{steps:,} steps of {seconds_per_step:.3g} s are left: about {_duration(seconds)}, "
        "evaluations not counted"
    )
    if platform == "cpu" and seconds > _DAY:
        line += (
            "; on a CPU take a smaller network and fewer steps, e.g. --model.width-multiplier 0.25 "
            "--train.batch-size 8 --train.steps 2000, or train on a GPU (README.md, Machines)"
        )
    return line


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / _DAY:.1f} days"
