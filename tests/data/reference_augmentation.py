"""SSD's augmentation step by step on whole pictures: the slow oracle of the fast one.

Every step makes the picture that the next one works on: the whole image changes its colours, is
laid on a canvas, a crop is cut out of the canvas, which is resized and mirrored. The random
numbers come in the order of ssd_jax.data, which draws all of the geometry first.
"""

import cv2
import numpy as np

TRIES = 50


def caffe(rng, image, boxes, labels, *, size, fill, expand_ratio, scale, aspect, upright):
    canvas = draw_canvas(rng, image, expand_ratio)
    crop = draw_crop(rng, image, boxes, canvas, scale, aspect)
    image = caffe_colours(rng, image)
    how = ["linear", "area", "nearest", "cubic", "lanczos4"][rng.integers(5)]
    image, boxes, labels = lay_and_cut(image, boxes, labels, canvas, crop, fill)
    image = cv2.resize(image, (size, size), interpolation=getattr(cv2, f"INTER_{how.upper()}"))
    return mirror(rng, image, boxes, labels, upright)


def ssd_pytorch(rng, image, boxes, labels, *, size, fill, expand_ratio, scale, aspect, upright):
    canvas = draw_canvas(rng, image, expand_ratio)
    crop = draw_free_crop(rng, image, boxes, canvas, scale, aspect)
    image = ssd_pytorch_colours(rng, image.astype(np.float32))
    image, boxes, labels = lay_and_cut(image, boxes, labels, canvas, crop, fill)
    image = cv2.resize(image, (size, size))
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return mirror(rng, image, boxes, labels, upright)


def draw_canvas(rng, image, expand_ratio):
    """(width, height, left, top) of the canvas and of the image on it."""
    height, width = image.shape[:2]
    if rng.random() >= 0.5 or expand_ratio == 1:
        return width, height, 0, 0
    ratio = rng.uniform(1, expand_ratio)
    canvas_w, canvas_h = int(width * ratio), int(height * ratio)
    left = rng.integers(0, canvas_w - width + 1)
    top = rng.integers(0, canvas_h - height + 1)
    return canvas_w, canvas_h, int(left), int(top)


def on_canvas(image, boxes, canvas):
    """Boxes in pixels of the canvas, as lists."""
    height, width = image.shape[:2]
    _, _, left, top = canvas
    return [
        [x0 * width + left, y0 * height + top, x1 * width + left, y1 * height + top]
        for x0, y0, x1, y1 in boxes.astype(float)
    ]


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area - w * h)


def centre_inside(box, crop):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return crop[0] <= x < crop[2] and crop[1] <= y < crop[3]


def draw_crop(rng, image, boxes, canvas, scale, aspect):
    """A crop of the canvas in its pixels, by the first of the seven samplers that finds one."""
    width, height = canvas[:2]
    boxes = on_canvas(image, boxes, canvas)
    if not boxes:
        return 0, 0, width, height
    for k in rng.permutation(7):
        if k == 6:
            return 0, 0, width, height
        min_iou = [0.1, 0.3, 0.5, 0.7, 0.9, 0.0][k]
        scales = rng.uniform(scale, 1, TRIES)
        low = [max(1 / aspect, s**2) for s in scales]
        high = [min(aspect, s**-2) for s in scales]
        aspects = rng.uniform(low, high)
        sides = []
        for s, a in zip(scales, aspects, strict=True):
            w, h = round(s * a**0.5 * width), round(s / a**0.5 * height)
            sides.append((min(max(w, 1), width), min(max(h, 1), height)))
        corners = rng.integers(0, [(width - w, height - h) for w, h in sides], endpoint=True)
        for (w, h), (x, y) in zip(sides, corners.tolist(), strict=True):
            crop = (x, y, x + w, y + h)
            if any(centre_inside(box, crop) and iou(box, crop) >= min_iou for box in boxes):
                return crop
    raise AssertionError


def draw_free_crop(rng, image, boxes, canvas, scale, aspect):
    """ssd.pytorch's: sides one by one, no IoU, some object's centre inside."""
    width, height = canvas[:2]
    boxes = on_canvas(image, boxes, canvas)
    if not boxes:
        return 0, 0, width, height
    while rng.random() < 5 / 6:
        for _ in range(TRIES):
            share_w, share_h = rng.uniform(scale, 1, 2)
            w, h = max(int(share_w * width), 1), max(int(share_h * height), 1)
            if h / w < 1 / aspect or h / w > aspect:
                continue
            x, y = rng.integers(0, [width - w, height - h], endpoint=True).tolist()
            crop = (x, y, x + w, y + h)
            if any(centre_inside(box, crop) for box in boxes):
                return crop
    return 0, 0, width, height


def lay_and_cut(image, boxes, labels, canvas, crop, fill):
    boxes_px = on_canvas(image, boxes, canvas)
    canvas_w, canvas_h, left, top = canvas
    picture = np.zeros((canvas_h, canvas_w, 3), image.dtype)
    picture[:] = np.round(fill)
    picture[top : top + image.shape[0], left : left + image.shape[1]] = image
    x0, y0, x1, y1 = crop
    kept, kinds = [], []
    for box, label in zip(boxes_px, labels, strict=True):
        if centre_inside(box, crop):
            clipped = [max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)]
            kept.append(
                [
                    (c - o) / s
                    for c, o, s in zip(clipped, (x0, y0) * 2, (x1 - x0, y1 - y0) * 2, strict=True)
                ]
            )
            kinds.append(label)
    boxes = np.array(kept, np.float32).reshape(-1, 4)
    return picture[y0:y1, x0:x1].copy(), boxes, np.array(kinds, np.int32)


def mirror(rng, image, boxes, labels, upright):
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes = np.array([[1 - b[2], b[1], 1 - b[0], b[3]] for b in boxes], np.float32)
    if upright and rng.random() < 0.5:
        image = image[::-1]
        boxes = np.array([[b[0], 1 - b[3], b[2], 1 - b[1]] for b in boxes], np.float32)
    return image, boxes.reshape(-1, 4), labels


def as_bytes(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def caffe_colours(rng, image):
    """One change after the other, each ends in whole numbers from 0 to 255."""
    if rng.random() < 0.5:
        image = as_bytes(image.astype(np.float32) + np.float32(rng.uniform(-32, 32)))
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    last = rng.random() < 0.5
    if contrast is not None and not last:
        image = as_bytes(image * np.float32(contrast))
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else None
    if saturation is not None or hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturation is not None:
            hsv[..., 1] = as_bytes(hsv[..., 1] * np.float32(saturation))
        if hue is not None:
            hsv[..., 0] = np.round(hsv[..., 0] + np.float32(hue)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and last:
        image = as_bytes(image * np.float32(contrast))
    return image


def ssd_pytorch_colours(rng, image):
    """One change after the other; nothing is clipped."""
    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(-32, 32))
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    last = rng.random() < 0.5
    if contrast is not None and not last:
        image = image * np.float32(contrast)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else None
    if saturation is not None or hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturation is not None:
            hsv[..., 1] *= np.float32(saturation)
        if hue is not None:
            hsv[..., 0] += np.float32(hue)
            hsv[..., 0][hsv[..., 0] > 360] -= 360
            hsv[..., 0][hsv[..., 0] < 0] += 360
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and last:
        image = image * np.float32(contrast)
    if rng.random() < 0.5:
        orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        image = np.stack([image[..., k] for k in orders[rng.integers(6)]], -1)
    return image
