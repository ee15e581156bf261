"""The augmentation of ssd.pytorch, to reproduce its training.

Differences from Caffe's (`ssd_jax.data.augmentation`): channels are permuted; hue changes half as
much; colors are not clipped between the changes; the sides of a crop are drawn independently; there
are five samplers that crop, all alike, since their minimum IoU is never enforced; interpolation is
always bilinear.
"""

import itertools

import cv2
import numpy as np

from ssd_jax.data.augmentation import (
    CROP_TRIES,
    boxes_in_view,
    cut,
    expand,
    random_flips,
    resample,
)

CROP_PROBABILITY = 5 / 6
"""Probability of a crop: five samplers of six."""
CHANNEL_PERMUTATIONS = tuple(itertools.permutations(range(3)))


def augment_ssd_pytorch(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    fill: tuple[float, float, float],
    expand_ratio: float,
    min_crop_scale: float,
    max_crop_aspect_ratio: float,
    flip_vertically: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augment an image like ssd.pytorch; arguments and result as of `augment_caffe`.

    Colors are clipped to [0, 255] at the end, unlike in ssd.pytorch, since batches are uint8.
    """
    height, width = image.shape[:2]
    boxes_px = boxes.astype(np.float64) * [width, height, width, height]
    view = expand(rng, width, height, expand_ratio)
    view = random_crop(rng, boxes_px, view, scale=min_crop_scale, aspect=max_crop_aspect_ratio)
    part, margins = cut(image, view)
    out = resample(photometric_distort(rng, part), margins, size, fill)
    out = np.rint(out).clip(0, 255).astype(np.uint8)
    boxes, inside = boxes_in_view(boxes_px, view)
    return *random_flips(rng, out, boxes, vertically=flip_vertically), labels[inside]


def random_crop(
    rng: np.random.Generator,
    boxes_px: np.ndarray,
    view: np.ndarray,
    *,
    scale: float,
    aspect: float,
) -> np.ndarray:
    """Crop a view with probability 5/6, keeping the center of an object inside.

    Args:
        rng: random generator.
        boxes_px: float64 [n, 4], inside the view; a view without objects is kept.
        view: int64 [4].
        scale: smallest width and height (times the view's).
        aspect: largest ratio of the sides in pixels, either way.

    Returns:
        A view, int64 [4].
    """
    if len(boxes_px) == 0:
        return view
    whole = view[2:] - view[:2]
    while rng.random() < CROP_PROBABILITY:
        for _ in range(CROP_TRIES):
            sides = (rng.uniform(scale, 1, 2) * whole).astype(np.int64).clip(1)
            if not 1 / aspect <= sides[1] / sides[0] <= aspect:
                continue
            corner = view[:2] + rng.integers(whole - sides, endpoint=True)
            crop = np.concatenate([corner, corner + sides])
            if boxes_in_view(boxes_px, crop)[1].any():
                return crop
    return view


def photometric_distort(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Distort brightness, contrast, saturation, hue and channels, each with probability 0.5.

    Brightness +-32; contrast 0.5 to 1.5, before or after the next two; saturation 0.5 to 1.5;
    hue +-18 degrees; a random permutation of the channels. Nothing is clipped.

    Returns:
        float32 [H, W, 3].
    """
    image = image.astype(np.float32)
    if rng.random() < 0.5:
        image += np.float32(rng.uniform(-32, 32))
    contrast = np.float32(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else None
    contrast_last = rng.random() < 0.5
    if contrast is not None and not contrast_last:
        image = image * contrast
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0
    if saturation != 1 or hue != 0:
        # Hue is in [0, 360], saturation in [0, 1], value in the range of the image.
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + np.float32(hue)) % 360
        hsv[..., 1] = hsv[..., 1] * np.float32(saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        image = image * contrast
    if rng.random() < 0.5:
        image = image[..., CHANNEL_PERMUTATIONS[rng.integers(len(CHANNEL_PERMUTATIONS))]]
    return image
