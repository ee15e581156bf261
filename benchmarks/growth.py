"""What costs how much more: time and memory against images, objects, classes and priors.

One of them is changed at a time. Training is matching, hard negatives, loss and its gradient;
detection is softmax, decoding and suppression; both without the network.
"""

from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.contenders import race
from benchmarks.report import print_figures

BASE = {"batch": 8, "objects": 6, "classes": 20, "size": 300}
SERIES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "objects": (1, 2, 6, 16, 32, 64),
    "classes": (20, 80, 365),
    "size": (300, 512),
}
PRIORS = {300: 8732, 512: 24564}
PLACES = 64


def run(rounds: int, series: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Print the tables and return the figures: ms and MB by series and value."""
    figures: dict[str, Any] = {}
    for what, values in (series or SERIES).items():
        found: dict[str, dict[str, float]] = {}
        for value in values:
            case = BASE | {what: value}
            times = race(
                {"training": (ours.learn, case, PLACES), "detection": (ours.find, case)},
                rounds=rounds,
            )
            found[str(PRIORS[value] if what == "size" else value)] = {
                "training, ms": 1e3 * times["training"]["s"],
                "detection, ms": 1e3 * times["detection"]["s"],
                "matching, MB": ours.matching_memory(case, PLACES) / 1e6,
                "MB of places x priors": case["batch"] * PLACES * PRIORS[case["size"]] * 4 / 1e6,
            }
        name = "priors" if what == "size" else what
        figures[name] = found
        print_figures(name, found)
    return figures


def plot(figures: dict[str, Any], path: Path) -> None:
    """The figures of `run` as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (what, found) in zip(figure.subplots(1, len(figures)), figures.items(), strict=True):
        values = [int(value) for value in found]
        for kind, color in (("training", "#2f6fb2"), ("detection", "#e08a1e")):
            times = [of[f"{kind}, ms"] for of in found.values()]
            axes.plot(values, times, "o-", color=color, label=kind, markersize=4)
        axes.set_xlabel(f"{what} an image" if what in ("objects", "priors") else what)
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
        axes.grid(color="#e3e5e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a batch")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
