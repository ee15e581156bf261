"""Shell completion of the program `ssd-jax`, written by tyro."""

import functools
import operator
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro import conf

from ssd_jax.cli import benchmark, data, demo, estimate, evaluate, export, predict, train, weights
from ssd_jax.cli.arguments import make_registry
from ssd_jax.config import Config, ConfigError

COMMANDS = {
    "train": train.TrainArgs,
    "evaluate": evaluate.CheckpointArgs,
    "predict": predict.PredictArgs,
    "benchmark": benchmark.BenchmarkArgs,
    "data": {"check": data.CheckArgs, "show": data.ShowArgs, "prepare": data.PrepareArgs},
    "weights": {
        "list": weights.ListArgs,
        "download": weights.DownloadArgs,
        "info": weights.InfoArgs,
        "import": weights.ImportArgs,
        "export": weights.ExportArgs,
    },
    "export": export.ExportArgs,
    "estimate": estimate.EstimateArgs,
    "demo": demo.DemoArgs,
}
"""Arguments of the commands, and of their subcommands, by name."""
SHELLS = ("bash", "zsh", "tcsh")


def print_completion(arguments: Sequence[str]) -> None:
    """Print the completion script for a shell.

    Args:
        arguments: the name of the shell.

    Raises:
        ConfigError: the shell is missing or unknown.
    """
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ConfigError(f"--print-completion needs one of {', '.join(SHELLS)}")
    tyro.cli(
        _union(COMMANDS),
        prog="ssd-jax",
        args=["--tyro-print-completion", *arguments],
        registry=make_registry(Config()),
        config=(conf.DisallowNone,),
    )


def _union(commands: Any) -> Any:
    """Return tyro's type for a choice of commands, or the arguments of a single one."""
    if not isinstance(commands, dict):
        return commands
    kinds = [Annotated[_union(kind), conf.subcommand(name)] for name, kind in commands.items()]
    return functools.reduce(operator.or_, kinds)
