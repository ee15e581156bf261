"""The command line of the mains: a config file, fields of it replaced, errors in one line."""

import argparse
import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import tyro

from ssd_jax.config import Config, ConfigError, UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors, and so one line."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message}; see --help")


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which process of a run this is; `ssd_jax.runtime.processes` takes them."""
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--peer-timeout", type=int, default=60)


def run_main(main: Callable[[Sequence[str]], int | None]) -> int:
    """The exit status that `main(arguments)` gives, or one line and that of a UserError, mostly 2.

    130 for an interrupt from the keyboard, as shells have it.
    """
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        print_error(error)
        return error.status
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130


def print_error(error: UserError) -> None:
    """The one line of an error, with the program's name."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)


def load_config(path: Path) -> Config:
    """What get_config() of a config file returns; the file may import its neighbours.

    Raises ConfigError, naming the file, if it is missing, fails, or gives no Config.
    """
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {path}; see configs/ for examples")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(f"--config: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, Config):
        raise ConfigError(f"--config: get_config() of {path} gives {config!r}; return a Config")
    return config


def resolve_config(file: Path | None, arguments: Sequence[str], *, description: str) -> Config:
    """The config of --config FILE with the fields that `arguments` name replaced; see `override`.

    Raises ConfigError if there is no file, unless `arguments` ask for --help.
    """
    if file is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError("--config is missing; name an experiment, e.g. configs/quickstart.py")
    config = load_config(file) if file else Config()
    return override(config, arguments, description=description)


def override(config: Config, arguments: Sequence[str], *, description: str) -> Config:
    """The config with the fields that `arguments` name as --section.field VALUE replaced.

    --help lists every field with its value in `config` and exits. Raises ConfigError for an
    unknown field or a value that does not fit.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Config, default=config, args=list(arguments), description=description)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise ConfigError(_one_line(box.getvalue())) from None


def _one_line(text: str) -> str:
    """The message of a box that tyro prints: its first paragraph, and its first suggestion."""
    lines = [line.strip("│╭╮╰╯ ") for line in text.splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line and set(line) <= {"─"}:
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    message = " ".join(paragraphs[0])
    for paragraph in paragraphs[1:]:
        if paragraph and paragraph[0].startswith("Perhaps you meant") and len(paragraph) > 1:
            message += f"; perhaps you meant {paragraph[1]}"
    return f"{message}; see --help for all fields"
