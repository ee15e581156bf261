"""The page: what it says of an image, and, in a real browser, what one sees and can do."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import demo
from ssd_jax.cli import run_main
from ssd_jax.config import UserError
from ssd_jax.detector import Detector, read_image
from ssd_jax.models.restore import write_checkpoint
from ssd_jax.models.ssd import make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("<b>a</b>", "dog", "ü")})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("demo") / "myrun"
    model = make_model(CONFIG.model, CONFIG.priors)
    write_checkpoint(run, CONFIG, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    return run


@pytest.fixture(scope="module")
def detector(checkpoint):
    return Detector.from_checkpoint(checkpoint)


def picture(path, seed=1, size=(90, 130)):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    write_image(path, cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def rows_of(detector, path, threshold):
    (found,) = detector(path, threshold=threshold)
    return [
        [
            found.names[k],
            round(float(s), 3),
            *(round(float(v), 1) for v in (*b[:2], *(b[2:] - b[:2]))),
        ]
        for k, s, b in zip(found.labels, found.scores, found.boxes, strict=True)
    ]


def test_a_threshold_selects_what_the_detector_finds_with_it(detector, tmp_path):
    path = picture(tmp_path / "p.png")
    found = demo.detect(detector, str(path), 1 << 20)
    counts = []
    for threshold in (demo.LOWEST_SCORE, 0.5, 0.7, 1.0):
        image, rows, line = demo.show(found, threshold)
        assert rows == rows_of(detector, path, threshold)
        assert line == f"p.png: 130 x 90 pixels, {len(rows)} found above {threshold:g}"
        # Enlarged, for the names to be legible.
        assert max(image.shape) == 640
        counts.append(len(rows))
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0


def test_an_image_is_turned_upright(detector, tmp_path, monkeypatch):
    path = picture(tmp_path / "p.png")
    found = demo.detect(detector, str(path), 1 << 20)
    np.testing.assert_array_equal(found.image, read_image(path))


def test_wrong_files_are_told_without_the_servers_folders(detector, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    cut = picture(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:-400])
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "empty.png").write_bytes(b"")
    large = picture(tmp_path / "large.png", size=(900, 900))
    for name, text in (
        ("text.jpg", "text.jpg is not an image"),
        ("cut.png", "cut.png"),
        ("a.svg", "a.svg is none of JPEG"),
        ("empty.png", "empty.png"),
    ):
        with pytest.raises(UserError, match=text) as error:
            demo.detect(detector, str(tmp_path / name), 1 << 20)
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(UserError, match=r"large.png is larger than 0 MB; use a smaller file"):
        demo.detect(detector, str(large), 1000)


def failing(*arguments, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
    assert run_main(demo.main) == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_wrong_commands(checkpoint, tmp_path, monkeypatch, capfd):
    def says(*arguments):
        return failing(*arguments, monkeypatch=monkeypatch, capfd=capfd)

    assert "--checkpoint is missing" in says()
    assert "--score-threshold is 0.01; use a number from 0.05 to 1" in says(
        "--checkpoint", checkpoint, "--score-threshold", "0.01"
    )
    assert "--max-upload-mb is 0" in says("--checkpoint", checkpoint, "--max-upload-mb", "0")
    assert "--port is 99999" in says("--checkpoint", checkpoint, "--port", "99999")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "the page needs gradio; pip install 'ssd_jax[demo]'" in says("--checkpoint", checkpoint)


def test_a_detector_is_loaded_once_and_has_a_name_of_its_own(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "myrun")
    names = list(demo._detectors([checkpoint, tmp_path / "myrun"]))
    assert names == ["myrun, step 0", str(tmp_path / "myrun/checkpoints/0")]
    calls = []
    get = demo._once(lambda: calls.append(1) or "detector")
    assert [get(), get()] == ["detector", "detector"]
    assert calls == [1]


# What follows needs gradio, selenium and Debian's chromium and chromium-driver.


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serving(*arguments):
    """The command, ready, and its address; it is interrupted at the end and must end well."""
    port = free_port()
    command = [sys.executable, "-m", "ssd_jax.demo", "--port", str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        yield from _until_interrupted(process, port)


def _until_interrupted(process, port):
    try:
        lines = iter(process.stdout.readline, "")
        ready = next((line for line in lines if "the page is at" in line), None)
        assert ready, process.stderr.read()
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


@pytest.fixture(scope="module")
def page(checkpoint):
    pytest.importorskip("gradio")
    with serving("--checkpoint", checkpoint, "--max-upload-mb", "1") as address:
        yield address


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *(f"user-data-dir={tmp_path / 'profile'}", "window-size=1280,1000"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Page:
    """The page as its user has it."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.all("#upload input[type=file]"))

    def wait(self, holds, seconds=30):
        end = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < end, (self.message, self.rows)
            time.sleep(0.1)
        return value

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def upload(self, path):
        for cross in self.all("#upload button[aria-label*='emove'], #upload button[title*='lear']"):
            cross.click()
            self.wait(lambda: self.all("#upload input[type=file]"))
            break
        self.all("#upload input[type=file]")[0].send_keys(str(path))

    def set_threshold(self, value):
        box = self.all("#threshold input[type=number]")[0]
        self.driver.execute_script(
            "arguments[0].value = arguments[1];"
            "for (const kind of ['input', 'change', 'blur'])"
            "  arguments[0].dispatchEvent(new Event(kind, {bubbles: true}));",
            box,
            str(value),
        )

    @property
    def message(self):
        return self.all("#message textarea")[0].get_attribute("value")

    @property
    def rows(self):
        script = (
            "return [...document.querySelectorAll('#table [role=row][data-index]')].map("
            "r => [...r.querySelectorAll('[role=gridcell]')].map(c => c.innerText.trim()))"
        )
        rows = self.driver.execute_script(script)
        # One that is out of sight has cells without text.
        return [row for row in rows if all(row) and len(row) == 6]


