"""VOC's average precision by the loop of ssd.pytorch's eval.py: one detection at a time."""

from typing import Any

import numpy as np


def voc_ap(detections: Any, ground_truth: Any, classes: int) -> list[float]:
    """Return each class's area under the precision-recall curve."""
    aps = []
    for label in range(1, classes + 1):
        objects: dict[int, tuple[np.ndarray, np.ndarray, list[bool]]] = {}
        rows = np.flatnonzero(ground_truth.label == label)
        for image in np.unique(ground_truth.image[rows]):
            in_image = rows[ground_truth.image[rows] == image]
            objects[int(image)] = (
                ground_truth.boxes[in_image],
                ground_truth.difficult[in_image],
                [False] * len(in_image),
            )
        num_objects = int(np.sum(~ground_truth.difficult[rows]))
        det = np.flatnonzero(detections.label == label)
        det = det[np.argsort(-detections.score[det], kind="stable")]
        tp, fp = np.zeros(len(det)), np.zeros(len(det))
        for d, i in enumerate(det):
            box, best = detections.boxes[i], -np.inf
            if int(detections.image[i]) in objects:
                boxes, difficult, taken = objects[int(detections.image[i])]
                low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
                sides = np.maximum(high - low + 1, 0)
                inter = sides[:, 0] * sides[:, 1]
                area = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
                iou = inter / (np.prod(box[2:] - box[:2] + 1) + area - inter)
                best, j = iou.max(), int(iou.argmax())
            if best < 0.5:
                fp[d] = 1
            elif not difficult[j]:
                tp[d], fp[d] = not taken[j], taken[j]
                taken[j] = True
        tp, fp = tp.cumsum(), fp.cumsum()
        recall, precision = tp / max(num_objects, 1), tp / np.maximum(tp + fp, 1e-12)
        recall = np.concatenate([[0], recall, [1]])
        precision = np.maximum.accumulate(np.concatenate([[0], precision, [0]])[::-1])[::-1]
        steps = np.flatnonzero(np.diff(recall))
        aps.append(float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])))
    return aps
