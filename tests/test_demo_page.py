"""The page as it is served: in a headless Chromium, and to programs that mean it ill.

Needs the extras demo and browser, and Debian's packages chromium and chromium-driver.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from ssd_jax import demo
from ssd_jax.inference.detector import Detector
from ssd_jax.inference.drawing import label_color
from tests.data.folders import write_image
from tests.runs import write_run
from tests.tiny import TINY, change

# A name in the dress of HTML, one in that of the template that gradio fills in.
FIRST = change(TINY, model={"classes": ("<b>a</b>", "${1 + 1}", "ü")})
SECOND = change(TINY, model={"classes": ("cat", "ü")})
MOST_MB = 1
# A shell's background job, and what it starts, is told to ignore Ctrl-C.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("ssd_jax.demo", run_name="__main__", alter_sys=True)
"""

pytestmark = pytest.mark.slow


class Server:
    """The command, from its first line until it is ended."""

    def __init__(self, folder, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "stderr"
        # A proxy that is not there: nothing is to be asked of it.
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        flags = ["--port", self.port, "--max-upload-mb", MOST_MB, *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", INTERRUPTIBLE, *map(str, flags)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **{**os.environ, **proxies, "TMPDIR": str(self.temporary)},
                    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
                },
            )
        self.ready = self.process.stdout.readline()

    def uploads(self):
        """Files that lie on the server."""
        return [p for p in self.temporary.rglob("*") if p.is_file()]

    def end(self, number):
        """Exit status, and what was written to stdout and stderr."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out, self.log.read_text()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first", FIRST)
    write_run(folder / "second", SECOND, seed=1)
    return folder


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    pytest.importorskip("gradio")
    server = Server(tmp_path_factory.mktemp("server"), "--checkpoint", runs)
    assert server.ready.startswith(server.address), server.log.read_text()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(programs["chromedriver"])
    )
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, server):
    """A browser, which at the end has asked nobody but the server."""
    yield chromium
    asked = []
    for entry in chromium.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            asked.append(message["params"]["url"])
    assert any(url.startswith(server.address) for url in asked)
    # data: is what the page brings along, chrome: the browser's own.
    own = (server.address, "data:", "blob:", "chrome")
    assert [url for url in asked if not url.startswith(own)] == []


class Page:
    """The page as its user has it."""

    def __init__(self, driver, address, width=1280, height=900):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        driver.get(address)
        self.wait(lambda: self.find("#upload input[type=file]"))

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, holds, seconds=30):
        end = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < end, (self.line, self.rows)
            time.sleep(0.05)
        return value

    def wait_line(self, text):
        self.wait(lambda: text in self.line)

    @property
    def line(self):
        return self.run("return document.querySelector('#found .line')?.innerText ?? ''")

    @property
    def rows(self):
        """Text of the table's cells."""
        return self.run(
            "return [...document.querySelectorAll('#found tbody tr')]"
            ".map(row => [...row.children].map(cell => cell.innerText))"
        )

    def upload(self, path):
        self.find("#upload input[type=file]")[0].send_keys(str(path))

    def set_threshold(self, value):
        self.run(
            "const box = arguments[0]; box.value = arguments[1];"
            "for (const kind of ['input', 'change', 'blur'])"
            "  box.dispatchEvent(new Event(kind, {bubbles: true}))",
            self.find("#threshold input[type=number]")[0],
            str(value),
        )

    def choose(self, box, text):
        """Choose what is called `text` in one of the page's lists."""
        self.find(f"#{box} input")[0].click()
        # The list that was open before may still be there for a moment: asked for by its text.
        script = (
            "return [...document.querySelectorAll('ul.options li, ul[role=listbox] li')]"
            ".filter(option => option.innerText.includes(arguments[0]))"
        )
        self.wait(lambda: self.run(script, text))[0].click()


