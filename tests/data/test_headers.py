"""Headers of image files, against what OpenCV decodes and, where it is installed, Pillow."""

import contextlib
import io
import struct

import cv2
import numpy as np
import pytest

from ssd_jax.data.headers import Header, read_header
from tests.data import mutate

IMAGE = mutate.photograph()[:, :90]  # 90x80
GREY = IMAGE[..., 0]
JPEG = mutate.encode(".jpg", IMAGE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
def test_sizes(suffix):
    header = read_header(mutate.encode(suffix, IMAGE))
    assert (header.width, header.height, header.colour, header.bits) == (90, 80, "rgb", 8)
    assert header.whole
    assert not header.alpha
    assert header.orientation == 1


@pytest.mark.parametrize(
    "flags", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3]]
)
@pytest.mark.parametrize("garbage", [b"", b"\0\0\0\0", b"\xff\xd9 and more", JPEG[:300]])
def test_kinds_of_jpeg(flags, garbage):
    """Several scans, restart markers, and what is behind the end: the file is whole."""
    ok, data = cv2.imencode(".jpg", IMAGE, flags)
    assert ok
    data = data.tobytes()
    header = read_header(data + garbage)
    assert (header.width, header.height, header.whole) == (90, 80, True)
    for end in range(data.index(b"\xff\xda"), len(data) - 1):
        assert not read_header(data[:end]).whole


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


def test_colours_bits_and_transparency():
    assert read_header(mutate.encode(".jpg", GREY)).colour == "grey"
    assert read_header(mutate.encode(".png", GREY)).colour == "grey"
    assert read_header(mutate.encode(".tiff", GREY)).colour == "grey"
    assert read_header(mutate.encode(".png", IMAGE.astype(np.uint16))).bits == 16
    assert read_header(mutate.encode(".tiff", IMAGE.astype(np.uint16))).bits == 16
    assert read_header(mutate.encode(".png", np.dstack([IMAGE, GREY]))).alpha
    assert read_header(mutate.png(5, 4, bits=1)) == Header(5, 4, "grey", 1, format="PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(orientation):
    turned = mutate.exif(JPEG, orientation)
    assert read_header(turned).orientation == orientation
    start = turned.index(b"Exif") + 6
    tiff = turned[start : start + 26]
    png = mutate.encode(".png", IMAGE)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + b"\0" * 4
    assert read_header(png[:33] + chunk + png[33:]).orientation == orientation


@pytest.mark.parametrize("data", [b"", b"GIF89a" + b"\0" * 50, b"RIFF\0\0\0\0WAVE" + b"\0" * 20])
def test_other_formats(data):
    with pytest.raises(ValueError, match="it is none of JPEG, PNG, BMP, TIFF and WebP"):
        read_header(data)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
def test_headers_that_break_off(suffix):
    data = mutate.encode(suffix, IMAGE)
    told = 0
    for end in range(64):
        with contextlib.suppress(ValueError):
            header = read_header(data[:end])
            assert (header.width, header.height) == (90, 80)
            told += 1
    assert told < 50


def test_pillow_agrees():
    image = pytest.importorskip("PIL.Image", exc_type=ImportError)
    kinds = {"grey": ("1", "L", "LA", "I;16"), "cmyk": ("CMYK",)}
    for suffix in (".jpg", ".png", ".bmp", ".tiff", ".webp"):
        for picture in (IMAGE, GREY):
            data = mutate.encode(suffix, picture)
            header = read_header(data)
            with image.open(io.BytesIO(data)) as known:
                assert known.size == (header.width, header.height)
                if suffix not in (".bmp", ".webp"):
                    assert (known.mode in kinds["grey"]) == (header.colour == "grey")
    for mode in ("1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "I;16"):
        for form in ("JPEG", "PNG", "TIFF"):
            with io.BytesIO() as file:
                try:
                    image.new(mode, (31, 17)).save(file, form)
                except OSError:  # not in this format
                    continue
                header = read_header(file.getvalue())
            assert (header.width, header.height) == (31, 17)
            expected = next((k for k, modes in kinds.items() if mode in modes), "rgb")
            assert header.colour == expected, (mode, form)
