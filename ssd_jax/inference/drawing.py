"""Draw boxes on images and arrange images.

Images are RGB uint8 [H, W, 3]; every function returns a new one. Text is drawn with OpenCV's
built-in font, which in OpenCV 4 supports ASCII only and shows ? for other characters.
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
    """Return the RGB color of a class id, always the same; colors repeat after 64 classes."""
    r, g, b = _palette()[label % _PALETTE_SIZE]
    return int(r), int(g), int(b)


def draw_boxes(
    image: Image,
    boxes: Array,
    labels: Array,
    classes: Sequence[str],
    scores: Array | None = None,
) -> Image:
    """Draw boxes with class names and scores on an image.

    Lines and text grow with the image; enlarge images below about 300 pixels first. Names stay
    inside the image and avoid each other if there is space; otherwise the one with the higher
    score is drawn on top.

    Args:
        image: RGB uint8 [H, W, 3].
        boxes: [n, 4], xyxy in continuous pixels.
        labels: int [n], 0-based class ids.
        classes: name of each class id.
        scores: [n], 0 to 1; None: draw names without scores.

    Raises:
        ValueError: a label is out of range.
    """
    boxes, labels = np.reshape(boxes, (-1, 4)), np.reshape(labels, -1)
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        raise ValueError(
            f"label {labels[outside][0]} is out of range for {len(classes)} classes; "
            f"use 0 to {len(classes) - 1}"
        )
    out = np.ascontiguousarray(image).copy()
    height, width = out.shape[:2]
    line = math.ceil(min(height, width) / 250)
    # Frames that extend past the image are drawn along its border instead of disappearing.
    limits = np.array([width, height, width, height]) - 1
    corners = np.clip(np.round(np.nan_to_num(boxes)), 0, limits).astype(int).tolist()
    best_last = np.argsort(np.zeros(len(boxes)) if scores is None else scores, kind="stable")
    for i in best_last:
        x0, y0, x1, y1 = corners[i]
        cv2.rectangle(out, (x0, y0), (x1, y1), label_color(int(labels[i])), line, cv2.LINE_AA)

    tags = [
        (
            classes[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}"),
            corners[i],
            label_color(int(labels[i])),
        )
        for i in best_last[::-1]
    ]
    _draw_tags(out, tags)
    return out


def draw_matches(
    image: Image,
    boxes: Array,
    texts: Sequence[str],
    dashed: Array,
    priors: Array,
    matched_objects: Array,
) -> Image:
    """Draw objects with thick frames and their priors with thin ones, a color per object.

    A margin of a tenth of the image's sides shows priors that extend past the image.

    Args:
        image: RGB uint8 [H, W, 3].
        boxes: [n, 4], xyxy in continuous pixels.
        texts: a tag per object.
        dashed: bool [n], objects with dashed frames.
        priors: [k, 4], xyxy in continuous pixels.
        matched_objects: int [k], the object matched to each prior.
    """
    height, width = image.shape[:2]
    x, y = width // 10, height // 10
    out = np.full((height + 2 * y, width + 2 * x, 3), _MARGIN, np.uint8)
    out[y : y + height, x : x + width] = image
    line = 1 + math.ceil(min(height, width) / 250)
    frames, prior_frames = (
        np.round(np.reshape(b, (-1, 4)) + np.array([x, y, x, y])).astype(int).tolist()
        for b in (boxes, priors)
    )
    colors = [label_color(k) for k in range(len(frames))]
    for (x0, y0, x1, y1), k in zip(prior_frames, matched_objects, strict=True):
        cv2.rectangle(out, (x0, y0), (x1, y1), colors[k], line // 2)
    for frame, color, is_dashed in zip(frames, colors, dashed, strict=True):
        _draw_frame(out, frame, color, line, dashed=bool(is_dashed))
    _draw_tags(out, list(zip(texts, frames, colors, strict=True)))
    return out


def side_by_side(left: Image, right: Image, captions: tuple[str, str]) -> Image:
    """Place two images of equal height beside each other, a caption above each."""
    if left.shape[0] != right.shape[0]:
        raise ValueError(f"the images are {left.shape[0]} and {right.shape[0]} pixels high")
    gap = max(4, left.shape[1] // 80)
    panels = [captioned(left, captions[0]), captioned(right, captions[1])]
    between = np.full((panels[0].shape[0], gap, 3), _PAPER, np.uint8)
    return np.concatenate([panels[0], between, panels[1]], axis=1)


def captioned(image: Image, caption: str, font_scale: float | None = None) -> Image:
    """Add a line of text above an image; it shrinks to the image's width.

    Args:
        image: RGB uint8 [H, W, 3].
        caption: the text.
        font_scale: of OpenCV's font; None: one that grows with the image.
    """
    font_scale = font_scale or max(0.5, min(image.shape[:2]) / 800)
    width, height, baseline = _text_size(caption, font_scale)
    bar = np.full((height + baseline + 10, image.shape[1], 3), _PAPER, np.uint8)
    font_scale *= min(1.0, (image.shape[1] - 10) / max(width, 1))
    _put_text(bar, caption, (2, height + 5), font_scale, _INK)
    return np.concatenate([bar, image])


def contact_sheet(
    images: Sequence[Image],
    *,
    columns: int,
    cell: tuple[int, int] | None = None,
    gap: int = 12,
) -> Image:
    """Arrange images in rows, each centered in a cell.

    Args:
        images: at least one.
        columns: cells per row.
        cell: width and height in pixels; larger images are reduced to fit, smaller ones are not
            enlarged. None: the largest width and height of the images.
        gap: pixels around every cell.

    Raises:
        ValueError: there are no images or columns.
    """
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns; use at least one of each")
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
    """Scale width and height of an image by `factor`, to at least one pixel."""
    height, width = image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def save_image(path: Path, image: Image) -> None:
    """Write an image atomically, in the format of the path's suffix.

    Raises:
        ValueError: OpenCV does not support the suffix.
        OSError: the file cannot be written; the message names it.
    """
    try:
        data = encode_image(image, path.suffix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    atomic_write(path, data)


def encode_image(image: Image, suffix: str, *, quality: int = 95) -> bytes:
    """Encode an image in the format of a file suffix.

    Args:
        image: RGB uint8 [H, W, 3].
        suffix: such as .png or .jpg.
        quality: of JPEG, 0 to 100.

    Raises:
        ValueError: OpenCV does not support the suffix.
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
    """Choose RGB colors [64, 3], each as distinct as possible from those before it (CIELAB)."""
    levels = np.array([0, 64, 128, 192, 255], np.float32)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None] / 255, cv2.COLOR_RGB2LAB)[0]
    # Greys, very dark and very pale colors are hard to see in photographs.
    vivid = (lab[:, 0] > 38) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 38)
    rgb, lab = rgb[vivid], lab[vivid]
    chosen = [int(np.argmin(np.abs(rgb - (255, 64, 64)).sum(1)))]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < _PALETTE_SIZE:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return rgb[chosen].astype(np.uint8)


