"""What an image file says of itself before it is decoded: its size above all.

OpenCV reads no header alone, and a few bytes can claim an image of many gigabytes. The formats
are JPEG (ITU-T T.81, annex B), PNG, BMP, TIFF 6.0 and WebP (RFC 9649).
"""

import re
import struct
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Colour: TypeAlias = Literal["grey", "rgb", "cmyk"]

SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".webp": "WebP",
}
"""Suffixes of image files, in lower case, and the formats that they name."""

# A marker in the midst of compressed data: not a stuffed 0, a restart or another fill byte.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_WITHOUT_LENGTH = (0x01, 0xD8)
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274


@dataclass(frozen=True)
class Header:
    """What a file says of its image."""

    width: int
    """Pixels as stored."""
    height: int
    """Pixels as stored."""
    colour: Colour = "rgb"
    bits: int = 8
    """Of a channel."""
    alpha: bool = False
    orientation: int = 1
    """How EXIF wants it shown: 1 as stored, 2 to 8 turned or mirrored."""
    whole: bool = True
    """False for a JPEG or PNG that ends before its image does."""
    format: str = ""
    """JPEG, PNG, BMP, TIFF or WebP."""


def read_header(data: bytes) -> Header:
    """The header of a whole image file.

    Raises:
        ValueError: it is none of JPEG, PNG, BMP, TIFF and WebP, or breaks off.
    """
    formats = {
        b"\xff\xd8\xff": ("JPEG", _jpeg),
        b"\x89PNG\r\n\x1a\n": ("PNG", _png),
        b"BM": ("BMP", _bmp),
        b"II*\0": ("TIFF", _tiff),
        b"MM\0*": ("TIFF", _tiff),
        b"RIFF": ("WebP", _webp),
    }
    for start, (name, read) in formats.items():
        if data.startswith(start):
            try:
                return replace(read(data), format=name)
            except (struct.error, IndexError, KeyError):
                raise ValueError("its header breaks off") from None
    raise ValueError("it is none of JPEG, PNG, BMP, TIFF and WebP")


def _jpeg(data: bytes) -> Header:
    frame: tuple[int, int, int, int] | None = None
    orientation, at, whole = 1, 2, False
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == _END:
            whole = True
            break
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if marker in _FRAMES and frame is None:
            frame = struct.unpack_from(">BHHB", data, at + 2)
        elif marker == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        elif marker == _SCAN and data.endswith(b"\xff\xd9"):
            whole = True  # most files end like this, and need no walk through the scans
            break
        at += length
    if frame is None:
        raise ValueError("its header breaks off")
    bits, height, width, channels = frame
    colour: Colour = "grey" if channels == 1 else "cmyk" if channels == 4 else "rgb"
    return Header(width, height, colour, bits, orientation=orientation, whole=whole)


def _png(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    alpha, orientation = bool(colour & 4), 1
    at, kind = 8, b""
    # To the end: OpenCV allocates what a chunk says of its length before it reads the chunk.
    while kind != b"IEND" and at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        alpha |= kind == b"tRNS"
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    whole = kind == b"IEND" and at <= len(data)
    return Header(width, height, "rgb" if colour & 2 else "grey", bits, alpha, orientation, whole)


def _bmp(data: bytes) -> Header:
    (kind,) = struct.unpack_from("<I", data, 14)
    # 12: OS/2's header of 16-bit numbers. A height below 0 is one of rows from the top down.
    width, height = struct.unpack_from("<HH" if kind == 12 else "<ii", data, 18)
    return Header(abs(width), abs(height))


def _tiff(data: bytes) -> Header:
    tags = _tags(data)
    photometric = tags.get(_PHOTOMETRIC, 2)
    colour: Colour = "grey" if photometric in (0, 1) else "cmyk" if photometric == 5 else "rgb"
    orientation = tags.get(_ORIENTATION, 1)
    return Header(tags[_WIDTH], tags[_HEIGHT], colour, tags.get(_BITS, 1), orientation=orientation)


def _webp(data: bytes) -> Header:
    kind, start = data[12:16], 20
    if kind == b"VP8 ":  # lossy: 3 bytes of the frame, 3 of a signature
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        return Header(width, height)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, start + 1)
        return Header(
            1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), alpha=bool(packed >> 28 & 1)
        )
    if data[8:12] != b"WEBP" or kind != b"VP8X":
        raise ValueError("it is none of JPEG, PNG, BMP, TIFF and WebP")
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    orientation, at = 1, 12
    while name := data[at : at + 4]:
        (length,) = struct.unpack_from("<I", data, at + 4)
        if name == b"EXIF":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return Header(width, height, alpha=bool(data[20] & 0x10), orientation=orientation)


def _orientation(exif: bytes) -> int:
    """1 where it is not told."""
    try:
        return _tags(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1


def _tags(data: bytes) -> dict[int, int]:
    """The whole numbers of a TIFF file's first directory; the first of several."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    tags = {}
    for k in range(count):
        entry = start + 2 + 12 * k
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        if kind not in (3, 4):  # short, long
            continue
        form = order + ("H" if kind == 3 else "I")
        at = entry + 8
        if values * struct.calcsize(form) > 4:
            (at,) = struct.unpack_from(order + "I", data, at)
        tags[tag] = struct.unpack_from(form, data, at)[0]
    return tags
