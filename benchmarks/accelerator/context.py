"""Inputs of a part of the benchmark, and the file that its results are written to."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_jax.io import atomic_write


class SkipPartError(Exception):
    """A part that cannot run here although nothing failed; the message is the reason."""


@dataclass
class Context:
    """One run of one part, in a separate process.

    Results are written as soon as they are recorded, so a part that is cut short keeps them.
    """

    part: str
    out: Path
    """Folder of the results."""
    bundle: Path | None
    """The prepared folder; None in a checkout."""
    tiny: bool
    """Measure at reduced size on any device, to test the program."""
    seconds: float
    """Time limit of the part (s)."""
    started: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Time left to the part (s)."""
        return self.seconds - (time.monotonic() - self.started)

    def record(self, name: str, value: Any) -> None:
        """Add a result, and write all results of the part."""
        self.results[name] = value
        write_results(self.out, self.part, self.results)

    def require(self, package: str) -> None:
        """Raise SkipPartError if a package is not installed."""
        if importlib.util.find_spec(package) is None:
            raise SkipPartError(f"{package} is not installed")

    def read(self, part: str) -> dict[str, Any]:
        """Read the results of an earlier part of the same run; empty if it recorded none."""
        return read_results(self.out, part)


def attempt(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the result of `measure`, or {"failed": reason} if it raises."""
    try:
        return measure(*arguments)
    except Exception as error:  # e.g. out of memory: the other cases are still measured
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def write_results(out: Path, part: str, results: Any) -> None:
    """Write the results of a part."""
    atomic_write(out / f"{part}.json", (json.dumps(results, indent=2) + "\n").encode())


def read_results(out: Path, part: str) -> dict[str, Any]:
    """Read the results of a part; empty if it recorded none."""
    file = out / f"{part}.json"
    return json.loads(file.read_text()) if file.is_file() else {}
