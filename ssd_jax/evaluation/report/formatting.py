"""Names and number formats shared by the console tables and the HTML report."""

import math
from collections.abc import Sequence

from ssd_jax.evaluation.metrics.evaluation import Result

METRIC_NAMES = {
    "voc": "area under the curve (VOC 2010)",
    "voc07": "11 points (VOC 2007)",
    "coco": "mean of IoU 0.50 to 0.95 (COCO)",
}


def format_number(value: float) -> str:
    """Format a metric with four decimals; nan as a dash."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_difference(value: float) -> str:
    """Format the difference of two metrics with its sign; nan as a dash."""
    return "-" if math.isnan(value) else f"{value:+.4f}"


def describe_baseline(baseline: Sequence[Result]) -> str:
    """Describe the results of the baseline in one line; empty without results."""
    if not baseline:
        return ""
    means = ", ".join(f"{r.metric} {format_number(r.mean_ap)}" for r in baseline)
    return f"Baseline, the mean ground-truth box of each class on every image: mAP {means}"
