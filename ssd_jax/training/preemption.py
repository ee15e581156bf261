"""SIGTERM and SIGINT: the first asks the loop to save and stop, the second ends the process."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Self, TypeVar

from ssd_jax.config import UserError
from ssd_jax.distributed import CollectiveError

STATUS_SAVED = 75
"""Exit status of a run that was asked to stop, saved and can go on: EX_TEMPFAIL of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 3.0
"""Time after a signal until a call is abandoned (seconds)."""

T = TypeVar("T")


class Preempted(CollectiveError):
    """The run was asked to stop and has saved; the message says how it goes on."""

    status = STATUS_SAVED


class AbandonedError(Exception):
    """A call whose end was not waited for, because a signal came."""


class PreemptionHandler:
    """Watches for signals within a `with`; in another thread than the main one it hears none.

    Python runs signal handlers between two of its own instructions, and the main thread may be
    waiting for a device or a compiler for minutes. So a thread counts the signals: it tells of the
    first one, and ends the process at the second one with 128 + its number.

    Args:
        tell: called with a line at the first signal, in a thread of its own.
    """

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        self.requested = False
        """Whether a signal has come."""
        self.stop_point = "now"
        """When the run would stop at a signal, for the line that tells so."""
        self.abandoned = False
        """Whether a thread of `call` still runs."""
        self._tell = tell
        self._listens = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._listens = threading.current_thread() is threading.main_thread()
        if not self._listens:
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        # Set first and reset last, so that no signal is caught without being counted.
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _handled)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError):
            error.busy = self.abandoned
        if not self._listens:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()  # the thread reads an end and goes

    def call(self, function: Callable[[], T]) -> T:
        """Return `function()`, which is computed in a thread of its own.

        For what may not come back to Python for minutes, as a compiler: nothing can stop it, but
        the main thread need not wait for it.

        Raises AbandonedError seconds after a signal if the function has not returned by then.
        """
        if not self._listens:
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
                    # By yet another thread: this one has to hear a second signal, even if nobody
                    # reads the line.
                    line = f"stopping {self.stop_point}; a second signal ends the run at once"
                    threading.Thread(target=self._tell, args=(line,), daemon=True).start()


def _handled(number: int, frame: FrameType | None) -> None:
    """Nothing: the thread has been told. Without a handler Python would raise or end."""