def as_text(rows):
    return [[name, *(f"{value:g}" for value in values)] for name, *values in rows]


@pytest.mark.slow
def test_one_image_in_a_real_browser(page, browser, detector, tmp_path):
    path = picture(tmp_path / "photo.png")
    here = Page(browser, page)
    here.upload(path)
    few = rows_of(detector, path, 0.5)
    here.wait(lambda: here.message == f"photo.png: 130 x 90 pixels, {len(few)} found above 0.5")
    shown = here.wait(lambda: here.rows)
    # The table draws the rows that are seen.
    assert len(shown) > 3
    assert shown == as_text(few)[: len(shown)]
    drawn = here.wait(lambda: here.all("#drawn img"))[0]
    script = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
    assert here.driver.execute_script(script, drawn) == [640, 443]

    # Another threshold, no other upload.
    fewer = rows_of(detector, path, 0.7)
    assert 0 < len(fewer) < len(few)
    here.set_threshold(0.7)
    here.wait(lambda: here.message.endswith(f"{len(fewer)} found above 0.7"))
    here.wait(lambda: len(here.rows) <= len(fewer))
    assert here.rows == as_text(fewer)[: len(here.rows)]

    # What cannot be read is told, and the next one is done.
    (tmp_path / "broken.jpg").write_text("no image")
    here.upload(tmp_path / "broken.jpg")
    here.wait(lambda: here.message.startswith("broken.jpg is not an image that can be decoded"))
    assert here.rows == []
    other = picture(tmp_path / "other.png", seed=5)
    here.upload(other)
    here.wait(lambda: here.message.startswith("other.png: 130 x 90 pixels"))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    write_image(tmp_path / "large.png", noise)
    here.upload(tmp_path / "large.png")
    here.wait(lambda: "maximum" in browser.find_element("tag name", "body").text.lower())

    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(url.startswith(page) for url in asked)
    # Whatever else there is belongs to the browser itself: chrome:, data:.
    assert not [url for url in asked if url.startswith(("http", "ws")) and page not in url]


@pytest.mark.slow
def test_a_phone_shows_it_without_scrolling_sideways(page, browser):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    here = Page(browser, page)
    here.wait(lambda: here.all("#table"))
    assert here.driver.execute_script("return document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_page_gives_no_file_of_the_server(page, tmp_path):
    secret = tmp_path / "secret.png"
    picture(secret)
    config = json.loads(urllib.request.urlopen(f"{page}config").read())
    for path in (secret, "/etc/passwd", Path(demo.__file__)):
        for route in ("gradio_api/file=", "file="):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(f"{page}{route}{path}")
            assert error.value.code in (403, 404)
    # Nor as an upload that was none.
    for k, _ in enumerate(config["dependencies"]):
        body = {
            "data": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "myrun, step 0"],
            "fn_index": k,
            "session_hash": "test",
        }
        request = urllib.request.Request(
            f"{page}gradio_api/run/predict",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request)


@pytest.mark.slow
def test_a_port_that_is_taken(checkpoint):
    pytest.importorskip("gradio")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        command = ["--checkpoint", str(checkpoint), "--port", str(s.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, "-m", "ssd_jax.demo", *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("ssd_jax.demo: --port: 127.0.0.1:")
    assert done.stderr.count("\n") == 1
