"""Limits that hold for every hostile input: time, memory, and errors of one line."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssd_jax.config import UserError

SECONDS = 20
BYTES = 2e9
LONGEST_LINE = 2000


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for an error of its own."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise Hang after SECONDS, and AssertionError if more than BYTES were needed at once."""

    def give_up(*_: object) -> None:
        raise Hang(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    start = _start_peak()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    needed = _memory("VmHWM") - start
    assert needed < BYTES, f"{needed / 1e9:.1f} GB were needed"


def answer(call: Callable[[], Any]) -> Any:
    """The result of `call` within the limits, or the UserError that it raises.

    Any other exception, or an error that is not one printable line, fails the test.
    """
    with limits():
        try:
            return call()
        except UserError as error:
            check_line(str(error))
            return error


def check_line(line: str) -> None:
    """Fail unless an error is one line that can be printed and read."""
    assert line.strip(), "the error is empty"
    assert line.isprintable(), f"not printable: {line[:200]!r}"
    assert len(line) <= LONGEST_LINE, f"{len(line)} characters: {line[:200]!r}"


def _start_peak() -> int:
    """Reset the process's peak memory to what it has now (bytes), where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
