"""The steps that were given to the devices, and what the host knows of them."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

_STOP_LAG = 2
"""How far back a step must be for its answer to be waited for: the devices have later ones to work
on meanwhile."""


class Queued(NamedTuple):
    """A step that was given to the devices."""

    metrics: Mapping[str, Any]
    """Of `train_step`, on the devices."""
    batch: Mapping[str, np.ndarray]
    """This process's share, as the pipeline gave it."""
    position: int
    """Of the batch in the data."""


class Window:
    """Steps since the last line of the log: first queued, then known.

    A queued step's batch is kept until its metrics are known, in case that it is to blame for
    something.

    Args:
        known: metrics of steps before a resumed run's first one that no line has yet.
    """

    def __init__(self, known: Sequence[Mapping[str, float]]) -> None:
        self.known = [dict(metrics) for metrics in known]
        """Metrics of each step, for JSON."""
        self._queued: list[Queued] = []
        self._stops: deque[jax.Array] = deque(maxlen=_STOP_LAG + 1)

    def add(self, queued: Queued) -> None:
        """One more step was given to the devices."""
        self._queued.append(queued)
        self._stops.append(queued.metrics["stop"])

    @property
    def idle(self) -> bool:
        """Whether the devices have nothing left to do."""
        return not self._queued or self._queued[-1].metrics["loss"].is_ready()

    @property
    def asked_to_stop(self) -> bool:
        """Whether any process asked to stop some steps ago; at one step the same in all."""
        return len(self._stops) > _STOP_LAG and float(self._stops[0]) > 0

    def settle(self, *, skip: bool) -> Queued | None:
        """Wait for the queued steps, so that they are known.

        Returns the first step that was not finite, unless such steps are to `skip`; it and the ones
        after it, which changed nothing, do not become known.
        """
        queued, self._queued = self._queued, []
        for step, metrics in zip(queued, jax.device_get([q.metrics for q in queued]), strict=True):
            if metrics["bad"] and not skip:
                return step
            self.known.append({name: float(value) for name, value in metrics.items()})
        return None

    def take_mean(self) -> dict[str, float]:
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
