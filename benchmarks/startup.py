"""From a new process to its first training step, with an empty and with a filled compile cache."""

import tempfile
from typing import Any

from benchmarks import ours
from benchmarks.contenders import Contender
from benchmarks.report import print_figures

BATCH = 4


def run(rounds: int) -> dict[str, Any]:
    """Print the table and return the figures; `rounds` is not looked at, one pair takes minutes."""
    del rounds
    figures: dict[str, Any] = {}
    for path in ("auto", "direct"):
        with tempfile.TemporaryDirectory() as cache:
            figures[path] = {
                "cold_s": _first_step(path, cache),
                "warm_s": _first_step(path, cache),
            }
    rows = {
        f"cpu_conv {path}": {
            "empty cache, s": of["cold_s"],
            "filled cache, s": of["warm_s"],
            "share": of["warm_s"] / of["cold_s"],
        }
        for path, of in figures.items()
    }
    print_figures(f"time to the first training step, batch {BATCH}", rows)
    return figures


def _first_step(path: str, cache: str) -> float:
    """Seconds of the imports, the state, the compilation and the step."""
    one = Contender(ours.train, BATCH, path, cache)
    one.close()
    return one.started + one.warm_up
