"""Evaluation of a network on a source: detect, score, report."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssd_jax.config import Config
from ssd_jax.data.tables import DetectionTable
from ssd_jax.data.types import DataSource
from ssd_jax.distributed import is_main_process
from ssd_jax.evaluation.ground_truth import load_ground_truth
from ssd_jax.evaluation.metrics.evaluation import Evaluation, evaluate_detections
from ssd_jax.evaluation.report.console import print_errors, print_metrics
from ssd_jax.evaluation.report.images import Sample, write_images
from ssd_jax.evaluation.report.output_dir import write_evaluation
from ssd_jax.evaluation.result_files import write_results
from ssd_jax.inference.detect import DetectFn, Variables, detect_source, never


def evaluate_source(
    detect: DetectFn,
    variables: Variables,
    source: DataSource,
    config: Config,
    *,
    out_dir: Path,
    console: Console,
    name: str,
    extra: dict[str, Any],
    save_detections: bool = False,
    stop: Callable[[], bool] = never,
) -> Evaluation:
    """Evaluate a network on a source, print the metrics and write the output files.

    Every process detects in its share of the images and returns the evaluation; the main process
    writes.

    Args:
        detect: the compiled detection, see `DetectFn`.
        variables: parameters and batch statistics.
        source: the images and annotations.
        config: its `eval` section selects the metrics and their settings.
        out_dir: folder of metrics.json, images of predictions beside ground truth, and, with
            eval.report, the files of `write_evaluation`.
        console: prints the tables.
        name: of the checkpoint, for the report.
        extra: further entries of metrics.json.
        save_detections: also write the detections, see `write_results`.
        stop: called after each batch; true stops the evaluation.

    Raises:
        StoppedError: `stop` returned true.
    """
    detections = detect_source(
        detect,
        variables,
        source,
        image_size=config.model.image_size,
        batch_size=config.eval.batch_size,
        stop=stop,
    )
    data = load_ground_truth(source)
    evaluation = evaluate_detections(
        name,
        detections,
        data,
        metrics=config.eval.metrics,
        iou_threshold=config.eval.iou_threshold,
        box_convention=config.eval.box_convention,
        report_score_threshold=config.eval.report_score_threshold,
    )
    if not is_main_process():
        return evaluation
    write_evaluation(
        out_dir,
        evaluation,
        data,
        extra={"num_images": len(source), **extra},
        facts=[f"{key} {value}" for key, value in extra.items()],
        html=config.eval.report,
        images=config.eval.num_report_images,
    )
    if save_detections:
        write_results(out_dir, detections, source, config.data.eval_split)
    write_images(
        _samples(source, detections, config.eval.num_visualizations),
        source.classes,
        out_dir,
        score_threshold=config.eval.report_score_threshold,
    )
    print_metrics(evaluation.results, console, evaluation.baseline)
    print_errors(evaluation.analysis, console)
    return evaluation


def _samples(source: DataSource, detections: DetectionTable, count: int) -> Iterator[Sample]:
    """Yield up to `count` images, evenly spaced over the source."""
    indices = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    for i in map(int, indices):
        rows = detections.select(detections.image == i)
        annotation = source.annotation(i)
        yield Sample(
            name=annotation.image_id,
            image=source.image(i),
            boxes=rows.boxes,
            labels=rows.label,
            scores=rows.score,
            gt_boxes=annotation.boxes_px,
            gt_labels=annotation.labels,
        )
