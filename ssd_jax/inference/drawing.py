"""Boxes on images, and images beside each other.

Images are RGB, uint8 [H, W, 3]; every function gives a new one. Text is drawn with OpenCV's own
font, which in OpenCV 4 has ASCII only and shows ? for other characters.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ssd_jax.io import atomic_write

Image = np.ndarray[Any, np.dtype[np.uint8]]
Array = np.ndarray[Any, Any]
Rectangle = tuple[int, int, int, int]
Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER = (250, 250, 250)
_INK = (30, 30, 30)
_MARGIN = (205, 205, 205)
_PALETTE_SIZE = 64


def label_color(label: int) -> Color:
    """The RGB colour of class `label` >= 1, always the same; it repeats after 64 classes."""
    r, g, b = _palette()[(label - 1) % _PALETTE_SIZE]
    return int(r), int(g), int(b)


def draw_boxes(
    image: Image,
    boxes_px: Array,
    labels: Array,
    classes: Sequence[str],
    scores: Array | None = None,
) -> Image:
    """The image with a frame and a name on each box, the name with its score where there is one.

    boxes_px: [n, 4], xmin, ymin, xmax, ymax in pixels, where 0 is the image's left or upper edge.
    labels: int [n], from 1; label k is classes[k - 1]. scores: [n], 0 to 1.
    Lines and text grow with the image; below some 300 pixels enlarge it first. Names stay inside
    the image and avoid each other where there is room; of names that cannot, the one with the
    higher score lies on top. Raises ValueError for a label that has no class.
    """
    boxes, labels = np.reshape(boxes_px, (-1, 4)), np.reshape(labels, -1)
    outside = (labels < 1) | (labels > len(classes))
    if outside.any():
        raise ValueError(
            f"a box has label {labels[outside][0]} and there are {len(classes)} classes"
        )
    out = np.ascontiguousarray(image).copy()
    height, width = out.shape[:2]
    line = math.ceil(min(height, width) / 250)
    # Frames that reach past the image are drawn along its border instead of vanishing.
    limits = np.array([width, height, width, height]) - 1
    corners = np.clip(np.round(np.nan_to_num(boxes)), 0, limits).astype(int).tolist()
    best_last = np.argsort(np.zeros(len(boxes)) if scores is None else scores, kind="stable")
    for i in best_last:
        x0, y0, x1, y1 = corners[i]
        cv2.rectangle(out, (x0, y0), (x1, y1), label_color(int(labels[i])), line, cv2.LINE_AA)

    tags = [
        (
            classes[int(labels[i]) - 1] + ("" if scores is None else f" {scores[i]:.2f}"),
            corners[i],
            label_color(int(labels[i])),
        )
        for i in best_last[::-1]
    ]
    _draw_tags(out, tags)
    return out


def draw_matches(
    image: Image,
    boxes_px: Array,
    texts: Sequence[str],
    broken: Array,
    priors_px: Array,
    owners: Array,
) -> Image:
    """The image with each object's frame, thick, and its priors, thin, in a colour of its own.

    boxes_px: [n, 4], xyxy in pixels. texts: n, a tag for each object. broken: bool [n], objects
    whose frames have gaps, to tell them from the others. priors_px: [k, 4], xyxy in pixels.
    owners: int [k], the object of each prior, from 0. A tenth of the image's sides is added all
    round, where priors that reach past the image go on.
    """
    height, width = image.shape[:2]
    x, y = width // 10, height // 10
    out = np.full((height + 2 * y, width + 2 * x, 3), _MARGIN, np.uint8)
    out[y : y + height, x : x + width] = image
    line = 1 + math.ceil(min(height, width) / 250)
    frames, priors = (
        np.round(np.reshape(boxes, (-1, 4)) + np.array([x, y, x, y])).astype(int).tolist()
        for boxes in (boxes_px, priors_px)
    )
    colors = [label_color(k + 1) for k in range(len(frames))]
    for (x0, y0, x1, y1), owner in zip(priors, owners, strict=True):
        cv2.rectangle(out, (x0, y0), (x1, y1), colors[owner], line // 2)
    for frame, color, gaps in zip(frames, colors, broken, strict=True):
        _draw_frame(out, frame, color, line, gaps=bool(gaps))
    _draw_tags(out, list(zip(texts, frames, colors, strict=True)))
    return out


def side_by_side(left: Image, right: Image, captions: tuple[str, str]) -> Image:
    """Two images of one height beside each other, a caption above each."""
    if left.shape[0] != right.shape[0]:
        raise ValueError(f"the images are {left.shape[0]} and {right.shape[0]} pixels high")
    gap = max(4, left.shape[1] // 80)
    panels = [captioned(left, captions[0]), captioned(right, captions[1])]
    between = np.full((panels[0].shape[0], gap, 3), _PAPER, np.uint8)
    return np.concatenate([panels[0], between, panels[1]], axis=1)


def captioned(image: Image, caption: str, font_scale: float | None = None) -> Image:
    """The image below a line of text, which shrinks to the image's width.

    font_scale: of OpenCV's font; None: one that grows with the image.
    """
    font_scale = font_scale or max(0.5, min(image.shape[:2]) / 800)
    width, height, baseline = _text_size(caption, font_scale)
    bar = np.full((height + baseline + 10, image.shape[1], 3), _PAPER, np.uint8)
    font_scale *= min(1.0, (image.shape[1] - 10) / max(width, 1))
    origin = 2, height + 5
    text, stroke = _drawable(caption), _stroke(font_scale)
    cv2.putText(bar, text, origin, _FONT, font_scale, _INK, stroke, cv2.LINE_AA)
    return np.concatenate([bar, image])


def contact_sheet(
    images: Sequence[Image],
    *,
    columns: int,
    cell: tuple[int, int] | None = None,
    gap: int = 12,
) -> Image:
    """The images in rows of `columns`, each centred in a cell, `gap` pixels around every cell.

    cell: (width, height) in pixels; images that are larger are reduced to fit, smaller ones stay.
    None: the largest width and height among the images. Raises ValueError for no images.
    """
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns; give at least one of each")
    if cell is None:
        cell = max(i.shape[1] for i in images), max(i.shape[0] for i in images)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    step_x, step_y = cell[0] + gap, cell[1] + gap
    sheet = np.full((rows * step_y + gap, columns * step_x + gap, 3), _PAPER, np.uint8)
    for k, full in enumerate(images):
        image = resize(full, min(1.0, cell[0] / full.shape[1], cell[1] / full.shape[0]))
        height, width = image.shape[:2]
        x = gap + k % columns * step_x + (cell[0] - width) // 2
        y = gap + k // columns * step_y + (cell[1] - height) // 2
        sheet[y : y + height, x : x + width] = image
    return sheet


def resize(image: Image, factor: float) -> Image:
    """The image `factor` times as wide and high, at least one pixel."""
    height, width = image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=kind), np.uint8)


def save_image(path: Path, image: Image) -> None:
    """Write an image in the format of the path's suffix; the file is whole or not there.

    Raises ValueError for a suffix that OpenCV does not know and OSError naming the path where it
    cannot be written.
    """
    try:
        data = encode_image(image, path.suffix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    atomic_write(path, data)


def encode_image(image: Image, suffix: str, *, quality: int = 95) -> bytes:
    """An image as a file of the format that a suffix means; `quality`, 0 to 100, is JPEG's.

    Raises ValueError for a suffix that OpenCV does not know.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"cannot write images as {suffix!r}; use .png or .jpg")
    return data.tobytes()


