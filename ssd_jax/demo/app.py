"""Gradio app of the demo: upload box, checkpoint, threshold, classes and results."""

from pathlib import Path
from typing import Any

import gradio as gr

from ssd_jax.config import UserError
from ssd_jax.demo import MIN_SCORE
from ssd_jax.demo.detection import DemoResult, LazyDetector
from ssd_jax.demo.rendering import render_error, render_result

UPLOAD_LIFETIME = 3600
"""Seconds that an upload and its result are kept."""

_HINT = """<p class="message">Drop an image (JPEG, PNG, BMP, TIFF or WebP) to see its detections
here.</p>"""


def make_app(
    detectors: dict[str, LazyDetector], *, threshold: float, max_upload_mb: int
) -> gr.Blocks:
    """Build the app, which runs the network once per image and checkpoint."""

    def detect(upload: Path | None, checkpoint: str) -> DemoResult | str:
        """Return the result, an error message, or an empty string without an upload."""
        try:
            if upload is not None:
                return detectors[checkpoint].detect(upload)
            detectors[checkpoint].load()
        except UserError as error:
            return getattr(error, "what", str(error))
        return ""

    def on_upload(file: str, checkpoint: str) -> tuple[Any, ...]:
        upload = Path(file)
        return None, upload, detect(upload, checkpoint)  # None empties the box for the next image

    def on_checkpoint(
        upload: Path | None, checkpoint: str, classes: list[str]
    ) -> tuple[DemoResult | str, gr.Dropdown]:
        names = list(detectors[checkpoint].names)
        selected = [name for name in classes if name in names]
        return detect(upload, checkpoint), gr.Dropdown(choices=names, value=selected)

    def render(result: DemoResult | str, threshold: float, classes: list[str]) -> str:
        if isinstance(result, DemoResult):
            names = [name for name in classes if name in result.detections.names]
            return render_result(result, float(threshold), names)
        return render_error(result) if result else _HINT

    checkpoints = list(detectors)
    with gr.Blocks(title="ssd_jax demo", analytics_enabled=False) as app:
        upload = gr.State(None, time_to_live=UPLOAD_LIFETIME)
        result = gr.State("", time_to_live=UPLOAD_LIFETIME)
        gr.Markdown("# ssd_jax demo")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                checkpoint = gr.Dropdown(
                    checkpoints, value=checkpoints[0], label="Checkpoint", elem_id="checkpoint"
                )
                file = gr.File(
                    label=f"Image (up to {max_upload_mb} MB)", height=150, elem_id="upload"
                )
                _refuse_urls(file)
                slider = gr.Slider(
                    MIN_SCORE, 1, threshold, step=0.01, label="Score threshold", elem_id="threshold"
                )
                classes = gr.Dropdown(
                    list(detectors[checkpoints[0]].names),
                    value=[],
                    multiselect=True,
                    label="Classes (empty: all)",
                    elem_id="classes",
                )
            with gr.Column(scale=5, min_width=320):
                output = gr.HTML(_HINT, elem_id="results", js_on_load=None, apply_default_css=False)
        # If inputs change during a detection, only the last change counts. Images are processed
        # one at a time, because a large one takes 600 MB.
        detection: dict[str, Any] = {
            "trigger_mode": "always_last",
            "concurrency_limit": 1,
            "concurrency_id": "detection",
            "api_visibility": "private",
            "show_progress_on": output,
        }
        rendering: dict[str, Any] = {
            "fn": render,
            "inputs": [result, slider, classes],
            "outputs": output,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        uploaded = file.upload(on_upload, [file, checkpoint], [file, upload, result], **detection)
        selected = checkpoint.input(
            on_checkpoint, [upload, checkpoint, classes], [result, classes], **detection
        )
        uploaded.then(**rendering)
        selected.then(**rendering)
        gr.on([slider.change, classes.change], trigger_mode="always_last", **rendering)
    return app


def _refuse_urls(file: Any) -> None:
    """Accept uploads only: a `gradio.File` would download any URL that a request names."""
    move_to_cache = file.async_move_resource_to_block_cache

    async def move_upload_to_cache(path: str) -> Any:
        if not Path(path).is_absolute():
            raise UserError(f"{path} is not an uploaded file")
        return await move_to_cache(path)

    file.async_move_resource_to_block_cache = move_upload_to_cache
