"""Commands on data sets: python -m ssd_jax.data check | show | prepare."""

import importlib
import sys
from collections.abc import Sequence

from ssd_jax.cli import run_main, version_line
from ssd_jax.config import ConfigError

COMMANDS = {
    "check": "look a data set over before a week of training",
    "show": "draw augmented samples and the priors that their objects match",
    "prepare": "build a TFDS data set once, from a download or from a folder",
}


def main(arguments: Sequence[str]) -> None:
    """Run the command that `arguments` start with.

    Raises ConfigError if there is no such command.
    """
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        print("python -m ssd_jax.data COMMAND [...]; COMMAND --help says more\n")
        print("\n".join(f"{name:9}{what}" for name, what in COMMANDS.items()))
        return
    if name == "--version":
        print(version_line())
        return
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}; use one of {', '.join(COMMANDS)}")
    # Only the command's own libraries are imported: TensorFlow is needed by one of them alone.
    importlib.import_module(f"ssd_jax.data.{name}").main(arguments[1:])


if __name__ == "__main__":
    sys.argv[0] = "python -m ssd_jax.data"
    raise SystemExit(run_main(main))
