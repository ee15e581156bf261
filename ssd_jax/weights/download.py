"""Download published weights into a cache, which never holds an unverified file.

Environment variables:
    SSD_JAX_HOME: folder of the cache; default: the platform's folder for caches.
    SSD_JAX_WEIGHTS_MIRROR: folder or base URL that is asked first, by the name of the file.
    SSD_JAX_OFFLINE: if set, only the cache and a folder as mirror are used.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import filelock

from ssd_jax.io import atomic_write, exists, is_dir, is_file, read_text, reason
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.registry import PublishedWeights
from ssd_jax.weights.transfer import (
    HOME_VARIABLE,
    StalePartError,
    UnavailableError,
    import_pooch,
    receive,
    remove,
    unwritable,
    without_password,
)

MIRROR_VARIABLE = "SSD_JAX_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "SSD_JAX_OFFLINE"


class _MismatchError(WeightsError):
    """A file has another hash than the expected one, and was removed."""


def cache_folder() -> Path:
    """Return the folder of downloaded weights, which may not exist yet."""
    home = os.environ.get(HOME_VARIABLE)
    return (
        Path(home).expanduser() if home else Path(import_pooch().os_cache("ssd_jax"))
    ) / "weights"


def cached_path(entry: PublishedWeights) -> Path:
    """Return the path of an entry's file in the cache, which may not exist yet."""
    return cache_folder() / entry.file


def pin_path(path: Path) -> Path:
    """Return the path of the file with the SHA-256 of a cached file, as sha256sum writes it."""
    return path.with_name(f"{path.name}.sha256")


def fetch(entry: PublishedWeights) -> Path:
    """Return the verified file of an entry, after downloading it if it is not in the cache.

    The file is verified at every call: with the hashes of the entry, and with the SHA-256 that was
    pinned beside it at its first use. An interrupted download continues at the next call. Of
    several processes one downloads, and the others wait.

    Raises:
        WeightsError: the file cannot be downloaded or stored, or its hash differs. The message
            names the entry, and the correction.
    """
    path = cached_path(entry)
    if exists(path):
        verify(entry, path)
        return path
    mirror = _mirror()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(entry, path.parent, error) from None
    with _locked(entry, path):
        if exists(path):  # another process downloaded it
            verify(entry, path)
        elif isinstance(mirror, Path) and is_file(mirror / entry.file):
            _copy(entry, mirror / entry.file, path)
        else:
            _download_first(entry, mirror, path)
    return path


def verify(entry: PublishedWeights, path: Path) -> None:
    """Verify a file of the cache; remove it if its hash differs.

    Raises:
        WeightsError: the hash differs, or the file cannot be read.
    """
    if not is_file(path):
        raise WeightsError(f"{entry.name}: {path} is not a file; remove it")
    digest = _check(entry, path, path, str(path))
    if not exists(pin_path(path)):
        with contextlib.suppress(OSError):  # a folder that others maintain
            _write_pin(path, digest)


def _mirror() -> Path | str | None:
    """Return the folder or the base URL of the mirror, if one is set."""
    text = os.environ.get(MIRROR_VARIABLE, "").strip()
    if not text:
        return None
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/", text)
    if scheme is None:
        folder = Path(text).expanduser()
        if not is_dir(folder):
            raise WeightsError(f"{MIRROR_VARIABLE}: folder not found: {folder}")
        return folder
    if scheme[1].lower() not in ("http", "https"):
        raise WeightsError(
            f"{MIRROR_VARIABLE} is {text}; use a folder, or a URL with https or http"
        )
    return text.rstrip("/")


def _is_offline() -> bool:
    return os.environ.get(OFFLINE_VARIABLE, "").strip().lower() not in ("", "0", "false", "no")


