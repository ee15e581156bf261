"""Time and memory against the number of images, objects, classes and priors.

One of them is varied at a time. Training is matching, hard-negative mining, loss and gradient;
detection is softmax, decoding and NMS; both without the network.
"""

from pathlib import Path
from typing import Any

from benchmarks import ssd_jax_workloads
from benchmarks.report import plot_lines, print_table
from benchmarks.runner import compare

BASE = {"batch": 8, "objects": 6, "classes": 20, "size": 300}
SERIES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "objects": (1, 2, 6, 16, 32, 64),
    "classes": (20, 80, 365),
    "size": (300, 512),
}
PRIORS = {300: 8732, 512: 24564}
SLOTS = 64


def run(rounds: int, series: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Print the tables and return the figures: ms and MB by parameter and value."""
    figures: dict[str, Any] = {}
    for parameter, values in (series or SERIES).items():
        rows: dict[str, dict[str, float]] = {}
        for value in values:
            case = BASE | {parameter: value}
            times = compare(
                {
                    "training": (ssd_jax_workloads.learn, case, SLOTS),
                    "detection": (ssd_jax_workloads.find, case),
                },
                rounds=rounds,
            )
            rows[str(PRIORS[value] if parameter == "size" else value)] = {
                "training, ms": 1e3 * times["training"]["s"],
                "detection, ms": 1e3 * times["detection"]["s"],
                "matching, MB": ssd_jax_workloads.matching_memory(case, SLOTS) / 1e6,
                "slots x priors, MB": case["batch"] * SLOTS * PRIORS[case["size"]] * 4 / 1e6,
            }
        name = "priors" if parameter == "size" else parameter
        figures[name] = rows
        print_table(name, rows)
    return figures


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures of `run`."""
    panels = {}
    for name, rows in figures.items():
        x = [int(value) for value in rows]
        panels[f"{name} per image" if name in ("objects", "priors") else name] = {
            kind: (x, [row[f"{kind}, ms"] for row in rows.values()])
            for kind in ("training", "detection")
        }
    plot_lines(path, panels, ylabel="ms per batch", size=(9.6, 2.7), marker="o")
