"""Arguments by argparse, for the commands that are not built by tyro."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ssd_jax.cli.arguments import override
from ssd_jax.cli.config_file import CONFIG_MISSING, load_config
from ssd_jax.cli.run import version_line
from ssd_jax.config import COMPILATION_CACHE_DIR, Config, ConfigError


class Parser(argparse.ArgumentParser):
    """A parser with --version whose errors are ConfigErrors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument(
            "--version", action="version", version=version_line(), help="show the versions and exit"
        )

    @property
    def flags(self) -> list[str]:
        """Flags of the parser, for suggestions."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message}; see --help")


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compilation-cache-dir; `ssd_jax.distributed.use_compilation_cache` takes its value."""
    parser.add_argument(
        "--compilation-cache-dir",
        default=COMPILATION_CACHE_DIR,
        metavar="DIR",
        help="where compiled programs are kept for the next start, unless "
        "JAX_COMPILATION_CACHE_DIR names a folder; '' for nowhere; default: %(default)s",
    )


def resolve_config(
    file: Path | None, arguments: Sequence[str], *, description: str, flags: Sequence[str] = ()
) -> Config:
    """Return the config of --config FILE with the fields named by `arguments` replaced.

    Raises:
        ConfigError: the file is not named, unless `arguments` ask for --help, or see `override`.
    """
    if file is None and arguments and not arguments[0].startswith("-"):
        word = arguments[0]
        raise ConfigError(f"unexpected argument {word!r}; write --config {word}")
    if file is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(CONFIG_MISSING)
    config = load_config(file) if file else Config()
    return override(config, arguments, description=description, flags=flags)
