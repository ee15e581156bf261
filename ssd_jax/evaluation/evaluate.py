"""The evaluation of a network on a source: detect, score, report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssd_jax.config import Config
from ssd_jax.data.sources import Source
from ssd_jax.evaluation.detect import DetectFn, Variables, detect_source, never
from ssd_jax.evaluation.report import Picture, print_table, write_pictures, write_report
from ssd_jax.evaluation.results import write_results
from ssd_jax.evaluation.scores import Result, score_detections
from ssd_jax.evaluation.voc import VOC_PIXELS, DetectionTable, GroundTruth
from ssd_jax.runtime import is_first_process


def evaluate_source(
    detect: DetectFn,
    variables: Variables,
    source: Source,
    config: Config,
    *,
    out_dir: Path,
    console: Console,
    extra: dict[str, Any],
    save_detections: bool = False,
    stop: Callable[[], bool] = never,
) -> list[Result]:
    """The results of the network on `source`, one for each of eval.metrics.

    They are printed as a table and written to `out_dir`: metrics.json, with `extra` in it, and
    pictures of detections beside ground truth; with `save_detections` the detections too, see
    `write_results`. Of several processes each detects its share, all get the results, and the
    first one writes. Raises StoppedError if `stop` said so.
    """
    found = detect_source(
        detect,
        variables,
        source,
        image_size=config.model.image_size,
        batch_size=config.eval.batch_size,
        stop=stop,
    )
    results = score_detections(
        found,
        ground_truth(source),
        source.classes,
        metrics=config.eval.metrics,
        area=object_areas(source),
        iou_threshold=config.eval.iou_threshold,
        pixels=config.eval.pixels,
    )
    if not is_first_process():
        return results
    write_report(results, out_dir, {"num_images": len(source), **extra})
    if save_detections:
        write_results(out_dir, found, source, config.data.eval_split)
    write_pictures(_pictures(source, found, config.eval.pictures), source.classes, out_dir)
    print_table(results, console)
    return results


def ground_truth(source: Source) -> GroundTruth:
    """The objects of a source, boxes in VOC's pixels."""
    known = [source.annotation(i) for i in range(len(source))]
    return GroundTruth(
        image=np.repeat(np.arange(len(known)), [len(a.labels) for a in known]),
        label=np.concatenate([a.labels for a in known]),
        boxes=np.concatenate([a.boxes_px for a in known]) + VOC_PIXELS,
        difficult=np.concatenate([a.difficult for a in known]),
    )


def object_areas(source: Source) -> np.ndarray:
    """The square pixels of each object in `ground_truth`, float64 [N].

    Those of its segmentation where the source knows them, else those of its box.
    """
    areas = []
    for known in (source.annotation(i) for i in range(len(source))):
        sides = np.asarray(known.boxes_px[:, 2:] - known.boxes_px[:, :2], np.float64)
        areas.append(sides.prod(axis=1) if known.area is None else known.area)
    return np.concatenate(areas)


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
