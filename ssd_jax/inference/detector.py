"""A trained detector: images of any size in, boxes in their pixels out.

>>> detector = Detector.from_checkpoint("runs/quickstart")
>>> (found,) = detector("photo.jpg")
>>> drawn = found.draw(read_image("photo.jpg"))
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import jax
import numpy as np

from ssd_jax.checkpoints.reader import find_checkpoint, read_config, restore_model
from ssd_jax.config import Config, EvalConfig
from ssd_jax.data.augmentation import preprocess_eval
from ssd_jax.data.errors import DataError
from ssd_jax.data.images import decode_image, read_image_file
from ssd_jax.distributed import use_compilation_cache
from ssd_jax.inference.detect import Variables, make_detect
from ssd_jax.inference.drawing import Array, Image, draw_boxes, resize
from ssd_jax.io import reason
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.models.ssd import SSD

ImageLike: TypeAlias = Any
"""Image as arrays of NumPy or JAX or PIL hold it (uint8 [H, W, 3], RGB), the bytes of an image file
or the path of one."""

_KINDS = "an array, a PIL image, the path of an image file or its bytes"


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, by falling score."""

    boxes: Array
    """float32 [n, 4], xyxy in continuous pixels of the image, inside it: 0 is its left or upper
    edge, its width or height the other."""
    scores: Array
    """float32 [n], 0 to 1."""
    labels: Array
    """int32 [n]; label k is names[k]: background has none."""
    names: tuple[str, ...]
    """Names of the classes."""

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, kept: Array) -> "Detections":
        """Those that `kept`, bool [n] or indices, chooses."""
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept]
        )

    def draw(self, image: Image, *, factor: float = 1.0) -> Image:
        """The image, `factor` times as wide and high, with a frame, name and score on each box."""
        if factor != 1:
            image = resize(image, factor)
        return draw_boxes(image, self.boxes * factor, self.labels + 1, self.names, self.scores)

    def to_supervision(self) -> dict[str, Any]:
        """The arguments of `supervision.Detections`: `sv.Detections(**found.to_supervision())`."""
        return {
            "xyxy": self.boxes,
            "confidence": self.scores,
            "class_id": self.labels.astype(int),
            "data": {"class_name": np.array([self.names[k] for k in self.labels], dtype=str)},
        }


class Detector:
    """A network ready to detect; two programs are compiled at most, each when first used.

    Args:
        model: the network.
        config: that it was trained with. Of `config.eval` everything counts but the threshold and
            the size of a batch.
        variables: its parameters and batch statistics.
        batch_size: images detected at once; a list that does not divide by it is filled up. An
            image that is given alone has a program of its own.
        threshold: score above which a detection is told, unless a call says otherwise.
    """

    def __init__(
        self,
        model: SSD,
        config: Config,
        variables: Variables,
        *,
        batch_size: int = 8,
        threshold: float = 0.5,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use 1 or more")
        self.names = config.model.classes
        self.batch_size = batch_size
        self.threshold = _check_threshold(threshold)
        self._size = config.model.image_size
        # A score never touches what is found above it, neither in suppression nor in what is kept
        # of an image. So one program without a threshold serves every threshold.
        detection: EvalConfig = replace(config.eval, score_threshold=0.0)
        self._detect = make_detect(model, replace(config, eval=detection))
        self._variables = self._detect.prepare(variables)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, batch_size: int = 8, threshold: float = 0.5
    ) -> Self:
        """The detector of a run (its newest checkpoint) or of one of its checkpoints/STEP.

        What is compiled is kept in ~/.cache/ssd_jax for the next start, unless JAX has been told
        another folder or `jax_enable_compilation_cache` is off.

        Raises ConfigError where there is no checkpoint, CheckpointError where it is damaged.
        """
        use_compilation_cache()
        checkpoint = find_checkpoint(Path(path), field="path")
        config = read_config(checkpoint)
        set_cpu_conv(config.runtime.cpu_conv)
        model, variables = restore_model(checkpoint, config)
        return cls(model, config, variables, batch_size=batch_size, threshold=threshold)

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        threshold: float | None = None,
    ) -> list[Detections]:
        """The detections of each image, a list also for one.

        Args:
            images: one or several, of any size. An array of NumPy, JAX or PyTorch is uint8
                [H, W, 3], RGB; four dimensions are several images. A PIL image counts as its
                pixels are stored. A path or the bytes of an image file are read as by
                `read_image`, files as their batch comes.
            threshold: score above which a detection is told; None: the detector's.

        Raises:
            TypeError: an image of another kind.
            ValueError: an array of another type or shape.
            DataError: a file or bytes that cannot be read.
        """
        least = self.threshold if threshold is None else _check_threshold(threshold)
        if _is_one(images):
            return self._detect_batch([images], 1, least)
        if not isinstance(images, Iterable) or isinstance(images, Mapping | AbstractSet):
            raise TypeError(f"images is {_kind(images)}; give {_KINDS}, or a list of them")
        several = list(np.asarray(images) if _is_array(images) else images)
        found = []
        for start in range(0, len(several), self.batch_size):
            batch = several[start : start + self.batch_size]
            found += self._detect_batch(batch, self.batch_size, least)
        return found

    def compile(self) -> None:
        """Compile the program for lists of images, which their first batch does otherwise."""
        black = np.zeros((1, 1, 3), np.uint8)
        self._detect_batch([black], self.batch_size, self.threshold)

    def _detect_batch(
        self, images: Sequence[ImageLike], size: int, threshold: float
    ) -> list[Detections]:
        """The detections of at most `size` images by the program for that many."""
        inputs = np.zeros((size, self._size, self._size, 3), np.uint8)
        sides = []
        for k, given in enumerate(images):
            image = _as_image(given)
            inputs[k] = preprocess_eval(image, self._size)
            sides.append((image.shape[1], image.shape[0]))
        found = jax.device_get(self._detect(self._variables, inputs))
        results = []
        for k, (width, height) in enumerate(sides):
            limits = np.array([width, height] * 2, np.float64)
            boxes = np.clip(found.boxes[k].astype(np.float64) * limits, 0, limits)
            told = found.scores[k] > threshold  # a padded row has score 0
            results.append(
                Detections(
                    boxes=boxes[told].astype(np.float32),
                    scores=found.scores[k][told],
                    labels=found.labels[k][told] - 1,
                    names=self.names,
                )
            )
        return results


