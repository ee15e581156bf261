"""Metrics of one class, common to VOC and COCO."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassMetrics:
    """Average precision and counts of one class."""

    name: str
    ap: float
    """Average precision, 0 to 1; nan for a class without objects."""
    num_objects: int
    """Number of objects that are neither difficult nor crowds."""
    num_detections: int
    """Number of detections, including ignored ones and those that COCO drops after the 100th in an
    image."""
    ap_by_size: tuple[float, float, float]
    """AP of small, medium and large objects; nan without such objects."""