def _text_size(text: str, font_scale: float) -> tuple[int, int, int]:
    """Return the width of a text, its height above the baseline and depth below it (pixels)."""
    (width, _), _ = cv2.getTextSize(_drawable(text), _FONT, font_scale, _stroke(font_scale))
    (_, height), baseline = cv2.getTextSize("Ag", _FONT, font_scale, _stroke(font_scale))
    return width, height, baseline


def _drawable(text: str) -> str:
    """Replace lone surrogates, which crash OpenCV."""
    return text.encode(errors="replace").decode()


def _stroke(font_scale: float) -> int:
    return max(1, round(font_scale * 1.4))


def _put_text(
    image: Image, text: str, origin: tuple[int, int], font_scale: float, color: Color
) -> None:
    stroke = _stroke(font_scale)
    cv2.putText(image, _drawable(text), origin, _FONT, font_scale, color, stroke, cv2.LINE_AA)


def _tag_size(text: str, font_scale: float) -> tuple[int, int]:
    width, height, baseline = _text_size(text, font_scale)
    padding = max(2, height // 4)
    return width + 2 * padding, height + baseline + padding


def _draw_tags(image: Image, tags: Sequence[tuple[str, Rectangle, Color]]) -> None:
    """Draw each text at its box; the first ones are placed first, and drawn on top."""
    height, width = image.shape[:2]
    font_scale = max(0.4, min(height, width) / 900)
    placed: list[Rectangle] = []
    for text, box, _ in tags:
        placed.append(_place_tag(_tag_size(text, font_scale), box, (width, height), placed))
    for (text, _, color), rectangle in reversed(list(zip(tags, placed, strict=True))):
        _draw_tag(image, rectangle, text, color, font_scale)


def _draw_frame(image: Image, box: Rectangle, color: Color, line: int, *, dashed: bool) -> None:
    """Draw a solid or dashed rectangle on a dark background."""
    x0, y0, x1, y1 = box
    cv2.rectangle(image, (x0, y0), (x1, y1), _INK, line + 2, cv2.LINE_AA)
    if not dashed:
        cv2.rectangle(image, (x0, y0), (x1, y1), color, line, cv2.LINE_AA)
        return
    dash, period = 3 * line, 7 * line  # round ends lengthen a dash by the width of the line
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
    placed: Sequence[Rectangle],
) -> Rectangle:
    """Choose the position at a box, inside the image, where a tag covers least of the others."""
    (width, height), (x0, y0, x1, y1) = size, box
    best, least = (0, 0, width, height), math.inf
    for x in (x0, x1 + 1 - width):
        for y in (y0 - height, y0, y1 + 1, y1 + 1 - height):
            left = max(0, min(x, image_size[0] - width))
            top = max(0, min(y, image_size[1] - height))
            rectangle = (left, top, left + width, top + height)
            covered = sum(_overlap(rectangle, other) for other in placed)
            if covered < least:
                best, least = rectangle, covered
    return best


def _overlap(a: Rectangle, b: Rectangle) -> int:
    """Compute the intersection of two rectangles (square pixels)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _draw_tag(
    image: Image, rectangle: Rectangle, text: str, color: Color, font_scale: float
) -> None:
    """Draw text on a filled rectangle, in black or white, whichever has more contrast."""
    x0, y0, x1, y1 = rectangle
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, cv2.FILLED)
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > 120 else (255, 255, 255)
    width, height, baseline = _text_size(text, font_scale)
    origin = x0 + (x1 - x0 - width) // 2, y0 + (y1 - y0 - height - baseline) // 2 + height
    _put_text(image, text, origin, font_scale, ink)
