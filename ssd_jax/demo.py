"""A page to try detectors on: drop an image, move the threshold, see the boxes and a table.

python -m ssd_jax.demo --checkpoint RUN_OR_CHECKPOINT [more ...]
"""

import argparse
import base64
import contextlib
import html
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ssd_jax.cli import Parser, add_cache_flag, run_main
from ssd_jax.config import ConfigError, UserError
from ssd_jax.guard import LOCAL_HOSTS, Guard, Hosts, OneLine, ShortTraceback, impatient

if TYPE_CHECKING:
    from ssd_jax.inference.detector import Detections, Detector
    from ssd_jax.inference.drawing import Image

_DESCRIPTION = """Serve a page on which images are dropped and their detections seen.

A folder of runs gives the newest checkpoint of each; runs/NAME/checkpoints/* all those of one."""

_SHORTEST, _LONGEST = 800, 1600  # pixels: the longer side of a picture as it is shown
_LEAST = 0.01  # of the slider
_MINUTE = 60
_KEPT = 60 * _MINUTE  # seconds that an upload lies on the server


# From a file to what is shown of it: nothing here knows of a server.


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What a network found in an image; no threshold changes it."""

    name: str
    """Of the file."""
    width: int
    """Of the image (pixels)."""
    height: int
    """Of the image (pixels)."""
    picture: "Image"
    """The image as it is shown, larger or smaller."""
    factor: float
    """Of the picture's size to the image's."""
    detections: "Detections"
    """All above a score of 0, in pixels of the image."""


def _gone(file: Path) -> UserError:
    return UserError(f"{file.name} is no longer on the server; upload it again")


def detect(detector: "Detector", file: Path) -> DemoResult:
    """Detect in an image file, which is read as by `ssd_jax.inference.detector.read_image`.

    Raises UserError, naming the file but not where it lies, if it cannot be read.
    """
    from ssd_jax.data.images import decode_picture
    from ssd_jax.inference.detector import turn_upright
    from ssd_jax.inference.drawing import resize

    try:
        data = file.read_bytes()
    except OSError:
        raise _gone(file) from None
    header, stored = decode_picture(data, Path(file.name))
    image = turn_upright(stored, header.orientation)
    height, width = image.shape[:2]
    factor = _factor(max(width, height))
    (found,) = detector(image, threshold=0.0)
    return DemoResult(file.name, width, height, resize(image, factor), factor, found)


def _factor(side: int) -> float:
    """How much larger or smaller an image is shown: legible, and no load for a browser."""
    return min(max(1.0, _SHORTEST / side), _LONGEST / side)


def select(found: DemoResult, threshold: float, classes: Collection[str] = ()) -> "Detections":
    """The detections above a score, as `Detector(image, threshold=threshold)` gives them.

    classes: names of those wanted; none: all.
    """
    all_ = found.detections
    kept = all_.scores > threshold
    if classes:
        kept &= np.isin(all_.labels, [all_.names.index(name) for name in classes])
    return all_.select(kept)


def coco_rows(told: "Detections", file_name: str) -> list[dict[str, Any]]:
    """The detections as predict.py writes them to detections.json for one image."""
    return [
        {
            "image_id": 1,
            "category_id": label + 1,
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 5),
            "file_name": file_name,
            "category_name": told.names[label],
        }
        for (x0, y0, x1, y1), score, label in zip(
            told.boxes.tolist(), told.scores.tolist(), told.labels.tolist(), strict=True
        )
    ]


def show(found: DemoResult, threshold: float, classes: Collection[str] = ()) -> str:
    """HTML of the detections above a score: a line, the picture, a table, and both to download."""
    from ssd_jax.inference.drawing import draw_boxes, encode_image

    told = select(found, threshold, classes)
    rows = coco_rows(told, found.name)
    boxes = told.boxes * found.factor
    drawn = draw_boxes(found.picture, boxes, told.labels + 1, told.names, told.scores)
    image = _data_url("image/jpeg", encode_image(drawn, ".jpg"))
    table = _data_url("application/json", json.dumps(rows, indent=1).encode())
    stem = html.escape(Path(found.name).stem)
    line = html.escape(_sentence(found, told, threshold))
    return (
        f'<p class="line" role="status">{line}</p>'
        f'<img src="{image}" alt="{line}">'
        f'<p class="links"><a href="{image}" download="{stem}-detections.jpg">Save picture</a>'
        f'<a href="{table}" download="{stem}-detections.json">Save detections (JSON)</a></p>'
        f"{_table(told)}"
    )


def _sentence(found: DemoResult, told: "Detections", threshold: float) -> str:
    """How many there are, of which class, in which file."""
    counts = Counter(told.names[label] for label in told.labels.tolist())
    each = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    number = f"{len(told)} detection{'s' * (len(told) != 1)} above {threshold:.2f}"
    file = f"{found.name} ({found.width} x {found.height} pixels)"
    return f"{file}: {number}{': ' * bool(each)}{each}"


def _table(told: "Detections") -> str:
    """A row a detection; numbers of boxes are pixels of the image."""
    from ssd_jax.inference.drawing import label_color

    if not len(told):
        return ""
    rows = []
    for (x0, y0, x1, y1), score, label in zip(
        told.boxes.tolist(), told.scores.tolist(), told.labels.tolist(), strict=True
    ):
        r, g, b = label_color(label + 1)
        swatch = f'<i style="background: rgb({r} {g} {b})"></i>'
        numbers = [f"{score:.3f}", *(f"{v:.1f}" for v in (x0, y0, x1 - x0, y1 - y0))]
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        rows.append(f"<tr><th>{swatch}{html.escape(told.names[label])}</th>{cells}</tr>")
    names = ("class", "score", "x", "y", "width", "height")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        '<div class="scroll"><table>'
        "<caption>Boxes in pixels of the image: left, upper edge, width, height</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def render_error(message: str) -> str:
    """HTML of what is wrong."""
    return f'<p class="line wrong" role="alert">{html.escape(message)}</p>'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# Checkpoints.


class LazyDetector:
    """A checkpoint that can be chosen; its detector is loaded and compiled once, when first used.

    Raises UserError if the config of the checkpoint cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        from ssd_jax.checkpoints.reader import read_config

        self.checkpoint = checkpoint
        self.names = read_config(checkpoint).model.classes
        self._lock = threading.Lock()
        self._detector: Detector | None = None

    def detector(self) -> "Detector":
        """The detector, also where several users ask for it at the same time.

        Raises UserError if the checkpoint cannot be read, or is not there any more.
        """
        from ssd_jax.inference.detector import Detector

        with self._lock:
            if self._detector is None:
                detector = Detector.from_checkpoint(self.checkpoint)
                detector(np.zeros((1, 1, 3), np.uint8))  # compiles
                self._detector = detector
            return self._detector


