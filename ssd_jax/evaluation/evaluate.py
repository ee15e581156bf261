"""The evaluation of a network on a source: detect, score, report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssd_jax.config import Config
from ssd_jax.data.sources import DataSource
from ssd_jax.distributed import is_main_process
from ssd_jax.evaluation.ground_truth import data_set
from ssd_jax.evaluation.metrics.voc_ap import VOC_PIXELS, DetectionTable
from ssd_jax.evaluation.outputs import write_evaluation
from ssd_jax.evaluation.report import Sample, print_errors, print_table, write_pictures
from ssd_jax.evaluation.result_files import write_results
from ssd_jax.evaluation.scores import Evaluation, evaluate_detections
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
    """The evaluation of the network on `source` by eval.metrics.

    A table is printed, and to `out_dir` are written metrics.json, with `extra` in it, pictures of
    detections beside ground truth, with eval.report what `write_evaluation` writes, where `name`
    says what was evaluated, and with `save_detections` the detections, see `write_results`. Of
    several processes each detects its share, all get the evaluation, and the first one writes.
    Raises StoppedError if `stop` said so.
    """
    found = detect_source(
        detect,
        variables,
        source,
        image_size=config.model.image_size,
        batch_size=config.eval.batch_size,
        stop=stop,
    )
    data = data_set(source)
    evaluation = evaluate_detections(
        name,
        found,
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
        page=config.eval.report,
        images=config.eval.num_report_images,
    )
    if save_detections:
        write_results(out_dir, found, source, config.data.eval_split)
    write_pictures(
        _pictures(source, found, config.eval.num_visualizations),
        source.classes,
        out_dir,
        min_score=config.eval.report_score_threshold,
    )
    print_table(evaluation.results, console, evaluation.baseline)
    print_errors(evaluation.analysis, console)
    return evaluation


def _pictures(source: DataSource, found: DetectionTable, count: int) -> Sequence[Sample]:
    """Up to `count` images, spread over the source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    pictures = []
    for i in map(int, chosen):
        rows = found.image == i
        known = source.annotation(i)
        pictures.append(
            Sample(
                name=known.image_id,
                image=source.image(i),
                boxes=found.boxes[rows] - VOC_PIXELS,
                labels=found.label[rows],
                scores=found.score[rows],
                gt_boxes=known.boxes_px,
                gt_labels=known.labels + 1,
            )
        )
    return pictures
