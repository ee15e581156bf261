"""Python API: a trained detector for images of any size.

Examples:
    >>> detector = Detector.from_pretrained("ssd300-vgg16-coco")
    >>> detections = detector("photo.jpg")
    >>> drawn = detections.draw(load_image("photo.jpg"))
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, overload

import jax
import numpy as np
import PIL.Image

from ssd_jax.config import Config
from ssd_jax.data.augmentation import preprocess_eval
from ssd_jax.data.errors import DataError
from ssd_jax.data.images import decode_image, read_image_file
from ssd_jax.distributed import use_compilation_cache
from ssd_jax.inference.detect import DetectFn, Variables, to_pixels
from ssd_jax.inference.drawing import Array, Image, draw_boxes, resize
from ssd_jax.io import reason
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.models.ssd import SSD
from ssd_jax.weights import hub
from ssd_jax.weights.download import fetch
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.exporters import export_arrays
from ssd_jax.weights.files import write_arrays
from ssd_jax.weights.registry import find_entry
from ssd_jax.weights.trained import find_trained, read_trained_config, restore_trained


class SupportsArray(Protocol):
    """An array of NumPy, JAX or PyTorch."""

    def __array__(self) -> np.ndarray:
        """Return the array as NumPy's."""


ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | SupportsArray
)
"""An image: a NumPy, JAX or PyTorch array or a PIL image (uint8 [H, W, 3], RGB), the bytes of an
image file, or its path."""

_PATHS = (str, os.PathLike)
_BYTES = (bytes, bytearray, memoryview)
_KINDS = "an array, a PIL image, the path of an image file or its bytes"


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in one image, in descending order of score."""

    boxes: Array
    """float32 [n, 4], xyxy in continuous pixels, clipped to the image: 0 is its left or upper edge,
    its width or height the opposite one."""
    scores: Array
    """float32 [n], 0 to 1."""
    labels: Array
    """int32 [n], class ids: label k is names[k]. Background has none."""
    names: tuple[str, ...]
    """Names of the classes."""

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Array) -> "Detections":
        """Return the detections that a mask, bool [n], or indices select."""
        return replace(
            self, boxes=self.boxes[rows], scores=self.scores[rows], labels=self.labels[rows]
        )

    def draw(self, image: Image, *, factor: float = 1.0) -> Image:
        """Draw the boxes with names and scores on the image, enlarged by `factor`."""
        if factor != 1:
            image = resize(image, factor)
        return draw_boxes(image, self.boxes * factor, self.labels, self.names, self.scores)

    def to_supervision(self) -> dict[str, Any]:
        """Return the arguments of `supervision.Detections`.

        >>> sv.Detections(**detections.to_supervision())
        """
        return {
            "xyxy": self.boxes,
            "confidence": self.scores,
            "class_id": self.labels.astype(int),
            "data": {"class_name": np.array([self.names[k] for k in self.labels], dtype=str)},
        }


class Detector:
    """A network ready for detection.

    At most two programs are compiled, each when it is first used: one for single images and one
    for lists.

    Args:
        model: the network.
        config: of its training. Its `eval` section applies, except for the score threshold and the
            batch size.
        variables: parameters and batch statistics.
        batch_size: number of images of a list that are detected at once; the last batch is padded.
        threshold: default score threshold; detections have higher scores.
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
        self.config = config
        self._image_size = config.model.image_size
        # Lower-scoring boxes never affect higher-scoring ones, so one compiled program without a
        # threshold serves every threshold.
        config = replace(config, eval=replace(config.eval, score_threshold=0.0))
        self._detect = DetectFn(model, config)
        self._variables = self._detect.prepare(variables)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, batch_size: int = 8, threshold: float = 0.5
    ) -> Self:
        """Load a trained network.

        Compiled programs are cached in ~/.cache/ssd_jax, unless another cache folder is set in JAX
        or `jax_enable_compilation_cache` is off.

        Args:
            path: a run (its newest checkpoint), one of its checkpoints/STEP, a file of weights, or
                what `from_pretrained` takes.
            batch_size: see `Detector`.
            threshold: see `Detector`.

        Raises:
            ConfigError: no checkpoint found.
            CheckpointError: the checkpoint is damaged.
            WeightsError: the file cannot be read or downloaded.
        """
        use_compilation_cache()
        checkpoint = find_trained(path, field="path")
        config = read_trained_config(checkpoint)
        set_cpu_conv(config.runtime.cpu_conv)
        model, variables = restore_trained(checkpoint, config)
        return cls(model, config, variables, batch_size=batch_size, threshold=threshold)

    @classmethod
    def from_pretrained(cls, name: str, *, batch_size: int = 8, threshold: float = 0.5) -> Self:
        """Load published weights, which are downloaded and verified when they are first used.

        Args:
            name: of the weights, see `ssd-jax weights list`; or hf://USER/REPO for a detector on
                the Hugging Face Hub.
            batch_size: see `Detector`.
            threshold: see `Detector`.

        Raises:
            WeightsError: the name is unknown, or the weights cannot be downloaded.
        """
        source = name if name.startswith(hub.PREFIX) else fetch(find_entry(name))
        return cls.from_checkpoint(source, batch_size=batch_size, threshold=threshold)

    def save(self, path: str | Path) -> None:
        """Save the detector as one safetensors file, with its config, classes and priors.

        Everything that takes a checkpoint takes the file.

        Args:
            path: new file that ends in .safetensors.

        Raises:
            WeightsError: the file exists, has another suffix or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise WeightsError(f"path: {path} must end in .safetensors")
        arrays = export_arrays(self.config, jax.device_get(self._variables), "safetensors")
        write_arrays(path, arrays.values, arrays.metadata, field="path")

    # A path is an iterable of strings, too.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageLike, *, threshold: float | None = None
    ) -> Detections: ...

    @overload
    def __call__(
        self, images: Iterable[ImageLike], *, threshold: float | None = None
    ) -> list[Detections]: ...

    def __call__(
        self, images: Any, *, threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Detect objects in images of any size.

        Args:
            images: an image, or an iterable of images. A NumPy, JAX or PyTorch array is uint8
                [H, W, 3], RGB; an array [N, H, W, 3] counts as an iterable, but is typed as one
                image. A PIL image is used as its pixels are stored.
                Files and bytes are read as by `load_image`, one batch at a time.
            threshold: score threshold of this call; None: the detector's.

        Returns:
            The detections of the image, or a list with those of each image.

        Raises:
            TypeError: an image has an unsupported type.
            ValueError: an array has an unsupported dtype or shape.
            DataError: a file or bytes cannot be read.
        """
        threshold = self.threshold if threshold is None else _check_threshold(threshold)
        if _is_single(images):
            (detections,) = self._detect_batch([images], 1, threshold)
            return detections
        if not isinstance(images, Iterable) or isinstance(images, Mapping | AbstractSet):
            raise TypeError(f"images is {_type_name(images)}; give {_KINDS}, or a list of them")
        images = list(np.asarray(images) if hasattr(images, "__array__") else images)
        results = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            results += self._detect_batch(batch, self.batch_size, threshold)
        return results

    def compile(self) -> None:
        """Compile the program for lists of images now rather than with the first list."""
        self._detect_batch([np.zeros((1, 1, 3), np.uint8)], self.batch_size, self.threshold)

    def _detect_batch(
        self, images: Sequence[ImageLike], batch_size: int, threshold: float
    ) -> list[Detections]:
        """Detect objects in up to `batch_size` images."""
        inputs = np.zeros((batch_size, self._image_size, self._image_size, 3), np.uint8)
        sizes = []
        for k, image in enumerate(images):
            pixels = _to_array(image)
            inputs[k] = preprocess_eval(pixels, self._image_size)
            sizes.append((pixels.shape[1], pixels.shape[0]))
        batch = jax.device_get(self._detect(self._variables, inputs))
        results = []
        for k, (width, height) in enumerate(sizes):
            boxes, scores, labels = to_pixels(batch, k, width, height)
            detections = Detections(boxes.astype(np.float32), scores, labels, self.names)
            results.append(detections.select(scores > threshold))
        return results


