"""Commands on data sets: python -m ssd_jax.data check | show | prepare."""

import importlib
import sys
from collections.abc import Sequence

from ssd_jax.cli import run_main, version_line
from ssd_jax.config import ConfigError

COMMANDS = {
    "check": "validate the annotations and images of a data set",
    "show": "draw augmented training images and their matched priors",
    "prepare": "build a TFDS data set, from a download or from a folder",
}


def main(arguments: Sequence[str]) -> None:
    """Run the command named by the first argument.

    Raises:
        ConfigError: the command is unknown.
    """
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        print("python -m ssd_jax.data COMMAND [...]; see COMMAND --help\n")
        print("\n".join(f"{name:9}{purpose}" for name, purpose in COMMANDS.items()))
        return
    if name == "--version":
        print(version_line())
        return
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; use one of {', '.join(COMMANDS)}")
    # Import the one command only: `prepare` needs TensorFlow.
    importlib.import_module(f"ssd_jax.data.{name}").main(arguments[1:])


if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.data"
    raise SystemExit(run_main(main))
