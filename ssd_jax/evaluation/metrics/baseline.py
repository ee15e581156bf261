"""A detector that ignores the image, as a baseline for the metrics of one that does not."""

import numpy as np

from ssd_jax.data.tables import DetectionTable
from ssd_jax.evaluation.ground_truth import EvaluationData

_MAX_DETECTIONS = 500_000  # above it the baseline would take longer than the evaluation


def detect_mean_boxes(data: EvaluationData) -> DetectionTable | None:
    """Detect the mean ground-truth box of each class on every image, with score 1.

    The mean is of boxes as fractions of their images if the image sizes are known, otherwise of
    boxes in pixels. It is computed from the evaluated objects themselves, so a mean of training
    boxes would score about as well, or lower.

    Returns:
        The detections; None for a dataset without objects or with too many images and classes.
    """
    objects = data.objects
    counted = ~objects.difficult
    labels = np.unique(objects.label[counted])
    images = len(data.image_names)
    if len(labels) == 0 or images * len(labels) > _MAX_DETECTIONS:
        return None
    sizes = np.ones((images, 2)) if data.image_sizes is None else data.image_sizes
    scale = np.tile(sizes, 2).astype(np.float64)
    boxes = objects.boxes / scale[objects.image]
    means = [boxes[counted & (objects.label == label)].mean(axis=0) for label in labels]
    return DetectionTable(
        image=np.repeat(np.arange(images), len(labels)),
        label=np.tile(labels, images),
        score=np.ones(images * len(labels)),
        boxes=(scale[:, None] * np.array(means)).reshape(-1, 4),
    )
