"""Plots of an evaluation, as SVG.

Figures are made without pyplot, so no window system and no state of the process is touched, and
the same figure gives the same bytes.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_jax.data.errors import escape_controls
from ssd_jax.evaluation.metrics.tide import ERRORS
from ssd_jax.evaluation.metrics.voc_ap import VocResult
from ssd_jax.inference.drawing import label_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

MAX_CURVES = 100
"""Classes that a plot of curves has at most, those with the most objects."""

_COLUMNS = 5
_MOST_POINTS = 400
_GREY = "#8a8f98"
_INK = "#22262b"
_COLORS = ("#2f6fb2", "#e08a1e")  # of the runs of a comparison
_DASHES = ("solid", (0, (3, 1.5)))
# Names of classes are data: none of them is to be read as mathematics.
_PLAIN: dict[str, Any] = {"parse_math": False}


def curves(results: Mapping[str, VocResult]) -> "Figure":
    """Precision against recall, a panel a class, with a line for each of one or two `results`.

    The results have the same classes; their names are told where there are two.
    """
    first = next(iter(results.values()))
    known = [k for k, c in enumerate(first.classes) if c.num_objects]
    most = sorted(known, key=lambda k: -first.classes[k].num_objects)[:MAX_CURVES]
    shown = sorted(most)
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = _figure(2.1 * columns + 0.5, 1.9 * rows + 0.6)
    for place, k in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        for run, (name, result) in enumerate(results.items()):
            own = np.array(label_color(k + 1)) / 255 if len(results) == 1 else _COLORS[run]
            recall, precision = _thinned(result.classes[k].recall, result.classes[k].precision)
            axes.plot(
                recall, precision, color=own, linestyle=_DASHES[run], label=escape_controls(name)
            )
            if len(results) == 1:
                axes.fill_between(recall, precision, color=own, alpha=0.12, linewidth=0)
        aps = " | ".join(f"{result.classes[k].ap:.3f}" for result in results.values())
        axes.set_title(f"{_short(first.classes[k].name)}  area {aps}", fontsize=8, **_PLAIN)
        _unit_square(axes, labelled=place % columns == 0, last=place + columns >= len(shown))
        if len(results) > 1 and place == 0:
            axes.legend(fontsize=6, loc="lower left", frameon=False)
    return figure


def confusion(matrix: Array, classes: Sequence[str]) -> "Figure":
    """A confusion matrix, see `errors.confusion_matrix`; shades are shares of a row.

    Numbers are written where there is room for them.
    """
    names = ["(nothing)", *classes]
    side = len(names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    inches = min(14.0, max(4.2, 1.8 + 0.36 * side))
    figure = _figure(inches + 0.6, inches)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 8 if side <= 25 else max(3.0, 8 * 25 / side)
    axes.set_xticks(range(side), [_short(n) for n in names], rotation=90, fontsize=size, **_PLAIN)
    axes.set_yticks(range(side), [_short(n) for n in names], fontsize=size, **_PLAIN)
    axes.set_xlabel("predicted")
    axes.set_ylabel("object")
    if side <= 31:
        for i, j in np.argwhere(matrix > 0):
            color = "white" if share[i, j] > 0.5 else _INK
            text = f"{matrix[i, j]}"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=0.85 * size)
    return figure


def errors(
    counts: Mapping[str, Mapping[str, int]], gains: Mapping[str, Mapping[str, float]]
) -> "Figure":
    """Errors by kind, and what mean AP would gain without each, for one or two named runs."""
    figure = _figure(8.6, 2.4 + 0.35 * len(counts))
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(counts)
    for axes, values, title in (
        (left, counts, "number"),
        (right, gains, "mean AP gained without them"),
    ):
        height = 0.8 / len(names)
        for run, name in enumerate(names):
            place = np.arange(len(ERRORS)) + (run - (len(names) - 1) / 2) * height
            bars = axes.barh(place, [values[name][e] for e in ERRORS], height, color=_COLORS[run])
            form = "{:.3f}" if values is gains else "{:,.0f}"
            axes.bar_label(bars, fmt=form, fontsize=7, padding=2)
            bars.set_label(escape_controls(name))
        axes.margins(x=0.18)
        axes.set_title(title, fontsize=9)
        _bare(axes)
    left.set_yticks(range(len(ERRORS)), ERRORS)
    left.invert_yaxis()
    if len(names) > 1:
        right.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def to_svg(figure: "Figure") -> bytes:
    """A figure as an SVG file, whose text is text: a viewer's own fonts show any alphabet."""
    import matplotlib

    buffer = io.BytesIO()
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ssd_jax"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # matplotlib measures text by its own font, which has not every letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _unit_square(axes: "Axes", *, labelled: bool, last: bool) -> None:
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.tick_params(labelsize=6, labelleft=labelled, labelbottom=last)
    axes.grid(alpha=0.3, linewidth=0.5)
    if labelled:
        axes.set_ylabel("precision", fontsize=7)
    if last:
        axes.set_xlabel("recall", fontsize=7)
    _bare(axes)


def _bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)


def _short(name: str) -> str:
    name = escape_controls(name)
    return name if len(name) <= 18 else f"{name[:17]}…"


def _thinned(recall: Array, precision: Array) -> tuple[Array, Array]:
    """A curve by at most some 400 of its points, from recall 0 on."""
    chosen = np.unique(np.linspace(0, len(recall) - 1, _MOST_POINTS).astype(int))
    chosen = chosen[: len(recall)]
    if len(chosen) == 0:
        return np.zeros(1), np.zeros(1)
    start = precision[:1]
    return np.append(0.0, recall[chosen]), np.append(start, precision[chosen])
