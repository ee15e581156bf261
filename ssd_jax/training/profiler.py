"""Trace of a few steps by JAX's profiler."""

from pathlib import Path

import jax

_FIRST_STEP = 5
"""Steps before the trace starts: the first ones compile and fill the queues."""


class StepProfiler:
    """Traces `steps` steps into `folder`, for TensorBoard and Perfetto; 0 disables it."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._running = False

    def before_step(self, step: int) -> None:
        """Start or end the trace; call it before each step, counted from 0 at program start."""
        if self._steps and step == _FIRST_STEP:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if self._running and step == _FIRST_STEP + self._steps:
            self.close()

    def close(self) -> None:
        """End the trace and write it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
