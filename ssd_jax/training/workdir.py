"""Folder of a run: checked and locked before the run, and watched for deletion during it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Self

import jax

from ssd_jax.config import ConfigError, UserError
from ssd_jax.distributed import CollectiveError, broadcast_json, is_main_process

_LOCK = ".lock"


class WorkdirError(CollectiveError):
    """Error of a workdir that another run uses; the message names the process."""


class LostWorkdirError(UserError):
    """Error of a workdir that was deleted or moved during its run."""


class Workdir:
    """Exclusive use of a run's folder within a `with` block.

    The lock is the operating system's (flock on WORKDIR/.lock): it ends with its process, however
    that ends. It also excludes runs on other hosts if their shared file system supports locks, as
    NFS does unless mounted with nolock or local_lock. Only the main process takes the lock; its
    errors are raised in all processes.

    Raises:
        ConfigError: `path` is not a folder, or cannot be made or written.
        WorkdirError: another run uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        """Lines for the user, available within the block."""
        self._lock: int | None = None
        self._locked = False
        self._folder: os.stat_result | None = None
        self._created: list[Path] = []

    def __enter__(self) -> Self:
        failure: UserError | None = None
        if is_main_process():
            try:
                self._claim()
            except UserError as error:
                failure = error
        message = broadcast_json(str(failure) if failure else None)
        if message is not None:
            # All processes end in the same way.
            raise failure if failure and jax.process_count() == 1 else WorkdirError(message)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._release()

    def check(self) -> None:
        """Raise LostWorkdirError if the folder is no longer the one that was locked."""
        if self._lock is not None and not self._is_here(self._lock):
            raise LostWorkdirError(
                f"{self.path} was deleted or moved while the run was going, and the run has "
                "stopped; restore the folder and continue with --resume, or start a new run"
            )

    def _claim(self) -> None:
        try:
            self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._open_lock()
            owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, owner.encode(), 0)
            self._folder = self.path.stat()
        except OSError as error:
            self._release()
            raise ConfigError(self._describe(error)) from None

    def _open_lock(self) -> int:
        """Open the lock file, lock it and return its descriptor."""
        for _ in range(100):
            # NOFOLLOW: the file is emptied, and a link could point to any other file.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            lock = os.open(self.path / _LOCK, flags, 0o644)
            try:
                self._take(lock)
            except WorkdirError:
                os.close(lock)
                raise
            # Another run may have ended and removed the file since it was opened.
            if self._is_lock_file(lock):
                return lock
            os.close(lock)
        raise OSError(errno.EBUSY, f"{_LOCK} does not stay the same")

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._locked = True
        except BlockingIOError:
            owner = _read_owner(lock)
            raise WorkdirError(
                f"--workdir: {self.path} is used by another run ({owner}); wait for its end, stop "
                "it, or name another folder"
            ) from None
        except OSError as error:
            self.notes.append(
                f"{self.path} cannot be locked on its file system ({error.strerror}); make sure "
                "that no other run uses it"
            )

    def _release(self) -> None:
        """Release the lock, and remove its file and the created folders that are still empty."""
        with contextlib.suppress(OSError):
            # Without a lock, the file may belong to another run.
            if self._lock is not None and self._locked and self._is_lock_file(self._lock):
                (self.path / _LOCK).unlink()
            for folder in self._created:
                folder.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_here(self, lock: int) -> bool:
        """Check that the folder is the one that was claimed."""
        if self._locked:
            return self._is_lock_file(lock)
        try:
            return self._folder is None or os.path.samestat(self.path.stat(), self._folder)
        except OSError:
            return False

    def _is_lock_file(self, lock: int) -> bool:
        """Check that the file at the lock's path is the open one."""
        try:
            return os.path.samestat((self.path / _LOCK).lstat(), os.fstat(lock))
        except OSError:
            return False

    def _describe(self, error: OSError) -> str:
        if isinstance(error, FileExistsError):
            return f"--workdir: {self.path} is not a folder; name another"
        reason = error.strerror or str(error)
        return f"--workdir: {self.path} cannot be written ({reason}); name another folder"


def _read_owner(lock: int) -> str:
    """Describe the process that holds the lock, from the contents of the file."""
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:64]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown process"
