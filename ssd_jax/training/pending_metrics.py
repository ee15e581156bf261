"""Steps in flight on the devices, and the metrics of completed steps."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class PendingStep(NamedTuple):
    """A step that was dispatched to the devices."""

    metrics: Mapping[str, Any]
    """Metrics of `train_step`, on the devices."""
    batch: Mapping[str, np.ndarray]
    """This process's share of the batch, as the pipeline yields it."""
    position: int
    """Position of the batch in the data."""


class PendingSteps:
    """Steps since the last log line: completed ones, and a few in flight.

    More steps in flight would hold memory for their batches, and would have to be awaited when a
    signal arrives. In all processes the same steps are completed at the same step. The batch of a
    step is kept until its metrics are available, in case that the step is not finite.

    Args:
        completed: metrics of steps before a resumed run's first step that are not logged yet.
        in_flight: maximum number of steps in flight. With two, the devices start the next step
            without waiting for the host.
        skip_nonfinite: whether non-finite steps are skipped instead of stopping the run.
    """

    def __init__(
        self,
        completed: Sequence[Mapping[str, float]],
        *,
        in_flight: int = 2,
        skip_nonfinite: bool = False,
    ) -> None:
        self.completed = [dict(metrics) for metrics in completed]
        """Metrics of each completed step, as JSON."""
        self.nonfinite: PendingStep | None = None
        """First non-finite step; it and later steps do not count as completed."""
        self.stop_requested = False
        """True once any process has set `stop` in a completed step."""
        self._in_flight = in_flight
        self._skip_nonfinite = skip_nonfinite
        self._pending: deque[PendingStep] = deque()

    def __len__(self) -> int:
        """Return the number of steps in flight."""
        return len(self._pending)

    @property
    def idle(self) -> bool:
        """True if the devices have finished all steps."""
        return not self._pending or self._pending[-1].metrics["loss"].is_ready()

    def add(self, step: PendingStep) -> None:
        """Add a step that was dispatched."""
        self._pending.append(step)

    def make_room(self) -> None:
        """Wait until one more step may be dispatched."""
        while len(self._pending) >= self._in_flight:
            self._complete_oldest()

    def flush(self) -> None:
        """Wait for all steps in flight."""
        while self._pending:
            self._complete_oldest()

    def _complete_oldest(self) -> None:
        step = self._pending.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        self.stop_requested |= metrics["stop"] > 0
        if metrics["nonfinite"] and not self._skip_nonfinite and self.nonfinite is None:
            self.nonfinite = step
        if self.nonfinite is None:
            self.completed.append(metrics)

    def pop_mean(self) -> dict[str, float]:
        """Return the mean metrics of the completed steps, with the last learning rate; reset them.

        Skipped steps are counted as `skipped` and left out of the means, which are NaN without any
        other step.
        """
        completed, self.completed = self.completed, []
        finite = [metrics for metrics in completed if not metrics["nonfinite"]]
        mean = {
            name: float(np.mean([m[name] for m in finite])) if finite else math.nan
            for name in completed[-1]
            if name not in ("nonfinite", "stop")
        }
        mean["learning_rate"] = completed[-1]["learning_rate"]
        if len(finite) < len(completed):
            mean["skipped"] = float(len(completed) - len(finite))
        return mean
