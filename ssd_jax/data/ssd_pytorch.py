"""The augmentation of ssd.pytorch, for those who want its training as it was.

What differs from Caffe's, `ssd_jax.data.augment`: channels change places; hues turn half as far;
colours are not clipped between the changes; a crop has its sides drawn one by one, there are five
samplers that crop, and the smallest IoU that they name is never held, so that they are alike;
pixels are sampled bilinearly.
"""

import itertools

import cv2
import numpy as np

from ssd_jax.data.augment import (
    CROP_TRIES,
    boxes_in_view,
    cut,
    expand,
    random_flips,
    resample,
)

CROP_SHARE = 5 / 6
"""How often there is a crop: five samplers of six."""
CHANNEL_ORDERS = tuple(itertools.permutations(range(3)))


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
    """As `ssd_jax.data.augment.augment_caffe`, in ssd.pytorch's way.

    Colours beyond [0, 255] are clipped at the end, where ssd.pytorch hands them on: pixels travel
    to the device as uint8.
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
    """The view, or five times in six a part of it with the centre of an object inside.

    Args:
        rng: decides everything.
        boxes_px: float64 [n, 4], inside the view; without objects the view stays whole.
        view: int64 [4].
        scale: smallest width and height (times the view's).
        aspect: largest height over width, and width over height, in pixels.

    Returns:
        A view, int64 [4].
    """
    if len(boxes_px) == 0:
        return view
    whole = view[2:] - view[:2]
    while rng.random() < CROP_SHARE:
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
    """The image in other light, float32 [H, W, 3]; each change has probability 0.5.

    Brightness +-32; contrast 0.5 to 1.5, before or after the next two; saturation 0.5 to 1.5;
    hue +-18 degrees, round the circle; the three channels in any order. Nothing is clipped.
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
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # 0 to 360, 0 to 1, and the image's range
        hsv[..., 0] = (hsv[..., 0] + np.float32(hue)) % 360
        hsv[..., 1] = hsv[..., 1] * np.float32(saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        image = image * contrast
    if rng.random() < 0.5:
        image = image[..., CHANNEL_ORDERS[rng.integers(len(CHANNEL_ORDERS))]]
    return image
