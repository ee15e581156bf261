"""Measure speed: python -m benchmarks [--only NAME ...] [--rounds N] [--out FILE] ...

python -m benchmarks accelerator --help: everything on an accelerator, in minutes.
"""

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

from benchmarks import growth
from ssd_jax.cli import version_line

BENCHMARKS = (
    *("input_pipeline", "network", "boxes", "evaluation"),
    *("startup", "checkpoints", "growth"),
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
        "--voc", type=Path, help="photographs in VOC's layout; default: generated scenes as JPEGs"
    )
    parser.add_argument("--plot", type=Path, help="draw the growth to this file")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program; default: 5")
    parser.add_argument("--version", action="version", version=version_line())
    options = parser.parse_args()
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.python_version()}"
    }
    for name in options.only:
        print(f"{name}\n")
        module = importlib.import_module(f"benchmarks.{name}")
        # The input pipeline is asked of photographs, the others of what they make themselves.
        given = options.voc if name == "input_pipeline" else options.rounds
        figures[name] = module.run(given)
        print()
    if options.plot and "growth" in figures:
        growth.plot(figures["growth"], options.plot)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
