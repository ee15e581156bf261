"""Generated scenes: coloured shapes on textured grounds, with exact boxes.

A data set for a first run: it needs no download, is never used up, and has what detectors have
to learn: four classes, sizes from an eighth to almost half of the image, turned, overlapping and
cut by the border, on grounds that are not flat.
"""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
MAX_SHAPES = 6
"""Most objects of a scene."""
SIZES = (0.12, 0.45)
"""Longer side of an object's box before it is cut by the border (times the image's side)."""
MIN_VISIBLE = 0.4
"""Share of an object's area that later objects must leave visible."""

_SHIFT = 4  # OpenCV takes corners as fixed-point numbers with this many fractional bits
_TRIES = 8


@dataclass(frozen=True)
class Scene:
    """What is in a scene and where, before it is drawn."""

    size: int
    """Side of the square image (pixels)."""
    outlines: list[np.ndarray]
    """float64 [corners, 2] of each object, xy, continuous pixels; later ones are in front."""
    boxes_px: np.ndarray
    """float32 [n, 4], xyxy, continuous pixels: the outlines' extents inside the image."""
    labels: np.ndarray
    """int32 [n]; shape k of SHAPES is k + 1."""
    seed: tuple[int, int]
    """Stream and index: what the drawing is drawn from."""


def lay_out_scene(stream: str, index: int, size: int) -> Scene:
    """Scene `index` of a stream; the same for the same stream, index and size (pixels)."""
    seed = (zlib.crc32(stream.encode()), index)
    rng = np.random.default_rng(seed)
    outlines: list[np.ndarray] = []
    labels: list[int] = []
    # Whose pixel each is, at a quarter of the resolution: enough to tell what is hidden, and quick.
    owner: np.ndarray = np.zeros((-(-size // 4),) * 2, np.uint8)
    areas = np.zeros(0, np.int64)
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        for _ in range(_TRIES):
            label = int(rng.integers(len(SHAPES)))
            outline = _place(rng, _corners(SHAPES[label], rng), size)
            k = len(outlines) + 1
            tried = cv2.fillPoly(owner.copy(), [_fixed_point(outline / 4)], k, shift=_SHIFT)
            visible = np.bincount(tried.ravel(), minlength=k + 1)[1:]
            # The new object is in front, so that what is visible of it is its whole area.
            if (visible[:-1] >= MIN_VISIBLE * areas).all():
                owner, areas = tried, np.append(areas, visible[-1])
                outlines.append(outline)
                labels.append(label + 1)
                break
    boxes = [_extent_inside(outline, size) for outline in outlines]
    return Scene(size, outlines, np.array(boxes, np.float32), np.array(labels, np.int32), seed)


def draw_scene(scene: Scene) -> np.ndarray:
    """The scene as an image: uint8 [size, size, 3], RGB."""
    rng, size = np.random.default_rng([*scene.seed, 1]), scene.size
    image = _ground(rng, size)
    for outline in scene.outlines:
        points = _fixed_point(outline)
        mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [points], 1, shift=_SHIFT)
        behind = np.array(cv2.mean(image, mask)[:3])
        # Of a few colours the one that stands out most: an object that nobody can see teaches
        # nothing.
        colours = rng.uniform(0, 255, (6, 3))
        colour = colours[np.abs(colours - behind).sum(1).argmax()]
        cv2.fillPoly(image, [points], colour.tolist(), cv2.LINE_AA, _SHIFT)
    grain = rng.integers(0, 17, image.shape, np.uint8)
    return cv2.subtract(cv2.add(image, grain), 8 * np.ones_like(image))


def _corners(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Corners [n, 2] of the shape around its centre, turned by a random angle."""
    if shape == "star":
        angles = np.arange(10) * (np.pi / 5)
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    else:
        count = {"circle": 72, "square": 4, "triangle": 3}[shape]
        angles = np.arange(count) * (2 * np.pi / count)
        radii = np.ones(count)
    # A square is turned by less than 45 degrees, so that an upright one is an upright one.
    turn = rng.uniform(-np.pi / 6, np.pi / 6) + (np.pi / 4 if shape == "square" else -np.pi / 2)
    return radii[:, None] * np.stack([np.cos(angles + turn), np.sin(angles + turn)], 1)


def _place(rng: np.random.Generator, corners: np.ndarray, size: int) -> np.ndarray:
    """The corners at a random size and place; up to a sixth of the longer side lies outside."""
    low, high = corners.min(0), corners.max(0)
    side = rng.uniform(*SIZES) * size
    corners = (corners - (low + high) / 2) * (side / (high - low).max())
    return corners + rng.uniform(side / 3, size - side / 3, 2)


def _extent_inside(outline: np.ndarray, size: int) -> tuple[float, float, float, float]:
    """Corners xyxy of the part of the polygon that is inside the image."""
    # Sutherland-Hodgman: cut by the four borders in turn. For a polygon that is not convex the
    # result may run along a border, but its corners, and so its extent, are right.
    points = outline
    for axis, border, sign in ((0, 0, 1), (0, size, -1), (1, 0, 1), (1, size, -1)):
        depth = sign * (points[:, axis] - border)
        if depth.min() >= 0:
            continue
        after, depth_after = np.roll(points, -1, 0), np.roll(depth, -1)
        cut = (depth < 0) != (depth_after < 0)
        share = depth[cut] / (depth[cut] - depth_after[cut])
        crossings = points[cut] + share[:, None] * (after[cut] - points[cut])
        order = np.concatenate([np.flatnonzero(depth >= 0), np.flatnonzero(cut) + 0.5])
        points = np.concatenate([points[depth >= 0], crossings])[np.argsort(order)]
    low, high = points.min(0).clip(0, size), points.max(0).clip(0, size)
    return low[0], low[1], high[0], high[1]


def _fixed_point(outline: np.ndarray) -> np.ndarray:
    # OpenCV's pixel k has its centre at k, ours at k + 0.5.
    return np.round((outline - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Soft blotches of colour over a slope of light, crossed by a few thin lines."""
    cells = int(rng.integers(2, 8))
    base = rng.uniform(40, 215, 3)
    coarse = base + rng.uniform(-45, 45, (cells, cells, 3))
    across = np.linspace(-1, 1, cells)
    light = rng.uniform(-30, 30) * across[:, None] + rng.uniform(-30, 30) * across
    coarse = (coarse + light[..., None]).clip(0, 255).astype(np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 9)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.line(image, start, end, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return image
