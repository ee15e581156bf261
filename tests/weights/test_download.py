"""Downloads from a server on loopback: what is verified, continued, refused and kept."""

import dataclasses
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from ssd_jax.weights import download, transfer
from ssd_jax.weights.download import fetch
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.registry import ENTRIES
from tests.weights.published import make_file
from tests.weights.server import FileServer

DATA = bytes(range(256)) * 2400  # several of the pieces that are written at once
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """Let no test resolve a name or use a proxy."""
    resolve = socket.getaddrinfo

    def resolve_loopback(host, *args, **kwargs):
        assert host == "127.0.0.1", f"a test may not use the network: {host}"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_loopback)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folder of the cache, which does not exist yet."""
    monkeypatch.setenv(download.HOME_VARIABLE, str(tmp_path / "home"))
    for name in (download.MIRROR_VARIABLE, download.OFFLINE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "weights"


@pytest.fixture
def server():
    with FileServer() as server:
        server.files["a.npz"] = DATA
        yield server


def make_entry(server, *, file="a.npz", **changes):
    """Return an entry of a file of the server."""
    urls = (f"{server.url}/{file}",)
    known = {"file": file, "urls": urls, "sha256": SHA256, "size": None, "rounded_size": None}
    known |= {"md5": None, "sha1": None, "name": "small"}
    return dataclasses.replace(ENTRIES["ssd300-vgg16-voc"], **known | changes)


def contents(cache):
    """Return the names of the files in the cache, without locks."""
    return sorted(path.name for path in cache.glob("*") if not path.name.endswith(".lock"))


def failure(entry):
    """Return the error of a download, which is one line that names the entry."""
    with pytest.raises(WeightsError) as error:
        fetch(entry)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{entry.name}")
    return text


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


WHOLE = ["a.npz", "a.npz.sha256"]


class TestEntries:
    """Every entry of the registry, with a generated file instead of the published one."""

    @pytest.fixture(params=ENTRIES.values(), ids=list(ENTRIES))
    def entry(self, request, server):
        entry = request.param
        data = make_file(entry)
        urls = tuple(f"{server.url}/{entry.file}?at={url}" for url in entry.urls)
        server.files = {url.removeprefix(f"{server.url}/"): data for url in urls}
        changes = {"urls": urls, "rounded_size": entry.rounded_size and len(data)}
        changes["size"] = entry.size and len(data)
        for name in ("sha256", "sha1", "md5"):
            if known := getattr(entry, name):
                changes[name] = hashlib.new(name, data).hexdigest()[: len(known)]
        return dataclasses.replace(entry, **changes)

    def test_is_downloaded_once_and_pinned(self, entry, server, cache):
        data = make_file(entry)
        path = fetch(entry)
        assert path == cache / entry.file
        assert path.read_bytes() == data
        digest = hashlib.sha256(data).hexdigest()
        assert (cache / f"{entry.file}.sha256").read_text() == f"{digest}  {entry.file}\n"
        assert fetch(entry) == path
        assert len(server.requests) == 1
        assert contents(cache) == [entry.file, f"{entry.file}.sha256"]

    def test_wrong_byte_is_refused(self, entry, server, cache):
        server.fault = "wrong_byte"
        if not entry.hashes:  # nothing to compare it with
            fetch(entry)
            return
        data = make_file(entry)
        name, expected = entry.hashes[0]
        algorithm = name.lower().replace("-", "")
        wrong = hashlib.new(algorithm, data[:-1] + bytes([data[-1] ^ 1])).hexdigest()
        text = failure(entry)
        assert f"has the {name} {wrong}, expected {expected}" in text
        assert "the file was removed" in text
        assert contents(cache) == []

    def test_second_url_is_used_if_the_first_fails(self, entry, server, cache):
        if len(entry.urls) > 1:
            del server.files[entry.urls[0].removeprefix(f"{server.url}/")]
            assert fetch(entry).read_bytes() == make_file(entry)
            assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("known", "algorithm", "length"),
    [
        ("sha256", "SHA-256", 64),
        ("sha256", "SHA-256", 8),
        ("sha1", "SHA-1", 40),
        ("md5", "MD5", 32),
    ],
)
def test_every_kind_of_hash_is_checked(server, cache, known, algorithm, length):
    found = hashlib.new(known, DATA).hexdigest()
    right = make_entry(server, **{"sha256": None, known: found[:length]})
    wrong = make_entry(server, **{"sha256": None, known: ("0" * 64)[:length]})
    text = failure(wrong)
    assert f"has the {algorithm} {found}, expected {'0' * length}" in text
    assert ("at its beginning" in text) == (length == 8)
    assert contents(cache) == []
    assert fetch(right).read_bytes() == DATA
    # The hashes are those of the entry at every use.
    assert f"a.npz has the {algorithm} {found}, expected 0" in failure(wrong)
    assert contents(cache) == ["a.npz.sha256"]


@pytest.mark.parametrize("sha256", [None, SHA256[:8], SHA256], ids=["unknown", "prefix", "whole"])
def test_changed_file_is_refused_at_every_use(server, cache, sha256):
    entry = make_entry(server, sha256=sha256)
    path = fetch(entry)
    path.write_bytes(DATA[:-1])
    text = failure(entry)
    assert hashlib.sha256(DATA[:-1]).hexdigest() in text
    assert f"expected {sha256 or SHA256}" in text
    assert "the file was removed" in text
    assert not path.exists()
    assert fetch(entry).read_bytes() == DATA


def test_replaced_file_with_the_published_prefix_is_refused(server, cache):
    """The pin tells files apart that have the same prefix."""
    entry = make_entry(server, sha256=SHA256[:2])
    fetch(entry)
    other = next(
        data
        for data in (DATA + str(k).encode() for k in range(100_000))
        if hashlib.sha256(data).hexdigest()[:2] == SHA256[:2]
    )
    (cache / "a.npz").write_bytes(other)
    text = failure(entry)
    assert f"expected {SHA256} (that of the first download; remove {cache}/a.npz.sha256" in text
    # So is a download of it.
    server.files["a.npz"] = other
    assert f"expected {SHA256} (that of the first download" in failure(entry)
    assert contents(cache) == ["a.npz.sha256"]
    (cache / "a.npz.sha256").unlink()
    assert fetch(entry).read_bytes() == other


def test_file_that_the_user_put_into_the_cache_is_verified_and_pinned(server, cache):
    cache.mkdir(parents=True)
    (cache / "a.npz").write_bytes(DATA)
    assert fetch(make_entry(server)) == cache / "a.npz"
    assert contents(cache) == WHOLE
    (cache / "a.npz").write_bytes(b"other")
    assert "a.npz has the SHA-256" in failure(make_entry(server))
    assert server.requests == []


def test_damaged_pin_is_named(server, cache):
    entry = make_entry(server)
    fetch(entry)
    (cache / "a.npz.sha256").write_text("?")
    with pytest.raises(WeightsError, match=r"a\.npz\.sha256 does not contain a SHA-256; remove it"):
        fetch(entry)


def test_folder_instead_of_the_file(server, cache):
    (cache / "a.npz").mkdir(parents=True)
    assert "a.npz is not a file; remove it" in failure(make_entry(server))


class TestFaults:
    """Servers that do not deliver the file."""

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("not_found", "HTTP 404 Not Found"),
            ("server_error", "HTTP 503 Service Unavailable"),
            ("no_content", "HTTP 204 No Content"),
            ("page", "the server sent a web page"),
            ("page_as_binary", "the server sent a web page"),
            ("redirect_loop", "more than 5 redirects"),
            (
                "redirect_to_file",
                "it redirects to file:///etc/hostname, which is not https or http",
            ),
            ("compressed", "the server compressed it with gzip"),
            ("endless", "it has more than 614,400 bytes, the limit"),
        ],
    )
    def test_is_one_line_and_leaves_nothing(self, server, cache, fault, message):
        server.fault = fault
        text = failure(make_entry(server, size=len(DATA) if fault == "endless" else None))
        assert text.startswith(f"small cannot be downloaded from {server.url}/a.npz: {message}")
        assert text.endswith(
            f"; try again, or download it with a browser and put a.npz into {cache}"
        )
        assert contents(cache) == []

    @pytest.mark.parametrize(
        "fault", ["none", "no_range", "slow", "no_length", "chunked", "redirect", "weak_etag"]
    )
    def test_file_is_complete(self, server, cache, fault):
        server.fault = fault
        assert fetch(make_entry(server, size=len(DATA))).read_bytes() == DATA
        assert contents(cache) == WHOLE

    def test_closed_port(self, cache):
        with FileServer() as server:
            entry = make_entry(server)
        assert ": no connection; try again" in failure(entry)

    def test_no_answer(self, server, cache, monkeypatch):
        monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.2)
        server.fault = "stall"
        text = failure(make_entry(server))
        assert "no data for 0.2 s; the connection broke after" in text

    def test_no_connection_in_time(self, server, cache, monkeypatch):
        def get(*_, **__):
            raise requests.ConnectTimeout("many words")

        monkeypatch.setattr(requests, "get", get)
        assert "no connection within 10 s;" in failure(make_entry(server))

    def test_invalid_certificate(self, server, cache, monkeypatch):
        def get(*_, **__):
            raise requests.exceptions.SSLError("many words")

        monkeypatch.setattr(requests, "get", get)
        assert "its certificate cannot be verified" in failure(make_entry(server))

    @pytest.mark.parametrize("fault", ["no_length", "half_without_length", "nonsense_length"])
    def test_unknown_length_without_a_hash_is_refused(self, server, cache, fault):
        """A part of the file would be taken for the whole."""
        server.fault = fault
        text = failure(make_entry(server, sha256=None))
        assert "the server does not state its size, and no hash is known" in text
        assert contents(cache) == []

    def test_part_without_a_length_is_refused(self, server, cache):
        server.fault = "half_without_length"
        assert "expected" in failure(make_entry(server))
        assert contents(cache) == []

    def test_other_size_is_refused_before_it_is_received(self, server, cache):
        text = failure(make_entry(server, size=len(DATA) + 1))
        assert f"it has {len(DATA):,} bytes, expected {len(DATA) + 1:,}" in text
        assert contents(cache) == []

    @pytest.mark.parametrize("fault", ["none", "chunked", "endless"])
    def test_size_limit(self, server, cache, monkeypatch, fault):
        server.fault = fault
        monkeypatch.setattr(transfer, "MAX_BYTES", len(DATA) - 1)
        if fault == "none":  # its size is known before its content is read
            monkeypatch.setattr(transfer._Transfer, "write", None)
        text = failure(make_entry(server))
        assert f"it has more than {len(DATA) - 1:,} bytes, the limit" in text
        assert contents(cache) == []
        rounded = make_entry(server, rounded_size=len(DATA) // 2)
        assert f"it has more than {len(DATA) // 2 * 11 // 10:,} bytes" in failure(rounded)

    @pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.npz", "a.npz"])
    def test_other_schemes_are_refused(self, server, cache, url):
        text = failure(make_entry(server, urls=(url,)))
        assert f"{url}: not a URL with https or http" in text

    @pytest.mark.parametrize(
        ("location", "target"),
        [("http://127.0.0.1/a", "http://127.0.0.1/a"), ("//h/a", None), ("/b", None)],
    )
    def test_redirect_to_plain_http_is_refused(self, cache, monkeypatch, location, target):
        sent = []

        def answer(adapter, request, **_):
            """Stand in for servers with TLS."""
            sent.append(request.url)
            response = requests.Response()
            response.url, response.request, response.raw = request.url, request, _Body(DATA)
            first = len(sent) == 1
            response.status_code = 302 if first else 200
            response.headers.update({"Location": location} if first else {"ETag": '"1"'})
            return response

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
        entry = make_entry(FakeServer)
        if target is None:
            assert fetch(entry).read_bytes() == DATA
            assert sent[1].startswith("https://")
        else:
            assert f"it redirects to {target}, which is not https" in failure(entry)
            assert len(sent) == 1
            assert contents(cache) == []

    def test_library_that_does_not_check_the_length(self, cache, monkeypatch):
        """As urllib3 1, which reports no connection that ends early."""

        def answer(adapter, request, **_):
            response = requests.Response()
            response.url, response.request, response.raw = request.url, request, _Body(DATA[1:])
            response.status_code = 200
            response.headers["Content-Length"] = str(len(DATA))
            return response

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
        text = failure(make_entry(FakeServer, sha256=None))
        assert f"the connection broke after {len(DATA) - 1:,} of {len(DATA):,} bytes" in text
        assert not (cache / "a.npz").exists()


class FakeServer:
    url = "https://127.0.0.1"


class _Body:
    """Content of a response that no connection delivers."""

    def __init__(self, data):
        self._data = [data]

    def read(self, *_, **__):
        return self._data.pop() if self._data else b""

    def close(self):
        pass

    def release_conn(self):
        pass


class TestResume:
    """Downloads that were interrupted."""

    @pytest.mark.parametrize("sha256", [None, SHA256], ids=["unknown", "known"])
    def test_broken_connection(self, server, cache, sha256):
        entry = make_entry(server, sha256=sha256)
        part = cache / "a.npz.part"
        server.fault = "cut"
        sizes = []
        for _ in range(2):
            text = failure(entry)
            sizes.append(part.stat().st_size)
            assert f"the connection broke after {sizes[-1]:,} of {len(DATA):,} bytes" in text
            assert contents(cache) == ["a.npz.part", "a.npz.part.etag"]
        assert 0 < sizes[0] < sizes[1] < len(DATA)
        server.fault = "none"
        assert fetch(entry).read_bytes() == DATA
        assert ranges(server) == [None, *(f"bytes={size}-" for size in sizes)]
        assert contents(cache) == WHOLE

    @pytest.mark.parametrize("fault", ["no_range", "no_etag", "other_range", "weak_etag"])
    def test_server_that_cannot_continue_well(self, server, cache, fault):
        server.fault = "cut"
        failure(make_entry(server))
        server.fault = fault
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert contents(cache) == WHOLE

    def test_file_that_changed_on_the_server(self, server, cache):
        """The ETag shows it, even if no hash is known."""
        entry = make_entry(server, sha256=None)
        server.fault = "cut"
        failure(entry)
        server.fault = "none"
        server.files["a.npz"] = DATA[::-1]
        assert fetch(entry).read_bytes() == DATA[::-1]
        assert "If-Range" in server.requests[-1][1]

    def test_wrong_part_is_not_taken_without_a_hash(self, server, cache):
        entry = make_entry(server, sha256=None)
        server.fault = "cut"
        failure(entry)
        server.fault = "other_range"
        assert fetch(entry).read_bytes() == DATA

    def test_weak_etag_does_not_identify_the_bytes(self, server, cache):
        entry = make_entry(server, sha256=None)
        server.fault = "cut_weak_etag"
        failure(entry)
        assert contents(cache) == ["a.npz.part"]
        server.fault = "none"
        assert fetch(entry).read_bytes() == DATA
        assert ranges(server) == [None, None]

    def test_etag_of_another_url_is_not_used(self, server, cache, monkeypatch):
        entry = make_entry(server, sha256=None)
        server.files["our/a.npz"] = DATA
        server.fault = "cut"
        monkeypatch.setenv(download.MIRROR_VARIABLE, f"{server.url}/our")
        failure(dataclasses.replace(entry, urls=()))
        monkeypatch.delenv(download.MIRROR_VARIABLE)
        server.fault = "none"
        assert fetch(entry).read_bytes() == DATA
        assert ranges(server) == [None, None]

    def test_no_hash_and_no_etag_starts_over(self, server, cache):
        cache.mkdir(parents=True)
        (cache / "a.npz.part").write_bytes(b"of another file")
        server.fault = "no_etag"
        assert fetch(make_entry(server, sha256=None)).read_bytes() == DATA
        assert ranges(server) == [None]

    @pytest.mark.parametrize("length", [10, len(DATA), len(DATA) + 1])
    @pytest.mark.parametrize("size", [None, len(DATA)])
    def test_part_of_another_file_starts_over_once(self, server, cache, length, size):
        cache.mkdir(parents=True)
        (cache / "a.npz.part").write_bytes(b"x" * length)
        server.fault = "no_etag"
        assert fetch(make_entry(server, size=size)).read_bytes() == DATA
        assert ranges(server)[-1] is None
        assert len(server.requests) <= 2
        assert contents(cache) == WHOLE

    def test_wrong_file_is_not_asked_for_again(self, server, cache):
        server.fault = "wrong_byte"
        failure(make_entry(server))
        assert len(server.requests) == 1

    def test_complete_part_is_not_asked_for(self, server, cache):
        """The process ended between the last byte and the new name."""
        cache.mkdir(parents=True)
        (cache / "a.npz.part").write_bytes(DATA)
        assert fetch(make_entry(server, size=len(DATA))).read_bytes() == DATA
        assert server.requests == []

    def test_killed_process(self, server, cache):
        server.fault = "stall"
        process = start(server)
        part = cache / "a.npz.part"
        wait_until(lambda: part.exists() and part.stat().st_size >= 262_144)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        received = part.stat().st_size
        assert not (cache / "a.npz").exists()
        server.fault = "none"
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert ranges(server) == [None, f"bytes={received}-"]
        assert contents(cache) == WHOLE

    def test_interrupt_keeps_what_was_received(self, server, cache, monkeypatch):
        server.fault = "stall"
        monkeypatch.setattr(transfer._Transfer, "write", interrupt_after_one_write())
        with pytest.raises(KeyboardInterrupt):
            fetch(make_entry(server))
        assert contents(cache) == ["a.npz.part", "a.npz.part.etag"]


def interrupt_after_one_write():
    write = transfer._Transfer.write

    def write_once(transfer, data):
        write(transfer, data)
        raise KeyboardInterrupt

    return write_once


CODE = """
import dataclasses, sys
from ssd_jax.weights.download import fetch
from ssd_jax.weights.registry import ENTRIES
entry = dataclasses.replace(ENTRIES["ssd300-vgg16-voc"], name="small", file="a.npz",
    urls=(sys.argv[1],), sha256=sys.argv[2], rounded_size=None)
