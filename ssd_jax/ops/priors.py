"""Priors: the default boxes of SSD, section 2.2.

They depend on the config only, so they are computed once, on the host in float64, and become
constants of compiled programs.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def priors_per_cell(aspect_ratios: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Count the priors per cell of each feature layer: two squares and two boxes per ratio."""
    return tuple(2 + 2 * len(ratios) for ratios in aspect_ratios)


def num_priors(feature_sizes: Sequence[int], aspect_ratios: Sequence[Sequence[float]]) -> int:
    """Count the priors of all feature layers: P.

    Raises:
        ValueError: the arguments differ in length.
    """
    _check_length("aspect_ratios", len(aspect_ratios), len(feature_sizes))
    cells = (side * side for side in feature_sizes)
    return sum(n * boxes for n, boxes in zip(cells, priors_per_cell(aspect_ratios), strict=True))


def make_priors(
    feature_sizes: Sequence[int],
    image_size: int,
    *,
    sizes: Sequence[float],
    steps: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
    clip: bool = False,
    clip_wh: bool = False,
    offset: float = 0.5,
) -> Float32[np.ndarray, "P 4"]:
    """Make the priors (cxcywh, fractions of the image) in the order of the flattened heads.

    The order is by feature layer, row and column. In a cell of a layer with size s it is (s, s),
    (s', s') with s' = sqrt(s * next size), and for each aspect ratio a (s * sqrt a, s / sqrt a) and
    (s / sqrt a, s * sqrt a), as in Caffe's PriorBox and ssd.pytorch.

    Args:
        feature_sizes: side of each feature layer's map (cells).
        image_size: side of the square input (pixels).
        sizes: size of each feature layer's square prior, and one more (pixels).
        steps: distance of neighbouring cells of each feature layer (pixels); empty: the image
            divided by the cells.
        aspect_ratios: width over height of each feature layer's other priors.
        clip: clip (cx, cy, w, h) to [0, 1], as ssd.pytorch does; Caffe's published models do not.
        clip_wh: clip (w, h) to [0, 1], as torchvision does.
        offset: position of the center in a cell (cells).

    Raises:
        ValueError: the arguments differ in length.
    """
    num_layers = len(feature_sizes)
    _check_length("aspect_ratios", len(aspect_ratios), num_layers)
    _check_length("sizes", len(sizes), num_layers + 1)
    if len(steps) == 0:
        steps = [image_size / side for side in feature_sizes]
    _check_length("steps", len(steps), num_layers)

    priors = []
    for k, side in enumerate(feature_sizes):
        shapes = _cell_shapes(sizes[k], sizes[k + 1], aspect_ratios[k])  # [boxes, 2]
        center = (np.arange(side) + offset) * steps[k]
        cy, cx = np.meshgrid(center, center, indexing="ij")
        cells = np.stack([cx, cy], axis=-1).reshape(-1, 1, 2)  # [cells, 1, 2]
        cells, shapes = np.broadcast_arrays(cells, shapes[None])  # [cells, boxes, 2]
        priors.append(np.concatenate([cells, shapes], axis=-1).reshape(-1, 4) / image_size)
    result = np.concatenate(priors)
    if clip_wh:
        result[:, 2:] = np.clip(result[:, 2:], 0, 1)
    if clip:
        result = np.clip(result, 0, 1)
    return result.astype(np.float32)


def _cell_shapes(size: float, next_size: float, ratios: Sequence[float]) -> np.ndarray:
    """Compute width and height of the priors of a cell (pixels): float64 [2 + 2 * ratios, 2]."""
    larger = np.sqrt(size * next_size)
    shapes = [(size, size), (larger, larger)]
    for ratio in ratios:
        long, short = size * np.sqrt(ratio), size / np.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return np.array(shapes, dtype=np.float64)


def _check_length(name: str, length: int, expected: int) -> None:
    if length != expected:
        raise ValueError(
            f"{name} has {length} entries; the feature layers need {expected}, one each "
            "(and one more of sizes)"
        )
