"""HTML of the demo app's results and errors."""

import base64
import html
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import jinja2

from ssd_jax.demo.detection import DemoResult
from ssd_jax.inference.detector import Detections
from ssd_jax.inference.drawing import draw_boxes, encode_image, label_color
from ssd_jax.inference.results import coco_rows

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


def render_result(result: DemoResult, threshold: float, classes: Collection[str] = ()) -> str:
    """Render the detections above a score: a summary, the image, download links and a table."""
    detections = result.filter(threshold, classes)
    boxes, labels, names = detections.boxes, detections.labels, detections.names
    image = draw_boxes(result.display_image, boxes * result.scale, labels, names, detections.scores)
    rows = coco_rows(detections, image_id=1, file_name=result.file_name)
    return _TEMPLATES.get_template("result.html").render(
        summary=_summarize(result, detections, threshold),
        stem=Path(result.file_name).stem,
        image_url=_data_url("image/jpeg", encode_image(image, ".jpg")),
        json_url=_data_url("application/json", json.dumps(rows, indent=1).encode()),
        table=[
            (names[label], label_color(label), score, (x0, y0, x1 - x0, y1 - y0))
            for (x0, y0, x1, y1), score, label in zip(
                boxes.tolist(), detections.scores.tolist(), labels.tolist(), strict=True
            )
        ],
    )


def render_error(message: str) -> str:
    """Render an error message."""
    return f'<p class="message error" role="alert">{html.escape(message)}</p>'


def _summarize(result: DemoResult, detections: Detections, threshold: float) -> str:
    """Summarize the file and the number of detections of each class in one line."""
    counts = Counter(detections.names[label] for label in detections.labels.tolist())
    per_class = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    total = f"{len(detections)} detection{'s' * (len(detections) != 1)} above {threshold:.2f}"
    file = f"{result.file_name} ({result.width} x {result.height} pixels)"
    return f"{file}: {total}{': ' * bool(per_class)}{per_class}"


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
