"""Command that evaluates a checkpoint, or detections in files."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro import conf

from ssd_jax.cli.arguments import (
    Args,
    Checkpoint,
    CommaSeparated,
    Flag,
    ProcessArgs,
    has_flag,
    override,
    parse_args,
)
from ssd_jax.config import Config, ConfigError, Range
from ssd_jax.io import is_dir


@dataclass(frozen=True, kw_only=True)
class CheckpointArgs(ProcessArgs):
    """Evaluate a checkpoint with the config saved in it; its data and eval fields can be changed.

    To evaluate detections in files instead, see `ssd-jax evaluate --detections PATH --help`.
    """

    main_flag: ClassVar[str] = "--checkpoint"
    advice: ClassVar[Mapping[str, str]] = {
        flag: f"{flag} belongs to --detections; for a checkpoint use {field}"
        for flag, field in (
            ("--annotations", "--data.root"),
            ("--images", "--data.root"),
            ("--split", "--data.eval-split"),
            ("--metrics", "--eval.metrics"),
            ("--iou-threshold", "--eval.iou-threshold"),
            ("--box-convention", "--eval.box-convention"),
        )
    }

    checkpoint: Checkpoint
    best: Flag = False
    """Use the run's best checkpoint instead of its newest. For --compare name the file
    checkpoints/best of the other run instead."""
    compare: Annotated[str | None, conf.arg(metavar="CHECKPOINT")] = None
    """Another trained network to evaluate on the same data; writes comparison.html and
    comparison.json, and the files of each to a/ and b/."""
    out: Annotated[Path | None, conf.arg(metavar="DIR")] = None
    """Folder of metrics.json, report.html and the images; default: eval/STEP in the run's folder,
    eval/NAME for a file of weights; with --compare its subfolder comparison."""
    save_detections: Flag = False
    """Also write the detections: detections.json in the format of COCO's server, or
    detections/comp4_det_SPLIT_CLASS.txt in that of VOC's."""


@dataclass(frozen=True, kw_only=True)
class FilesArgs(Args):
    """Evaluate detections in files, without a checkpoint."""

    advice: ClassVar[Mapping[str, str]] = {
        flag: f"{flag} cannot be combined with --detections; leave it out"
        for flag in ("--checkpoint", "--best", "--save-detections")
    }

    detections: Path
    """COCO's results file, or a folder of VOC's comp4_det_test_CLASS.txt."""
    annotations: Path
    """COCO's annotations file, or a folder with VOC's Annotations/, e.g. VOC2007."""
    out: Annotated[Path, conf.arg(metavar="DIR")]
    """Folder of metrics.json, report.html and the images, e.g. results."""
    split: str = ""
    """Images to count, a list in VOC's ImageSets/Main; empty: all."""
    images: Annotated[Path | None, conf.arg(metavar="DIR")] = None
    """Folder of the images, which the report shows; default: VOC's JPEGImages, if there."""
    compare: Path | None = None
    """Other detections of the same images; writes comparison.html and comparison.json, and the
    files of each to a/ and b/."""
    metrics: CommaSeparated = ("voc07", "voc", "coco")
    """Metrics to compute, each once."""
    iou_threshold: Annotated[float, Range(0, 1)] = 0.5
    """IoU from which a detection is a true positive, for voc07 and voc."""
    box_convention: Literal["inclusive", "exclusive"] | None = None
    """Convention of all files. inclusive: a box covers its xmax, so that its width is
    xmax - xmin + 1, and COCO's xmax is x + width; exclusive: its width is xmax - xmin. Default:
    inclusive for VOC's files, exclusive for COCO's."""


def main(arguments: Sequence[str]) -> None:
    """Evaluate a checkpoint, or detections in files."""
    if has_flag(arguments, "--detections"):
        _evaluate_files(parse_args(FilesArgs, arguments))
        return
    args = parse_args(CheckpointArgs, arguments)

    with args.join_processes():
        _evaluate_checkpoints(args, arguments)


