"""Checkpoints offered by the demo app and their detections in an uploaded image."""

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_jax.config import ConfigError, UserError
from ssd_jax.data.images import decode_image
from ssd_jax.inference.detector import Detections, Detector, turn_upright
from ssd_jax.inference.drawing import Image, resize
from ssd_jax.io import is_file
from ssd_jax.weights.trained import find_trained, read_trained_config

_MIN_SIDE, _MAX_SIDE = 800, 1600  # longer side of the displayed image in pixels


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Detections in an uploaded image at every threshold.

    Attributes:
        file_name: name of the uploaded file.
        width: of the image in pixels.
        height: of the image in pixels.
        display_image: the image, resized for display.
        scale: size of `display_image` relative to the image.
        detections: all detections with a score above 0, in pixels of the image.
    """

    file_name: str
    width: int
    height: int
    display_image: Image
    scale: float
    detections: Detections

    def filter(self, threshold: float, classes: Collection[str] = ()) -> Detections:
        """Select the detections above a score, as `Detector(image, threshold=threshold)` does.

        Args:
            threshold: score, 0 to 1.
            classes: names of the classes to keep; empty: all.
        """
        keep = self.detections.scores > threshold
        if classes:
            labels = [self.detections.names.index(name) for name in classes]
            keep &= np.isin(self.detections.labels, labels)
        return self.detections.select(keep)


class LazyDetector:
    """Detector of a checkpoint, loaded and compiled once, when first used.

    Raises:
        UserError: the config of the checkpoint cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.names = read_trained_config(checkpoint).model.classes
        self._lock = threading.Lock()
        self._detector: Detector | None = None

    def load(self) -> Detector:
        """Return the detector; simultaneous callers wait for the first one to load it.

        Raises:
            UserError: the checkpoint cannot be read or no longer exists.
        """
        with self._lock:
            if self._detector is None:
                detector = Detector.from_checkpoint(self.checkpoint)
                detector(np.zeros((1, 1, 3), np.uint8))  # compiles
                self._detector = detector
            return self._detector

    def detect(self, file: Path) -> DemoResult:
        """Detect objects in an image file, read as by `ssd_jax.inference.detector.load_image`.

        Raises:
            UserError: the file or the checkpoint cannot be read. The message contains the file's
                name but not its folder on the server.
        """
        try:
            data = file.read_bytes()
        except OSError:
            raise UserError(f"{file.name} is no longer on the server; upload it again") from None
        detector = self.load()
        header, stored_image = decode_image(data, Path(file.name))
        image = turn_upright(stored_image, header.orientation)
        height, width = image.shape[:2]
        longer_side = max(width, height)
        scale = min(max(1.0, _MIN_SIDE / longer_side), _MAX_SIDE / longer_side)
        detections = detector(image, threshold=0.0)
        return DemoResult(file.name, width, height, resize(image, scale), scale, detections)


def find_detectors(sources: Sequence[str | Path], *, best: bool = False) -> dict[str, LazyDetector]:
    """Find trained networks; return their detectors by display name, without duplicates.

    Args:
        sources: see `ssd_jax.weights.trained.find_trained`; or folders of runs.
        best: whether to use the best checkpoint of a run.

    Raises:
        UserError: a source has no checkpoint, or the weights cannot be downloaded.
    """
    checkpoints = dict.fromkeys(
        checkpoint.absolute() for source in sources for checkpoint in _find_all(source, best)
    )
    counts = Counter(map(_display_name, checkpoints))
    return {
        name if counts[name] == 1 else f"{name} ({checkpoint})": LazyDetector(checkpoint)
        for name, checkpoint in zip(map(_display_name, checkpoints), checkpoints, strict=True)
    }


def _find_all(source: str | Path, best: bool) -> list[Path]:
    try:
        return [find_trained(source, best=best)]
    except ConfigError:
        path, checkpoints = Path(source), []
        for run in sorted(path.iterdir()) if path.is_dir() else ():
            if (run / "checkpoints").is_dir():
                with contextlib.suppress(ConfigError):  # a run without a checkpoint yet
                    checkpoints.append(find_trained(run, best=best))
        if not checkpoints:
            raise
        return checkpoints


def _display_name(checkpoint: Path) -> str:
    if is_file(checkpoint):
        return checkpoint.stem
    folder = checkpoint.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return f"{run.name}, step {checkpoint.name}"
