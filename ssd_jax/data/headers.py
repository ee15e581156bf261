"""Headers of image files, read by Pillow without decoding the image.

OpenCV decodes but reads no header alone, and a few bytes can claim an image of many gigabytes.
PNG is read here: Pillow rejects files whose metadata are damaged, which OpenCV decodes.
"""

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Color: TypeAlias = Literal["grey", "rgb", "cmyk"]

SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".webp": "WebP",
}
"""Lower-case suffixes of image files and their formats."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Pillow's classes are used directly: `Image.open` warns or fails at large images.
_READERS: dict[bytes, tuple[str, type[ImageFile]]] = {
    _JPEG: ("JPEG", JpegImageFile),
    b"BM": ("BMP", BmpImageFile),
    b"II*\0": ("TIFF", TiffImageFile),
    b"MM\0*": ("TIFF", TiffImageFile),
    b"RIFF": ("WebP", WebPImageFile),
}
_GREY_MODES = {"1", "L", "La", "LA", "I", "F", "I;16", "I;16L", "I;16B"}
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # tags of TIFF and EXIF
# A marker amid compressed data: not a stuffed 0, a restart marker or a fill byte.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKERS_WITHOUT_LENGTH = (0x01, 0xD8)
_WARNINGS = threading.Lock()


@dataclass(frozen=True)
class Header:
    """Properties of an encoded image."""

    width: int
    """Pixels as stored."""
    height: int
    """Pixels as stored."""
    color: Color = "rgb"
    bits: int = 8
    """Bits per channel."""
    alpha: bool = False
    orientation: int = 1
    """EXIF orientation: 1 as stored, 2 to 8 rotated or mirrored."""
    format: str = ""
    """JPEG, PNG, BMP, TIFF or WebP."""


def read_header(data: bytes) -> Header:
    """Read the header of an encoded image.

    Raises:
        ValueError: the format is none of JPEG, PNG, BMP, TIFF and WebP, or the header is damaged.
    """
    # Pillow warns about damaged metadata; the warning filters belong to all threads.
    with _WARNINGS, warnings.catch_warnings(action="ignore"):
        if data.startswith(_PNG):
            return _read_png(data)
        for signature, (name, reader) in _READERS.items():
            if data.startswith(signature) and (signature != b"RIFF" or data[8:12] == b"WEBP"):
                return _read_with_pillow(data, name, reader)
    raise ValueError("it is none of JPEG, PNG, BMP, TIFF and WebP")


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG ends before its image does; False for other formats."""
    if data.startswith(_JPEG):
        return not _has_end_of_image(data)
    if data.startswith(_PNG):
        return not any(kind == b"IEND" for kind, _ in _png_chunks(data))
    return False


def _has_end_of_image(jpeg: bytes) -> bool:
    at = 2
    while marker := _MARKER.search(jpeg, at):
        code, at = jpeg[marker.end() - 1], marker.end()
        # Most files end with the marker and need no walk through the scans.
        if code == _END_OF_IMAGE or (code == _START_OF_SCAN and jpeg.endswith(b"\xff\xd9")):
            return True
        if code not in _MARKERS_WITHOUT_LENGTH:
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return False


def _read_with_pillow(data: bytes, name: str, reader: type[ImageFile]) -> Header:
    bits = 8
    color: Color = "rgb"
    try:
        image = reader(io.BytesIO(data))
        orientation = _exif_orientation(image.info.get("exif", b""))
        if isinstance(image, TiffImageFile):
            bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]
            orientation = image.tag_v2.get(_ORIENTATION, 1)
    except Exception:  # Pillow does not document which errors it raises
        raise ValueError(f"its {name} header is damaged") from None
    if image.mode in _GREY_MODES:
        color = "grey"
    elif image.mode == "CMYK":
        color = "cmyk"
    return Header(*image.size, color, bits, image.has_transparency_data, orientation, name)


def _read_png(data: bytes) -> Header:
    chunks = {bytes(kind): body for kind, body in _png_chunks(data)}
    try:
        width, height, bits, color_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    except (KeyError, struct.error):
        raise ValueError("its PNG header is damaged") from None
    return Header(
        width,
        height,
        "rgb" if color_type & 2 else "grey",
        bits,
        alpha=bool(color_type & 4) or b"tRNS" in chunks,
        orientation=_exif_orientation(bytes(chunks.get(b"eXIf", b""))),
        format="PNG",
    )


def _exif_orientation(data: bytes) -> int:
    """Return the orientation in EXIF data; 1 if it is absent or cannot be read."""
    if not data:
        return 1
    exif = Exif()
    try:
        exif.load(data)
        orientation = exif.get(_ORIENTATION, 1)
    except Exception:  # Pillow does not document which errors it raises
        return 1
    return orientation if isinstance(orientation, int) else 1


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the type and the content of each complete chunk up to IEND."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        kind = data[at + 4 : at + 8]
        yield kind, view[at + 8 : at + 8 + length]
        at += 12 + length
