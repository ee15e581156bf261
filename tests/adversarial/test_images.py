"""Image files: pixels, or one error line that names the file."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.config import UserError
from ssd_jax.data.images import picture_size, read_picture
from tests.adversarial.limits import result_or_error
from tests.adversarial.strategies import HOSTILE, edited_bytes

pytestmark = pytest.mark.adversarial

SUFFIXES = (".jpg", ".png", ".bmp", ".webp", ".tif")
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)


def encode(suffix):
    ok, data = cv2.imencode(suffix, PHOTOGRAPH)
    assert ok
    return data.tobytes()


def read(path):
    size = picture_size(path)
    _, image = read_picture(path)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    return size, image


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(HOSTILE, max_examples=120)
@given(st.data())
def test_damaged_files(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("image") / f"a{suffix}"
    path.write_bytes(data.draw(edited_bytes(encode(suffix))))
    result_or_error(lambda: read(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(HOSTILE, max_examples=80)
@given(st.data())
def test_damaged_headers(tmp_path_factory, suffix, data):
    """Edit the first 64 bytes, which contain sizes and lengths."""
    path = tmp_path_factory.mktemp("image") / f"a{suffix}"
    whole = encode(suffix)
    head = bytearray(whole[:64])
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, 63))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    path.write_bytes(bytes(head) + whole[64:])
    result_or_error(lambda: read(path))


@settings(HOSTILE, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("image") / "a.jpg"
    path.write_bytes(data)
    assert isinstance(result_or_error(lambda: read(path)), UserError)