def load_image(path: str | Path) -> Image:
    """Read an image file upright, as its EXIF orientation says; uint8 [H, W, 3], RGB.

    Images of datasets are not rotated, as their boxes refer to the pixels as stored. JPEG, PNG,
    BMP, TIFF and WebP are supported; grey and CMYK become RGB, 16 bits 8, and transparency is
    dropped.

    Raises:
        DataError: the file cannot be read or is truncated.
    """
    header, image = read_image_file(Path(path))
    return turn_upright(image, header.orientation)


def turn_upright(image: Image, orientation: int) -> Image:
    """Rotate and mirror an image for display.

    Args:
        image: as stored, [H, W, 3].
        orientation: number of EXIF 2.32 (4.6.4, Orientation): 1 as stored, 3 rotated by half a
            turn, 6 by a quarter clockwise, 8 by a quarter counterclockwise; 2, 4, 5 and 7 are
            mirrored. Other numbers have no effect.
    """
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _is_single(images: Any) -> bool:
    """Return true for one image, of a supported type or not, rather than a series."""
    if isinstance(images, (*_PATHS, *_BYTES, PIL.Image.Image)):
        return True
    return hasattr(images, "__array__") and np.ndim(images) != 4


def _to_array(image: ImageLike) -> Image:
    """Convert an image to uint8 [H, W, 3], RGB."""
    if isinstance(image, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", image):
        raise TypeError(f"an image is the address {image}; download it and give {_KINDS}")
    if isinstance(image, _PATHS):
        return load_image(Path(image))
    if isinstance(image, _BYTES):
        header, pixels = decode_image(bytes(image), Path(f"image of {len(image)} bytes"))
        return turn_upright(pixels, header.orientation)
    if isinstance(image, PIL.Image.Image):
        # More than 8 bits would be truncated, not scaled.
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"a PIL image has mode {image.mode}; convert it to RGB")
        try:
            image = np.asarray(image.convert("RGB"))
        except OSError as error:  # PIL reads the file only now
            raise DataError(f"a PIL image cannot be read ({reason(error)})") from None
    if not hasattr(image, "__array__"):
        raise TypeError(f"an image is {_type_name(image)}; give {_KINDS}")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(
            f"an image is {pixels.dtype} {list(pixels.shape)}; give uint8 [height, width, 3], RGB"
        )
    return pixels


def _type_name(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _check_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; use a number from 0 to 1")
    return threshold
