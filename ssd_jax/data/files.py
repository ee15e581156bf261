"""Files as strangers leave them: pipes, folders and names that no system takes included."""

import errno
import stat
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether the path leads to a regular file, links followed; never an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a zero byte; no permission
        return False


def read_bytes(path: Path, most: int) -> bytes:
    """What is in a regular file of at most that many bytes.

    Raises:
        OSError: there is no such file, it is larger, or it cannot be read.
    """
    # Looked at before it is opened: opening a pipe waits for somebody to write into it.
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, above {most:,}", str(path))
    return path.read_bytes()
