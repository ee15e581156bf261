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
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import filelock
import pooch
import requests
from pooch.downloaders import HTTPDownloader
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ssd_jax import __version__
from ssd_jax.io import atomic_write, exists, is_dir, is_file, read_text, reason
from ssd_jax.weights.files import WeightsError
from ssd_jax.weights.registry import PublishedWeights

HOME_VARIABLE = "SSD_JAX_HOME"
MIRROR_VARIABLE = "SSD_JAX_WEIGHTS_MIRROR"
OFFLINE_VARIABLE = "SSD_JAX_OFFLINE"

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0
"""Times without a connection, and without a byte, after which a download fails (seconds)."""
MAX_BYTES = 1 << 30
"""Largest file that is downloaded if its size is unknown."""
MAX_REDIRECTS = 5

_CHUNK = 1 << 16
_PAGE_START = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


class _Unavailable(Exception):
    """The file cannot be had from a URL; the message says why."""


class _StalePart(_Unavailable):
    """An incomplete download cannot be continued."""


class _MismatchError(WeightsError):
    """A file has another hash than the expected one, and was removed."""


def cache_folder() -> Path:
    """Return the folder of downloaded weights, which may not exist yet."""
    home = os.environ.get(HOME_VARIABLE)
    return (Path(home).expanduser() if home else Path(pooch.os_cache("ssd_jax"))) / "weights"


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
        raise _unwritable(entry, path.parent, error) from None
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
        raise _unwritable(entry, path.parent, error) from None
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
        except _Unavailable as error:
            failures.append(f"{_without_password(url)}: {error}")
        else:
            return
    raise WeightsError(
        f"{entry.name} cannot be downloaded from {'; '.join(failures)}; try again, or download it "
        f"with a browser and {put}"
    )


def _copy(entry: PublishedWeights, source: Path, path: Path) -> None:
    """Copy a file from the mirror's folder."""
    part = _part_path(path)
    _remove(part)
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        _remove(part)
        raise _unwritable(entry, path, error, f"copied from {source}") from None
    _accept(entry, part, path, str(source))


def _download(entry: PublishedWeights, url: str, path: Path) -> None:
    """Download a file from one URL, from where an earlier download ended.

    Raises:
        _Unavailable: the file cannot be had from this URL.
        WeightsError: the file cannot be stored, or its hash differs.
    """
    part, source = _part_path(path), _without_password(url)
    try:
        resumed = _receive(entry, url, part)
        _accept(entry, part, path, source)
        return
    except _StalePart:
        pass
    except _MismatchError:
        if not resumed:
            raise
    # The part was of another file: start over.
    _remove(part)
    _receive(entry, url, part)
    _accept(entry, part, path, source)


def _accept(entry: PublishedWeights, part: Path, path: Path, source: str) -> None:
    """Move a complete file into the cache if its hash is the expected one."""
    digest = _check(entry, part, path, source)
    try:
        _write_pin(path, digest)
        part.replace(path)
    except OSError as error:
        _remove(part)
        raise _unwritable(entry, path, error) from None
    _remove(part)


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
        found = {"SHA-256": pooch.file_hash(str(file), "sha256")}
        for name, algorithm in (("SHA-1", "sha1"), ("MD5", "md5")):
            if name in dict(entry.hashes):
                found[name] = pooch.file_hash(str(file), algorithm)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{entry.name}: {source} cannot be read: {reason(error)}") from None
    expected = [*entry.hashes, *([("SHA-256", pin)] if pin else [])]
    for name, value in expected:
        if found[name][: len(value)] == value:
            continue
        _remove(file)
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


def _version_path(part: Path) -> Path:
    """Return the path of the file with the URL and the ETag of an incomplete download."""
    return part.with_name(f"{part.name}.etag")


def _remove(file: Path) -> None:
    """Remove a file and, if it is an incomplete download, what was saved to continue it."""
    for each in (file, _version_path(file)):
        with contextlib.suppress(OSError):
            each.unlink(missing_ok=True)


def _without_password(url: str) -> str:
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def _unwritable(
    entry: PublishedWeights, path: Path, error: BaseException, action: str = "written"
) -> WeightsError:
    return WeightsError(
        f"{entry.name}: {path} cannot be {action}: {reason(error)}; free space, or set "
        f"{HOME_VARIABLE} to another folder"
    )