def _evaluate_checkpoints(args: CheckpointArgs, arguments: Sequence[str]) -> None:
    from rich.console import Console

    from ssd_jax.distributed import is_main_process
    from ssd_jax.evaluation.checkpoints import default_out_dir, evaluate_checkpoints
    from ssd_jax.weights.trained import find_trained

    checkpoint = find_trained(args.checkpoint, best=args.best)
    configs = _read_configs(checkpoint, args.compare, arguments)
    checkpoints = dict(zip(_parts(args.compare), configs, strict=True))
    out_dir = default_out_dir(checkpoint)
    if args.compare is not None:
        out_dir = out_dir / "comparison"
    out_dir = args.out or out_dir
    console = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())
    evaluations = evaluate_checkpoints(
        checkpoints, out_dir, console=console, save_detections=args.save_detections
    )
    for evaluation, part in zip(evaluations, checkpoints, strict=True):
        console.print(
            f"mAP {evaluation.results[0].mean_ap:.4f}; metrics and images are in {out_dir / part}",
            markup=False,
        )
    if args.compare is not None:
        console.print(f"comparison.html is in {out_dir}", markup=False)


def _parts(compare: str | Path | None) -> tuple[str, ...]:
    """Return the folder of each evaluation inside the output folder."""
    return (".",) if compare is None else ("a", "b")


def _read_configs(
    checkpoint: Path, compare: str | None, arguments: Sequence[str]
) -> list[tuple[Path, Config]]:
    """Return each checkpoint with its config; that of --compare shares the first one's data."""
    from ssd_jax.weights.trained import find_trained, read_trained_config

    config = override(read_trained_config(checkpoint), arguments, CheckpointArgs)
    checkpoints = [(checkpoint, config)]
    if compare is not None:
        other = find_trained(compare, field="--compare")
        saved = read_trained_config(other)
        if saved.model.classes != config.model.classes:
            raise ConfigError(
                f"--compare: {other} has different classes from {checkpoint}; name a checkpoint of "
                "the same classes in the same order"
            )
        checkpoints.append((other, replace(config, model=saved.model, priors=saved.priors)))
    return checkpoints


def _evaluate_files(args: FilesArgs) -> None:
    # JAX, which takes seconds to import, is not needed here.
    from rich.console import Console

    from ssd_jax.evaluation.metrics.evaluation import MetricName, evaluate_detections
    from ssd_jax.evaluation.report.console import print_comparison, print_errors, print_metrics
    from ssd_jax.evaluation.report.output_dir import staged, write_comparison, write_evaluation
    from ssd_jax.evaluation.result_files import read_annotations, read_detections

    names = typing.get_args(MetricName)
    if len(set(args.metrics)) < len(args.metrics) or not set(args.metrics) <= set(names):
        raise ConfigError(
            f"--metrics is {','.join(args.metrics)}; name {', '.join(names)}, each once"
        )
    console = Console(highlight=False, soft_wrap=True)
    note = partial(console.print, markup=False)
    annotations = read_annotations(args.annotations, args.split, args.box_convention)
    images = args.annotations.expanduser() / "JPEGImages"
    data = annotations.to_evaluation_data(args.images or (images if is_dir(images) else None))
    files = [args.detections] if args.compare is None else [args.detections, args.compare]
    evaluations = []
    with staged(args.out) as out_dir:
        for path, part in zip(files, _parts(args.compare), strict=True):
            evaluation = evaluate_detections(
                path.name,
                read_detections(path, annotations, note),
                data,
                metrics=typing.cast(tuple[MetricName, ...], args.metrics),
                iou_threshold=args.iou_threshold,
            ).with_box_convention(annotations.reported_convention)
            extra = {"num_images": len(annotations.image_ids)}
            write_evaluation(out_dir / part, evaluation, data, extra=extra)
            print_metrics(evaluation.results, console, evaluation.baseline)
            print_errors(evaluation.analysis, console)
            evaluations.append(evaluation)
        if args.compare is not None:
            a, b = evaluations
            write_comparison(out_dir, a, b, data)
            print_comparison(a, b, console)
    for part in _parts(args.compare):
        console.print(f"metrics.json and report.html are in {args.out / part}", markup=False)
    if args.compare is not None:
        console.print(f"comparison.html is in {args.out}", markup=False)
