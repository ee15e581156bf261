"""The evaluation of a network on a source: detect, score, report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssd_jax.config import Config
from ssd_jax.data.sources import Source
from ssd_jax.evaluation.detect import VOC_PIXELS, DetectFn, Variables, detect_source
from ssd_jax.evaluation.report import Picture, print_table, write_pictures, write_report
from ssd_jax.evaluation.voc import DetectionTable, GroundTruth, VocResult, evaluate_voc


def evaluate_source(
    detect: DetectFn,
    variables: Variables,
    source: Source,
    config: Config,
    *,
    out_dir: Path,
    console: Console,
    extra: dict[str, Any],
) -> VocResult:
    """The metrics of the network on `source`; also printed as a table and written to `out_dir`.

    `out_dir` gets metrics.json, with `extra` in it, and pictures of detections beside ground
    truth.
    """
    found = detect_source(
        detect,
        variables,
        source,
        image_size=config.model.image_size,
        batch_size=config.eval.batch_size,
    )
    result = evaluate_voc(
        found,
        ground_truth(source),
        source.classes,
        metric=config.eval.metric,
        iou_threshold=config.eval.iou_threshold,
        pixels=config.eval.pixels,
    )
    write_report(result, out_dir, {"num_images": len(source), **extra})
    write_pictures(_pictures(source, found, config.eval.pictures), source.classes, out_dir)
    print_table(result, console)
    return result


def ground_truth(source: Source) -> GroundTruth:
    """The objects of a source, boxes in VOC's pixels."""
    known = [source.annotation(i) for i in range(len(source))]
    return GroundTruth(
        image=np.repeat(np.arange(len(known)), [len(a.labels) for a in known]),
        label=np.concatenate([a.labels for a in known]),
        boxes=np.concatenate([a.boxes_px for a in known]) + VOC_PIXELS,
        difficult=np.concatenate([a.difficult for a in known]),
    )


def _pictures(source: Source, found: DetectionTable, count: int) -> Sequence[Picture]:
    """Up to `count` images, spread over the source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    pictures = []
    for i in map(int, chosen):
        rows = found.image == i
        known = source.annotation(i)
        pictures.append(
            Picture(
                name=known.image_id,
                image=source.image(i),
                boxes=found.boxes[rows] - VOC_PIXELS,
                labels=found.label[rows],
                scores=found.score[rows],
                gt_boxes=known.boxes_px,
                gt_labels=known.labels,
            )
        )
    return pictures
