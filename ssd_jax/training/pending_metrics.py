"""The steps that were given to the devices, and what the host knows of them."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class PendingStep(NamedTuple):
    """A step that was given to the devices."""

    metrics: Mapping[str, Any]
    """Of `train_step`, on the devices."""
    batch: Mapping[str, np.ndarray]
    """This process's share, as the pipeline gave it."""
    position: int
    """Of the batch in the data."""


class PendingSteps:
    """Steps since the last line of the log: first in flight, then known.

    A few steps are in flight at once: more would hold memory for their batches, and would have to
    be waited for at a signal. In all processes the same steps are known at the same step.

    A step's batch is kept until its metrics are known, in case that it is to blame for something.

    Args:
        known: metrics of steps before a resumed run's first one that no line has yet.
        in_flight: steps that the devices may have at once. With two, the next one starts where
            one ends, without the host.
        skip: whether steps that are not finite are left out, and do not count as bad.
    """

    def __init__(
        self, known: Sequence[Mapping[str, float]], *, in_flight: int = 2, skip: bool = False
    ) -> None:
        self.known = [dict(metrics) for metrics in known]
        """Metrics of each step, for JSON."""
        self.bad: PendingStep | None = None
        """The first step that was not finite. It and those after it do not become known."""
        self.asked_to_stop = False
        """Whether any process asked to stop at a step whose metrics are known."""
        self._in_flight = in_flight
        self._skip = skip
        self._queued: deque[PendingStep] = deque()

    def __len__(self) -> int:
        """Return the number of steps in flight."""
        return len(self._queued)

    def make_room(self) -> None:
        """Wait until one more step may be given to the devices."""
        while len(self._queued) >= self._in_flight:
            self._learn()

    def add(self, queued: PendingStep) -> None:
        """One more step was given to the devices."""
        self._queued.append(queued)

    @property
    def idle(self) -> bool:
        """Whether the devices have nothing left to do."""
        return not self._queued or self._queued[-1].metrics["loss"].is_ready()

    def settle(self) -> None:
        """Wait for all steps in flight, so that they are known."""
        while self._queued:
            self._learn()

    def _learn(self) -> None:
        """Wait for the oldest step in flight."""
        step = self._queued.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        self.asked_to_stop |= metrics["stop"] > 0
        if metrics["bad"] and not self._skip and self.bad is None:
            self.bad = step
        if self.bad is None:
            self.known.append(metrics)

    def pop_mean(self) -> dict[str, float]:
        """The mean of the known steps, which are forgotten; the rate is that of the last one.

        Steps that were skipped are counted instead; without any other the means are nan.
        """
        known, self.known = self.known, []
        good = [metrics for metrics in known if not metrics["bad"]]
        mean = {
            name: float(np.mean([m[name] for m in good])) if good else math.nan
            for name in known[-1]
            if name not in ("bad", "stop")
        }
        mean["learning_rate"] = known[-1]["learning_rate"]
        if len(good) < len(known):
            mean["skipped"] = float(len(known) - len(good))
        return mean
