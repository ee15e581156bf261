"""Frames of videos and cameras in and out, by OpenCV."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import cv2

from ssd_jax.inference.drawing import Image

_DEFAULT_FPS = 25.0


def read_frames(capture: Any) -> Iterator[Image]:
    """Read RGB frames from a cv2.VideoCapture, which applies the rotation of the file."""
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoWriter:
    """Writer of an MP4 file, which appears when it is complete and has a frame.

    Args:
        path: the file.
        fps: frames per second; 25 if it is not a number from 0 to 1000.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _DEFAULT_FPS
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, image: Image) -> None:
        """Add an RGB frame; the first one determines the size of the video."""
        if self._writer is None:
            self._size = image.shape[1], image.shape[0]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._part), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write the video {self._path}")
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size)  # type: ignore[assignment]
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
            if kind is None:
                self._part.replace(self._path)
        self._part.unlink(missing_ok=True)
