"""ssd.pytorch's decoding and augmentation: float32, each step on the whole image.

The peer of the input pipeline's benchmark. As in ssd.pytorch, samplers are drawn until one gives a
crop, and the minimum IoU of a crop is not enforced.
"""

from pathlib import Path

import cv2
import numpy as np

MEAN = np.array([104, 117, 123], np.float32)  # BGR
TRIES = 50
MODES = (None, 0.1, 0.3, 0.7, 0.9, "any")


def load(rng, file: Path, boxes, labels, size: int = 300):
    """Return a training image (float32 [size, size, 3]), its boxes in [0, 1] and its labels."""
    image = cv2.imread(str(file)).astype(np.float32)
    height, width = image.shape[:2]
    boxes = boxes * np.array([width, height, width, height], np.float32)
    image = distort(rng, image)
    image, boxes = expand(rng, image, boxes)
    image, boxes, labels = sample_crop(rng, image, boxes, labels)
    if rng.integers(2):
        image = image[:, ::-1]
        boxes = boxes.copy()
        boxes[:, 0::2] = image.shape[1] - boxes[:, 2::-2]
    height, width = image.shape[:2]
    boxes = boxes / np.array([width, height, width, height], np.float32)
    image = cv2.resize(image, (size, size))
    return image - MEAN, boxes, labels


def distort(rng, image):
    image = image.copy()
    if rng.integers(2):
        image += rng.uniform(-32, 32)
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image *= rng.uniform(0.5, 1.5)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if rng.integers(2):
        image[:, :, 1] *= rng.uniform(0.5, 1.5)
    if rng.integers(2):
        image[:, :, 0] += rng.uniform(-18, 18)
        image[:, :, 0][image[:, :, 0] > 360] -= 360
        image[:, :, 0][image[:, :, 0] < 0] += 360
    image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    if not contrast_first and rng.integers(2):
        image *= rng.uniform(0.5, 1.5)
    if rng.integers(2):
        image = image[:, :, rng.permutation(3)]
    return image


def expand(rng, image, boxes):
    if rng.integers(2):
        return image, boxes
    height, width, channels = image.shape
    ratio = rng.uniform(1, 4)
    left, top = rng.uniform(0, width * ratio - width), rng.uniform(0, height * ratio - height)
    canvas = np.zeros((int(height * ratio), int(width * ratio), channels), image.dtype)
    canvas[:] = MEAN
    canvas[int(top) : int(top) + height, int(left) : int(left) + width] = image
    return canvas, boxes + np.array([int(left), int(top)] * 2, np.float32)


def sample_crop(rng, image, boxes, labels):
    height, width = image.shape[:2]
    while True:
        if len(boxes) == 0 or MODES[rng.integers(len(MODES))] is None:
            return image, boxes, labels
        for _ in range(TRIES):
            w, h = rng.uniform(0.3 * width, width), rng.uniform(0.3 * height, height)
            if h / w < 0.5 or h / w > 2:
                continue
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            rect = np.array([int(left), int(top), int(left + w), int(top + h)])
            # ssd.pytorch computes the IoU too and compares it with a bound that is never reached.
            box_ious(boxes, rect)
            crop = image[rect[1] : rect[3], rect[0] : rect[2]]
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            kept = ((centres > rect[:2]) & (centres < rect[2:])).all(1)
            if not kept.any():
                continue
            boxes = boxes[kept].copy()
            boxes[:, :2] = np.maximum(boxes[:, :2], rect[:2]) - rect[:2]
            boxes[:, 2:] = np.minimum(boxes[:, 2:], rect[2:]) - rect[:2]
            return crop, boxes, labels[kept]


def box_ious(boxes, rect):
    sides = np.clip(
        np.minimum(boxes[:, 2:], rect[2:]) - np.maximum(boxes[:, :2], rect[:2]), 0, None
    )
    inter = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return inter / (areas + (rect[2] - rect[0]) * (rect[3] - rect[1]) - inter)
