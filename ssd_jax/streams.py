"""Standard streams that never stop the program, even if closed, full or without Unicode."""

import io
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ssd_jax.config import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Sink(io.RawIOBase):
    """Writer to a file descriptor that records errors and drops data it cannot write.

    Args:
        descriptor: open file descriptor, which is never closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None
        """The first error, if any."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write `data` or a part of it; return the number of bytes written or dropped."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a full pipe that another process made non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = self.error or error
                return memoryview(data).nbytes


def guard_streams() -> Sink | None:
    """Replace sys.stdout and sys.stderr by streams whose writes never fail.

    Closed streams write to the null device. Characters that the encoding lacks are written as
    escapes. Streams that were replaced before, e.g. by a test, are left as they are.

    Returns:
        The sink of the standard output, or None if it was replaced before.
    """
    _open_missing()
    output = None
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        sink = Sink(descriptor)
        setattr(sys, name, _text(sink, stream))
        if name == "stdout":
            output = sink
    return output


def _text(sink: Sink, like: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream that writes to `sink`, with the buffering and encoding of `like`."""
    if like is not None:
        like.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(sink),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(like, "line_buffering", False),
        write_through=getattr(like, "write_through", False),
    )


def _open_missing() -> None:
    """Open the null device for each closed standard descriptor.

    Otherwise the next file opened would get its number, and libraries would print into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def program_name() -> str:
    """Return the name of the program, as its errors and its help show it."""
    return Path(sys.argv[0]).name


def print_error(error: UserError) -> None:
    """Print an error as one line that starts with the name of the program."""
    print(f"{program_name()}: {' '.join(str(error).split())}", file=sys.stderr)
