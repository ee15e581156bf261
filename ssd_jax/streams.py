"""Standard output and error that never stop the work: closed, full or without Unicode."""

import io
import os
import select
import sys
from typing import TextIO


class Sink(io.RawIOBase):
    """File descriptor to write to; an error is kept and what could not be written is dropped.

    Args:
        descriptor: the open file; it stays open.
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

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        """Write `data`, or a part of it, and return how much is done with."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a full pipe that another program has made non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = self.error or error
                return len(data)


def guard_streams() -> Sink | None:
    """Replace sys.stdout and sys.stderr by streams whose writes never fail.

    A stream that the caller has closed leads nowhere. A character that the encoding lacks is
    written as an escape. Streams that have been replaced already, as by a test, stay.

    Returns:
        What takes the standard output, or None where it was replaced already.
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
    """Text stream over `sink`, buffered as `like`."""
    if like is not None:
        like.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(sink),  # type: ignore[type-var]
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(like, "line_buffering", False),
        write_through=getattr(like, "write_through", False),
    )


def _open_missing() -> None:
    """Open the null device as each standard descriptor that is closed.

    The next file to be opened would get its number, and what libraries print would go there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