def photo(path, seed=1, width=130, height=90):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    write_image(path, cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.fixture(scope="module")
def detectors(runs):
    return {name: Detector.from_checkpoint(runs / name) for name in ("first", "second")}


def table(found):
    """What the table shows of detections."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    return [
        [found.names[k], f"{score:.3f}", *(f"{v:.1f}" for v in (*box[:2], *side))]
        for k, score, box, side in zip(found.labels, found.scores, found.boxes, sides, strict=True)
    ]


def test_an_image(server, browser, detectors, tmp_path):
    path = photo(tmp_path / "photo.png")
    page = Page(browser, server.address)
    page.upload(path)
    (found,) = detectors["first"](path, threshold=0.5)
    page.wait_line(f"photo.png (130 x 90 pixels): {len(found)} detections above 0.50: ")
    assert page.rows == table(found)
    assert page.run(
        "return [...document.querySelectorAll('#found i')]"
        ".map(e => getComputedStyle(e).backgroundColor)"
    ) == ["rgb({}, {}, {})".format(*label_color(k + 1)) for k in found.labels]
    assert page.run(
        "const i = document.querySelector('#found img'); return [i.naturalWidth, i.naturalHeight]"
    ) == [800, 554]

    # What is saved is what is seen.
    (link,) = page.find("#found a[download$=json]")
    assert link.get_attribute("download") == "photo-detections.json"
    saved = base64.b64decode(link.get_attribute("href").partition(",")[2])
    assert json.loads(saved) == demo.coco_rows(found, "photo.png")

    # Another threshold, without another upload: nothing is there that could be read again.
    for upload in server.uploads():
        upload.unlink()
    (fewer,) = detectors["first"](path, threshold=0.7)
    assert 0 < len(fewer) < len(found)
    page.set_threshold(0.7)
    page.wait_line(f"{len(fewer)} detections above 0.70: ")
    assert page.rows == table(fewer)

    # A class alone.
    page.choose("classes", "ü")
    only = fewer.select(fewer.labels == 2)
    page.wait_line(f"{len(only)} detection")
    assert page.rows == table(only)

    # Another checkpoint would have to read the file again.
    page.choose("choice", "second")
    page.wait_line("photo.png is no longer on the server; upload it again")
    assert page.rows == []


def test_another_checkpoint(server, browser, detectors, tmp_path):
    path = photo(tmp_path / "photo.png", seed=2)
    page = Page(browser, server.address)
    page.upload(path)
    (found,) = detectors["first"](path, threshold=0.5)
    page.wait(lambda: page.rows == table(found))
    page.choose("choice", "second")
    (other,) = detectors["second"](path, threshold=0.5)
    assert table(other) != table(found)
    page.wait(lambda: page.rows == table(other))


def test_files_that_are_no_images(server, browser, detectors, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "drawn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "moving.gif").write_bytes(b"GIF89a\1\0\1\0" + bytes(40))
    cut = photo(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-50])
    page = Page(browser, server.address)
    for name in ("text.jpg", "drawn.svg", "moving.gif"):
        page.upload(tmp_path / name)
        page.wait_line(f"{name} is not an image that can be decoded")
        assert page.find("#found .wrong[role=alert]")
        assert str(server.temporary) not in page.driver.page_source
    page.upload(cut)
    page.wait_line("cut.jpg ends before its image does: it is truncated")

    large = tmp_path / "large.png"
    large.write_bytes(bytes((MOST_MB << 20) + 1))
    page.upload(large)
    told = 'File(s) exceed the maximum allowed size of 1.0 Mb: "large.png"'
    page.wait(lambda: told in [toast.text for toast in page.find("[data-testid=toast-text]")])

    # All of that was survived.
    page.upload(photo(tmp_path / "dot.png", width=1, height=1))
    page.wait_line("dot.png (1 x 1 pixels): ")
    path = photo(tmp_path / "photo.webp")
    page.upload(path)
    page.wait_line("photo.webp (130 x 90 pixels): ")
    assert page.rows == table(detectors["first"](path, threshold=0.5)[0])


def test_two_users_at_once(server, browser, detectors, tmp_path):
    windows, pages, paths = [], [], []
    for k in range(2):
        if k:
            browser.switch_to.new_window("window")
        windows.append(browser.current_window_handle)
        pages.append(Page(browser, server.address))
        paths.append(photo(tmp_path / f"{k}.png", seed=5 + k))
    for again in range(3):
        for window, page, path in zip(windows, pages, paths, strict=True):
            browser.switch_to.window(window)
            page.set_threshold(0.4 + again / 10)
            page.upload(path)
    for window, page, path in zip(windows, pages, paths, strict=True):
        browser.switch_to.window(window)
        (found,) = detectors["first"](path, threshold=0.6)
        page.wait(lambda page=page, found=found: page.rows == table(found))
        assert page.line.startswith(path.name)
    browser.close()
    browser.switch_to.window(windows[0])


def test_a_phone(server, browser, tmp_path):
    page = Page(browser, server.address, 390, 844)
    page.upload(photo(tmp_path / ("long" * 25 + ".png")))
    page.wait(lambda: page.rows)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    room = "const e = document.querySelector('#found .line'); return e.scrollWidth - e.clientWidth"
    assert page.run(room) <= 0
    right = "return document.querySelector('#found img').getBoundingClientRect().right"
    assert page.run(right) <= 390


# Without a browser.


def ask(server, path, data=None, headers=()):
    """Status, content and headers; a path goes as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST" if data else "GET", path, body=data, headers=dict(headers))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def send(server, name, content):
    """Upload as the page does."""
    body = (
        b'--B\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--B--\r\n'
        % (name.encode(), content)
    )
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    return ask(server, "/gradio_api/upload", body, kind)


def call(server, path):
    """Whether the event of an upload takes the file at `path` on the server, and its answer."""
    config = json.loads(ask(server, "/config")[1])
    (event,) = (
        d["id"] for d in config["dependencies"] if any(t[1] == "upload" for t in d["targets"])
    )
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    session = f"s{time.monotonic_ns()}"
    body = {"data": [file, "first, step 0"], "fn_index": event, "session_hash": session}
    kind = {"Content-Type": "application/json"}
    status, content, _ = ask(server, "/gradio_api/queue/join", json.dumps(body).encode(), kind)
    assert status == 200, content
    url = f"{server.address}gradio_api/queue/data?session_hash={session}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as stream:
        for line in stream:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message["success"], line
    raise AssertionError("no answer")


def test_no_file_of_the_server_is_given(server, runs, tmp_path):
    secret = photo(tmp_path / "secret.png")
    status, content, _ = send(server, "mine.png", secret.read_bytes())
    (mine,) = json.loads(content)
    assert status == 200
    # The way is the right one: what was uploaded is read.
    assert call(server, mine)[0]
    assert ask(server, f"/gradio_api/file={urllib.parse.quote(mine)}")[0] == 200
    config = runs / "first/config.json"
    around = f"{Path(mine).parent}{'/..' * 12}{secret}"
    for path in (secret, config, Path(demo.__file__), "/etc/passwd", around, "pyproject.toml"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            for form in (urllib.parse.quote(str(path)), urllib.parse.quote(str(path), safe="")):
                status, content, _ = ask(server, f"/{route}{form}")
                assert status in (400, 403, 404, 405), (route, form)
                assert b"root:" not in content
        success, answer = call(server, path)
        assert not success, path
        assert b"secret" not in answer
        assert b"root:" not in answer
    # Nor is one fetched from elsewhere for whoever asks.
    assert not call(server, "http://example.invalid/x.png")[0]
    assert "http://example.invalid/x.png is no upload" in server.log.read_text()


def test_another_host_or_page_gets_nothing(server):
    before = server.uploads()
    local = f"127.0.0.1:{server.port}"
    part = b'Content-Disposition: form-data; name="files"; filename="x.png"\r\n\r\nx'
    body = b"--B\r\n" + part + b"\r\n--B--\r\n"
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.port}", "Origin": f"http://evil.example:{server.port}"},
        {"Host": local, "Origin": "http://evil.example"},
        {"Host": local, "Origin": "null"},
        {"Host": local, "Origin": "http://127.0.0.1:3000"},
    ):
        for path, data in (("/", None), ("/config", None), ("/gradio_api/upload", body)):
            kind = {"Content-Type": "multipart/form-data; boundary=B"} if data else {}
            status, content, answered = ask(server, path, data, {**headers, **kind})
            assert status == 403, (headers, path)
            assert "access-control-allow-credentials" not in map(str.lower, answered)
            assert len(content) < 200
    assert server.uploads() == before
    assert (
        ask(server, "/", headers={"Host": "localhost:1", "Origin": "http://localhost:1"})[0] == 200
    )