@functools.cache
def _palette() -> Array:
    """RGB colours [64, 3], each as far as it can be from those before it to the eye (CIELAB)."""
    levels = np.array([0, 64, 128, 192, 255], np.float32)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None] / 255, cv2.COLOR_RGB2LAB)[0]
    # Greys and the very dark or pale get lost in photographs.
    vivid = (lab[:, 0] > 38) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 38)
    rgb, lab = rgb[vivid], lab[vivid]
    chosen = [int(np.argmin(np.abs(rgb - (255, 64, 64)).sum(1)))]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < _PALETTE_SIZE:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return rgb[chosen].astype(np.uint8)


def _text_size(text: str, font_scale: float) -> tuple[int, int, int]:
    """Width, and the height above the baseline and depth below it of any text (pixels)."""
    (width, _), _ = cv2.getTextSize(_drawable(text), _FONT, font_scale, _stroke(font_scale))
    (_, height), baseline = cv2.getTextSize("Ag", _FONT, font_scale, _stroke(font_scale))
    return width, height, baseline


def _drawable(text: str) -> str:
    """The text without lone surrogates, at which OpenCV crashes the process."""
    return text.encode(errors="replace").decode()


def _stroke(font_scale: float) -> int:
    return max(1, round(font_scale * 1.4))


