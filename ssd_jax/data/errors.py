"""What a data set can be wrong in, told in one line that names the file and what to change."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ssd_jax.config import UserError


class DataError(UserError):
    """Data that cannot be used; the message names the file and what to change."""


def unknown_class(path: Path, name: str, known: Sequence[str]) -> NoReturn:
    """Raises DataError: the file has an object of a class that is not one of those known."""
    alike = [k for k in known if k.lower() == name.lower()]
    advice = (
        f"write it as {alike[0]!r}: case counts"
        if alike
        else "add it to model.classes or data.class_file, or take the object out"
    )
    raise DataError(
        f"{path} has class {name!r}, which is not one of {shorten(known, 30)}; {advice}"
    )


def shorten(names: Sequence[str], most: int) -> str:
    """The names with commas, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def reason(error: Exception) -> str:
    """What the system says of a file, without the file's name."""
    return getattr(error, "strerror", None) or str(error)
