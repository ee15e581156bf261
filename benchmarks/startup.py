"""Time from a new process to its first training step, with an empty and a filled compile cache."""

import tempfile
from typing import Any

from benchmarks import ssd_jax_workloads
from benchmarks.report import print_table
from benchmarks.runner import ProgramProcess

BATCH = 4


def run(rounds: int) -> dict[str, Any]:
    """Print the table and return the figures; `rounds` is ignored, since one pair takes minutes."""
    del rounds
    figures: dict[str, Any] = {}
    for path in ("auto", "direct"):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = _first_step(path, cache), _first_step(path, cache)
        figures[f"cpu_conv {path}"] = {
            "empty cache, s": cold,
            "filled cache, s": warm,
            "ratio": warm / cold,
        }
    print_table(f"time to the first training step, batch {BATCH}", figures)
    return figures


def _first_step(path: str, cache: str) -> float:
    """Return the seconds of imports, initialisation, compilation and the first step."""
    process = ProgramProcess(ssd_jax_workloads.train, BATCH, path, cache)
    process.close()
    return process.setup_s + process.first_call_s
