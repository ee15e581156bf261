"""Program `ssd-jax`, whose first argument names a command."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from ssd_jax.cli.run import Main, run_main, run_subcommand
from ssd_jax.streams import program_name


def _command(name: str, description: str) -> Main:
    """Create the main function of a command, which imports the command's module when called."""

    def main(arguments: Sequence[str]) -> int | None:
        sys.argv[0] = f"{program_name()} {name}"
        status: int | None = import_module(f"ssd_jax.cli.{name}").main(arguments)
        return status

    main.__doc__ = description
    return main


COMMANDS: Mapping[str, Main] = {
    name: _command(name, description)
    for name, description in {
        "train": "Train a detector.",
        "evaluate": "Evaluate a checkpoint, or detections in files.",
        "predict": "Detect objects in images and videos.",
        "benchmark": "Time the detector of a checkpoint.",
        "data": "Check, show or prepare a dataset.",
        "weights": "List, download, describe, import, export or upload weights.",
        "export": "Export a trained network to a file for other runtimes.",
        "estimate": "Predict memory and speed of a config on an accelerator.",
        "demo": "Serve the demo app until interrupted.",
    }.items()
}
"""Main functions of the commands by name, in the order of the help."""


def main(arguments: Sequence[str]) -> int | None:
    """Run the command that the first argument names."""
    if arguments[:1] == ["--print-completion"]:
        from ssd_jax.cli.completion import print_completion

        print_completion(arguments[1:])
    return run_subcommand(COMMANDS, arguments)


def run() -> int:
    """Run the program with the arguments of the process; return the exit status."""
    return run_main(main)