def read_image(path: str | Path) -> Image:
    """The image of a file, uint8 [H, W, 3], RGB, upright: turned as its EXIF wants it shown.

    A data set's images are not turned, for boxes count there for the pixels as stored. JPEG, PNG,
    BMP, TIFF and WebP are read; grey and CMYK become RGB, 16 bits 8, and transparency is dropped.

    Raises:
        DataError: it cannot be read or was cut off.
    """
    header, image = read_image_file(Path(path))
    return turn_upright(image, header.orientation)


def turn_upright(image: Image, orientation: int) -> Image:
    """An image as it is to be shown, by the number that EXIF 2.32 has for it (4.6.4, Orientation).

    orientation: 1 as stored, 3 after half a turn, 6 after a quarter with the clock, 8 after one
    against it; 2, 4, 5 and 7 are mirrored. Other numbers change nothing.
    """
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _is_one(given: object) -> bool:
    """Whether it is an image, of the right kind or not, and no series of them."""
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    return _is_array(given) and getattr(given, "ndim", 3) != 4  # PIL's images have no ndim


def _is_array(given: object) -> bool:
    # Of the type: PIL would decode the image for the attribute of the object.
    return hasattr(type(given), "__array__") or hasattr(type(given), "__array_interface__")


def _as_image(given: ImageLike) -> Image:
    if isinstance(given, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", given):
        raise TypeError(f"an image is the address {given}; download it and give {_KINDS}")
    if isinstance(given, str | os.PathLike):
        return read_image(Path(given))
    if isinstance(given, bytes | bytearray | memoryview):
        header, image = decode_image(bytes(given), Path(f"{len(given)} bytes given"))
        return turn_upright(image, header.orientation)
    if _is_pil(given):
        # Wider numbers than bytes would be cut off, not scaled.
        if given.mode.startswith(("I", "F")):
            raise ValueError(f"an image is PIL's of mode {given.mode}; convert it to RGB")
        try:
            given = given.convert("RGB")
        except OSError as error:  # its file is read now
            raise DataError(f"a PIL image cannot be read ({reason(error)})") from None
    if not _is_array(given):
        raise TypeError(f"an image is {_kind(given)}; give {_KINDS}")
    image = np.asarray(given)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image is {image.dtype} {list(image.shape)}; give uint8 [height, width, 3], RGB"
        )
    return image


def _is_pil(given: object) -> bool:
    """Whether it is a PIL image; PIL itself is not needed."""
    return any(kind.__module__ == "PIL.Image" for kind in type(given).__mro__)


def _kind(given: object) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"


def _check_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; use a number from 0 to 1")
    return threshold
