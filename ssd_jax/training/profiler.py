"""A trace of some steps by JAX's profiler."""

from pathlib import Path

import jax

_FROM = 5
"""Steps before the trace begins: the first ones compile and fill the queues."""


class Profile:
    """Traces `steps` steps into `folder`, which TensorBoard and Perfetto read; 0: none."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step, counted from 0 at this start of the program."""
        if self._steps and step == _FROM:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if self._running and step == _FROM + self._steps:
            self.close()

    def close(self) -> None:
        """End the trace and write it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
