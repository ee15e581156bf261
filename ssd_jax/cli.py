"""The command line of the mains: a config file, fields of it replaced, errors in one line."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import importlib.util
import io
import platform
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

from ssd_jax import __version__
from ssd_jax.config import COMPILATION_CACHE_DIR, Config, ConfigError, ExtraBlock, UserError
from ssd_jax.io import is_dir, is_file
from ssd_jax.streams import guard_streams


def version_line() -> str:
    """Versions of the project and of what its results depend on most."""
    return f"ssd_jax {__version__} (jax {version('jax')}, Python {platform.python_version()})"


class Parser(argparse.ArgumentParser):
    """A parser with --version whose errors are ConfigErrors, and so one line."""

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
        """Raises ConfigError."""
        raise ConfigError(f"{message}; see --help")


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which process of a run this is, for `distributed.processes`."""
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--peer-timeout", type=int, default=60)


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compilation-cache-dir; `ssd_jax.distributed.use_compilation_cache` takes its value."""
    parser.add_argument(
        "--compilation-cache-dir",
        default=COMPILATION_CACHE_DIR,
        metavar="DIR",
        help="where compiled programs are kept for the next start, unless "
        "JAX_COMPILATION_CACHE_DIR names a folder; '' for nowhere; default: %(default)s",
    )


def run_main(main: Callable[[Sequence[str]], int | None]) -> int:
    """The exit status that `main(arguments)` gives, or one line and that of a UserError, mostly 2.

    130 for an interrupt from the keyboard, as shells have it. The work is done whether or not
    somebody reads the standard output; where a disk or a device did not take it, the status is 2.
    """
    output = guard_streams()
    status = _status(main)
    sys.stdout.flush()
    # A reader that closes its pipe has read what it wanted.
    if output is not None and output.error is not None and output.error.errno != errno.EPIPE:
        why = output.error.strerror
        print_error(UserError(f"the standard output cannot be written ({why}): its text is lost"))
        return status or UserError.status
    return status


def _status(main: Callable[[Sequence[str]], int | None]) -> int:
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        print_error(error)
        return error.status
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as exit_:  # of --help and --version, or a status of its own
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)


def print_error(error: UserError) -> None:
    """The one line of an error, with the program's name."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)


def load_config(path: Path) -> Config:
    """What get_config() of a config file returns; the file may import its neighbours.

    Raises ConfigError, naming the file, if it is missing, fails, or gives no Config.
    """
    if is_dir(path):
        raise ConfigError(
            f"--config: {path} is a folder; name a config file, e.g. configs/quickstart.py"
        )
    if not is_file(path):
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
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ConfigError(f"--config: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, Config):
        raise ConfigError(f"--config: get_config() of {path} gives {config!r}; return a Config")
    return config


def resolve_config(
    file: Path | None, arguments: Sequence[str], *, description: str, flags: Sequence[str] = ()
) -> Config:
    """The config of --config FILE with the fields that `arguments` name replaced; see `override`.

    Raises ConfigError if there is no file, unless `arguments` ask for --help.
    """
    check_first_word(arguments, "" if file else "--config")
    if file is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError("--config is missing; name an experiment, e.g. configs/quickstart.py")
    config = load_config(file) if file else Config()
    return override(config, arguments, description=description, flags=flags)


def check_first_word(arguments: Sequence[str], meant: str) -> None:
    """Refuse a word that stands before all flags.

    Args:
        arguments: the command line without the flags that the main takes itself.
        meant: the flag that such a word probably belongs to; empty: unknown.

    Raises:
        ConfigError: there is such a word.
    """
    if arguments and not arguments[0].startswith("-"):
        raise ConfigError(_stray(arguments[0], meant))


def _stray(word: str, meant: str) -> str:
    advice = f"write {meant} {word}" if meant else "take it out"
    return f"unexpected argument {word!r}; {advice}"


def override(
    config: Config, arguments: Sequence[str], *, description: str, flags: Sequence[str] = ()
) -> Config:
    """The config with the fields that `arguments` name as --section.field VALUE replaced.

    --help lists every field with its value in `config` and exits.

    Args:
        config: the values of the fields that are not named.
        arguments: the command line without the flags that the main takes itself.
        description: what --help says first.
        flags: of the main, to be suggested for a flag that is misspelt.

    Raises:
        ConfigError: a field is unknown or a value does not fit.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            changed, unknown = tyro.cli(
                Config,
                default=config,
                args=list(arguments),
                description=description,
                return_unknown_args=True,
                registry=_registry(),
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise ConfigError(_parse_error(exit_, box.getvalue())) from None
    if unknown and unknown[0].startswith("-"):
        raise ConfigError(_misspelt(unknown[0], [*flags, *_field_flags(Config, "--")]))
    if unknown:
        raise ConfigError(_stray(unknown[0], ""))
    return changed


def _registry() -> ConstructorRegistry:
    """Create tyro's rule for extra blocks: five numbers each, in the order of the fields."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _extra_block(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[ExtraBlock] | None:
        if info.type is not ExtraBlock:
            return None
        return PrimitiveConstructorSpec(
            nargs=len(dataclasses.fields(ExtraBlock)),
            metavar=" ".join(each.name.upper() for each in dataclasses.fields(ExtraBlock)),
            instance_from_str=lambda words: ExtraBlock(*map(int, words)),
            is_instance=lambda value: isinstance(value, ExtraBlock),
            str_from_instance=lambda block: [str(n) for n in dataclasses.astuple(block)],
        )

    return registry


def _field_flags(section: type, prefix: str) -> Iterator[str]:
    for name, kind in typing.get_type_hints(section).items():
        flag = f"{prefix}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(kind):
            yield from _field_flags(typing.cast(type, kind), f"{flag}.")
        elif kind is bool:
            yield from (flag, f"{prefix}no-{name.replace('_', '-')}")
        else:
            yield flag


def _misspelt(argument: str, flags: Sequence[str]) -> str:
    """The error for an unknown flag, with the flags that it may have been meant for."""
    flag = argument.partition("=")[0]
    written = flag.replace("_", "-")
    last = written.lstrip("-")
    meant = [known for known in flags if known.rpartition(".")[2] == last]  # without its section
    meant = meant or difflib.get_close_matches(written, flags, n=1)
    advice = f"; perhaps you meant {' or '.join(meant)}" if meant else ""
    return f"unknown argument {flag}{advice}; see --help for all of them"


def _parse_error(exit_: SystemExit, box: str) -> str:
    """The message of what made tyro exit, which tyro prints wrapped to a box."""
    cause = exit_.__context__
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__context__
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line and set(line) <= {"─"}:
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    return f"{' '.join(paragraphs[0])}; see --help for all fields"
