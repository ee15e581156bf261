"""The demo app as it is served: in headless Chromium, and under hostile requests.

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

import ssd_jax
from ssd_jax.inference.detector import Detector
from ssd_jax.inference.drawing import label_color
from ssd_jax.inference.results import coco_rows
from tests.data.folders import write_image
from tests.runs import write_run
from tests.tiny import TINY, change

# One class name looks like HTML, one like a placeholder in a template of Gradio.
FIRST = change(TINY, model={"classes": ("<b>a</b>", "${1 + 1}", "ü")})
SECOND = change(TINY, model={"classes": ("cat", "ü")})
MAX_UPLOAD_MB = 1
# Background jobs of a shell and their children ignore Ctrl-C by default.
INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv.insert(1, "demo")
runpy.run_module("ssd_jax", run_name="__main__", alter_sys=True)
"""

pytestmark = pytest.mark.slow


class Server:
    """A process of the demo command."""

    def __init__(self, folder, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "stderr"
        # A proxy that does not exist and must not be used.
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        flags = ["--port", self.port, "--max-upload-mb", MAX_UPLOAD_MB, *arguments]
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
        """List the uploaded files on the server."""
        return [p for p in self.temporary.rglob("*") if p.is_file()]

    def end(self, number):
        """Send a signal; return the exit status, stdout and stderr."""
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
    """A browser that must have contacted the server only."""
    yield chromium
    urls = []
    for entry in chromium.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            urls.append(message["params"]["url"])
    assert any(url.startswith(server.address) for url in urls)
    # data: and blob: are part of the app, chrome: of the browser.
    local = (server.address, "data:", "blob:", "chrome")
    assert [url for url in urls if not url.startswith(local)] == []


class Page:
    """The app in a browser window."""

    def __init__(self, driver, address, width=1280, height=900):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        driver.get(address)
        self.wait(lambda: self.find("#upload input[type=file]"))

    def screenshot(self, name):
        """Save a screenshot in the folder $DEMO_SCREENSHOTS, if set."""
        if folder := os.environ.get("DEMO_SCREENSHOTS"):
            self.driver.save_screenshot(f"{folder}/{name}.png")

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, holds, seconds=30):
        end = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < end, (self.message, self.rows)
            time.sleep(0.05)
        return value

    def wait_message(self, text):
        self.wait(lambda: text in self.message)

    @property
    def message(self):
        return self.run("return document.querySelector('#results .message')?.innerText ?? ''")

    @property
    def rows(self):
        """Text of the table's cells, by row."""
        return self.run(
            "return [...document.querySelectorAll('#results tbody tr')]"
            ".map(row => [...row.children].map(cell => cell.innerText))"
        )

    def upload(self, path):
        # The box has no input until the previous upload is done.
        self.wait(lambda: self.find("#upload input[type=file]"))[0].send_keys(str(path))

    def set_threshold(self, value):
        self.run(
            "const box = arguments[0]; box.value = arguments[1];"
            "for (const kind of ['input', 'change', 'blur'])"
            "  box.dispatchEvent(new Event(kind, {bubbles: true}))",
            self.find("#threshold input[type=number]")[0],
            str(value),
        )

    def choose(self, dropdown, text):
        """Choose the option `text` of a dropdown."""
        self.find(f"#{dropdown} input")[0].click()
        # Selected by text, because the options of another dropdown may be open for a moment.
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


def table(detections):
    """Rows of text that the table should contain."""
    boxes = detections.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    return [
        [detections.names[k], f"{score:.3f}", *(f"{v:.1f}" for v in (*box[:2], *side))]
        for k, score, box, side in zip(
            detections.labels, detections.scores, boxes, sides, strict=True
        )
    ]