def find_choices(paths: Sequence[Path], *, best: bool = False) -> dict[str, LazyDetector]:
    """The checkpoints that the paths mean, each once, by a name to show.

    A path is a checkpoint, a run (its newest, or its `best`) or a folder of runs (one of each).

    Raises ConfigError for a path that gives none.
    """
    checkpoints = dict.fromkeys(p.absolute() for path in paths for p in _checkpoints(path, best))
    names = Counter(map(_name, checkpoints))
    return {
        _name(p) if names[_name(p)] == 1 else f"{_name(p)} ({p})": LazyDetector(p)
        for p in checkpoints
    }


def _checkpoints(path: Path, best: bool) -> Iterator[Path]:
    from ssd_jax.checkpoints.reader import find_checkpoint

    try:
        yield find_checkpoint(path, best=best)
        return
    except ConfigError as error:
        missing = error
    found = False
    for folder in sorted(path.iterdir()) if path.is_dir() else ():
        if (folder / "checkpoints").is_dir():
            with contextlib.suppress(ConfigError):  # a run that has not saved yet
                yield find_checkpoint(folder, best=best)
                found = True
    if not found:
        raise missing


def _name(checkpoint: Path) -> str:
    run = checkpoint.parent
    run = run.parent if run.name == "checkpoints" else run
    return f"{run.name}, step {checkpoint.name}"


# The page.

_CSS = """
.gradio-container { width: 100% !important; max-width: 76rem !important;
  margin: 0 auto !important; }
footer { display: none !important; }
#found p { margin: 0; color: var(--body-text-color); }
#found .line { padding: .6rem .8rem; border-radius: 6px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
#found .wrong { border: 1px solid #dc2626; border-left-width: 6px; }
#found img { display: block; max-width: 100%; max-height: 80vh; height: auto;
  margin: .7rem auto; border-radius: 6px; }
#found .links a { margin-right: 1.2rem; color: var(--link-text-color);
  text-decoration: underline; }
#found .scroll { max-height: 28rem; overflow: auto; margin-top: .7rem;
  border: 1px solid var(--border-color-primary); border-radius: 6px; }
#found table { width: 100%; border-collapse: collapse; font-size: .9rem;
  color: var(--body-text-color); }
#found caption { text-align: left; padding: .4rem .6rem; font-size: .85rem;
  opacity: .8; }
#found thead th { position: sticky; top: 0; background: var(--background-fill-secondary); }
#found th, #found td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-top: 1px solid var(--border-color-primary); }
#found .html-container { padding: 0; }
#upload [data-testid=status-tracker] { display: none; }
#found tr th:first-child { text-align: left; font-weight: 600; }
#found i { display: inline-block; width: .8em; height: .8em; margin-right: .5em;
  border-radius: 2px; border: 1px solid rgb(0 0 0 / 40%); }
@media (max-width: 480px) {
  #found table { font-size: .78rem; }
  #found th, #found td { padding: .3rem .25rem; }
}
"""

