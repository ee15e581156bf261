"""IoU of detections with the objects of their image, in NumPy."""

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]

BoxConvention = Literal["inclusive", "exclusive"]
"""Width of a box whose corners are given in VOC's pixels, which count from 1.

inclusive: xmax - xmin + 1, as in the VOC devkit, which equals the width in continuous pixels;
exclusive: xmax - xmin, one pixel less.
"""


def box_areas(boxes: Array, box_convention: BoxConvention) -> Array:
    """Compute the areas [N] of boxes [N, 4] in continuous pixels."""
    sides = boxes[:, 2:] - boxes[:, :2] - _missing_pixels(box_convention)
    return sides[:, 0] * sides[:, 1]


def pair_iou(a: Array, b: Array, box_convention: BoxConvention) -> Array:
    """Compute the IoU of each pair of rows of a and b, [n, 4] each; 0 without overlap."""
    area_a, area_b = box_areas(a, box_convention), box_areas(b, box_convention)
    missing = _missing_pixels(box_convention)
    a, b = a.T, b.T
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]) - missing
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]) - missing
    overlap = (width > 0) & (height > 0)
    intersection = width * height
    # Boxes that overlap have areas above 0, so the union is safe to divide by.
    union = np.where(overlap, area_a + area_b - intersection, 1.0)
    return np.where(overlap, intersection / union, 0.0)


def _missing_pixels(box_convention: BoxConvention) -> float:
    """Return by how many pixels boxes are narrower than in continuous pixels."""
    if box_convention not in ("inclusive", "exclusive"):
        raise ValueError(f"box_convention is {box_convention!r}; use inclusive or exclusive")
    return 0.0 if box_convention == "inclusive" else 1.0


def best_objects(
    image: Array,
    boxes: Array,
    rows: Array,
    gt_image: Array,
    gt_boxes: Array,
    box_convention: BoxConvention,
    *,
    labels: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Find the object with the highest IoU in each detection's image.

    Args:
        image: int [N], the image of each detection.
        boxes: [R, 4], the boxes of a table; they are gathered only for pairs that are compared.
        rows: int [N], the row of each detection in `boxes`.
        gt_image: int [G], the image of each object.
        gt_boxes: [G, 4], the box of each object.
        box_convention: width of a box, see `BoxConvention`.
        labels: the class ids of the detections [N] and of the objects [G]; compare each detection
            with objects of other classes only. None: compare with all objects.

    Returns:
        The IoU [N], 0 without overlap, and the object's row [N], the first of equals; -1 for a
        detection without objects to compare with.
    """
    best_iou, best_gt = np.zeros(len(image)), np.full(len(image), -1)
    det, gt = pairs(image, gt_image)
    if labels is not None:
        other = labels[0][det] != labels[1][gt]
        det, gt = det[other], gt[other]
    if len(det) == 0:
        return best_iou, best_gt
    iou = pair_iou(boxes[rows[det]], gt_boxes[gt], box_convention)
    # The pairs of a detection are adjacent.
    start = np.flatnonzero(np.diff(det, prepend=-1))
    highest = np.maximum.reduceat(iou, start)
    is_best = iou == np.repeat(highest, np.diff(start, append=len(det)))
    best_iou[det[start]] = highest
    best_gt[det[start]] = np.minimum.reduceat(np.where(is_best, gt, len(gt_image)), start)
    return best_iou, best_gt


def pairs(image: Array, gt_image: Array) -> tuple[Array, Array]:
    """Enumerate the pairs of a detection [N] and an object [G] of the same image.

    Returns:
        The rows of both, int64 [n]. The pairs of a detection are adjacent, its objects in the
        order of their rows.
    """
    order = np.argsort(gt_image, kind="stable")
    images, firsts, counts = np.unique(gt_image[order], return_index=True, return_counts=True)
    if len(images) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    span = images[-1] - images[0] + 1
    if span > 8 * (len(image) + len(gt_image)):
        # Sparse image numbers: search for their rank.
        slot = np.minimum(np.searchsorted(images, image), len(images) - 1)
        slot = np.where(images[slot] == image, slot, len(images))
    else:
        # A table lookup takes a tenth of a search. The last slot is for all other images.
        slot = np.where((image < images[0]) | (image > images[-1]), span, image - images[0])
        table = np.zeros((2, span + 1), np.int64)
        table[:, images - images[0]] = firsts, counts
        firsts, counts = table
    first, count = np.append(firsts, 0)[slot], np.append(counts, 0)[slot]
    start = np.cumsum(count) - count
    position = np.arange(count.sum()) + np.repeat(first - start, count)
    return np.repeat(np.arange(len(image)), count), order[position]


def sort_by_score(score: Array) -> Array:
    """Return the rows [N] in descending order of score, equal scores in their order."""
    # NumPy's stable sort takes several times as long as the default; few scores are equal.
    order = np.argsort(-score)
    equal = np.diff(score[order]) == 0
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, -score[rows]))]
    return order