def _receive(entry: PublishedWeights, url: str, part: Path) -> bool:
    """Download a URL to a file, which may hold the beginning; return whether that was used.

    Raises:
        _Unavailable: the file cannot be had; what was received is kept.
        WeightsError: the file cannot be written; it is removed.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Unavailable("not a URL with https or http")
    have = part.stat().st_size if is_file(part) else 0
    if have and have == entry.size:
        return True
    etag = _saved_etag(part, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": f"ssd_jax/{__version__}"}
    # Without a hash, only the ETag shows that the rest is of the same file.
    if have and (etag or entry.hashes):
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": etag} if etag else {}
    else:
        have = 0
    try:
        stream = part.open("ab")
    except OSError as error:
        raise _unwritable(entry, part, error) from None
    with stream, _progress_bar(entry) as bar:
        transfer = _Transfer(entry, url, part, stream, have, bar)
        download = HTTPDownloader(
            chunk_size=_CHUNK,
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
            headers=headers,
            hooks={"response": transfer.check},
        )
        try:
            download(url, transfer, None)
        except requests.RequestException as error:
            raise _Unavailable(_explain(error, transfer)) from None
        except ValueError as error:  # malformed headers and URLs
            if isinstance(error, WeightsError):
                raise
            raise _Unavailable(reason(error)) from None
        finally:
            transfer.close()
            if is_file(part) and not part.stat().st_size:
                _remove(part)
    if transfer.total is not None and transfer.received != transfer.total:
        raise _Unavailable(transfer.broken)
    return transfer.resumed


def _explain(error: requests.RequestException, transfer: "_Transfer") -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be verified"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}".strip()
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return f"no data for {READ_TIMEOUT:g} s; {transfer.broken}"
    if transfer.started:
        return transfer.broken
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return reason(error)


@contextlib.contextmanager
def _progress_bar(entry: PublishedWeights) -> Iterator[Any]:
    """Show a progress bar on a terminal; yield a function of (received, total) bytes."""
    columns = (
        TextColumn(entry.name, markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None)

        def update(received: int, total: int | None) -> None:
            progress.update(task, completed=received, total=total)

        yield update


def _saved_etag(part: Path, url: str) -> str | None:
    """Return the ETag of an incomplete download from the same URL, if the server sent one."""
    try:
        lines = read_text(_version_path(part), 1 << 16).splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[1] if len(lines) == 2 and lines[0] == _without_password(url) else None


class _Transfer:
    """Check of the responses to a request, and file that the content is written to.

    Args:
        entry: the entry of the file.
        url: the URL that is requested.
        part: the file.
        stream: the file, opened for appending.
        have: size of the beginning that was received before and is not requested.
        bar: function that shows the progress.
    """

    def __init__(
        self, entry: PublishedWeights, url: str, part: Path, stream: Any, have: int, bar: Any
    ) -> None:
        self._entry, self._url, self._part, self._stream = entry, url, part, stream
        self._have, self._bar = have, bar
        self._limit = entry.size or MAX_BYTES
        if entry.size is None and entry.rounded_size is not None:
            self._limit = entry.rounded_size * 11 // 10
        self._redirects = 0
        self._response: requests.Response | None = None
        self.started, self.resumed = False, False
        self.received = 0
        self.total: int | None = None

    @property
    def broken(self) -> str:
        """Description of a download that ended early."""
        total = "" if self.total is None else f" of {self.total:,}"
        return f"the connection broke after {self.received:,}{total} bytes"

    def close(self) -> None:
        """Close the response."""
        if self._response is not None:
            self._response.close()

    def check(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Check a response before its content is read, or before a redirect is followed."""
        self._response = response
        if "Location" in response.headers and 300 <= response.status_code < 400:
            self._check_redirect(response)
        elif response.status_code == 416 and self._have:
            raise _StalePart("the server has no more of the file")
        elif response.status_code in (200, 206):
            self._start(response)
        elif response.status_code < 400:
            raise _Unavailable(f"HTTP {response.status_code} {response.reason}".strip())

    def _check_redirect(self, response: requests.Response) -> None:
        self._redirects += 1
        if self._redirects > MAX_REDIRECTS:
            raise _Unavailable(f"more than {MAX_REDIRECTS} redirects")
        target = urljoin(response.url, response.headers["Location"])
        scheme = urlsplit(target).scheme
        safe = ("https",) if urlsplit(response.url).scheme == "https" else ("https", "http")
        if scheme not in safe:
            raise _Unavailable(f"it redirects to {target}, which is not {' or '.join(safe)}")

    def _start(self, response: requests.Response) -> None:
        headers = response.headers
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
            raise _Unavailable("the server sent a web page")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Unavailable(f"the server compressed it with {headers['Content-Encoding']}")
        self.received = 0
        if response.status_code == 206:
            first = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if first is None or int(first[1]) != self._have:
                raise _StalePart("the server sent another part of the file")
            self.received, self.resumed = self._have, self._have > 0
        length = headers.get("Content-Length", "")
        self.total = self.received + int(length) if length.isdecimal() else None
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        if self.total is None and not chunked and not self._entry.hashes:
            raise _Unavailable("the server does not tell its size, and no hash is known")
        size = self._entry.size
        if size is not None and self.total not in (None, size):
            raise _Unavailable(f"it has {self.total:,} bytes, expected {size:,}")
        self._check_size(self.total or 0)
        if not self.resumed:
            self._restart(headers.get("ETag", ""))
        free = shutil.disk_usage(self._part.parent).free
        if self.total is not None and self.total - self.received > free:
            raise self._unwritable(
                f"it needs {self.total - self.received:,} bytes and {free:,} are free"
            )
        self.started = True

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            _remove(self._part)
            raise _Unavailable(f"it has more than {self._limit:,} bytes, the limit")

    def _restart(self, etag: str) -> None:
        """Empty the file, and save the ETag with which the download can be continued."""
        try:
            self._stream.truncate(0)
            url = _without_password(self._url)
            if etag.startswith('"') and etag.isprintable():  # a weak one does not identify bytes
                atomic_write(_version_path(self._part), f"{url}\n{etag}\n".encode())
            else:
                _version_path(self._part).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(reason(error)) from None

    def write(self, data: bytes) -> int:
        """Write a piece of the content."""
        if self.received == 0 and _PAGE_START.match(data):
            raise _Unavailable("the server sent a web page")
        self._check_size(self.received + len(data))
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError as error:
            raise self._unwritable(reason(error)) from None
        self.received += len(data)
        self._bar(self.received, self.total)
        return len(data)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def _unwritable(self, why: str) -> WeightsError:
        """Remove what was received, and return the error of a disk that does not take it."""
        _remove(self._part)
        return _unwritable(self._entry, self._part, OSError(why))