_NOTHING = """<p class="line">Drop an image (JPEG, PNG, BMP, TIFF or WebP): what is found in it is
shown here.</p>"""

# The browser itself refuses what would come from elsewhere.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"


class _Headers:
    """An ASGI app whose answers say what the page may ask for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                nosniff = (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message["headers"], policy, nosniff]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def make_page(choices: dict[str, LazyDetector], *, threshold: float, most_mb: int) -> Any:
    """The page, a `gradio.Blocks`; the network runs once for an image and a checkpoint."""
    import gradio as gr

    def search(upload: Path | None, name: str) -> DemoResult | str:
        """What the checkpoint called `name` finds, or what is wrong with it or with the file."""
        try:
            if upload and not upload.is_file():  # before a network is loaded, which takes a while
                raise _gone(upload)
            detector = choices[name].detector()
            return detect(detector, upload) if upload else ""
        except UserError as error:
            return getattr(error, "what", str(error))

    def on_upload(file: str, name: str) -> tuple[Any, ...]:
        # The place to drop the next one is free again.
        return None, Path(file), search(Path(file), name)

    def on_choice(upload: Path | None, name: str, wanted: list[str]) -> tuple[Any, ...]:
        names = choices[name].names
        kept = [c for c in wanted if c in names]
        return search(upload, name), gr.Dropdown(choices=list(names), value=kept)

    def on_threshold(found: DemoResult | str, threshold: float, classes: list[str]) -> str:
        if isinstance(found, DemoResult):
            known = [c for c in classes if c in found.detections.names]
            return show(found, float(threshold), known)
        return render_error(found) if found else _NOTHING

    names = list(choices)
    with gr.Blocks(title="ssd_jax", analytics_enabled=False) as page:
        upload = gr.State(None, time_to_live=_KEPT)
        found = gr.State("", time_to_live=_KEPT)
        gr.Markdown("# Try a detector")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                chosen = gr.Dropdown(names, value=names[0], label="Checkpoint", elem_id="choice")
                file = gr.File(
                    label=f"Image, up to {most_mb} MB",
                    height=150,
                    elem_id="upload",
                )
                _refuse_addresses(file)
                least = gr.Slider(
                    *(_LEAST, 1, threshold), step=0.01, label="Score above", elem_id="threshold"
                )
                classes = gr.Dropdown(
                    list(choices[names[0]].names),
                    value=[],
                    multiselect=True,
                    label="Classes; all if none is chosen",
                    elem_id="classes",
                )
            with gr.Column(scale=5, min_width=320):
                shown = gr.HTML(_NOTHING, elem_id="found", js_on_load=None, apply_default_css=False)
        # Of several changes while one is being worked at, the last one counts. Images are decoded
        # one at a time, for a large one takes 600 MB.
        search_once: dict[str, Any] = {
            "trigger_mode": "always_last",
            "concurrency_limit": 1,
            "concurrency_id": "search",
            "api_visibility": "private",
            "show_progress_on": shown,
        }
        redraw: dict[str, Any] = {
            "fn": on_threshold,
            "inputs": [found, least, classes],
            "outputs": shown,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        file.upload(on_upload, [file, chosen], [file, upload, found], **search_once).then(**redraw)
        chosen.input(on_choice, [upload, chosen, classes], [found, classes], **search_once).then(
            **redraw
        )
        gr.on([least.change, classes.change], trigger_mode="always_last", **redraw)
    return page


def _refuse_addresses(file: Any) -> None:
    """Let a `gradio.File` take uploads alone: it would fetch any address that a request names."""
    keep = file.async_move_resource_to_block_cache

    async def refuse_or_keep(path: str) -> Any:
        if not Path(path).is_absolute():
            raise UserError(f"{path} is no upload")
        return await keep(path)

    file.async_move_resource_to_block_cache = refuse_or_keep


# The server.


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, load the first detector, serve until interrupted."""
    own = _parse(arguments)
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs gradio; pip install 'ssd_jax[demo]'")
    choices = find_choices(own.checkpoint, best=own.best)
    _check_address(own.host, own.port)
    signal.signal(signal.SIGTERM, _terminate)
    from ssd_jax.distributed import use_compilation_cache

    use_compilation_cache(own.compilation_cache_dir)
    next(iter(choices.values())).detector()
    with tempfile.TemporaryDirectory(prefix="ssd_jax_demo_") as folder:
        _set_environment(folder)
        page = make_page(choices, threshold=own.score_threshold, most_mb=own.max_upload_mb)
        try:
            address = _launch(page, own)
            if own.host not in LOCAL_HOSTS:
                print(
                    f"demo: warning: whoever reaches port {own.port} of this machine can use the "
                    "page: it has no login",
                    file=sys.stderr,
                )
            print(f"{address} is ready; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(_MINUTE)
                remove_old(Path(folder), _KEPT)
        finally:
            page.close(verbose=False)


def _launch(page: Any, own: argparse.Namespace) -> str:
    """Starts a thread that serves the page, and gives its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    _shorten_tracebacks()
    hosts = Hosts(own.host, own.allow_host)
    try:
        _, address, _ = page.queue(max_size=64, default_concurrency_limit=4).launch(
            server_name=f"[{own.host}]" if ":" in own.host else own.host,
            server_port=own.port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=own.max_upload_mb << 20,
            state_session_capacity=100,  # of up to 8 MB
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            app_kwargs={"middleware": [Middleware(Guard, hosts), Middleware(_Headers)]},
            theme=gr.themes.Default(
                primary_hue="blue",
                neutral_hue="slate",
                font=("system-ui", "sans-serif"),
                font_mono=("ui-monospace", "monospace"),
            ),
            css=_CSS,
        )
    except OSError as error:
        raise ConfigError(f"--port: {own.host}:{own.port} cannot be served: {error}") from None
    server = page.server.config
    # The guard within holds from the first request on, but Gradio answers some questions of
    # browsers (CORS) before it asks it.
    server.loaded_app = Guard(server.loaded_app, hosts)
    server.http_protocol_class = impatient(server.http_protocol_class)
    return str(address)


def _shorten_tracebacks() -> None:
    """Let whatever a request makes fail be one line of the log: anybody can send thousands."""
    from gradio import queueing, route_utils, routes

    for module in (queueing, route_utils, routes):
        vars(module)["traceback"] = ShortTraceback()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(OneLine())


def _set_environment(folder: str) -> None:
    """What gradio reads when it is imported: where uploads lie, and that nothing is sent out."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # It asks itself whether it runs, which no proxy could tell.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


def _check_address(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen, before a network is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            if os.name == "posix":  # elsewhere it would take a port that is in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except socket.gaierror as error:
        raise ConfigError(f"--host: {host} is no address: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(
            f"--port: {host}:{port} cannot be served: {error.strerror}; try --port {port + 1}"
        ) from None


def remove_old(folder: Path, age: float) -> None:
    """Delete the files in a folder and below it that are older than `age` seconds.

    Gradio forgets those whose upload was broken off.
    """
    before = time.time() - age
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # somebody else was faster
            if path.lstat().st_ctime < before and not path.is_dir():
                path.unlink()


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ssd_jax.demo",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", metavar="DIR", help="runs or checkpoints to choose")
    add("--best", action="store_true", help="of a run the best checkpoint, not the newest")
    add_cache_flag(parser)
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    add(
        "--allow-host",
        nargs="+",
        default=(),
        metavar="NAME",
        help="further names under which browsers may ask for the page, as that of a proxy",
    )
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--max-upload-mb", type=int, default=20, metavar="N", help="default: %(default)s")
    add("--score-threshold", type=float, default=0.5, metavar="X", help="default: %(default)s")
    own = parser.parse_args(list(arguments))
    if own.checkpoint is None:
        raise ConfigError("--checkpoint is missing; name a run's folder, e.g. runs/quickstart")
    if not 1 <= own.port <= 65535:
        raise ConfigError(f"--port is {own.port}; use 1 to 65535")
    for name in own.allow_host:
        if not name or set(name) & set("/:@ "):
            raise ConfigError(f"--allow-host is {name!r}; write a name alone: demo.example.org")
    if own.max_upload_mb < 1:
        raise ConfigError(f"--max-upload-mb is {own.max_upload_mb}; use 1 or more")
    if not _LEAST <= own.score_threshold <= 1:
        raise ConfigError(
            f"--score-threshold is {own.score_threshold}; use a number from {_LEAST} to 1"
        )
    return own


if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.demo"
    raise SystemExit(run_main(main))