def test_malformed_calls_are_one_line_each(server):
    kind = {"Content-Type": "application/json"}
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    calls = [
        {"data": [1, 2, 3], "fn_index": 0, "session_hash": "a"},
        {"data": [], "fn_index": 99, "session_hash": "a"},
        {"data": [file, "x"], "fn_index": 0, "session_hash": "a"},
        {"data": ["a"], "fn_index": 1, "session_hash": "a"},
        {"data": ["x", ["a"], {}], "fn_index": 1, "session_hash": "a"},
    ]
    before, count = len(server.log.read_text().splitlines()), 0
    for route in ("queue/join", "run/predict", "call/x"):
        for body in (b"{", b"[]", b"\xff", *(json.dumps(call).encode() for call in calls)):
            ask(server, f"/gradio_api/{route}", body, kind)
            count += 1
    time.sleep(1)  # the queue works on some
    log = server.log.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) - before <= count


def test_a_half_sent_request_is_given_up(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert 15 < time.monotonic() - start < 40


def test_uploads_have_a_limit(server):
    before = server.uploads()
    status, content, _ = send(server, "large.png", bytes((MOST_MB << 20) + 1))
    assert status == 413
    assert b"maximum allowed size" in content
    assert server.uploads() == before


def test_the_browser_is_told_to_ask_nobody_else(server):
    _, page, headers = ask(server, "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert b"fonts.googleapis.com" not in page
    config = json.loads(ask(server, "/config")[1])
    assert config["analytics_enabled"] is False
    for path in ("/monitoring", "/gradio_api/runs", "/gradio_api/mcp/sse"):
        assert ask(server, path)[0] in (403, 404)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_its_end(runs, tmp_path, number, status):
    pytest.importorskip("gradio")
    server = Server(tmp_path, "--checkpoint", runs / "first", "--host", "0.0.0.0")
    try:
        assert server.ready.startswith("http://"), server.log.read_text()
        assert send(server, "photo.png", b"x")[0] == 200
        assert server.uploads()
        code, out, log = server.end(number)
    finally:
        server.kill()
    assert code == status
    assert out == ""
    warning, *rest = log.splitlines()
    assert warning == (
        f"demo: warning: whoever reaches port {server.port} of this machine can use the page: "
        "it has no login"
    )
    assert rest == ["python -m ssd_jax.demo: interrupted"] * (number == signal.SIGINT)
    assert list(server.temporary.glob("ssd_jax_demo_*")) == []
