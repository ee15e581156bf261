"""The inputs of a part of the benchmark, and the file its results go to."""

import importlib.util
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_jax.io import atomic_write


class SkipPartError(Exception):
    """A part that cannot run here, for a reason that is no fault."""


@dataclass
class Context:
    """One run of one part, in a process of its own.

    Results are on disk as soon as they are recorded, so that a part which is cut short keeps what
    it has measured until then.
    """

    part: str
    out: Path
    """Folder of the results."""
    bundle: Path | None
    """The prepared folder; None in a checkout."""
    tiny: bool
    """Measure in miniature, on any device: a test of the program, not of the device."""
    seconds: float
    """Time the part has (s)."""
    started: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Time left to the part (s)."""
        return self.seconds - (time.monotonic() - self.started)

    def record(self, name: str, value: Any) -> None:
        """Add a result, and write all results of the part."""
        self.results[name] = value
        text = json.dumps(self.results, indent=2) + "\n"
        atomic_write(results_file(self.out, self.part), text.encode())

    def require(self, package: str) -> None:
        """Raise SkipPartError if a package is not installed."""
        if importlib.util.find_spec(package) is None:
            raise SkipPartError(f"{package} is not installed")

    def read(self, part: str) -> dict[str, Any]:
        """Results of an earlier part of the same run; empty if it recorded none."""
        return read_results(self.out, part)


def results_file(out: Path, part: str) -> Path:
    """Path of a part's results."""
    return out / f"{part}.json"


def read_results(out: Path, part: str) -> dict[str, Any]:
    """Results that a part has recorded; empty if it recorded none."""
    file = results_file(out, part)
    return json.loads(file.read_text()) if file.is_file() else {}
