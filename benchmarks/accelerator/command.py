"""Measure on an accelerator, or prepare a folder for another machine."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.report import write_report
from benchmarks.accelerator.runner import run_parts
from ssd_jax.config import ConfigError, UserError


def main(arguments: Sequence[str]) -> int:
    """Run the command; exit code 1 if a part failed, 2 for invalid input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accelerator", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, help="folder for the results; default: results/")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="time for all parts; the last ones are shortened or dropped (default: 8)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="run all parts at reduced size on any device"
    )
    parser.add_argument("--bundle", type=Path, help="the prepared folder; run.sh sets it")
    preparing = parser.add_argument_group("preparing a folder for a machine without package index")
    preparing.add_argument("--prepare", type=Path, metavar="DIR", help="new folder")
    preparing.add_argument("--photographs", type=Path, help="NEU-DET in VOC's layout")
    preparing.add_argument("--weights", type=Path, help="VGG16's convolutions (.npz)")
    preparing.add_argument("--python", default="3.12", help="the target's Python (default: 3.12)")
    preparing.add_argument("--jax", default="0.11.2", help="the target's jax (default: 0.11.2)")
    args = parser.parse_args(arguments)
    try:
        if args.prepare:
            return _prepare(args)
        if not args.minutes > 0:
            raise ConfigError(f"--minutes is {args.minutes}; must be above 0")
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.status
    out = args.out or (args.bundle or Path()) / "results"
    status = run_parts(
        [part for part in PARTS if part.name in args.only],
        out.absolute(),
        bundle=args.bundle and args.bundle.absolute(),
        seconds=60 * args.minutes,
        tiny=args.tiny,
        after_part=lambda: write_report(out),
    )
    print(f"results: {out / 'report.md'}, {out / 'report.json'}")
    return int(any(result["status"] == "failed" for result in status.values()))


def _prepare(args: argparse.Namespace) -> int:
    from benchmarks.accelerator.prepare import prepare

    inputs = {name: getattr(args, name) for name in ("photographs", "weights")}
    for name, path in inputs.items():
        if path is None:
            raise ConfigError(f"--{name} is missing; --prepare needs it")
    print(prepare(args.prepare, **inputs, python=args.python, jax=args.jax))
    return 0
