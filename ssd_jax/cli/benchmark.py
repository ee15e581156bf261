"""Command that times the detector."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ssd_jax.cli.arguments import CommaSeparated, parse_args
from ssd_jax.cli.predict import InputArgs
from ssd_jax.config import ConfigError
from ssd_jax.inference.inputs import find_inputs
from ssd_jax.io import atomic_write


@dataclass(frozen=True, kw_only=True)
class BenchmarkArgs(InputArgs):
    """Time the detector on images, or on generated scenes, and write benchmark.json."""

    advice: ClassVar[Mapping[str, str]] = {
        flag: f"{flag} belongs to ssd-jax predict; leave it out"
        for flag in ("--score-threshold", "--classes", "--batch-size", "--xml")
    }

    batch_sizes: CommaSeparated = ("1", "8", "32")
    """Batch sizes to time."""


def main(arguments: Sequence[str]) -> None:
    """Time the detector of a checkpoint."""
    args = parse_args(BenchmarkArgs, arguments)
    if not all(size.isdecimal() and int(size) > 0 for size in args.batch_sizes):
        text = ",".join(args.batch_sizes)
        raise ConfigError(f"--batch-sizes is {text}; use positive whole numbers, e.g. 1,8,32")
    inputs = find_inputs(args.inputs)
    for each in inputs:
        if each.kind != "image":
            raise ConfigError(f"{each.name} is not an image; benchmark takes only images")

    from rich.console import Console

    from ssd_jax.inference.latency import benchmark, print_benchmark
    from ssd_jax.weights.trained import find_trained

    console = Console(highlight=False, soft_wrap=True)
    checkpoint = find_trained(args.checkpoint, best=args.best)
    sizes = [int(size) for size in args.batch_sizes]
    figures = benchmark(checkpoint, sizes, [each.name for each in inputs])
    print_benchmark(figures, console)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(figures, indent=2) + "\n"
        atomic_write(args.out / "benchmark.json", content.encode())
    except OSError as error:
        raise ConfigError(f"--out: {error}") from None
    console.print(f"benchmark.json is in {args.out}", markup=False)
