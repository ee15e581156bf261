"""Evaluate a checkpoint, whose config lies in it, or detections that are in files.

python evaluate.py --checkpoint DIR [--compare DIR] [--out DIR] [--section.field VALUE ...]
python evaluate.py --detections PATH --annotations PATH --out DIR [--compare PATH] [--metrics LIST]
"""

import argparse
import typing
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ssd_jax.cli import Parser, add_process_flags, check_first_word, override, run_main
from ssd_jax.config import Config, ConfigError
from ssd_jax.io import is_dir

if typing.TYPE_CHECKING:
    from rich.console import Console

    from ssd_jax.evaluation.ground_truth import EvaluationData
    from ssd_jax.evaluation.metrics.evaluation import Evaluation

_DESCRIPTION = """Evaluate a checkpoint, or detections that are in files.

--checkpoint DIR    a run's folder (its newest checkpoint) or one of its checkpoints/STEP
--best              of a run the best checkpoint, not the newest; for --compare name the file
                    checkpoints/best of the other run instead
--compare DIR       another run or checkpoint, evaluated on the same data; both go side by side to
                    comparison.html and comparison.json, each one's own to a/ and b/
--out DIR           where metrics.json, report.html and the images go; default: eval/STEP in the
                    run's folder, with --compare eval/STEP/comparison
--save-detections   write the detections there too: detections.json as COCO's server takes it, or
                    detections/comp4_det_SPLIT_CLASS.txt as VOC's does

--coordinator HOST:PORT --processes P --process I, or --distributed
                    one of several processes that share the images, as for train.py

--detections PATH   COCO's results file, or a folder of VOC's comp4_det_test_CLASS.txt; no
                    checkpoint then, and none of the fields below
--annotations PATH  COCO's annotations file, or a folder with VOC's Annotations/
--split NAME        images to count, a list in that folder's ImageSets/Main; default: all
--images DIR        the images, for the report to show; default: that folder's JPEGImages, if any
--compare PATH      other detections of the same images, side by side as above
--metrics LIST      default: voc07,voc,coco
--iou-threshold IOU IoU from which a detection is right, for voc07 and voc; default: 0.5
--box-convention CONVENTION how all files count: inclusive, a box covers its xmax, so that it is
                    xmax - xmin + 1 wide, where COCO's xmax is x + width; or exclusive, it is
                    xmax - xmin wide. Default: inclusive for VOC's files, exclusive for COCO's

Below, every field of the config with its value; the ones of data and eval may be changed."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("checkpoint", "compare", "out", "detections", "annotations", "images"):
        name = f"--{name}"
        parser.add_argument(name, type=Path)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--save-detections", action="store_true")
    parser.add_argument("--split")
    parser.add_argument("--metrics")
    parser.add_argument("--iou-threshold", type=float)
    parser.add_argument("--box-convention", choices=("inclusive", "exclusive"))
    add_process_flags(parser)
    own, overrides = parser.parse_known_args(arguments)
    check_first_word(overrides, "" if own.checkpoint or own.detections else "--checkpoint")
    if {"-h", "--help"} & set(overrides) and own.checkpoint is None:
        override(Config(), ["--help"], description=_DESCRIPTION)
    if own.detections is not None:
        if own.checkpoint is not None or own.best or own.save_detections:
            raise ConfigError(
                "--checkpoint, --best and --save-detections do not go with --detections; leave "
                "them out"
            )
        _evaluate_files(own, overrides)
        return
    for name in ("annotations", "images", "split", "metrics", "iou-threshold", "box-convention"):
        if getattr(own, name.replace("-", "_")) is not None:
            in_config = name in ("metrics", "iou-threshold", "box-convention")
            advice = f"use --eval.{name}" if in_config else "use --data.root and its splits"
            raise ConfigError(f"--{name} goes with --detections; for a checkpoint {advice}")
    if own.checkpoint is None:
        raise ConfigError(
            "--checkpoint is missing; name a run's folder, e.g. runs/quickstart, or give "
            "--detections"
        )
    from ssd_jax.distributed import distributed_context

    with distributed_context(own):
        _evaluate_checkpoint(own, overrides, parser.flags)


def _evaluate_checkpoint(
    own: argparse.Namespace, overrides: Sequence[str], flags: Sequence[str]
) -> None:
    from rich.console import Console

    from ssd_jax.checkpoints.reader import (
        checkpoint_step,
        find_checkpoint,
        read_config,
        restore_model,
    )
    from ssd_jax.data.sources import open_source
    from ssd_jax.distributed import is_main_process, use_compilation_cache
    from ssd_jax.evaluation.evaluate import evaluate_source
    from ssd_jax.evaluation.ground_truth import load_ground_truth
    from ssd_jax.evaluation.report.output_dir import staged_on_main_process
    from ssd_jax.inference.detect import make_detect
    from ssd_jax.kernels.conv2d import set_cpu_conv

    checkpoint = find_checkpoint(own.checkpoint, best=own.best)
    config = override(read_config(checkpoint), overrides, description=_DESCRIPTION, flags=flags)
    checkpoints = [(checkpoint, config)]
    out_dir = own.out or checkpoint.parent.parent / "eval" / checkpoint.name
    out_dirs = [out_dir]
    if own.compare is not None:
        other = find_checkpoint(own.compare, field="--compare")
        its = read_config(other)
        if its.model.classes != config.model.classes:
            raise ConfigError(
                f"--compare: {other} has other classes than {checkpoint}; name a checkpoint of "
                "the same classes in the same order"
            )
        # The other's network, on the same data and by the same rules.
        checkpoints.append((other, replace(config, model=its.model, priors=its.priors)))
        out_dir = own.out or out_dir / "comparison"
        out_dirs = [out_dir / "a", out_dir / "b"]
    use_compilation_cache(config.runtime.compilation_cache_dir)
    set_cpu_conv(config.runtime.cpu_conv)
    source = open_source(config.data, config.data.eval_split, config.model.classes)
    console = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())
    evaluations = []
    # One process writes.
    with staged_on_main_process(out_dir) as part:
        # What does not fit is found before anything is detected.
        models = [restore_model(*each) for each in checkpoints]
        for (path, its_config), (model, variables), its_dir in zip(
            checkpoints, models, out_dirs, strict=True
        ):
            step = checkpoint_step(path)
            evaluation = evaluate_source(
                make_detect(model, its_config),
                variables,
                source,
                its_config,
                out_dir=part / its_dir.relative_to(out_dir),
                console=console,
                name=_name(path),
                extra={} if step is None else {"step": step},
                save_detections=own.save_detections,
            )
            evaluations.append(evaluation)
        if own.compare is not None and is_main_process():
            images = config.eval.num_report_images
            _compare(part, evaluations, load_ground_truth(source), console, images=images)
    for evaluation, its_dir in zip(evaluations, out_dirs, strict=True):
        console.print(
            f"mAP {evaluation.results[0].mean_ap:.4f}; metrics and images are in {its_dir}",
            markup=False,
        )
    if own.compare is not None:
        console.print(f"comparison.html is in {out_dir}", markup=False)


def _name(checkpoint: Path) -> str:
    """How a report calls a checkpoint: by its run and step, or by its folder."""
    path = checkpoint.absolute()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}, step {path.name}"
    return path.name


def _compare(
    out_dir: Path,
    evaluations: Sequence["Evaluation"],
    data: "EvaluationData",
    console: "Console",
    *,
    images: int,
) -> None:
    """Print two evaluations side by side and write them to the folder."""
    from ssd_jax.evaluation.report.console import print_comparison
    from ssd_jax.evaluation.report.output_dir import write_comparison

    a, b = evaluations
    write_comparison(out_dir, a, b, data, images=images)
    console.print(f"A: {a.name}\nB: {b.name}", markup=False)
    print_comparison(a.results, b.results, console)


def _evaluate_files(own: argparse.Namespace, unknown: Sequence[str]) -> None:
    if unknown:
        raise ConfigError(f"{unknown[0]} does not go with --detections; see --help")
    for name, example in (("annotations", "VOC2007"), ("out", "results")):
        if getattr(own, name) is None:
            raise ConfigError(f"--{name} is missing; name one, e.g. --{name} {example}")

    # JAX, which takes seconds to import, is not needed here.
    from rich.console import Console

    from ssd_jax.evaluation.metrics.evaluation import MetricName, evaluate_detections
    from ssd_jax.evaluation.report.console import print_errors, print_metrics
    from ssd_jax.evaluation.report.output_dir import staged, write_evaluation
    from ssd_jax.evaluation.result_files import read_annotations, read_detections

    metrics = tuple((own.metrics or "voc07,voc,coco").split(","))
    names = typing.get_args(MetricName)
    if len(set(metrics)) < len(metrics) or not set(metrics) <= set(names):
        raise ConfigError(f"--metrics is {own.metrics}; name {', '.join(names)}, each once")
    iou_threshold = 0.5 if own.iou_threshold is None else own.iou_threshold
    if not 0 <= iou_threshold <= 1:
        raise ConfigError(f"--iou-threshold is {iou_threshold}; use a number from 0 to 1")
    console = Console(highlight=False, soft_wrap=True)
    note = partial(console.print, markup=False)
    known = read_annotations(own.annotations, own.split or "", own.box_convention)
    pictures = own.annotations.expanduser() / "JPEGImages"
    data = known.to_evaluation_data(own.images or (pictures if is_dir(pictures) else None))
    files = [own.detections] if own.compare is None else [own.detections, own.compare]
    parts = ["."] if own.compare is None else ["a", "b"]
    evaluations = []
    with staged(own.out) as out_dir:
        for path, part in zip(files, parts, strict=True):
            found = read_detections(path, known, note)
            evaluation = evaluate_detections(
                path.name,
                found,
                data,
                metrics=typing.cast(tuple[MetricName, ...], metrics),
                iou_threshold=iou_threshold,
            ).with_box_convention(known.reported_convention)
            extra = {"num_images": len(known.image_ids)}
            write_evaluation(out_dir / part, evaluation, data, extra=extra)
            print_metrics(evaluation.results, console, evaluation.baseline)
            print_errors(evaluation.analysis, console)
            evaluations.append(evaluation)
        if own.compare is not None:
            _compare(out_dir, evaluations, data, console, images=8)
    for part in parts:
        console.print(f"metrics.json and report.html are in {own.out / part}", markup=False)
    if own.compare is not None:
        console.print(f"comparison.html is in {own.out}", markup=False)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
