"""Images with predictions beside the ground truth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.inference.drawing import (
    Image,
    contact_sheet,
    draw_boxes,
    resize,
    save_image,
    side_by_side,
)

Array = np.ndarray[Any, Any]

# Small enough for a sheet of many images, large enough for class names on boxes.
_PANEL_SIDE = 480


@dataclass(frozen=True)
class Sample:
    """An image with its detections and its ground truth.

    Boxes are [n, 4], xyxy in continuous pixels; labels are int [n], 0-based class ids.
    """

    name: str
    """Name of the file to write, without suffix."""
    image: Image
    """RGB uint8 [H, W, 3]."""
    boxes: Array
    labels: Array
    scores: Array
    """float [n], 0 to 1."""
    gt_boxes: Array
    gt_labels: Array


def write_images(
    samples: Iterable[Sample],
    classes: Sequence[str],
    out_dir: Path,
    *,
    score_threshold: float = 0.3,
) -> None:
    """Write each sample's predictions (left) and ground truth (right), and all on one sheet.

    The files are out_dir/images/NAME.jpg and out_dir/images.jpg; none without samples. Detections
    below `score_threshold` are not drawn: an evaluation keeps up to 200 per image, down to score
    0.01, which would cover the image.
    """
    panels = []
    for sample in samples:
        panels.append(_draw_sample(sample, classes, score_threshold))
        path = out_dir / "images" / f"{sample.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, panels[-1])
    if panels:
        save_image(out_dir / "images.jpg", contact_sheet(panels, columns=2, gap=24))


def _draw_sample(sample: Sample, classes: Sequence[str], score_threshold: float) -> Image:
    """Draw the predictions and the ground truth of a sample side by side."""
    drawn = sample.scores >= score_threshold
    boxes, labels, scores = sample.boxes[drawn], sample.labels[drawn], sample.scores[drawn]
    return side_by_side(
        draw_boxes(*fit_panel(sample.image, boxes), labels, classes, scores),
        draw_boxes(*fit_panel(sample.image, sample.gt_boxes), sample.gt_labels, classes),
        (
            f"{sample.name}: {len(boxes)} detections, score >= {score_threshold:g}",
            f"ground truth: {len(sample.gt_labels)} objects",
        ),
    )


def fit_panel(image: Image, boxes: Array) -> tuple[Image, Array]:
    """Resize an image and its boxes to the size of a panel."""
    factor = _PANEL_SIDE / max(image.shape[:2])
    return resize(image, factor), boxes * factor
