"""Reading files of unknown origin, and writing files whole.

Every annotation, list, results file and config from outside is read here: the path may lead to a
pipe, a device, a folder or an endless file.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_TEXT = 1 << 26
"""Largest list of names that is read (bytes): class files, lists of image ids."""
MAX_CONFIG = 1 << 24
"""Largest config.json that is read (bytes)."""
MAX_JSON = 1 << 32
"""Largest annotation file or results file that is read (bytes)."""

_PAGE = 4096
_MAX_REASON = 200
# Causes that libraries wrap in messages of many lines.
_SYSTEM_ERRORS = ("No space left on device", "Permission denied", "Read-only file system")


def is_file(path: Path) -> bool:
    """Return whether the path leads to a regular file, links followed; never an error."""
    return _is(path.is_file)


def is_dir(path: Path) -> bool:
    """Return whether the path leads to a folder, links followed; never an error."""
    return _is(path.is_dir)


def exists(path: Path) -> bool:
    """Return whether the path leads to anything, links followed; never an error."""
    return _is(path.exists)


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except (OSError, ValueError):  # a name that is too long or has a zero byte; no permission
        return False


def read_bytes(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: the file is missing, is not a regular file, is larger, or cannot be read.
    """
    return b"".join(read_pieces(path, most))


def read_text(path: Path, most: int, *, errors: str = "strict") -> str:
    """Read a regular file of at most `most` bytes as UTF-8, with or without a byte order mark.

    Raises:
        OSError: as for `read_bytes`.
        UnicodeDecodeError: the file is not UTF-8 and `errors` is strict.
    """
    return read_bytes(path, most).decode("utf-8-sig", errors)


def read_pieces(path: Path, most: int, *, size: int | None = None) -> Iterator[bytes]:
    """Yield the content of a regular file of at most `most` bytes, `size` bytes at a time.

    By default the first piece is the whole file, unless the file grows while it is read.

    Raises:
        OSError: as for `read_bytes`; before the first piece where the file's size says so.
    """
    # The kind is checked before the file is opened: opening a pipe waits for a writer.
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    if status.st_size > most:
        raise _too_large(path, f"{status.st_size:,} bytes, above", most)
    # Files of /proc have size 0 and may be endless, so the limit holds for what is read too.
    left, size = most, size or max(status.st_size, _PAGE) + 1
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as stream:
        while piece := stream.read(min(size, left + 1)):
            left -= len(piece)
            if left < 0:
                raise _too_large(path, "more than", most)
            yield piece


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _too_large(path: Path, what: str, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {what} {most:,}", str(path))


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one, never a part.

    Raises:
        OSError: the file cannot be written; it names the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, f"cannot write the file: {error.strerror}", str(path)) from None


def reason(error: BaseException) -> str:
    """Return the cause of an error as one line, without the name of the file.

    Args:
        error: an OSError, or an error of a library whose message may have many lines.
    """
    text = getattr(error, "strerror", None) or str(error)
    for cause in _SYSTEM_ERRORS:
        if cause in text:
            return cause
    line = text.splitlines()[0][:_MAX_REASON] if text else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)
