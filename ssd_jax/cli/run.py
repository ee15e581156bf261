"""Running a command: exit status, one-line errors, version and subcommands."""

import difflib
import errno
import platform
import sys
from collections.abc import Callable, Mapping, Sequence

from ssd_jax import __version__
from ssd_jax.config import ConfigError, UserError
from ssd_jax.streams import guard_streams, print_error, program_name

Main = Callable[[Sequence[str]], int | None]
"""Main function of a command: takes the arguments, returns the exit status."""


def version_line() -> str:
    """Return the versions of the project, of JAX and of Python."""
    from importlib.metadata import version  # takes time to import, and is rarely needed

    return f"ssd_jax {__version__} (jax {version('jax')}, Python {platform.python_version()})"


def run_main(main: Main) -> int:
    """Run a command with the arguments of the process.

    A reader may close its end of the pipe early. If a disk or a device does not accept the
    standard output, the status is 2.

    Returns:
        The exit status: that of `main`, 2 or the status of a UserError after printing its line,
        130 after an interrupt from the keyboard.
    """
    output = guard_streams()
    status = _status(main)
    sys.stdout.flush()
    if output is not None and output.error is not None and output.error.errno != errno.EPIPE:
        why = output.error.strerror
        print_error(UserError(f"the standard output cannot be written ({why}): the output is lost"))
        return status or UserError.status
    return status


def _status(main: Main) -> int:
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        print_error(error)
        return error.status
    except KeyboardInterrupt:
        print(f"{program_name()}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as exit_:  # --help and --version
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)


def run_subcommand(commands: Mapping[str, Main], arguments: Sequence[str]) -> int | None:
    """Run the command named by the first argument with the rest of them.

    Raises:
        ConfigError: the command is missing or unknown.
    """
    name = arguments[0] if arguments else ""
    if name in commands:
        return commands[name](arguments[1:])
    if name in ("-h", "--help"):
        print(f"usage: {program_name()} COMMAND [--help] ...\n\ncommands:")
        for command, main in commands.items():
            print(f"  {command:<10} {(main.__doc__ or '').splitlines()[0]}")
        print(f"\n{program_name()} COMMAND --help lists the arguments of a command.")
        return 0
    if name == "--version":
        print(version_line())
        return 0
    similar = difflib.get_close_matches(name, commands, n=1)
    problem = f"unknown command {name!r}" if name else "the command is missing"
    advice = f"perhaps you meant {similar[0]}" if similar else f"use one of {', '.join(commands)}"
    raise ConfigError(f"{problem}; {advice}; see --help")
