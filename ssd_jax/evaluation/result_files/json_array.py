"""Reader of long JSON arrays, in pieces."""

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


def read_array(path: Path, max_bytes: int) -> Iterator[list[Any]]:
    """Yield the elements of a JSON array in a file, in order, many at a time.

    Objects take several times the memory of their text, so only those of one piece exist at once.

    Args:
        path: of the file, in an encoding that `json.loads` detects.
        max_bytes: size of the largest file that is read.

    Raises:
        OSError: as for `read_bytes`.
        TypeError: the file contains JSON other than an array.
        ValueError, RecursionError: the file is not JSON.
    """
    pieces = read_pieces(path, max_bytes, size=_PIECE)
    piece = next(pieces, b"")
    decoder = codecs.getincrementaldecoder(json.detect_encoding(piece))("surrogatepass")
    text = decoder.decode(piece).lstrip(" \t\n\r")
    is_array = text.startswith("[")
    text = text[1:] if is_array else text
    consumed, chunk = 0, 2 * _PIECE  # characters before the text; characters to parse at once
    while piece:
        parts: list[str] = []
        while piece and sum(len(part) for part in parts) + len(text) < chunk:
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
        text, consumed = text[end:], consumed + end
        # An element longer than the text is parsed again when there is twice as much text.
        chunk = max(2 * _PIECE, 0 if elements else 2 * len(text))
    if not is_array:
        json.loads(text)
        raise TypeError("not an array")
    try:
        elements = json.loads(f"[{text}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: character {consumed + error.pos:,}") from None
    if consumed and not elements:
        raise ValueError(f"Expecting value: character {consumed:,}")
    yield elements


def _parse(text: str) -> Any:
    """Call `json.loads` without garbage collection: its objects have no cycles."""
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
        The elements, and the position of the next one.
    """
    # Most arrays contain flat objects. If this cut is not between two elements, the text before it
    # is not valid JSON.
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