@contextlib.contextmanager
def _locked(entry: PublishedWeights, path: Path) -> Iterator[None]:
    """Hold the lock of a file, after waiting for the process that has it."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"{entry.name}: waiting for another process's download", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # file systems without locks
        raise unwritable(entry, path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def _download_first(entry: PublishedWeights, mirror: Path | str | None, path: Path) -> None:
    """Download a file from the first URL that has it."""
    put = f"put {entry.file} into {path.parent}"
    if _is_offline():
        raise WeightsError(
            f"{entry.name} is not in the cache and {OFFLINE_VARIABLE} is set; unset it, or {put}"
        )
    urls = [f"{mirror}/{quote(entry.file)}"] if isinstance(mirror, str) else []
    failures = []
    for url in (*urls, *entry.urls):
        try:
            _download(entry, url, path)
        except UnavailableError as error:
            failures.append(f"{without_password(url)}: {error}")
        else:
            return
    raise WeightsError(
        f"{entry.name} cannot be downloaded from {'; '.join(failures)}; try again, or download it "
        f"with a browser and {put}"
    )


def _copy(entry: PublishedWeights, source: Path, path: Path) -> None:
    """Copy a file from the mirror's folder."""
    part = _part_path(path)
    remove(part)
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        remove(part)
        raise unwritable(entry, path, error, f"copied from {source}") from None
    _accept(entry, part, path, str(source))


def _download(entry: PublishedWeights, url: str, path: Path) -> None:
    """Download a file from one URL, from where an earlier download ended.

    Raises:
        UnavailableError: the URL does not provide the file.
        WeightsError: the file cannot be stored, or its hash differs.
    """
    part, source = _part_path(path), without_password(url)
    try:
        resumed = receive(entry, url, part)
        _accept(entry, part, path, source)
        return
    except StalePartError:
        pass
    except _MismatchError:
        if not resumed:
            raise
    # The part was of another file: start over.
    remove(part)
    receive(entry, url, part)
    _accept(entry, part, path, source)


def _accept(entry: PublishedWeights, part: Path, path: Path, source: str) -> None:
    """Move a complete file into the cache if its hash is the expected one."""
    digest = _check(entry, part, path, source)
    try:
        _write_pin(path, digest)
        part.replace(path)
    except OSError as error:
        remove(part)
        raise unwritable(entry, path, error) from None
    remove(part)


def _check(entry: PublishedWeights, file: Path, path: Path, source: str) -> str:
    """Return the SHA-256 of a file; remove the file if one of its hashes is not the expected one.

    Args:
        entry: the entry with the known hashes.
        file: the file.
        path: path of the file in the cache, whose pin is compared.
        source: path or URL of the file, for errors.
    """
    try:
        pin = _read_pin(path)
        found = {"SHA-256": import_pooch().file_hash(str(file), "sha256")}
        for name, algorithm in (("SHA-1", "sha1"), ("MD5", "md5")):
            if name in dict(entry.hashes):
                found[name] = import_pooch().file_hash(str(file), algorithm)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{entry.name}: {source} cannot be read: {reason(error)}") from None
    expected = [*entry.hashes, *([("SHA-256", pin)] if pin else [])]
    for name, value in expected:
        if found[name][: len(value)] == value:
            continue
        remove(file)
        if value == pin and (name, value) not in entry.hashes:
            advice = f"that of the first download; remove {pin_path(path)} if the file was replaced"
        else:
            advice = "the file is damaged or was replaced"
        prefix = " at its beginning" if len(value) < len(found[name]) else ""
        raise _MismatchError(
            f"{entry.name}: {source} has the {name} {found[name]}, expected {value}{prefix} "
            f"({advice}); {'remove the file' if exists(file) else 'the file was removed'}"
        )
    return found["SHA-256"]


def _read_pin(path: Path) -> str | None:
    pin = pin_path(path)
    if not exists(pin):
        return None
    digest = read_text(pin, 4096, errors="replace")[:64]
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise WeightsError(f"{pin} does not contain a SHA-256; remove it")
    return digest


def _write_pin(path: Path, digest: str) -> None:
    atomic_write(pin_path(path), f"{digest}  {path.name}\n".encode())


def _part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