print(fetch(entry))
"""


def start(server):
    """Start a process that downloads the file."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, f"{server.url}/a.npz", SHA256],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class TestProcesses:
    def test_two_processes_download_once(self, server, cache):
        server.fault = "slow"
        processes = [start(server), start(server)]
        results = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], results
        assert {out for out, _ in results} == {f"{cache}/a.npz\n"}
        assert len(server.requests) == 1
        assert contents(cache) == WHOLE

    def test_waiting_is_reported(self, server, cache, capfd):
        """Another holder of the lock ends without a download."""
        cache.mkdir(parents=True)
        entry = make_entry(server)
        context = multiprocessing.get_context("spawn")
        ready, end = context.Event(), context.Event()
        other = context.Process(target=hold_lock, args=(cache / "a.npz", ready, end))
        other.start()
        assert ready.wait(60)
        timer = threading.Timer(0.5, end.set)
        timer.start()
        assert fetch(entry).read_bytes() == DATA
        other.join()
        assert capfd.readouterr().err == "small: waiting for another process's download\n"


def hold_lock(path, ready, end):
    from ssd_jax.weights.download import _locked

    with _locked(None, path):
        ready.set()
        end.wait(60)


class TestDisk:
    @pytest.fixture
    def small_files(self):
        """Limit of the size of files of this process, which writing exceeds."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_write_that_fails_leaves_nothing(self, server, cache, small_files):
        text = failure(make_entry(server))
        assert "a.npz.part cannot be written: " in text
        assert f"free space, or set {download.HOME_VARIABLE} to another folder" in text
        assert contents(cache) == []

    def test_copy_that_fails_leaves_nothing(
        self, server, cache, tmp_path, monkeypatch, small_files
    ):
        monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        (tmp_path / "a.npz").write_bytes(DATA)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
        assert "a.npz cannot be copied from" in failure(make_entry(server))
        assert contents(cache) == []

    @pytest.mark.parametrize("fault", ["none", "chunked"])
    def test_full_disk(self, server, small_disk, monkeypatch, fault):
        """With a known size before the download, otherwise in the middle."""
        server.files["a.npz"] = DATA * 10
        server.fault = fault
        monkeypatch.setenv(download.HOME_VARIABLE, str(small_disk))
        text = failure(make_entry(server, sha256=hashlib.sha256(DATA * 10).hexdigest()))
        known = "it needs 6,144,000 bytes and "
        assert (known if fault == "none" else "No space left on device") in text
        assert contents(small_disk / "weights") == []

    def test_pin_that_cannot_be_written(self, server, cache, monkeypatch):
        def write(path, data):
            raise OSError(28, os.strerror(28))

        entry = make_entry(server)
        monkeypatch.setattr(download, "_write_pin", write)
        assert "a.npz cannot be written: No space left on device" in failure(entry)
        assert contents(cache) == []
        # A cache that others maintain needs no pin.
        (cache / "a.npz").write_bytes(DATA)
        assert fetch(entry) == cache / "a.npz"

    @pytest.mark.parametrize("name", ["file", "x" * 300])
    def test_unusable_cache_folder(self, server, tmp_path, monkeypatch, name):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(download.HOME_VARIABLE, str(tmp_path / name))
        text = failure(make_entry(server))
        assert f"{name}/weights cannot be written: " in text
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_lock_that_cannot_be_taken(self, server, cache, monkeypatch):
        def acquire(*_, **__):
            raise NotImplementedError("no locks here")

        monkeypatch.setattr(download.filelock.FileLock, "acquire", acquire)
        assert "weights cannot be written: no locks here" in failure(make_entry(server))


class TestMirror:
    @pytest.fixture
    def mirror(self, tmp_path, monkeypatch):
        folder = tmp_path / "mirror"
        folder.mkdir()
        monkeypatch.setenv(download.MIRROR_VARIABLE, str(folder))
        return folder

    def test_folder_is_asked_first(self, server, cache, mirror):
        (mirror / "a.npz").write_bytes(DATA)
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert server.requests == []
        assert contents(cache) == WHOLE
        assert [path.name for path in mirror.iterdir()] == ["a.npz"]

    def test_folder_without_the_file(self, server, cache, mirror):
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert len(server.requests) == 1

    def test_wrong_file_is_refused_and_kept_in_the_mirror(self, server, cache, mirror):
        (mirror / "a.npz").write_bytes(b"wrong")
        text = failure(make_entry(server))
        assert f"{mirror}/a.npz has the SHA-256 " in text
        assert f"expected {SHA256}" in text
        assert contents(cache) == []
        assert (mirror / "a.npz").read_bytes() == b"wrong"
        assert server.requests == []

    def test_missing_folder(self, server, cache, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, "/no/such/folder")
        with pytest.raises(WeightsError, match=r"SSD_JAX_WEIGHTS_MIRROR: folder not found: /no/"):
            fetch(make_entry(server))

    def test_url_is_asked_first(self, server, cache, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, f"{server.url}/our/weights/")
        server.files = {"our/weights/a.npz": DATA}
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert [path for path, _ in server.requests] == ["/our/weights/a.npz"]

    def test_url_without_the_file(self, server, cache, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, f"{server.url}/our")
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert [path for path, _ in server.requests] == ["/our/a.npz", "/a.npz"]
        del server.files["a.npz"]
        shutil.rmtree(cache)
        text = failure(make_entry(server))
        assert f"{server.url}/our/a.npz: HTTP 404 Not Found; {server.url}/a.npz: HTTP 404" in text

    @pytest.mark.parametrize("fault", ["not_found", "wrong_byte", "cut"])
    def test_password_is_not_shown_or_stored(self, server, cache, monkeypatch, fault):
        url = server.url.replace("//", "//me:secret@")
        monkeypatch.setenv(download.MIRROR_VARIABLE, url)
        server.fault = fault
        text = failure(make_entry(server, urls=()))
        assert f"{server.url}/a.npz" in text
        assert "Authorization" in server.requests[0][1]
        assert "secret" not in text
        assert not any(b"secret" in path.read_bytes() for path in cache.iterdir())

    @pytest.mark.parametrize("url", ["file:///srv/weights", "ftp://host/weights", "s3://bucket"])
    def test_other_schemes_are_refused_by_name(self, server, cache, monkeypatch, url):
        monkeypatch.setenv(download.MIRROR_VARIABLE, url)
        with pytest.raises(WeightsError, match=rf"MIRROR is {url}; use a folder, or a URL with"):
            fetch(make_entry(server))
        assert server.requests == []


class TestOffline:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, cache):
        monkeypatch.setenv(download.OFFLINE_VARIABLE, "1")

    def test_nothing_is_asked(self, server, cache, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, server.url)
        text = failure(make_entry(server))
        assert text == (
            "small is not in the cache and SSD_JAX_OFFLINE is set; unset it, or put a.npz into "
            f"{cache}"
        )
        assert server.requests == []

    def test_cache_and_folder_are_used(self, server, cache, tmp_path, monkeypatch):
        monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path))
        (tmp_path / "a.npz").write_bytes(DATA)
        assert fetch(make_entry(server)).read_bytes() == DATA
        monkeypatch.delenv(download.MIRROR_VARIABLE)
        assert fetch(make_entry(server)).read_bytes() == DATA
        assert server.requests == []

    @pytest.mark.parametrize("value", ["", "0", "false", "No"])
    def test_values_that_mean_online(self, server, monkeypatch, value):
        monkeypatch.setenv(download.OFFLINE_VARIABLE, value)
        assert fetch(make_entry(server)).read_bytes() == DATA


def test_default_cache_is_the_platform_s(monkeypatch, tmp_path):
    monkeypatch.delenv(download.HOME_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "ssd_jax" / "weights"
    monkeypatch.setenv(download.HOME_VARIABLE, "~/models")
    assert download.cache_folder() == Path.home() / "models" / "weights"


def test_progress_is_shown_on_a_terminal_alone(server, cache, capsys, monkeypatch):
    fetch(make_entry(server))
    assert capsys.readouterr() == ("", "")
    shutil.rmtree(cache)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    fetch(make_entry(server))
    out, err = capsys.readouterr()
    assert out == ""
    assert "small" in err
    assert "614.4/614.4 kB" in err
