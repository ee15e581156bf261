"""Console of a run: printed lines and, on a terminal, a live status line below them."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

_BAR_WIDTH = 16
"""Cells of the progress bar, which is left out on narrow terminals."""
_FORMATS = {
    "loss": "loss {:.4g}",
    "images_per_s": "{:.3g} images/s",
    "skipped": "{:.0f} skipped",
    "loss_loc": "loc {:.4g}",
    "loss_conf": "conf {:.4g}",
    "learning_rate": "rate {:.3g}",
    "data_wait": "waits {:.0%}",
}
"""Formats of the metrics in the status line, in descending order of importance."""
_PHASE_DELAY = 5.0
"""Time until a line reports a phase (seconds)."""


class Display:
    """Console of a run, for a `with` block.

    Args:
        quiet: show nothing, as in all processes but the main one.
        console: default: standard output.
        live: whether to show the status line; default: on a terminal.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, live: bool | None = None
    ) -> None:
        self.console = console or Console(
            quiet=quiet, stderr=False, highlight=False, soft_wrap=True
        )
        self.live = not quiet and (sys.stdout.isatty() if live is None else live)
        """True if the status line is shown."""
        self._phase, self._since = "", 0.0
        self._step, self._steps = 0, 0
        self._left: float | None = None
        self._values: Mapping[str, float] = {}
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self.live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.live:
            self._live.stop()

    def info(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show the name of a phase while the block runs.

        A terminal shows it with the elapsed time. Otherwise a line is printed after _PHASE_DELAY
        seconds, so that an early error is the only line.
        """
        self._phase, self._since = name, time.perf_counter()
        line = threading.Timer(_PHASE_DELAY, self.info, [name])
        line.daemon = True
        if not self.live:
            line.start()
        try:
            yield
        finally:
            line.cancel()
            self._phase = ""

    def advance(self, step: int, steps: int, seconds_per_step: float | None = None) -> None:
        """Update the number of completed steps."""
        self._step, self._steps = step, steps
        self._left = None if seconds_per_step is None else (steps - step) * seconds_per_step

    def show(self, values: Mapping[str, float]) -> None:
        """Update the metrics."""
        self._values = values

    def _render(self) -> Text:
        return Text(self.line(self.console.width), no_wrap=True, overflow="crop")

    def line(self, width: int) -> str:
        """Return the status line, in at most `width` cells unless the step count is longer."""
        if self._phase:
            return f"{self._phase}  {_clock(time.perf_counter() - self._since)}"
        if not self._steps:
            return ""
        left = "-:--:--" if self._left is None else _clock(self._left)
        parts = [f"{self._step}/{self._steps}", f"{left} left"]
        space = width - len("  ".join(parts)) - 2
        if space >= _BAR_WIDTH:
            full, empty = ("━", "╌") if self.console.encoding.startswith("utf") else ("#", ".")
            done = _BAR_WIDTH * self._step // self._steps
            parts.insert(0, full * done + empty * (_BAR_WIDTH - done))
            space -= _BAR_WIDTH + 2
        for name, template in _FORMATS.items():
            if name in self._values:
                text = template.format(self._values[name])
                if len(text) > space:
                    break
                parts.append(text)
                space -= len(text) + 2
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
