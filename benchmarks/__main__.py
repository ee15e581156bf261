"""Measure speed against named peers.

python -m benchmarks accelerator --help: all measurements on an accelerator, in minutes.
"""

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

from benchmarks import scaling
from ssd_jax.cli.run import version_line

BENCHMARKS = (
    *("input_pipeline", "network", "boxes", "evaluation"),
    *("startup", "checkpoints", "scaling"),
)


def main() -> None:
    """Run the benchmarks one after another, print their tables and write their figures."""
    if sys.argv[1:2] == ["accelerator"]:
        from benchmarks.accelerator.command import main as accelerator

        raise SystemExit(accelerator(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--voc",
        type=Path,
        help="photographs in VOC's layout for input_pipeline; default: generated JPEGs",
    )
    parser.add_argument("--plot", type=Path, help="write the plot of scaling")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program; default: 5")
    parser.add_argument("--version", action="version", version=version_line())
    args = parser.parse_args()
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.python_version()}"
    }
    for name in args.only:
        print(f"{name}\n")
        options = {"voc": args.voc} if name == "input_pipeline" else {}
        figures[name] = importlib.import_module(f"benchmarks.{name}").run(args.rounds, **options)
        print()
    if args.plot and "scaling" in figures:
        scaling.plot(figures["scaling"], args.plot)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
