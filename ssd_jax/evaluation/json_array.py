"""Long JSON arrays, read in pieces."""

import codecs
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd_jax.io import read_pieces

_PIECE = 1 << 22
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_SCANNER = json.JSONDecoder()


def read_array(path: Path, most: int) -> Iterator[list[Any]]:
    """Yield the elements of a file that holds one JSON array, in order, many at a time.

    Objects take several times the memory of their text, so only those of a piece are made at once.

    Args:
        path: of the file, in an encoding that `json.loads` detects.
        most: size of the largest file that is read (bytes).

    Raises:
        OSError: as for `read_bytes`.
        TypeError: the file holds JSON other than an array.
        ValueError, RecursionError: the file is not JSON.
    """
    pieces = read_pieces(path, most, size=_PIECE)
    piece = next(pieces, b"")
    decoder = codecs.getincrementaldecoder(json.detect_encoding(piece))("surrogatepass")
    text = decoder.decode(piece).lstrip(" \t\n\r")
    is_array = text.startswith("[")
    text = text[1:] if is_array else text
    passed, wanted = 0, 2 * _PIECE  # characters before the text; characters to parse at once
    while piece:
        parts: list[str] = []
        while piece and sum(len(part) for part in parts) + len(text) < wanted:
            piece = next(pieces, b"")
            parts.append(decoder.decode(piece, final=not piece))
        text += "".join(parts)
        if not piece:
            break
        if not is_array:
            raise TypeError("not an array")
        elements, end = _parse_whole(text)
        if elements:
            yield elements
        text, passed = text[end:], passed + end
        # An element that is longer than the text is parsed again once there is twice as much.
        wanted = max(2 * _PIECE, 0 if elements else 2 * len(text))
    if not is_array:
        json.loads(text)
        raise TypeError("not an array")
    try:
        elements = json.loads(f"[{text}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: character {passed + error.pos:,}") from None
    if passed and not elements:
        raise ValueError(f"Expecting value: character {passed:,}")
    yield elements


def _parse(text: str) -> Any:
    """As `json.loads`, without looking for cycles among what it makes, which has none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if enabled:
            gc.enable()


def _parse_whole(text: str) -> tuple[list[Any], int]:
    """Parse the elements at the start of a text that are followed by a comma.

    Returns:
        The elements, and where in the text the next one starts.
    """
    # Most arrays are of flat objects. Wherever this cut is not between two elements, what is
    # before it is no JSON.
    cut = text.rfind("},")
    if cut >= 0:
        try:
            elements = _parse(f"[{text[: cut + 1]}]")
        except ValueError:
            pass
        else:
            return elements, cut + 2
    elements, end = [], len(text) - len(text.lstrip(" \t\n\r"))
    while True:
        try:
            element, after = _SCANNER.raw_decode(text, end)
        except ValueError:
            return elements, end
        comma = _COMMA.match(text, after)
        if comma is None:
            return elements, end
        elements.append(element)
        end = comma.end()
