"""SSD's augmentation (section 2.2 of the paper) in the order of the authors' Caffe code.

Images are RGB uint8 [H, W, 3]; boxes float32 [n, 4], xyxy, in [0, 1]; labels int32 [n]. Nothing
is changed in place, and images without objects are accepted.

Expansion and crop are drawn first, as a view: int64 [4], xyxy in pixels of the image, larger than
the image where it includes the canvas of the expansion. Photometric distortion and resizing are
then applied to the visible part of the image only. The result equals distorting the whole image,
expanding it, cropping and resizing.
"""

import cv2
import numpy as np

CROP_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""Minimum IoU of each sampler that crops; 0 accepts any. A seventh sampler keeps the image."""
CROP_TRIES = 50
CROP_SCALE = 0.3
CROP_ASPECT = 2.0

INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)


def augment_caffe(
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
    """Augment an image for training: photometric distortion, expansion, crop, resize, flip.

    Args:
        rng: random generator.
        image: uint8 [H, W, 3].
        boxes: float32 [n, 4].
        labels: int32 [n].
        size: side of the result (pixels).
        fill: RGB fill of the canvas of the expansion; the mean that the model subtracts.
        expand_ratio: largest side of that canvas (times the image's); 1: no expansion.
        min_crop_scale: smallest side of a crop, as geometric mean (times the image's).
        max_crop_aspect_ratio: largest aspect ratio of a crop relative to the image's.
        flip_vertically: also flip top to bottom.

    Returns:
        uint8 [size, size, 3], and the boxes and labels of the objects in it: at least one if the
        image had one.
    """
    height, width = image.shape[:2]
    boxes_px = boxes.astype(np.float64) * [width, height, width, height]
    view = expand(rng, width, height, expand_ratio)
    view = random_crop(rng, boxes_px, view, scale=min_crop_scale, aspect=max_crop_aspect_ratio)
    part, margins = cut(image, view)
    part = photometric_distort(rng, part)
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    out = resample(part, margins, size, fill, interpolation)
    boxes, inside = boxes_in_view(boxes_px, view)
    return *random_flips(rng, out, boxes, vertically=flip_vertically), labels[inside]


def preprocess_eval(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to a square, bilinear: uint8 [size, size, 3]."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def expand(rng: np.random.Generator, width: int, height: int, max_ratio: float) -> np.ndarray:
    """Place the image on a larger canvas with probability 0.5.

    Args:
        rng: random generator.
        width: width of the image (pixels).
        height: height of the image (pixels).
        max_ratio: largest side of the canvas (times the image's).

    Returns:
        A view: the canvas in pixels of the image.
    """
    if rng.random() >= 0.5 or max_ratio == 1:
        return np.array([0, 0, width, height])
    ratio = rng.uniform(1, max_ratio)
    canvas_w, canvas_h = int(width * ratio), int(height * ratio)
    left = int(rng.integers(canvas_w - width + 1))
    top = int(rng.integers(canvas_h - height + 1))
    return np.array([-left, -top, canvas_w - left, canvas_h - top])


def random_crop(
    rng: np.random.Generator,
    boxes_px: np.ndarray,
    view: np.ndarray,
    *,
    scale: float = CROP_SCALE,
    aspect: float = CROP_ASPECT,
) -> np.ndarray:
    """Crop a view by one of seven samplers, drawn among those that find a crop.

    One sampler keeps the view, the six of CROP_IOUS try to find a crop (`sample_crop`). They are
    tried in random order until one succeeds, which has the same distribution as trying all and
    drawing one that succeeds. A view without objects is kept, as in Caffe.

    Args:
        rng: random generator.
        boxes_px: float64 [n, 4], inside the view.
        view: int64 [4].
        scale: see `sample_crop`.
        aspect: see `sample_crop`.

    Returns:
        A view, int64 [4].
    """
    if len(boxes_px) == 0:
        return view
    for k in rng.permutation(len(CROP_IOUS) + 1):
        if k == len(CROP_IOUS):
            return view
        crop = sample_crop(rng, boxes_px, view, CROP_IOUS[k], scale=scale, aspect=aspect)
        if crop is not None:
            return crop
    raise AssertionError("one of the samplers keeps the view")


def sample_crop(
    rng: np.random.Generator,
    boxes_px: np.ndarray,
    view: np.ndarray,
    min_iou: float,
    *,
    scale: float = CROP_SCALE,
    aspect: float = CROP_ASPECT,
) -> np.ndarray | None:
    """Draw a random crop that keeps an object whose IoU with the crop is `min_iou` or more.

    The geometric mean of a crop's sides is `scale` to 1 times the view's, its aspect ratio 1 /
    `aspect` to `aspect` times the view's: 0.3 and 2 in Caffe. Objects are kept if their center is
    inside. Caffe takes the IoU of any object, so that its crops can lose the object that satisfied
    the IoU, or all objects; here one object satisfies both.

    Args:
        rng: random generator.
        boxes_px: float64 [n, 4], inside the view.
        view: int64 [4].
        min_iou: 0 accepts any crop that keeps an object.
        scale: smallest geometric mean of the sides (times the view's).
        aspect: largest aspect ratio relative to the view's, 1 or more.

    Returns:
        A view, int64 [4]; None if none of CROP_TRIES crops is accepted.
    """
    scales = rng.uniform(scale, 1, CROP_TRIES)
    aspects = rng.uniform(np.maximum(1 / aspect, scales**2), np.minimum(aspect, scales**-2))
    fractions = np.stack([scales * np.sqrt(aspects), scales / np.sqrt(aspects)], 1)
    # Round to whole pixels first, so that the checks see the final crop.
    whole = view[2:] - view[:2]
    sides: np.ndarray = (fractions * whole).round().astype(np.int64).clip(1, whole)
    corner = view[:2] + rng.integers(whole - sides, endpoint=True)
    crops = np.concatenate([corner, corner + sides], 1)

    low = np.maximum(crops[:, None, :2], boxes_px[None, :, :2])
    high = np.minimum(crops[:, None, 2:], boxes_px[None, :, 2:])
    intersection = (high - low).clip(0).prod(2)
    areas = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1)
    iou = intersection / (sides.prod(1)[:, None] + areas - intersection)
    accepted = (_centers_inside(crops[:, None], boxes_px) & (iou >= min_iou)).any(1)
    return crops[accepted.argmax()] if accepted.any() else None


def boxes_in_view(boxes_px: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the objects whose center is in the view.

    Returns:
        float32 [k, 4], their boxes in [0, 1] of the view, clipped to it; and their mask, bool [n].
    """
    inside = _centers_inside(view, boxes_px)
    sides = view[2:] - view[:2]
    moved = (boxes_px[inside] - np.tile(view[:2], 2)) / np.tile(sides, 2)
    return moved.clip(0, 1).astype(np.float32), inside


def cut(image: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return the part of an image in a view, not copied, and the margins around it.

    Returns:
        [h, w, 3]; the margins between it and the view: top, bottom, left, right (pixels).
    """
    left, top, right, bottom = view.tolist()
    height, width = image.shape[:2]
    part = image[max(top, 0) : bottom, max(left, 0) : right]
    return part, (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))


def resample(
    part: np.ndarray,
    margins: tuple[int, int, int, int],
    size: int,
    fill: tuple[float, float, float],
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Resize a view to the size of the network's input.

    Args:
        part: uint8 or float32 [h, w, 3], the part of the image in the view.
        margins: see `cut`.
        size: side of the result (pixels).
        fill: RGB of the margins.
        interpolation: an interpolation of OpenCV.

    Returns:
        [size, size, 3] of the part's type.
    """
    if any(margins):
        # The canvas of a photograph of many megapixels would take gigabytes: average its pixels
        # first if the result has less than an eighth of its side.
        top, bottom, left, right = margins
        height, width = part.shape[:2]
        shrink = min(height + top + bottom, width + left + right) // (8 * size)
        if shrink > 1:
            smaller = max(1, round(width / shrink)), max(1, round(height / shrink))
            part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
            margins = tuple(round(m / shrink) for m in margins)
        color = [round(c) for c in fill]
        part = cv2.copyMakeBorder(part, *margins, cv2.BORDER_CONSTANT, value=color)
    if interpolation == cv2.INTER_LANCZOS4 and part.dtype == np.uint8:
        # OpenCV takes twice as long for bytes. Adding 0 rounds and clips to bytes.
        out = cv2.resize(part.astype(np.float32), (size, size), interpolation=interpolation)
        return cv2.add(out, (0.0,) * 4, dtype=cv2.CV_8U)  # type: ignore[call-overload]
    return cv2.resize(part, (size, size), interpolation=interpolation)


def photometric_distort(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Distort brightness, contrast, saturation and hue, each with probability 0.5.

    Brightness +-32; contrast 0.5 to 1.5, before or after the next two; saturation 0.5 to 1.5;
    hue +-36 degrees. The result of every change is clipped to [0, 255].

    Returns:
        uint8 [H, W, 3].
    """
    levels = np.arange(256, dtype=np.float32)
    before = _to_levels(levels + rng.uniform(-32, 32)) if rng.random() < 0.5 else levels
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_last = rng.random() < 0.5
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0  # OpenCV's circle has 180 steps

    if not contrast_last and contrast != 1:
        before = before * contrast
    if before is not levels:
        image = cv2.LUT(image, _to_levels(before))
    if saturation != 1 or hue != 0:
        table = np.stack([np.rint(levels + hue) % 180, levels * saturation, levels], 1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), _to_levels(table)[:, None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast_last and contrast != 1:
        image = cv2.LUT(image, _to_levels(levels * contrast))
    return image


def random_flips(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, *, vertically: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `horizontal_flip`, and `vertical_flip` if `vertically`."""
    image, boxes = horizontal_flip(rng, image, boxes)
    return vertical_flip(rng, image, boxes) if vertically else (image, boxes)


def horizontal_flip(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flip image and boxes left to right with probability 0.5."""
    if rng.random() >= 0.5:
        return image, boxes
    x0, y0, x1, y1 = boxes.T
    return cv2.flip(image, 1), np.stack([1 - x1, y0, 1 - x0, y1], 1)


def vertical_flip(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flip image and boxes top to bottom with probability 0.5."""
    if rng.random() >= 0.5:
        return image, boxes
    x0, y0, x1, y1 = boxes.T
    return cv2.flip(image, 0), np.stack([x0, 1 - y1, x1, 1 - y0], 1)


def _centers_inside(crop: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether the center of each box is inside the crop [..., 4]: bool [..., n]."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centers >= crop[..., :2]) & (centers < crop[..., 2:])).all(-1)


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
