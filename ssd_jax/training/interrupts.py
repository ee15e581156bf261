"""SIGTERM and SIGINT: the first asks the loop to save and stop, the second ends the process."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Self

from ssd_jax.runtime import TogetherError

STATUS_SAVED = 75
"""Exit status of a run that was asked to stop, saved and can go on: EX_TEMPFAIL of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(TogetherError):
    """The run was asked to stop and has saved; the message says how it goes on."""

    status = STATUS_SAVED


class Interrupts:
    """Watches for signals within a `with`; in another thread than the main one it hears none.

    Python runs signal handlers between two of its own instructions, and the main thread may be
    waiting for a device or a compiler for minutes. So a thread counts the signals, and ends the
    process at the second one with 128 + its number.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._listens = threading.current_thread() is threading.main_thread()
        if not self._listens:
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, _handled)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._listens:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()  # the thread reads an end and goes

    def _watch(self) -> None:
        with self._reader:
            while numbers := self._reader.recv(16):
                for number in numbers:
                    if number not in _SIGNALS:
                        continue
                    if self.requested:
                        os._exit(128 + number)
                    self.requested = True


def _handled(number: int, frame: FrameType | None) -> None:
    """Nothing: the thread has been told. Without a handler Python would raise or end."""
