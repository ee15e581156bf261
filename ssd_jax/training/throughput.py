"""Timer of the training speed between two log lines."""

import time


class Throughput:
    """Measures images per second and the fraction of time spent waiting for data.

    Args:
        batch_size: images of a step, over all processes.
        step: number of steps taken so far.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self._batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start a new measurement after `step`."""
        self._step = step
        self._data_wait = 0.0
        self._start = time.perf_counter()

    def add_data_wait(self, seconds: float) -> None:
        """Count time in which the devices waited for data."""
        self._data_wait += seconds

    def exclude(self, seconds: float) -> None:
        """Leave out time in which no step was taken, as for an evaluation."""
        self._start += seconds

    def measure(self, step: int) -> dict[str, float]:
        """Return the metrics since the last restart; empty if no step was taken since."""
        if step == self._step:
            return {}
        elapsed = time.perf_counter() - self._start
        return {
            "images_per_s": (step - self._step) * self._batch_size / elapsed,
            "data_wait": self._data_wait / elapsed,
        }