def _tag_size(text: str, font_scale: float) -> tuple[int, int]:
    width, height, baseline = _text_size(text, font_scale)
    padding = max(2, height // 4)
    return width + 2 * padding, height + baseline + padding


def _draw_tags(image: Image, tags: Sequence[tuple[str, Rectangle, Color]]) -> None:
    """Each text at its box; the first ones have the first choice of a place, and lie on top."""
    height, width = image.shape[:2]
    font_scale = max(0.4, min(height, width) / 900)
    places: list[Rectangle] = []
    for text, box, _ in tags:
        places.append(_place_tag(_tag_size(text, font_scale), box, (width, height), places))
    for (text, _, color), place in reversed(list(zip(tags, places, strict=True))):
        _draw_tag(image, place, text, color, font_scale)


def _draw_frame(image: Image, box: Rectangle, color: Color, line: int, *, gaps: bool) -> None:
    """A rectangle on a dark ground that shows in the gaps, if there are any."""
    x0, y0, x1, y1 = box
    cv2.rectangle(image, (x0, y0), (x1, y1), _INK, line + 2, cv2.LINE_AA)
    if not gaps:
        cv2.rectangle(image, (x0, y0), (x1, y1), color, line, cv2.LINE_AA)
        return
    dash, period = 3 * line, 7 * line  # round ends make a dash longer by the line's width
    for x in range(x0, x1 + 1, period):
        for y in (y0, y1):
            cv2.line(image, (x, y), (min(x + dash, x1), y), color, line)
    for y in range(y0, y1 + 1, period):
        for x in (x0, x1):
            cv2.line(image, (x, y), (x, min(y + dash, y1)), color, line)


def _place_tag(
    size: tuple[int, int],
    box: Rectangle,
    image_size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Where a tag of `size` goes: the place at the box, inside the image, that covers least."""
    (width, height), (x0, y0, x1, y1) = size, box
    places = [
        (x, y) for x in (x0, x1 + 1 - width) for y in (y0 - height, y0, y1 + 1, y1 + 1 - height)
    ]
    best, least = (0, 0, width, height), math.inf
    for x, y in places:
        left = max(0, min(x, image_size[0] - width))
        top = max(0, min(y, image_size[1] - height))
        rectangle = (left, top, left + width, top + height)
        covered = sum(_overlap(rectangle, other) for other in taken)
        if covered < least:
            best, least = rectangle, covered
    return best


def _overlap(a: Rectangle, b: Rectangle) -> int:
    """The area that two rectangles share (pixels)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _draw_tag(
    image: Image, rectangle: Rectangle, text: str, color: Color, font_scale: float
) -> None:
    """Text on a filled rectangle, black or white, whichever reads better on its colour."""
    x0, y0, x1, y1 = rectangle
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, cv2.FILLED)
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > 120 else (255, 255, 255)
    width, height, baseline = _text_size(text, font_scale)
    origin = x0 + (x1 - x0 - width) // 2, y0 + (y1 - y0 - height - baseline) // 2 + height
    text, stroke = _drawable(text), _stroke(font_scale)
    cv2.putText(image, text, origin, _FONT, font_scale, ink, stroke, cv2.LINE_AA)
