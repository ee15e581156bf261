"""Transfer of one file over HTTP, which continues where an earlier one ended."""

import contextlib
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ssd_jax import __version__
from ssd_jax.io import atomic_write, is_file, read_text, reason
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.registry import PublishedWeights

HOME_VARIABLE = "SSD_JAX_HOME"
"""Environment variable with the folder of the cache."""
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0
"""Times without a connection, and without a byte, after which a download fails (seconds)."""
MAX_BYTES = 1 << 30
"""Largest file that is downloaded if its size is unknown."""
MAX_REDIRECTS = 5

_CHUNK = 1 << 16
_PAGE_START = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


class UnavailableError(Exception):
    """A URL does not provide the file; the message says why."""


class StalePartError(UnavailableError):
    """An incomplete download cannot be continued."""


def _version_path(part: Path) -> Path:
    """Return the path of the file with the URL and the ETag of an incomplete download."""
    return part.with_name(f"{part.name}.etag")


def remove(file: Path) -> None:
    """Remove a file and, if it is an incomplete download, what was saved to continue it."""
    for each in (file, _version_path(file)):
        with contextlib.suppress(OSError):
            each.unlink(missing_ok=True)


def import_pooch() -> Any:
    """Import pooch without the warning of tqdm, which it imports, in notebooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pooch
        import pooch.downloaders
    return pooch


def without_password(url: str) -> str:
    """Return a URL without the user's name and password."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def unwritable(
    entry: PublishedWeights, path: Path, error: BaseException, action: str = "written"
) -> WeightsError:
    """Return the error of a path that cannot be written, or on which another action fails."""
    return WeightsError(
        f"{entry.name}: {path} cannot be {action}: {reason(error)}; free space, or set "
        f"{HOME_VARIABLE} to another folder"
    )


def receive(entry: PublishedWeights, url: str, part: Path) -> bool:
    """Download a URL to a file, which may hold the beginning; return whether that was used.

    Raises:
        UnavailableError: the URL does not provide the file; received bytes are kept.
        WeightsError: the file cannot be written; it is removed.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UnavailableError("not a URL with https or http")
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
        raise unwritable(entry, part, error) from None
    with stream, _progress_bar(entry) as bar:
        transfer = _Transfer(entry, url, part, stream, have, bar)
        download = import_pooch().downloaders.HTTPDownloader(
            chunk_size=_CHUNK,
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
            headers=headers,
            hooks={"response": transfer.check},
        )
        try:
            download(url, transfer, None)
        except requests.RequestException as error:
            raise UnavailableError(_explain(error, transfer)) from None
        except ValueError as error:  # malformed headers and URLs
            if isinstance(error, WeightsError):
                raise
            raise UnavailableError(reason(error)) from None
        finally:
            transfer.close()
            if is_file(part) and not part.stat().st_size:
                remove(part)
    if transfer.total is not None and transfer.received != transfer.total:
        raise UnavailableError(transfer.broken)
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
    return lines[1] if len(lines) == 2 and lines[0] == without_password(url) else None


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
            raise StalePartError("the server has no more of the file")
        elif response.status_code in (200, 206):
            self._start(response)
        elif response.status_code < 400:
            raise UnavailableError(f"HTTP {response.status_code} {response.reason}".strip())

    def _check_redirect(self, response: requests.Response) -> None:
        self._redirects += 1
        if self._redirects > MAX_REDIRECTS:
            raise UnavailableError(f"more than {MAX_REDIRECTS} redirects")
        target = urljoin(response.url, response.headers["Location"])
        scheme = urlsplit(target).scheme
        safe = ("https",) if urlsplit(response.url).scheme == "https" else ("https", "http")
        if scheme not in safe:
            raise UnavailableError(f"it redirects to {target}, which is not {' or '.join(safe)}")

    def _start(self, response: requests.Response) -> None:
        headers = response.headers
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
            raise UnavailableError("the server sent a web page")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnavailableError(f"the server compressed it with {headers['Content-Encoding']}")
        self.received = 0
        if response.status_code == 206:
            first = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if first is None or int(first[1]) != self._have:
                raise StalePartError("the server sent another part of the file")
            self.received, self.resumed = self._have, self._have > 0
        length = headers.get("Content-Length", "")
        self.total = self.received + int(length) if length.isdecimal() else None
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        if self.total is None and not chunked and not self._entry.hashes:
            raise UnavailableError("the server does not state its size, and no hash is known")
        size = self._entry.size
        if size is not None and self.total not in (None, size):
            raise UnavailableError(f"it has {self.total:,} bytes, expected {size:,}")
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
            remove(self._part)
            raise UnavailableError(f"it has more than {self._limit:,} bytes, the limit")

    def _restart(self, etag: str) -> None:
        """Empty the file, and save the ETag with which the download can be continued."""
        try:
            self._stream.truncate(0)
            url = without_password(self._url)
            if etag.startswith('"') and etag.isprintable():  # a weak one does not identify bytes
                atomic_write(_version_path(self._part), f"{url}\n{etag}\n".encode())
            else:
                _version_path(self._part).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(reason(error)) from None

    def write(self, data: bytes) -> int:
        """Write a piece of the content."""
        if self.received == 0 and _PAGE_START.match(data):
            raise UnavailableError("the server sent a web page")
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
        remove(self._part)
        return unwritable(self._entry, self._part, OSError(why))
