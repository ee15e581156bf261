"""Pace, progress and expected duration of a run."""

import time
from collections import deque

from ssd_jax.training.display import Display

_DAY = 86_400.0


class Pace:
    """Duration of a step, averaged over the last completed ones."""

    def __init__(self, steps: int = 50) -> None:
        self._completed: deque[tuple[int, float]] = deque(maxlen=steps + 1)

    def add(self, step: int, now: float) -> None:
        """Record that `step` steps are completed at time `now` (seconds)."""
        if not self._completed or step > self._completed[-1][0]:
            self._completed.append((step, now))

    def exclude(self, seconds: float) -> None:
        """Leave out time in which no step was taken."""
        self._completed = deque(
            ((step, at + seconds) for step, at in self._completed), self._completed.maxlen
        )

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of a step; None before two steps are completed."""
        if len(self._completed) < 2:
            return None
        (first, since), (last, until) = self._completed[0], self._completed[-1]
        return (until - since) / (last - first)

    @property
    def is_reliable(self) -> bool:
        """True if enough steps are completed to predict the duration: 10 s of them, or fifty."""
        if len(self._completed) < 3:
            return False
        elapsed = self._completed[-1][1] - self._completed[0][1]
        return elapsed >= 10 or len(self._completed) == self._completed.maxlen


class Progress:
    """Shows the completed steps of a run, and once a line with the expected duration.

    Args:
        display: console of the run.
        first: steps completed before this start.
        steps: total steps of the run.
        platform: platform of the devices.
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
        """Show the number of completed steps."""
        if completed > self._first:  # the first step includes the compilation
            self._pace.add(completed, time.perf_counter())
        seconds = self._pace.seconds_per_step
        self._display.advance(completed, self._steps, seconds)
        left = self._steps - completed
        if seconds is not None and left and self._pace.is_reliable and not self._announced:
            self._announced = True
            self._display.info(expected_duration(left, seconds, platform=self._platform))

    def exclude(self, seconds: float) -> None:
        """Leave out time in which no step was taken, as for an evaluation."""
        self._pace.exclude(seconds)


def expected_duration(steps: int, seconds_per_step: float, *, platform: str) -> str:
    """Return a line with the expected duration of `steps`, with advice if a CPU takes days."""
    seconds = steps * seconds_per_step
    line = (
        f"{steps:,} steps of {seconds_per_step:.3g} s are left: about {_duration(seconds)}, "
        "not counting evaluations"
    )
    if platform == "cpu" and seconds > _DAY:
        line += (
            "; on a CPU use a smaller network and fewer steps, e.g. --model.width-multiplier 0.25 "
            "--train.batch-size 8 --train.steps 2000, or train on a GPU (README.md, Machines)"
        )
    return line


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / _DAY:.1f} days"
