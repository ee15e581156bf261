"""python -m benchmarks [--only NAME ...] [--out FILE.json] [--voc FOLDER]."""

import argparse
import importlib
import json
import platform
from pathlib import Path

BENCHMARKS = ("input_pipeline",)


def main() -> None:
    """Run the benchmarks one after another, print their tables and write their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--voc", type=Path, help="photographs in VOC's layout; default: generated scenes as JPEGs"
    )
    options = parser.parse_args()
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.python_version()}"
    }
    for name in options.only:
        print(f"{name}\n")
        figures[name] = importlib.import_module(f"benchmarks.{name}").run(options.voc)
        print()
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
