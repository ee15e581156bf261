"""Compare an exported file, in its own runtime, with the network it was made from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd_jax.config import UserError
from ssd_jax.data.sources import SyntheticSource
from ssd_jax.export.network import Network
from ssd_jax.export.standalone import Model, preprocess, to_pixels
from ssd_jax.inference.detector import Detections, Detector, load_image
from ssd_jax.inference.drawing import Image

PIXELS = 0.5
"""Largest accepted difference of a box side (pixels)."""
SCORE = 1e-3
"""Largest accepted difference of a score."""
_NUM_SCENES = 8


class ExportError(UserError):
    """An exported file whose detections differ from the network's."""


def check(network: Network, about: Path, files: Sequence[str] = ()) -> str:
    """Compare the detections of an exported file with those of the network.

    Args:
        network: the network that was exported.
        about: JSON file next to the exported file, see `standalone.Model`.
        files: images to compare on; none: generated scenes.

    Returns:
        One line with the number of images and detections and the largest differences.

    Raises:
        ExportError: the detections of an image differ.
        DataError: an image cannot be read.
    """
    images = [load_image(file) for file in files] or _scenes(network.size)
    names = list(files) or [f"generated scene {k}" for k in range(len(images))]
    model = Model(about)
    config = network.config
    detector = Detector(
        network.model, config, network.variables, threshold=config.eval.score_threshold
    )
    largest, count = np.zeros(2), 0
    for start in range(0, len(images), model.batch):
        batch = images[start : start + model.batch]
        inputs = np.zeros((model.batch, model.size, model.size, 3), np.uint8)
        inputs[: len(batch)] = [preprocess(image, model.size) for image in batch]
        exported = model.detect(inputs)[: len(batch)]
        for k, (image, expected, (boxes, scores, labels)) in enumerate(
            zip(batch, detector(batch), exported, strict=True)
        ):
            height, width = image.shape[:2]
            boxes_px = to_pixels(boxes, width, height)
            diff = difference(
                expected,
                Detections(boxes_px, scores, labels - 1, expected.names),
                threshold=config.eval.score_threshold,
                most=config.eval.detections_per_image,
            )
            if diff is None or diff[0] > PIXELS or diff[1] > SCORE:
                raise ExportError(
                    f"{names[start + k]}: the file's detections differ from the network's "
                    f"({_describe(diff)}); the file is removed. Please report this"
                )
            largest = np.maximum(largest, diff[:2])
            count += diff[2]
    return (
        f"checked in its own runtime on {len(images)} images: {count} detections, boxes within "
        f"{largest[0]:.2g} pixels, scores within {largest[1]:.2g}"
    )


def difference(
    a: Detections, b: Detections, *, threshold: float, most: int
) -> tuple[float, float, int] | None:
    """Measure the largest differences between two sets of detections of an image.

    Each detection is compared with the nearest box of the same class and a similar score in the
    other set. Scores within `SCORE` of a cut are ignored, since rounding decides about them.

    Args:
        a: detections of an image.
        b: detections of the same image.
        threshold: score threshold, a cut.
        most: limit of detections per image; the last score of a full set is a cut as well.

    Returns:
        Largest difference of a box side (pixels) and of a score, and the number of detections
        compared; None if a detection is in one set only.
    """
    pixels, score, count = 0.0, 0.0, 0
    for x, y, counted in ((a, b, True), (b, a, False)):
        last = max((d.scores[-1] for d in (a, b) if len(d) >= most), default=0.0)
        for k in np.flatnonzero(x.scores > max(last, threshold) + SCORE):
            near = (y.labels == x.labels[k]) & (np.abs(y.scores - x.scores[k]) <= SCORE)
            if not near.any():
                return None
            sides = np.abs(y.boxes[near] - x.boxes[k]).max(axis=1)
            nearest = int(np.argmin(sides))
            pixels = max(pixels, float(sides[nearest]))
            score = max(score, float(np.abs(y.scores[near] - x.scores[k])[nearest]))
            count += counted
    return pixels, score, count


def _describe(diff: tuple[float, float, int] | None) -> str:
    if diff is None:
        return "a detection is missing"
    return f"a box differs by {diff[0]:.3g} pixels, a score by {diff[1]:.3g}"


def _scenes(size: int) -> list[Image]:
    source = SyntheticSource(_NUM_SCENES, "export", size)
    return [source.image(k) for k in range(len(source))]
