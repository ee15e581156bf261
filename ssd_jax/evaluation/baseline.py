"""A detector that does not look at images, to judge the figures of one that does."""

import numpy as np

from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.voc_ap import VOC_PIXELS, DetectionTable

_MOST = 500_000  # detections; above it the baseline would take longer than the evaluation


def detect_mean_boxes(data: EvaluationData) -> DetectionTable | None:
    """Detect the mean ground-truth box of each class on every image, with score 1.

    The mean is of the boxes as fractions of their images where the data set has the sizes of its
    images, else in pixels. It is taken from the objects that are evaluated, so a mean of training
    boxes would score about as well, or lower.

    Returns:
        The detections in VOC's pixels; None for a data set without objects, or of too many images
        and classes.
    """
    objects = data.objects
    counted = ~objects.difficult
    labels = np.unique(objects.label[counted])
    images = len(data.image_names)
    if len(labels) == 0 or images * len(labels) > _MOST:
        return None
    sizes = np.ones((images, 2)) if data.image_sizes is None else data.image_sizes
    scale = np.tile(sizes, 2).astype(np.float64)
    boxes = (objects.boxes - VOC_PIXELS) / scale[objects.image]
    means = [boxes[counted & (objects.label == label)].mean(axis=0) for label in labels]
    return DetectionTable(
        image=np.repeat(np.arange(images), len(labels)),
        label=np.tile(labels, images),
        score=np.ones(images * len(labels)),
        boxes=(scale[:, None] * np.array(means)).reshape(-1, 4) + VOC_PIXELS,
    )
