"""SSD's augmentation, section 2.2 of the paper, in the order of the authors' Caffe code.

Images are RGB uint8 [H, W, 3]; boxes float32 [n, 4], xyxy, in [0, 1]; labels int32 [n]. Nothing
is changed in place. Randomness is handed in, and an image without objects passes through all.
"""

import cv2
import numpy as np

CROP_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""Smallest IoU of each sampler that crops; the last one takes any. The seventh keeps the image."""
CROP_TRIES = 50
CROP_SCALE = 0.3
CROP_ASPECT = 2.0

_INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)


def augment_train(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    fill: tuple[float, float, float],
    expand_ratio: float,
    crop_scale: float,
    crop_aspect: float,
    flip_vertically: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image as a training step sees it: colours, expansion, crop, resize, mirror.

    Args:
        rng: decides everything.
        image: uint8 [H, W, 3].
        boxes: float32 [n, 4].
        labels: int32 [n].
        size: side of the result (pixels).
        fill: RGB that the canvas of the expansion has, the mean that the model subtracts.
        expand_ratio: largest side of that canvas (times the image); 1: no expansion.
        crop_scale: smallest side of a crop, in the mean (times the image).
        crop_aspect: largest stretch of a crop against the image.
        flip_vertically: mirror top to bottom as well.

    Returns:
        uint8 [size, size, 3], and the boxes and labels of the objects that are left: at least
        one if there was one.
    """
    image = photometric_distort(rng, image)
    image, boxes = expand(rng, image, boxes, fill, expand_ratio)
    image, boxes, labels = random_crop(
        rng, image, boxes, labels, scale=crop_scale, aspect=crop_aspect
    )
    image = random_resize(rng, image, size)
    image, boxes = horizontal_flip(rng, image, boxes)
    if flip_vertically:
        image, boxes = vertical_flip(rng, image, boxes)
    return image, boxes, labels


def preprocess_eval(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the image stretched to a square, bilinear."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def photometric_distort(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image in other light, uint8 [H, W, 3]; each change has probability 0.5.

    Brightness +-32; contrast 0.5 to 1.5, before or after the next two; saturation 0.5 to 1.5;
    hue +-36 degrees, round the circle. Every change ends in [0, 255].
    """
    levels = np.arange(256, dtype=np.float32)
    before = levels + rng.uniform(-32, 32) if rng.random() < 0.5 else levels
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_last = rng.random() < 0.5
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0  # OpenCV's circle has 180 steps

    if not contrast_last:
        before = _to_levels(before) * contrast
    image = cv2.LUT(image, _to_levels(before))
    if saturation != 1 or hue != 0:
        table = np.stack([np.rint(levels + hue) % 180, levels * saturation, levels], 1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), _to_levels(table)[:, None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast_last and contrast != 1:
        image = cv2.LUT(image, _to_levels(levels * contrast))
    return image


def expand(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    fill: tuple[float, float, float],
    max_ratio: float,
) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.5 the image somewhere on a larger canvas: smaller objects.

    Args:
        rng: decides everything.
        image: uint8 [H, W, 3].
        boxes: float32 [n, 4].
        fill: RGB of the canvas.
        max_ratio: the canvas has 1 to this many times the image's sides.

    Returns:
        The canvas, uint8, and the boxes on it.
    """
    if rng.random() >= 0.5 or max_ratio == 1:
        return image, boxes
    ratio = rng.uniform(1, max_ratio)
    height, width = image.shape[:2]
    canvas_w, canvas_h = int(width * ratio), int(height * ratio)
    left = int(rng.integers(canvas_w - width + 1))
    top = int(rng.integers(canvas_h - height + 1))
    margins = (top, canvas_h - height - top, left, canvas_w - width - left)
    colour = [round(c) for c in fill]
    canvas = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=colour)
    boxes_px = boxes * _sides(width, height) + np.array([left, top, left, top], np.float32)
    return canvas, (boxes_px / _sides(canvas_w, canvas_h)).clip(0, 1)


