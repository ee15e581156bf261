"""Prior sizes for objects that no prior matches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_STEP = 1.05  # ratio of consecutive candidate sizes
_MAX_OBJECTS = 20_000  # objects in the search, spread over all


@dataclass(frozen=True)
class SizeProposal:
    """Sides of objects, and the prior size that would match most of them.

    Priors have an area of size * size and one of the aspect ratios. They are assumed to be
    centered on the object, which the cells of a feature map allow only approximately.
    """

    widths: tuple[float, ...]
    """Pixels of the network's input, at each of `QUANTILES`."""
    heights: tuple[float, ...]
    """Pixels of the network's input, at each of `QUANTILES`."""
    smallest: float
    """Smallest size that matches an object (pixels); nan if none does."""
    best: float
    """Size that matches most objects (pixels); nan if none matches any."""
    share: float
    """Fraction of the objects that priors of size `best` match."""


def propose_size(
    sides: np.ndarray, aspect_ratios: Sequence[float], match_iou_threshold: float, image_size: int
) -> SizeProposal:
    """Propose a prior size for objects.

    Args:
        sides: float [n, 2], width and height of each object (pixels of the network's input); n is
            1 or more.
        aspect_ratios: width over height of the priors; inverse ratios are added.
        match_iou_threshold: IoU from which a prior matches.
        image_size: largest candidate size (pixels).
    """
    widths, heights = (tuple(map(float, np.quantile(side, QUANTILES))) for side in sides.T)
    sides = sides[:: -(-len(sides) // _MAX_OBJECTS)].astype(np.float64)
    ratios = np.array(sorted({1.0, *aspect_ratios, *(1 / ratio for ratio in aspect_ratios)}))
    shapes = np.stack([np.sqrt(ratios), 1 / np.sqrt(ratios)], axis=1)
    sizes = _STEP ** np.arange(np.ceil(np.log(image_size) / np.log(_STEP)) + 1)
    matched = np.array([_match(sides, size * shapes, match_iou_threshold).mean() for size in sizes])
    if not matched.any():
        return SizeProposal(widths, heights, np.nan, np.nan, 0.0)
    best = int(matched.argmax())
    smallest = float(sizes[np.flatnonzero(matched)[0]])
    return SizeProposal(widths, heights, smallest, float(sizes[best]), float(matched[best]))


def _match(sides: np.ndarray, priors: np.ndarray, match_iou_threshold: float) -> np.ndarray:
    """Return whether any prior [p, 2], centered on an object [n, 2], matches it: bool [n]."""
    intersection = np.minimum(sides[:, None], priors).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + priors.prod(axis=1) - intersection
    return (intersection >= match_iou_threshold * union).any(axis=1)
