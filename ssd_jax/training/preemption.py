"""SIGTERM and SIGINT: the first asks the loop to save and stop, the second ends the process.

Several processes agree on the step to stop at by the flag `stop` of the training step, which is
summed with the gradients. JAX's `multihost_utils.reached_preemption_sync_point`, which Orbax's
`reached_preemption` calls, cannot replace it: it returns False without the distributed service, as
in a single process; it reports SIGTERM only, not SIGINT; and it never does so once Python has a
handler of SIGTERM, which the second signal needs.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Self, TypeVar

from ssd_jax.config import UserError
from ssd_jax.distributed import CollectiveError

STATUS_SAVED = 75
"""Exit status of a run that was stopped and saved, and can be resumed: EX_TEMPFAIL (sysexits.h)."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 3.0
"""Time from a signal to the end of waiting for a call (seconds)."""

T = TypeVar("T")


class Preempted(CollectiveError):
    """Error of a run that a signal stopped, after saving; the message says how to resume it."""

    status = STATUS_SAVED


class AbandonedError(Exception):
    """Raised instead of waiting for a call to return, after a signal."""


class PreemptionHandler:
    """Handles signals within a `with` block; outside the main thread it does nothing.

    Python runs signal handlers between two bytecode instructions, and the main thread may wait for
    a device or a compiler for minutes. Therefore a separate thread counts the signals: it reports
    the first one, and at the second one ends the process with status 128 + its number.

    Args:
        notify: called with one line at the first signal, in a new thread.
    """

    def __init__(self, notify: Callable[[str], None] = lambda line: None) -> None:
        self.requested = False
        """True after a signal."""
        self.stop_point = "now"
        """When the run would stop at a signal, for the line that reports it."""
        self.abandoned = False
        """True if a thread of `call` is still running."""
        self._notify = notify
        self._active = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        # Set first and reset last, so that every caught signal is counted.
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _ignore)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, UserError):
            error.busy = self.abandoned
        if not self._active:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()  # ends the thread

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in another thread and return its result.

        For calls that may not return to Python for minutes, such as a compilation: they cannot be
        interrupted, but the main thread does not have to wait for them.

        Raises:
            AbandonedError: the function has not returned a few seconds after a signal.
        """
        if not self._active:
            return function()
        result: Future[T] = Future()
        threading.Thread(target=self._compute, args=(function, result), daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: result.done() or self.requested)
            if not self._changed.wait_for(result.done, timeout=_GRACE):
                self.abandoned = True
                raise AbandonedError
        return result.result()

    def _compute(self, function: Callable[[], T], result: Future[T]) -> None:
        try:
            value = function()
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(value)
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        with self._reader:
            while numbers := self._reader.recv(16):
                for number in numbers:
                    if number not in _SIGNALS:
                        continue
                    if self.requested:
                        os._exit(128 + number)
                    with self._changed:
                        self.requested = True
                        self._changed.notify_all()
                    # In another thread: this one has to handle a second signal even if writing
                    # the line blocks.
                    line = f"stopping {self.stop_point}; a second signal ends the run at once"
                    threading.Thread(target=self._notify, args=(line,), daemon=True).start()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: `_watch` handles the signal. Without a handler Python would raise or exit."""
