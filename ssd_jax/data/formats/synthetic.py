"""Generated scenes: colored shapes on textured backgrounds, with exact boxes.

A dataset for first runs that needs no download: four classes, sizes from an eighth to almost half
of the image, rotated, overlapping and cut by the border.
"""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from ssd_jax.data.types import Annotation, DataSource, Example, to_example

SHAPES = ("circle", "square", "triangle", "star")
MAX_SHAPES = 6
"""Largest number of objects in a scene."""
SIZES = (0.12, 0.45)
"""Longer side of a box before the border cuts it, as a fraction of the image's side."""
MIN_VISIBLE = 0.4
"""Fraction of an object's area that later objects must leave visible."""

_SHIFT = 4  # OpenCV takes corners as fixed-point numbers with this many fractional bits
_TRIES = 8


@dataclass(frozen=True)
class Scene:
    """The objects of a scene before it is drawn."""

    size: int
    """Side of the square image (pixels)."""
    outlines: list[np.ndarray]
    """float64 [corners, 2] of each object, xy, continuous pixels; later objects are in front."""
    boxes_px: np.ndarray
    """float32 [n, 4], xyxy, continuous pixels: extents of the outlines inside the image."""
    labels: np.ndarray
    """int32 [n], index in SHAPES."""
    seed: tuple[int, int]
    """Stream and index, for the random numbers of the drawing."""


class SyntheticSource(DataSource):
    """Generated scenes of colored shapes on textured backgrounds; nothing is stored.

    A scene depends on the name of its stream and its index only: train:2000 and train:4000 share
    their first 2000 scenes, and train and test share none.

    Args:
        count: number of scenes.
        stream: name of the stream.
        image_size: side of the square scenes (pixels).
    """

    classes = SHAPES

    def __init__(self, count: int, stream: str, image_size: int = 200) -> None:
        self._count = count
        self._stream = stream
        self._size = image_size

    def __len__(self) -> int:
        return self._count

    def annotation(self, i: int) -> Annotation:
        """Return the objects of scene i without drawing it."""
        return self._annotate(i, self._lay_out(i))

    def image(self, i: int) -> np.ndarray:
        """Draw scene i: uint8 [H, W, 3], RGB."""
        return draw_scene(self._lay_out(i))

    def __getitem__(self, i: int) -> Example:
        scene = self._lay_out(i)
        return to_example(self._annotate(i, scene), draw_scene(scene))

    def _lay_out(self, i: int) -> Scene:
        # For loops over a sequence end at the IndexError.
        if not -self._count <= i < self._count:
            raise IndexError(f"scene {i} of {self._count}")
        return lay_out_scene(self._stream, i % self._count, self._size)

    def _annotate(self, i: int, scene: Scene) -> Annotation:
        absent = np.zeros(len(scene.labels), bool)
        return Annotation(
            image_id=f"{self._stream}-{i % self._count:06d}",
            width=self._size,
            height=self._size,
            boxes_px=scene.boxes_px,
            labels=scene.labels,
            difficult=absent,
            crowd=absent,
        )


def lay_out_scene(stream: str, index: int, size: int) -> Scene:
    """Return scene `index` of a stream; it depends on stream, index and size (pixels) only."""
    seed = (zlib.crc32(stream.encode()), index)
    rng = np.random.default_rng(seed)
    outlines: list[np.ndarray] = []
    labels: list[int] = []
    # The object at each pixel, at a quarter of the resolution: enough to find hidden objects.
    owner: np.ndarray = np.zeros((-(-size // 4),) * 2, np.uint8)
    areas = np.zeros(0, np.int64)
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        for _ in range(_TRIES):
            label = int(rng.integers(len(SHAPES)))
            outline = _place(rng, _corners(SHAPES[label], rng), size)
            k = len(outlines) + 1
            tried = cv2.fillPoly(owner.copy(), [_fixed_point(outline / 4)], k, shift=_SHIFT)
            visible = np.bincount(tried.ravel(), minlength=k + 1)[1:]
            # The new object is in front: all of its area is visible.
            if (visible[:-1] >= MIN_VISIBLE * areas).all():
                owner, areas = tried, np.append(areas, visible[-1])
                outlines.append(outline)
                labels.append(label)
                break
    boxes = [_extent_inside(outline, size) for outline in outlines]
    return Scene(size, outlines, np.array(boxes, np.float32), np.array(labels, np.int32), seed)


def draw_scene(scene: Scene) -> np.ndarray:
    """Draw the scene: uint8 [size, size, 3], RGB."""
    rng, size = np.random.default_rng([*scene.seed, 1]), scene.size
    image = _draw_background(rng, size)
    for outline in scene.outlines:
        points = _fixed_point(outline)
        mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [points], 1, shift=_SHIFT)
        behind = np.array(cv2.mean(image, mask)[:3])
        # The color that stands out most of a few: invisible objects teach nothing.
        colors = rng.uniform(0, 255, (6, 3))
        color = colors[np.abs(colors - behind).sum(1).argmax()]
        cv2.fillPoly(image, [points], color.tolist(), cv2.LINE_AA, _SHIFT)
    grain = rng.integers(0, 17, image.shape, np.uint8)
    return cv2.subtract(cv2.add(image, grain), 8 * np.ones_like(image))


def _corners(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Return the corners [n, 2] of the shape around its center, rotated by a random angle."""
    if shape == "star":
        angles = np.arange(10) * (np.pi / 5)
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    else:
        count = {"circle": 72, "square": 4, "triangle": 3}[shape]
        angles = np.arange(count) * (2 * np.pi / count)
        radii = np.ones(count)
    # Squares are rotated by less than 45 degrees from upright.
    turn = rng.uniform(-np.pi / 6, np.pi / 6) + (np.pi / 4 if shape == "square" else -np.pi / 2)
    return radii[:, None] * np.stack([np.cos(angles + turn), np.sin(angles + turn)], 1)


def _place(rng: np.random.Generator, corners: np.ndarray, size: int) -> np.ndarray:
    """Scale and move the corners at random; up to a sixth of the longer side lies outside."""
    low, high = corners.min(0), corners.max(0)
    side = rng.uniform(*SIZES) * size
    corners = (corners - (low + high) / 2) * (side / (high - low).max())
    return corners + rng.uniform(side / 3, size - side / 3, 2)


def _extent_inside(outline: np.ndarray, size: int) -> tuple[float, float, float, float]:
    """Return the xyxy extent of the part of the polygon that is inside the image."""
    # Sutherland-Hodgman: clip by each of the four borders. The result of a concave polygon may run
    # along a border, but its extent is right.
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
    # The center of pixel k is at k in OpenCV, and at k + 0.5 here.
    return np.round((outline - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw soft blotches of color on a gradient, crossed by a few thin lines."""
    cells = int(rng.integers(2, 8))
    base = rng.uniform(40, 215, 3)
    coarse = base + rng.uniform(-45, 45, (cells, cells, 3))
    across = np.linspace(-1, 1, cells)
    light = rng.uniform(-30, 30) * across[:, None] + rng.uniform(-30, 30) * across
    coarse = (coarse + light[..., None]).clip(0, 255).astype(np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 9)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        color = rng.uniform(0, 255, 3).tolist()
        cv2.line(image, start, end, color, int(rng.integers(1, 3)), cv2.LINE_AA)
    return image
