"""Headers of image files, compared with OpenCV's decoded images and with Pillow's modes."""

import contextlib
import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from ssd_jax.data.headers import Header, is_truncated, read_header
from tests.data import mutate

IMAGE = mutate.photograph()[:, :90]  # 90x80
GREY = IMAGE[..., 0]
JPEG = mutate.encode(".jpg", IMAGE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
def test_size_and_color(suffix):
    data = mutate.encode(suffix, IMAGE)
    header = read_header(data)
    assert (header.width, header.height, header.color, header.bits) == (90, 80, "rgb", 8)
    assert not is_truncated(data)
    assert not header.alpha
    assert header.orientation == 1


@pytest.mark.parametrize(
    "flags", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3]]
)
@pytest.mark.parametrize("garbage", [b"", b"\0\0\0\0", b"\xff\xd9 and more", JPEG[:300]])
def test_jpeg_variants(flags, garbage):
    """Several scans, restart markers and bytes after the end: the file is complete."""
    ok, data = cv2.imencode(".jpg", IMAGE, flags)
    assert ok
    data = data.tobytes()
    header = read_header(data + garbage)
    assert (header.width, header.height) == (90, 80)
    assert not is_truncated(data + garbage)
    for end in range(3, len(data) - 1):
        assert is_truncated(data[:end])


def test_truncated_png():
    data = mutate.encode(".png", IMAGE)
    assert not is_truncated(data + b"garbage")
    for end in range(8, len(data)):
        assert is_truncated(data[:end])


def test_webp_of_each_kind():
    ok, data = cv2.imencode(".webp", IMAGE, [cv2.IMWRITE_WEBP_QUALITY, 101])  # without loss
    assert ok
    lossless = data.tobytes()
    assert lossless[12:16] == b"VP8L"
    header = read_header(lossless)
    assert (header.width, header.height, header.alpha) == (90, 80, False)
    with_alpha = read_header(mutate.encode(".webp", np.dstack([IMAGE, GREY])))
    assert (with_alpha.width, with_alpha.height, with_alpha.alpha) == (90, 80, True)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    sides = (89).to_bytes(3, "little") + (79).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + sides
    body = b"WEBP" + extended + lossless[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    header = read_header(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert (header.width, header.height, header.orientation) == (90, 80, 3)


def test_colors_bits_and_transparency():
    assert read_header(mutate.encode(".jpg", GREY)).color == "grey"
    assert read_header(mutate.encode(".png", GREY)).color == "grey"
    assert read_header(mutate.encode(".tiff", GREY)).color == "grey"
    assert read_header(mutate.encode(".png", IMAGE.astype(np.uint16))).bits == 16
    assert read_header(mutate.encode(".tiff", IMAGE.astype(np.uint16))).bits == 16
    assert read_header(mutate.encode(".png", np.dstack([IMAGE, GREY]))).alpha
    assert read_header(mutate.png(5, 4, bits=1)) == Header(5, 4, "grey", 1, format="PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    turned = mutate.exif(JPEG, orientation)
    assert read_header(turned).orientation == orientation
    start = turned.index(b"Exif") + 6
    tiff = turned[start : start + 26]
    png = mutate.encode(".png", IMAGE)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + b"\0" * 4
    assert read_header(png[:33] + chunk + png[33:]).orientation == orientation


@pytest.mark.parametrize("data", [b"", b"GIF89a" + b"\0" * 50, b"RIFF\0\0\0\0WAVE" + b"\0" * 20])
def test_other_formats_are_rejected(data):
    with pytest.raises(ValueError, match="it is none of JPEG, PNG, BMP, TIFF and WebP"):
        read_header(data)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
def test_damaged_headers_are_rejected(suffix):
    data = mutate.encode(suffix, IMAGE)
    accepted = 0
    for end in range(64):
        with contextlib.suppress(ValueError):
            header = read_header(data[:end])
            assert (header.width, header.height) == (90, 80)
            accepted += 1
    assert accepted < 50


def test_agrees_with_pillow():

    kinds = {"grey": ("1", "L", "LA", "I;16"), "cmyk": ("CMYK",)}
    for suffix in (".jpg", ".png", ".bmp", ".tiff", ".webp"):
        for pixels in (IMAGE, GREY):
            data = mutate.encode(suffix, pixels)
            header = read_header(data)
            with Image.open(io.BytesIO(data)) as expected:
                assert expected.size == (header.width, header.height)
                if suffix not in (".bmp", ".webp"):
                    assert (expected.mode in kinds["grey"]) == (header.color == "grey")
    for mode in ("1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "I;16"):
        for form in ("JPEG", "PNG", "TIFF"):
            with io.BytesIO() as file:
                try:
                    Image.new(mode, (31, 17)).save(file, form)
                except OSError:  # not in this format
                    continue
                header = read_header(file.getvalue())
            assert (header.width, header.height) == (31, 17)
            expected = next((k for k, modes in kinds.items() if mode in modes), "rgb")
            assert header.color == expected, (mode, form)