def test_threshold_and_classes_filter_without_another_detection(
    server, browser, detectors, tmp_path
):
    path = photo(tmp_path / "photo.png")
    page = Page(browser, server.address)
    page.upload(path)
    expected = detectors["first"](path, threshold=0.5)
    page.wait_message(f"photo.png (130 x 90 pixels): {len(expected)} detections above 0.50: ")
    assert page.rows == table(expected)
    assert page.run(
        "return [...document.querySelectorAll('#results i')]"
        ".map(e => getComputedStyle(e).backgroundColor)"
    ) == ["rgb({}, {}, {})".format(*label_color(k)) for k in expected.labels]
    assert page.run(
        "const i = document.querySelector('#results img'); return [i.naturalWidth, i.naturalHeight]"
    ) == [800, 554]

    page.screenshot("result")
    # The saved detections equal the table.
    (link,) = page.find("#results a[download$=json]")
    assert link.get_attribute("download") == "photo-detections.json"
    saved = base64.b64decode(link.get_attribute("href").partition(",")[2])
    assert json.loads(saved) == coco_rows(expected, image_id=1, file_name="photo.png")

    # Another threshold, after the upload is deleted.
    for upload in server.uploads():
        upload.unlink()
    fewer = detectors["first"](path, threshold=0.7)
    assert 0 < len(fewer) < len(expected)
    page.set_threshold(0.7)
    page.wait_message(f"{len(fewer)} detections above 0.70: ")
    assert page.rows == table(fewer)

    # One class.
    page.choose("classes", "ü")
    only = fewer.select(fewer.labels == 2)
    page.wait_message(f"{len(only)} detection")
    assert page.rows == table(only)

    # Another checkpoint needs the file.
    page.choose("checkpoint", "second")
    page.wait_message("photo.png is no longer on the server; upload it again")
    assert page.rows == []
    page.screenshot("error")


def test_selecting_another_checkpoint(server, browser, detectors, tmp_path):
    path = photo(tmp_path / "photo.png", seed=2)
    page = Page(browser, server.address)
    page.upload(path)
    expected = detectors["first"](path, threshold=0.5)
    page.wait(lambda: page.rows == table(expected))
    page.choose("checkpoint", "second")
    other = detectors["second"](path, threshold=0.5)
    assert table(other) != table(expected)
    page.wait(lambda: page.rows == table(other), seconds=180)  # the server compiles the network


def test_unreadable_files_are_reported(server, browser, detectors, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "drawn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "moving.gif").write_bytes(b"GIF89a\1\0\1\0" + bytes(40))
    cut = photo(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-50])
    page = Page(browser, server.address)
    for name in ("text.jpg", "drawn.svg", "moving.gif"):
        page.upload(tmp_path / name)
        page.wait_message(f"{name} is not an image that can be decoded")
        assert page.find("#results .error[role=alert]")
        assert str(server.temporary) not in page.driver.page_source
    page.upload(cut)
    page.wait_message("cut.jpg ends before its image does: it is truncated")

    large = tmp_path / "large.png"
    large.write_bytes(bytes((MAX_UPLOAD_MB << 20) + 1))
    page.upload(large)
    error = 'File(s) exceed the maximum allowed size of 1.0 Mb: "large.png"'
    page.wait(lambda: error in [toast.text for toast in page.find("[data-testid=toast-text]")])

    # The app still works.
    page.upload(photo(tmp_path / "dot.png", width=1, height=1))
    page.wait_message("dot.png (1 x 1 pixels): ")
    path = photo(tmp_path / "photo.webp")
    page.upload(path)
    page.wait_message("photo.webp (130 x 90 pixels): ")
    assert page.rows == table(detectors["first"](path, threshold=0.5))


def test_two_simultaneous_users(server, browser, detectors, tmp_path):
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
        expected = detectors["first"](path, threshold=0.6)
        page.wait(lambda page=page, expected=expected: page.rows == table(expected))
        assert page.message.startswith(path.name)
    browser.close()
    browser.switch_to.window(windows[0])


def test_layout_on_a_phone(server, browser, tmp_path):
    page = Page(browser, server.address, 390, 844)
    page.upload(photo(tmp_path / ("long" * 25 + ".png")))
    page.wait(lambda: page.rows)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    message = "const e = document.querySelector('#results .message');"
    assert page.run(f"{message} return e.scrollWidth - e.clientWidth") <= 0
    page.screenshot("phone")
    right = "return document.querySelector('#results img').getBoundingClientRect().right"
    assert page.run(right) <= 390


