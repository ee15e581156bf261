"""Command that predicts memory and speed of a config on an accelerator that is not available."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from tyro import conf

from ssd_jax.cli.arguments import ConfigArgs, Flag, override, parse_args
from ssd_jax.config import ConfigError, Range
from ssd_jax.config_file import CONFIG_MISSING, load_config
from ssd_jax.estimate.accelerators import parse_target
from ssd_jax.estimate.batch_search import find_largest
from ssd_jax.estimate.devices import describe_devices, set_environment
from ssd_jax.estimate.report import report
from ssd_jax.estimate.step_cost import (
    StepCost,
    TooLargeError,
    compile_step,
    fill_in_classes,
    images_per_device,
)


@dataclass(frozen=True, kw_only=True)
class EstimateArgs(ConfigArgs):
    """Predict memory and speed of a config on an accelerator that is not available.

    Compiles the training step, and predicts from the program whether it fits and how fast it can
    be. Nothing is run.

    The compilers come with pip install 'ssd_jax[plan-cuda]' or 'ssd_jax[plan-tpu]'. Compilation
    for a TPU takes minutes.

    Exit status: 0 it fits; 1 it does not fit, and the largest batch that does is printed; 2 invalid
    input, explained in one line.
    """

    main_flag: ClassVar[str] = "--config"

    config: Path | None = None
    """Name of a config, e.g. ssd300_voc0712, or path of a config file."""
    target: str = ""
    """Accelerators: h100, h100x8, h100x64, ..., v5e-1, v5e-4, ..., v5e-256, v6e-..."""
    batch: Annotated[int | None, conf.arg(metavar="N")] = None
    """Images per device and step; default: train.batch_size divided by the devices."""
    classes: Annotated[int, Range(1, 1_000_000)] | None = None
    """Number of classes, if neither the config nor its data names them; default: 80 for COCO,
    else 20."""
    efficiency: Annotated[float, Range(0, 1, above=True)] = 0.4
    """Fraction of the highest possible speed for a second, realistic prediction."""
    no_largest: Flag = False
    """Do not search for the largest batch that fits, which takes further compilations."""


def main(arguments: Sequence[str]) -> int:
    """Predict memory and speed of a config on an accelerator.

    Returns:
        The exit status: 1 if the batch does not fit.
    """
    args = parse_args(EstimateArgs, arguments)
    if args.config is None:
        raise ConfigError(CONFIG_MISSING)
    config = override(load_config(args.config, field="--config"), arguments, EstimateArgs)
    target = parse_target(args.target)
    batch = images_per_device(config, target, args.batch)
    config, notes = fill_in_classes(config, args.classes)

    # JAX starts here.
    set_environment()
    devices = describe_devices(target)
    costs: dict[int, StepCost] = {}

    @cache
    def measure_memory(batch: int) -> int | None:
        print(f"compiling for {batch} images per device ...", file=sys.stderr, flush=True)
        try:
            costs[batch] = compile_step(config, devices, batch)
        except TooLargeError:
            return None
        return costs[batch].memory

    available = target.accelerator.memory * target.accelerator.usable_fraction
    memory = measure_memory(batch)
    fits = memory is not None and memory <= available
    largest = ""
    if not fits or not args.no_largest:
        unit = config.train.grad_accumulation_steps
        size, how = find_largest(measure_memory, available, start=batch, unit=unit)
        largest = f"{size} images per device ({how})"
    lines = report(config, target, batch, costs.get(batch), largest, args.efficiency)
    print(*lines, *notes, sep="\n")
    return 0 if fits else 1
