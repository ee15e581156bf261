"""Evaluate a checkpoint, whose config lies in it, or detections that are in files.

python evaluate.py --checkpoint DIR [--out DIR] [--save-detections] [--section.field VALUE ...]
python evaluate.py --detections PATH --annotations PATH --out DIR [--split NAME] [--metrics LIST]
"""

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.cli import Parser, add_process_flags, override, run_main
from ssd_jax.config import Config, ConfigError

_DESCRIPTION = """Evaluate a checkpoint, or detections that are in files.

--checkpoint DIR    a run's folder (its newest checkpoint) or one of its checkpoints/STEP
--out DIR           where metrics.json and the pictures go; default: eval/STEP in the run's folder
--save-detections   write the detections there too: detections.json as COCO's server takes it, or
                    detections/comp4_det_SPLIT_CLASS.txt as VOC's does

--coordinator HOST:PORT --processes P --process I, or --distributed
                    one of several processes that share the images, as for train.py

--detections PATH   COCO's results file, or a folder of VOC's comp4_det_test_CLASS.txt; no
                    checkpoint then, and none of the fields below
--annotations PATH  COCO's annotations file, or a folder with VOC's Annotations/
--split NAME        images to count, a list in that folder's ImageSets/Main; default: all
--metrics LIST      default: voc07,voc,coco

Below, every field of the config with its value; the ones of data and eval may be changed."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("--checkpoint", "--out", "--detections", "--annotations"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--save-detections", action="store_true")
    parser.add_argument("--split")
    parser.add_argument("--metrics")
    add_process_flags(parser)
    own, overrides = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides) and own.checkpoint is None:
        override(Config(), ["--help"], description=_DESCRIPTION)
    if own.detections is not None:
        if own.checkpoint is not None or own.save_detections:
            raise ConfigError(
                "--checkpoint and --save-detections do not go with --detections; leave them out"
            )
        _evaluate_files(own, overrides)
        return
    for name in ("annotations", "split", "metrics"):
        if getattr(own, name) is not None:
            advice = "use --eval.metrics" if name == "metrics" else "use --data.root and its splits"
            raise ConfigError(f"--{name} goes with --detections; for a checkpoint {advice}")
    if own.checkpoint is None:
        raise ConfigError(
            "--checkpoint is missing; name a run's folder, e.g. runs/quickstart, or give "
            "--detections"
        )
    from ssd_jax.runtime import processes

    with processes(own):
        _evaluate_checkpoint(own, overrides)


def _evaluate_checkpoint(own: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from ssd_jax.data.sources import open_source
    from ssd_jax.evaluation.detect import make_detect
    from ssd_jax.evaluation.evaluate import evaluate_source
    from ssd_jax.models.restore import find_checkpoint, read_config, restore_model
    from ssd_jax.runtime import is_first_process, use_compile_cache

    checkpoint = find_checkpoint(own.checkpoint)
    config = override(read_config(checkpoint), overrides, description=_DESCRIPTION)
    use_compile_cache(config.train.compile_cache)
    source = open_source(config.data, config.data.eval_split, config.model.classes)
    model, variables = restore_model(checkpoint, config)
    out_dir = own.out or checkpoint.parent.parent / "eval" / checkpoint.name
    console = Console(highlight=False, soft_wrap=True, quiet=not is_first_process())
    results = evaluate_source(
        make_detect(model, config),
        variables,
        source,
        config,
        out_dir=out_dir,
        console=console,
        extra={"step": int(checkpoint.name)} if checkpoint.name.isdigit() else {},
        save_detections=own.save_detections,
    )
    console.print(
        f"mAP {results[0].mean_ap:.4f}; metrics and pictures are in {out_dir}", markup=False
    )


def _evaluate_files(own: argparse.Namespace, unknown: Sequence[str]) -> None:
    if unknown:
        raise ConfigError(f"{unknown[0]} does not go with --detections; see --help")
    for name, example in (("annotations", "VOC2007"), ("out", "results")):
        if getattr(own, name) is None:
            raise ConfigError(f"--{name} is missing; name one, e.g. --{name} {example}")

    # JAX, which takes seconds to import, is not needed here.
    from rich.console import Console

    from ssd_jax.evaluation.report import print_table, write_report
    from ssd_jax.evaluation.results import read_detections, read_known
    from ssd_jax.evaluation.scores import MetricName, score_detections

    metrics = tuple((own.metrics or "voc07,voc,coco").split(","))
    names = typing.get_args(MetricName)
    if len(set(metrics)) < len(metrics) or not set(metrics) <= set(names):
        raise ConfigError(f"--metrics is {own.metrics}; name {', '.join(names)}, each once")
    known = read_known(own.annotations, own.split or "")
    found = read_detections(own.detections, known)
    results = score_detections(
        found,
        known.objects,
        known.classes,
        metrics=typing.cast(tuple[MetricName, ...], metrics),
        area=known.area,
    )
    write_report(results, own.out, {"num_images": len(known.image_ids)})
    console = Console(highlight=False, soft_wrap=True)
    print_table(results, console)
    console.print(f"metrics.json is in {own.out}", markup=False)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