def random_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    scale: float = CROP_SCALE,
    aspect: float = CROP_ASPECT,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image or a part of it: one of seven samplers, drawn among those that found a crop.

    One keeps the image whole, the six of CROP_IOUS try to find a crop (`sample_crop`). Objects
    whose centre is inside the crop stay, clipped to it. An image without objects stays whole, as
    in Caffe.

    Returns:
        A view of the image, and the boxes and labels that stay: at least one if there was one.
    """
    if len(boxes) == 0:
        return image, boxes, labels
    height, width = image.shape[:2]
    boxes_px = boxes.astype(np.float64) * _sides(width, height)
    found = [
        sample_crop(rng, boxes_px, width, height, min_iou, scale=scale, aspect=aspect)
        for min_iou in CROP_IOUS
    ]
    crops = [None, *(crop for crop in found if crop is not None)]
    crop = crops[rng.integers(len(crops))]
    if crop is None:
        return image, boxes, labels

    left, top, right, bottom = crop.tolist()
    inside = _centres_inside(crop, boxes_px)
    moved = (boxes_px[inside] - [left, top, left, top]) / _sides(right - left, bottom - top)
    return image[top:bottom, left:right], moved.clip(0, 1).astype(np.float32), labels[inside]


def sample_crop(
    rng: np.random.Generator,
    boxes_px: np.ndarray,
    width: int,
    height: int,
    min_iou: float,
    *,
    scale: float = CROP_SCALE,
    aspect: float = CROP_ASPECT,
) -> np.ndarray | None:
    """A random crop that keeps an object whose IoU with the crop is `min_iou` or more.

    A crop has `scale` to 1 of the image's sides, in the mean, and 1 / `aspect` to `aspect` of its
    aspect ratio: 0.3 and 2 in Caffe. It keeps the objects whose centre is inside. Caffe asks the
    IoU of any object, so that its crops can lose the object that let them pass, or all; here one
    object both passes and stays.

    Args:
        rng: decides everything.
        boxes_px: float [n, 4], xyxy in pixels.
        width: of the image (pixels).
        height: of the image (pixels).
        min_iou: 0 takes any crop that keeps an object.
        scale: smallest side, in the mean (times the image).
        aspect: largest stretch, 1 or more.

    Returns:
        int64 [4], xyxy in whole pixels; None if CROP_TRIES crops were no good.
    """
    scales = rng.uniform(scale, 1, CROP_TRIES)
    aspects = rng.uniform(np.maximum(1 / aspect, scales**2), np.minimum(aspect, scales**-2))
    shares = np.stack([scales * np.sqrt(aspects), scales / np.sqrt(aspects)], 1)
    # Whole pixels first, so that what is checked is what is cut.
    sides: np.ndarray = (shares * (width, height)).round().astype(np.int64).clip(1, (width, height))
    room = np.array([width, height], np.int64) - sides
    corner = rng.integers(room, endpoint=True)
    crops = np.concatenate([corner, corner + sides], 1)

    low = np.maximum(crops[:, None, :2], boxes_px[None, :, :2])
    high = np.minimum(crops[:, None, 2:], boxes_px[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1)
    iou = common / (sides.prod(1)[:, None] + areas - common)
    good = (_centres_inside(crops[:, None], boxes_px) & (iou >= min_iou)).any(1)
    return crops[good.argmax()] if good.any() else None


def random_resize(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [size, size, 3] by one of OpenCV's five interpolations."""
    how = _INTERPOLATIONS[rng.integers(len(_INTERPOLATIONS))]
    return cv2.resize(image, (size, size), interpolation=how)


def horizontal_flip(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.5 the mirror image, left to right, and its boxes."""
    if rng.random() >= 0.5:
        return image, boxes
    x0, y0, x1, y1 = boxes.T
    return cv2.flip(image, 1), np.stack([1 - x1, y0, 1 - x0, y1], 1)


def vertical_flip(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.5 the mirror image, top to bottom, and its boxes."""
    if rng.random() >= 0.5:
        return image, boxes
    x0, y0, x1, y1 = boxes.T
    return cv2.flip(image, 0), np.stack([x0, 1 - y1, x1, 1 - y0], 1)


def _centres_inside(crop: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether the centre of each box is inside the crop [..., 4], bool [..., n]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= crop[..., :2]) & (centres < crop[..., 2:])).all(-1)


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _sides(width: int, height: int) -> np.ndarray:
    return np.array([width, height, width, height], np.float32)
