"""Train a detector.

python train.py --config FILE [--workdir DIR] [--resume] [--section.field VALUE ...]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssd_jax.cli import Parser, load_config, override, run_main
from ssd_jax.config import Config, ConfigError, from_json

_DESCRIPTION = """Train a detector.

--config FILE   the experiment, e.g. configs/quickstart.py; with --resume it may be left out
--workdir DIR   where the run goes; default: runs/ and the config's name
--resume        go on from the newest checkpoint in the workdir, or start where there is none

Below, every field of the config with its value."""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and train."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--resume", action="store_true")
    own, overrides = parser.parse_known_args(arguments)
    asks_help = bool({"-h", "--help"} & set(overrides))
    config = override(
        Config() if asks_help and not own.config else _base_config(own),
        overrides,
        description=_DESCRIPTION,
    )
    workdir = own.workdir or Path("runs") / own.config.stem

    # JAX starts here, after everything that can be wrong with the command line.
    from ssd_jax.training.loop import train

    train(config, workdir, resume=own.resume)


def _base_config(own: argparse.Namespace) -> Config:
    if own.config:
        return load_config(own.config)
    if not (own.resume and own.workdir):
        raise ConfigError("--config is missing; name an experiment, e.g. configs/quickstart.py")
    saved = own.workdir / "config.json"
    if not saved.is_file():
        raise ConfigError(f"--resume: there is no run in {own.workdir}; name one, or a --config")
    return from_json(saved.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
