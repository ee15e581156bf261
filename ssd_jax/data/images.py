"""Records whose images are files: annotations are known, an image is read when asked for."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ssd_jax.data.errors import DataError, reason
from ssd_jax.data.headers import Header, read_header
from ssd_jax.data.types import Annotation, Example, to_example
from ssd_jax.io import read_bytes

MAX_PIXELS = 64_000_000
"""Largest image that is decoded: 192 MB as RGB and 400 to 600 MB on the way, so that six readers
stay below 4 GB."""
MAX_BYTES = 8 * MAX_PIXELS
"""Largest image file that is read: 16-bit RGBA without compression."""


class ImageFileSource:
    """A source of image files.

    Args:
        classes: names of the classes, without background.
        files: of the images.
        annotations: of the same images.
        set_aside: one line for each object that is in none of the annotations.
    """

    def __init__(
        self,
        classes: Sequence[str],
        files: Sequence[Path],
        annotations: Sequence[Annotation],
        set_aside: Sequence[str],
    ) -> None:
        self.classes = tuple(classes)
        self.set_aside = tuple(set_aside)
        self._files = files
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading its image."""
        return self._annotations[i]

    def file(self, i: int) -> Path:
        """The image file of record i."""
        return self._files[i]

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB, as it is stored.

        An EXIF orientation is not applied: VOC's and COCO's boxes are for the pixels as stored.

        Raises:
            DataError: the file cannot be read, or its size is not the annotation's.
        """
        return self.picture(i)[1]

    def picture(self, i: int) -> tuple[Header, np.ndarray]:
        """What the file of record i says of itself, and its image as of `image`."""
        file, known = self._files[i], self._annotations[i]
        header, image = read_picture(file)
        height, width = image.shape[:2]
        if (width, height) != (known.width, known.height):
            raise DataError(
                f"{file} has {width}x{height} pixels as stored and its annotation says "
                f"{known.width}x{known.height}",
                "fix the size there, or, where the boxes were drawn on a turned photograph, "
                "save the image turned",
                kind="image_size",
                file=file,
                record=known.image_id,
            )
        return header, image

    def __getitem__(self, i: int) -> Example:
        return to_example(self._annotations[i], self.image(i))


def read_picture(file: Path) -> tuple[Header, np.ndarray]:
    """What a file says of itself, and its image as of `decode_picture`.

    Raises:
        DataError: the file cannot be read; as for `decode_picture`.
    """
    return decode_picture(_read(file), file)


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height of a file's image (pixels as stored), which is not decoded.

    Raises:
        DataError: the file cannot be read; as for `decode_picture`, as far as a header tells.
    """
    header = _usable_header(_read(file), file)
    return header.width, header.height


def is_opaque(file: Path) -> bool:
    """Whether the alpha channel of an image file hides nothing.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        image = cv2.imdecode(np.frombuffer(_read(file), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return False
    if image is None or image.ndim < 3 or image.shape[2] != 4 or image.dtype.kind != "u":
        return False
    alpha = image[..., 3]
    return int(alpha.min()) == (1 << 8 * alpha.itemsize) - 1


def decode_picture(data: bytes, file: Path) -> tuple[Header, np.ndarray]:
    """What an image file says of itself, and its image: uint8 [H, W, 3], RGB, as stored.

    Grey and CMYK become RGB, 16 bits become 8, and transparency is dropped.

    Args:
        data: what is in the file.
        file: its name, for the errors.

    Raises:
        DataError: it cannot be decoded, was cut off, or has more than MAX_PIXELS.
    """
    header = _usable_header(data, file)
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        image = None
    if image is None:
        raise _not_decoded(file)
    return header, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file, MAX_BYTES)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({reason(error)})",
            "replace or remove it",
            kind="unreadable_image",
            file=file,
        ) from None


def _usable_header(data: bytes, file: Path) -> Header:
    """Raises DataError where the header tells already that the image cannot be used."""
    try:
        header = read_header(data)
    except ValueError as error:
        raise _not_decoded(file, f" ({error})") from None
    if header.width * header.height > MAX_PIXELS:
        raise DataError(
            f"{file} has {header.width}x{header.height} pixels and {MAX_PIXELS:,} is the most",
            "make it smaller, or cut it into tiles",
            kind="huge_image",
            file=file,
        )
    if not header.whole:
        raise DataError(
            f"{file} ends before its image does: it was cut off",
            "replace or remove it",
            kind="truncated_image",
            file=file,
        )
    return header


def _not_decoded(file: Path, why: str = "") -> DataError:
    return DataError(
        f"{file} is not an image that can be decoded{why}",
        "replace or remove it",
        kind="unreadable_image",
        file=file,
    )
