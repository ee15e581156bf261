"""A page on which to try a detector: drop an image, move the threshold, see boxes and a table.

python -m ssd_jax.demo --checkpoint runs/NAME [runs/OTHER ...]
"""

import argparse
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_jax.cli import Parser, run_main
from ssd_jax.config import ConfigError, UserError

if TYPE_CHECKING:
    from ssd_jax.detector import Detections, Detector
    from ssd_jax.visualize import Image

LOWEST_SCORE = 0.05
"""The slider's least; what is below is not kept."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
HEADERS = ("class", "score", "x", "y", "width", "height")

_HOURS = 3600
_LEGIBLE = 640
_CSS = """
.gradio-container { max-width: 72rem !important; margin: 0 auto !important; }
footer { display: none !important; }
#title h1 { margin: 0.4rem 0 0; }
"""


@dataclass(frozen=True)
class Found:
    """An image and all that was found in it."""

    image: "Image"
    detections: "Detections"
    name: str


def detect(detector: "Detector", file: str, most_bytes: int) -> Found:
    """What there is in an image file, from `LOWEST_SCORE` on.

    Raises UserError, in words for the page, for a file that is too large or no image.
    """
    from ssd_jax.data.errors import DataError
    from ssd_jax.detector import read_image

    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path.name} is none of JPEG, PNG, BMP, TIFF and WebP by its name")
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path.name} is larger than {most_bytes >> 20} MB; use a smaller file")
    try:
        image = read_image(path)
    except DataError as error:
        # Where the server keeps it is nobody's business.
        raise UserError(error.what.replace(str(path), path.name)) from None
    (found,) = detector(image, threshold=LOWEST_SCORE)
    return Found(image, found, path.name)


def show(found: Found, threshold: float) -> tuple["Image", list[list[Any]], str]:
    """The image with the boxes above a score, a row of `HEADERS` for each, and a line on them."""
    told = found.detections.select(found.detections.scores > threshold)
    factor = max(1.0, _LEGIBLE / max(found.image.shape[:2]))
    corner, sides = told.boxes[:, :2], told.boxes[:, 2:] - told.boxes[:, :2]
    numbers = np.round(np.concatenate([corner, sides], axis=1).astype(float), 1).tolist()
    rows = [
        [told.names[label], round(float(score), 3), *row]
        for label, score, row in zip(told.labels, told.scores, numbers, strict=True)
    ]
    height, width = found.image.shape[:2]
    line = f"{found.name}: {width} x {height} pixels, {len(rows)} found above {threshold:g}"
    return told.draw(found.image, factor=factor), rows, line


def make_page(
    detectors: dict[str, Callable[[], "Detector"]], *, threshold: float, most_mb: int
) -> Any:
    """The page, a gradio Blocks, with a choice among `detectors`, which are loaded when chosen."""
    import gradio as gr

    def on_image(file: str | None, name: str) -> tuple[Found | None, str]:
        if file is None:
            return None, ""
        try:
            return detect(detectors[name](), file, most_mb << 20), ""
        except UserError as error:
            return None, str(error)

    def on_threshold(found: Found | None, message: str, threshold: float) -> tuple[Any, ...]:
        if found is None:
            return None, [], message
        image, rows, line = show(found, threshold)
        return image, rows, line

    names = list(detectors)
    with gr.Blocks(title="ssd_jax", analytics_enabled=False, delete_cache=(600, _HOURS)) as page:
        gr.Markdown("# Try a detector", elem_id="title")
        found = gr.State(None, time_to_live=_HOURS)
        message = gr.State("")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", elem_id="model")
                file = gr.File(
                    label=f"Image, up to {most_mb} MB",
                    file_types=list(SUFFIXES),
                    type="filepath",
                    height=140,
                    elem_id="upload",
                )
                least = gr.Slider(
                    LOWEST_SCORE, 1, threshold, step=0.01, label="Score above", elem_id="threshold"
                )
                line = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="message")
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    label="Found",
                    interactive=False,
                    format="jpeg",
                    buttons=["download", "fullscreen"],
                    elem_id="drawn",
                )
                table = gr.Dataframe(
                    headers=list(HEADERS),
                    datatype=["str", *["number"] * 5],
                    label="Boxes in pixels of the image",
                    interactive=False,
                    elem_id="table",
                )
        # The network runs when the image or the checkpoint changes; a threshold only selects.
        shown = [picture, table, line]
        for change in (file.change, checkpoint.change):
            change(on_image, [file, checkpoint], [found, message], api_name=False).then(
                on_threshold, [found, message, least], shown, api_name=False
            )
        least.change(
            on_threshold, [found, message, least], shown, api_name=False, show_progress="hidden"
        )
    return page


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, load the first detector, serve until interrupted."""
    own = _parse(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError:
        raise ConfigError("the page needs gradio; pip install 'ssd_jax[demo]'") from None

    detectors = _detectors(own.checkpoint)
    print("loading and compiling", flush=True)
    first = next(iter(detectors.values()))()
    first(np.zeros((1, 1, 3), np.uint8))
    page = make_page(detectors, threshold=own.score_threshold, most_mb=own.max_upload_mb)
    plain = ("system-ui", "sans-serif")
    try:
        _, address, _ = page.queue(max_size=64).launch(
            server_name=own.host,
            server_port=own.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{own.max_upload_mb}mb",
            allowed_paths=[],
            footer_links=[],
            ssr_mode=False,
            # Fonts of the machine: the page asks nobody else for anything.
            theme=gr.themes.Default(font=plain, font_mono=("monospace",)),
            css=_CSS,
        )
    except OSError as error:
        raise ConfigError(f"--port: {own.host}:{own.port} cannot be served: {error}") from None
    if own.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"demo: warning: everybody who reaches {own.host} can use the page; it has no login",
            file=sys.stderr,
        )
    print(f"the page is at {address} until Ctrl-C", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def _detectors(paths: Sequence[Path]) -> dict[str, Callable[[], "Detector"]]:
    """A name for each checkpoint and what loads it, once. Raises ConfigError for a wrong one."""
    from ssd_jax.detector import Detector
    from ssd_jax.models.restore import find_checkpoint, read_config

    found: dict[str, Callable[[], Detector]] = {}
    for path in paths:
        checkpoint = find_checkpoint(path).absolute()
        read_config(checkpoint)
        run = checkpoint.parent
        run = run.parent if run.name == "checkpoints" else run
        name = f"{run.name}, step {checkpoint.name}"
        if name in found:
            name = str(checkpoint)
        found[name] = _once(functools.partial(Detector.from_checkpoint, checkpoint))
    return found


def _once(load: Callable[[], "Detector"]) -> Callable[[], "Detector"]:
    """`load` that runs once, also where several users ask at the same time."""
    lock = threading.Lock()
    loaded: list[Detector] = []

    def get() -> "Detector":
        with lock:
            if not loaded:
                loaded.append(load())
            return loaded[0]

    return get


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ssd_jax.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", metavar="DIR", help="runs or checkpoints to choose")
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--score-threshold", type=float, default=0.5, metavar="X", help="default: %(default)s")
    add("--max-upload-mb", type=int, default=20, metavar="N", help="default: %(default)s")
    own = parser.parse_args(list(arguments))
    if own.checkpoint is None:
        raise ConfigError("--checkpoint is missing; name a run's folder, e.g. runs/quickstart")
    if not LOWEST_SCORE <= own.score_threshold <= 1:
        raise ConfigError(
            f"--score-threshold is {own.score_threshold}; use a number from {LOWEST_SCORE} to 1"
        )
    if own.max_upload_mb < 1:
        raise ConfigError(f"--max-upload-mb is {own.max_upload_mb}; use 1 or more")
    if not 0 < own.port < 65536:
        raise ConfigError(f"--port is {own.port}; use 1 to 65535")
    return own


if __name__ == "__main__":
    sys.argv[0] = "ssd_jax.demo"
    raise SystemExit(run_main(main))
