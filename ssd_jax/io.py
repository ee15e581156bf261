"""Read untrusted files and write files atomically.

Every annotation, list, results file and config from outside is read here: the path may lead to a
pipe, a device, a folder or an endless file.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
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
    """Return whether the path is a regular file, following links; never raise an error."""
    return _is(path.is_file)


def is_dir(path: Path) -> bool:
    """Return whether the path is a folder, following links; never raise an error."""
    return _is(path.is_dir)


def exists(path: Path) -> bool:
    """Return whether the path exists, following links; never raise an error."""
    return _is(path.exists)


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except (OSError, ValueError):  # name too long or with a zero byte; no permission
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


def read_pieces(path: Path, most: int, *, size: int | None = None) -> Generator[bytes, None, None]:
    """Yield the content of a regular file of at most `most` bytes, `size` bytes at a time.

    By default the first piece is the whole file, unless the file grows while it is read.

    Raises:
        OSError: as for `read_bytes`; before the first piece if the file's size is above `most`.
    """
    # Check the kind before opening the file: opening a pipe waits for a writer.
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    if status.st_size > most:
        raise _too_large(path, f"{status.st_size:,} bytes, above", most)
    # Files of /proc have size 0 and may be endless: count the bytes read as well.
    left, size = most, size or max(status.st_size, _PAGE) + 1
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as stream:
        while piece := stream.read(min(size, left + 1)):
            left -= len(piece)
            if left < 0:
                raise _too_large(path, "more than", most)
            yield piece


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _too_large(path: Path, size: str, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size} {most:,}", str(path))


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name and rename it when it is complete.

    After an error the temporary files and the folders made for them are removed, and `path` is as
    it was.

    Args:
        path: the file or folder to write. The files of a folder are moved into it if it exists.

    Yields:
        A path that does not exist yet, for the caller to write a file or make a folder at. It has
        the suffix of `path`.
    """
    target = path.absolute()
    missing = [folder for folder in target.parents if not exists(folder)]
    name = f".{target.name}.{os.getpid()}.part{target.suffix}"
    # Inside a folder that exists: its parent may be read-only.
    part = target / name if is_dir(target) else target.with_name(name)
    try:
        yield part
        if not is_dir(target):
            part.replace(target)
        elif is_file(part):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for file in sorted(file for file in part.rglob("*") if file.is_file()):
            destination = target / file.relative_to(part)
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.replace(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for remove in (part.unlink, *(folder.rmdir for folder in missing)):
            with contextlib.suppress(OSError):  # folders that are not empty stay
                remove()


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part.

    Raises:
        OSError: the file cannot be written; it names the path.
    """
    try:
        with staged(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def reason(error: BaseException) -> str:
    """Return the cause of an error as one line, without the name of the file.

    Args:
        error: an OSError, or an error of a library whose message may have many lines.
    """
    text = getattr(error, "strerror", None) or str(error).strip()
    for cause in _SYSTEM_ERRORS:
        if cause in text:
            return cause
    line = text.splitlines()[0][:_MAX_REASON] if text else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)
