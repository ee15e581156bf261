"""The comparison of an exported file, in its own runtime, with the network that it was made of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd_jax.config import UserError
from ssd_jax.data.sources import SyntheticSource
from ssd_jax.export.network import Network
from ssd_jax.export.standalone import Model, preprocess, to_pixels
from ssd_jax.inference.detector import Detections, Detector, read_image
from ssd_jax.inference.drawing import Image

PIXELS = 0.5
"""Most that a side of a box may differ by."""
SCORE = 1e-3
"""Most that a score may differ by."""
_SCENES = 8


class ExportError(UserError):
    """A file that does not give what the network gives."""


def check(network: Network, about: Path, files: Sequence[str] = ()) -> str:
    """What was compared, as a line.

    `about` is the JSON beside the file, see `standalone.Model`. `files` are images to compare on,
    each read as by `read_image`; none: generated scenes. The file's detections are those that the
    module beside it gives, from a prepared image to pixels.

    Raises ExportError, naming the image, at a difference, and DataError for an unreadable image.
    """
    images = [read_image(file) for file in files] or _scenes(network.size)
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
        found = model.detect(inputs)[: len(batch)]
        for k, (image, ours, (boxes, scores, labels)) in enumerate(
            zip(batch, detector(batch), found, strict=True)
        ):
            height, width = image.shape[:2]
            theirs = Detections(to_pixels(boxes, width, height), scores, labels - 1, ours.names)
            apart = difference(
                ours,
                theirs,
                threshold=config.eval.score_threshold,
                most=config.eval.detections_per_image,
            )
            if apart is None or apart[0] > PIXELS or apart[1] > SCORE:
                raise ExportError(
                    f"{names[start + k]}: the file's detections are not the network's "
                    f"({_tell(apart)}); nothing is left of it. Please report this"
                )
            largest = np.maximum(largest, apart[:2])
            count += apart[2]
    return (
        f"checked in its own runtime on {len(images)} images: {count} detections, boxes within "
        f"{largest[0]:.2g} pixels, scores within {largest[1]:.2g}"
    )


def difference(
    a: Detections, b: Detections, *, threshold: float, most: int
) -> tuple[float, float, int] | None:
    """The largest difference of a side (pixels) and of a score, and how many were compared.

    Each detection of one has to be in the other: same class, the nearest box of a like score.
    Those within `SCORE` of the score `threshold` are left out, for rounding decides which of them
    are told, and where there are `most` detections those within it of the last. None: one has a
    detection that the other has not.
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


def _tell(apart: tuple[float, float, int] | None) -> str:
    if apart is None:
        return "one is missing"
    return f"a box differs by {apart[0]:.3g} pixels, a score by {apart[1]:.3g}"


def _scenes(size: int) -> list[Image]:
    source = SyntheticSource(_SCENES, "export", size)
    return [source.image(k) for k in range(len(source))]
