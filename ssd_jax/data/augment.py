"""SSD's augmentation, section 2.2 of the paper, in the order of the authors' Caffe code.

Images are RGB uint8 [H, W, 3]; boxes float32 [n, 4], xyxy, in [0, 1]; labels int32 [n]. Nothing
is changed in place. Randomness is handed in, and an image without objects passes through all.

Where the pixels come from is drawn first: a view, int64 [4], xyxy in pixels of the image, which
reaches beyond the image where the canvas of the expansion is seen. Colours are then changed in
that part of the image alone, and it is sampled once. That gives what changing the whole image,
laying it on a canvas and cutting the crop out of it would give.
"""

import cv2
import numpy as np

CROP_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
"""Smallest IoU of each sampler that crops; the last one takes any. The seventh keeps the image."""
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
    """One image as a training step sees it: colours, expansion, crop, resize, mirror.

    Args:
        rng: decides everything.
        image: uint8 [H, W, 3].
        boxes: float32 [n, 4].
        labels: int32 [n].
        size: side of the result (pixels).
        fill: RGB that the canvas of the expansion has, the mean that the model subtracts.
        expand_ratio: largest side of that canvas (times the image); 1: no expansion.
        min_crop_scale: smallest side of a crop, in the mean (times the image).
        max_crop_aspect_ratio: largest stretch of a crop against the image.
        flip_vertically: mirror top to bottom as well.

    Returns:
        uint8 [size, size, 3], and the boxes and labels of the objects that are left: at least
        one if there was one.
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
    """uint8 [size, size, 3]: the image stretched to a square, bilinear."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def expand(rng: np.random.Generator, width: int, height: int, max_ratio: float) -> np.ndarray:
    """With probability 0.5 a larger canvas round the image: smaller objects.

    Args:
        rng: decides everything.
        width: of the image (pixels).
        height: of the image (pixels).
        max_ratio: the canvas has 1 to this many times the image's sides.

    Returns:
        A view: the canvas in pixels of the image, which lies anywhere on it.
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
    """The view or a part of it: one of seven samplers, drawn among those that find a crop.

    One keeps the view whole, the six of CROP_IOUS try to find a crop (`sample_crop`). They are
    asked in random order and the first crop found is taken: each that would find one is as
    likely, as when all are asked first. A view without objects stays whole, as in Caffe.

    Args:
        rng: decides everything.
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
    raise AssertionError("one of the samplers keeps the view whole")


def sample_crop(
    rng: np.random.Generator,
    boxes_px: np.ndarray,
    view: np.ndarray,
    min_iou: float,
    *,
    scale: float = CROP_SCALE,
    aspect: float = CROP_ASPECT,
) -> np.ndarray | None:
    """A random part of a view that keeps an object whose IoU with it is `min_iou` or more.

    A crop has `scale` to 1 of the view's sides, in the mean, and 1 / `aspect` to `aspect` of its
    aspect ratio: 0.3 and 2 in Caffe. It keeps the objects whose centre is inside. Caffe asks the
    IoU of any object, so that its crops can lose the object that let them pass, or all; here one
    object both passes and stays.

    Args:
        rng: decides everything.
        boxes_px: float64 [n, 4], inside the view.
        view: int64 [4].
        min_iou: 0 takes any crop that keeps an object.
        scale: smallest side, in the mean (times the view's).
        aspect: largest stretch, 1 or more.

    Returns:
        A view, int64 [4]; None if CROP_TRIES crops were no good.
    """
    scales = rng.uniform(scale, 1, CROP_TRIES)
    aspects = rng.uniform(np.maximum(1 / aspect, scales**2), np.minimum(aspect, scales**-2))
    shares = np.stack([scales * np.sqrt(aspects), scales / np.sqrt(aspects)], 1)
    # Whole pixels first, so that what is checked is what is cut.
    whole = view[2:] - view[:2]
    sides: np.ndarray = (shares * whole).round().astype(np.int64).clip(1, whole)
    corner = view[:2] + rng.integers(whole - sides, endpoint=True)
    crops = np.concatenate([corner, corner + sides], 1)

    low = np.maximum(crops[:, None, :2], boxes_px[None, :, :2])
    high = np.minimum(crops[:, None, 2:], boxes_px[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1)
    iou = common / (sides.prod(1)[:, None] + areas - common)
    good = (_centres_inside(crops[:, None], boxes_px) & (iou >= min_iou)).any(1)
    return crops[good.argmax()] if good.any() else None


def boxes_in_view(boxes_px: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objects whose centre is in the view.

    Returns:
        float32 [k, 4], their boxes in [0, 1] of the view, clipped to it; bool [n], which they are.
    """
    inside = _centres_inside(view, boxes_px)
    sides = view[2:] - view[:2]
    moved = (boxes_px[inside] - np.tile(view[:2], 2)) / np.tile(sides, 2)
    return moved.clip(0, 1).astype(np.float32), inside


def cut(image: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The part of an image that is in a view, not copied, and what of the view is beyond it.

    Returns:
        [h, w, 3]; the margins of the view round it: top, bottom, left, right (pixels).
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
    """A view at the size of the network's input.

    Args:
        part: uint8 or float32 [h, w, 3], what of the image is in the view.
        margins: as of `cut`.
        size: side of the result (pixels).
        fill: RGB of the margins.
        interpolation: one of OpenCV's.

    Returns:
        [size, size, 3] of the part's type.
    """
    if any(margins):
        # The canvas of a photograph of many megapixels would take gigabytes: its pixels are
        # averaged first, where eight and more of a side would go into one.
        top, bottom, left, right = margins
        height, width = part.shape[:2]
        shrink = min(height + top + bottom, width + left + right) // (8 * size)
        if shrink > 1:
            smaller = max(1, round(width / shrink)), max(1, round(height / shrink))
            part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
            margins = tuple(round(m / shrink) for m in margins)
        colour = [round(c) for c in fill]
        part = cv2.copyMakeBorder(part, *margins, cv2.BORDER_CONSTANT, value=colour)
    if interpolation == cv2.INTER_LANCZOS4 and part.dtype == np.uint8:
        # OpenCV takes twice as long for bytes. Adding nothing rounds, and clips to them.
        out = cv2.resize(part.astype(np.float32), (size, size), interpolation=interpolation)
        return cv2.add(out, (0.0,) * 4, dtype=cv2.CV_8U)  # type: ignore[call-overload]
    return cv2.resize(part, (size, size), interpolation=interpolation)


def photometric_distort(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image in other light, uint8 [H, W, 3]; each change has probability 0.5.

    Brightness +-32; contrast 0.5 to 1.5, before or after the next two; saturation 0.5 to 1.5;
    hue +-36 degrees, round the circle. Every change ends in [0, 255].
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
    """`horizontal_flip`, and `vertical_flip` too if `vertically`."""
    image, boxes = horizontal_flip(rng, image, boxes)
    return vertical_flip(rng, image, boxes) if vertically else (image, boxes)


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
