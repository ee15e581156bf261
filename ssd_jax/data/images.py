"""Image files: reading, checking and decoding them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ssd_jax.data.errors import DataError, Finding
from ssd_jax.data.headers import Header, is_truncated, read_header
from ssd_jax.data.types import Annotation, DataSource
from ssd_jax.io import read_bytes, read_pieces, reason

MAX_PIXELS = 64_000_000
"""Largest image that is decoded: 192 MB as RGB and 400 to 600 MB while decoding, so that six
readers stay below 4 GB."""
MAX_BYTES = 8 * MAX_PIXELS
"""Largest image file that is read: 16-bit RGBA without compression."""

_HEAD = 1 << 14  # bytes; most headers end before


class ImageFileSource(DataSource):
    """A source of image files.

    Args:
        classes: names of the classes, without background.
        files: image files.
        annotations: annotations of the same images.
    """

    def __init__(
        self,
        classes: Sequence[str],
        files: Sequence[Path],
        annotations: Sequence[Annotation],
    ) -> None:
        self.classes = tuple(classes)
        self._files = files
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Return the objects of record i without reading its image."""
        return self._annotations[i]

    def file(self, i: int) -> Path:
        """Return the image file of record i."""
        return self._files[i]

    def image(self, i: int) -> np.ndarray:
        """Return the image of record i as stored: uint8 [H, W, 3], RGB.

        An EXIF orientation is not applied: VOC's and COCO's boxes refer to the pixels as stored.

        Raises:
            DataError: the file cannot be read, or its size differs from the annotation.
        """
        return self.image_with_header(i)[1]

    def image_with_header(self, i: int) -> tuple[Header, np.ndarray]:
        """Return the header of record i's image file, and the image as of `image`."""
        file, annotation = self._files[i], self._annotations[i]
        header, image = read_image_file(file)
        height, width = image.shape[:2]
        if (width, height) != (annotation.width, annotation.height):
            raise DataError(
                Finding(
                    f"{file} has {width}x{height} pixels as stored and its annotation says "
                    f"{annotation.width}x{annotation.height}",
                    "fix the size there, or, if the boxes were drawn on a rotated photograph, "
                    "save the image rotated",
                    kind="image_size",
                    file=file,
                    record=annotation.image_id,
                )
            )
        return header, image


def read_image_file(file: Path) -> tuple[Header, np.ndarray]:
    """Read and decode an image file; see `decode_image`.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    return decode_image(_read(file), file)


def read_image_size(file: Path) -> tuple[int, int]:
    """Return width and height (pixels as stored) of an image file without decoding it.

    The start of the file is read, and the rest only if the header is longer.

    Raises:
        DataError: the file cannot be read, or its header shows that it cannot be decoded.
    """
    try:
        with contextlib.closing(read_pieces(file, MAX_BYTES, size=_HEAD)) as pieces:
            header = read_header(next(pieces, b""))
    except OSError as error:
        raise _unusable(file, f"cannot be read ({reason(error)})") from None
    except ValueError:
        header = _check_header(_read(file), file)
    _check_pixels(header, file)
    return header.width, header.height


def is_opaque(file: Path) -> bool:
    """Return whether the alpha channel of an image file is opaque everywhere.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        image = cv2.imdecode(np.frombuffer(_read(file), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return False
    if image is None or image.ndim < 3 or image.shape[2] != 4 or image.dtype.kind != "u":
        return False
    return int(image[..., 3].min()) == (1 << 8 * image.itemsize) - 1


def decode_image(data: bytes, file: Path) -> tuple[Header, np.ndarray]:
    """Decode an image as stored, without applying its EXIF orientation.

    Grey and CMYK become RGB, 16 bits become 8, and transparency is dropped.

    Args:
        data: the encoded image.
        file: name of the file, for error messages.

    Returns:
        The header, and the image: uint8 [H, W, 3], RGB.

    Raises:
        DataError: the image cannot be decoded, is truncated, or has more than MAX_PIXELS.
    """
    header = _check_header(data, file)
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        image = None
    if image is None:
        raise _unusable(file, "is not an image that can be decoded")
    return header, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file, MAX_BYTES)
    except OSError as error:
        raise _unusable(file, f"cannot be read ({reason(error)})") from None


def _check_header(data: bytes, file: Path) -> Header:
    """Return the header. Raise DataError if it shows that the image cannot be used."""
    # OpenCV allocates the length that a PNG chunk claims before it reads the chunk.
    if is_truncated(data):
        raise _unusable(file, "ends before its image does: it is truncated", "truncated_image")
    try:
        header = read_header(data)
    except ValueError as error:
        raise _unusable(file, f"is not an image that can be decoded ({error})") from None
    _check_pixels(header, file)
    return header


def _check_pixels(header: Header, file: Path) -> None:
    if header.width * header.height > MAX_PIXELS:
        raise DataError(
            Finding(
                f"{file} has {header.width}x{header.height} pixels; at most {MAX_PIXELS:,} are "
                "supported",
                "reduce it, or cut it into tiles",
                kind="huge_image",
                file=file,
            )
        )


def _unusable(file: Path, problem: str, kind: str = "unreadable_image") -> DataError:
    return DataError(Finding(f"{file} {problem}", "replace or remove it", kind=kind, file=file))
