"""Error logs of one line instead of tracebacks, because anyone can send requests that fail."""

import logging
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

from ssd_jax.config import printable

_MAX_LENGTH = 300  # characters of an error


def shorten_tracebacks() -> None:
    """Make Gradio, uvicorn and asyncio log each error as one line."""
    from gradio import queueing, route_utils, routes

    for module in (queueing, route_utils, routes):
        vars(module)["traceback"] = one_line_traceback()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(shorten_record)


def one_line_traceback() -> SimpleNamespace:
    """Copy the module `traceback` with a `print_exc` that prints one line."""

    def print_exc(*_: object, **__: object) -> None:
        error = sys.exception()
        if error is not None:
            print(_format_error(error), file=sys.stderr, flush=True)

    return SimpleNamespace(**{**vars(traceback), "print_exc": print_exc})


def shorten_record(record: logging.LogRecord) -> bool:
    """Replace the traceback of a log record by one line; return True to keep the record."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args = _format_error(error), ()
        record.exc_info = record.exc_text = record.stack_info = None
    return True


def _format_error(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"demo: {type(error).__name__}: {printable(str(error)[:_MAX_LENGTH])}{location}"