# Without a browser.


def request(server, path, data=None, headers=()):
    """Send a request with an unescaped path; return the status, content and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST" if data else "GET", path, body=data, headers=dict(headers))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, dict(response.getheaders())


def send(server, name, content):
    """Upload as the app does."""
    body = (
        b'--B\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--B--\r\n'
        % (name.encode(), content)
    )
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    return request(server, "/gradio_api/upload", body, kind)


def call(server, path):
    """Call the upload event with a path on the server; return its success and its message."""
    config = json.loads(request(server, "/config")[1])
    (event,) = (
        d["id"] for d in config["dependencies"] if any(t[1] == "upload" for t in d["targets"])
    )
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    session = f"s{time.monotonic_ns()}"
    body = {"data": [file, "first, step 0"], "fn_index": event, "session_hash": session}
    kind = {"Content-Type": "application/json"}
    status, content, _ = request(server, "/gradio_api/queue/join", json.dumps(body).encode(), kind)
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


def test_files_of_the_server_are_not_delivered(server, runs, tmp_path):
    secret = photo(tmp_path / "secret.png")
    status, content, _ = send(server, "upload.png", secret.read_bytes())
    (upload,) = json.loads(content)
    assert status == 200
    # The uploaded file itself is accepted.
    assert call(server, upload)[0]
    assert request(server, f"/gradio_api/file={urllib.parse.quote(upload)}")[0] == 200
    config = runs / "first/config.json"
    traversal = f"{Path(upload).parent}{'/..' * 12}{secret}"
    for path in (
        secret,
        config,
        Path(ssd_jax.__file__),
        "/etc/passwd",
        traversal,
        "pyproject.toml",
    ):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            for form in (urllib.parse.quote(str(path)), urllib.parse.quote(str(path), safe="")):
                status, content, _ = request(server, f"/{route}{form}")
                assert status in (400, 403, 404, 405), (route, form)
                assert b"root:" not in content
        success, answer = call(server, path)
        assert not success, path
        assert b"secret" not in answer
        assert b"root:" not in answer
    # URLs are not downloaded.
    assert not call(server, "http://example.invalid/x.png")[0]
    assert "http://example.invalid/x.png is not an uploaded file" in server.log.read_text()


def test_foreign_hosts_and_origins_are_refused(server):
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
            status, content, response_headers = request(server, path, data, {**headers, **kind})
            assert status == 403, (headers, path)
            assert "access-control-allow-credentials" not in map(str.lower, response_headers)
            assert len(content) < 200
    assert server.uploads() == before
    assert (
        request(server, "/", headers={"Host": "localhost:1", "Origin": "http://localhost:1"})[0]
        == 200
    )


def test_malformed_calls_are_logged_as_one_line(server):
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
            request(server, f"/gradio_api/{route}", body, kind)
            count += 1
    time.sleep(1)  # for the queue
    log = server.log.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) - before <= count


def test_incomplete_requests_time_out(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert 15 < time.monotonic() - start < 40


def test_upload_size_limit(server):
    before = server.uploads()
    status, content, _ = send(server, "large.png", bytes((MAX_UPLOAD_MB << 20) + 1))
    assert status == 413
    assert b"maximum allowed size" in content
    assert server.uploads() == before


def test_security_headers_and_disabled_features(server):
    _, page, headers = request(server, "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert b"fonts.googleapis.com" not in page
    config = json.loads(request(server, "/config")[1])
    assert config["analytics_enabled"] is False
    for path in ("/monitoring", "/gradio_api/runs", "/gradio_api/mcp/sse"):
        assert request(server, path)[0] in (403, 404)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_server_and_delete_uploads(runs, tmp_path, number, status):
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
        f"python -m ssd_jax demo: warning: anyone who can reach port {server.port} of this machine "
        "can use the demo app: it has no login"
    )
    assert rest == ["python -m ssd_jax demo: interrupted"] * (number == signal.SIGINT)
    assert list(server.temporary.glob("ssd_jax_demo_*")) == []
