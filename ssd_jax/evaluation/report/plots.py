"""Plots of an evaluation, as SVG.

Figures are created without pyplot, so that no window system or global state is involved and the
same figure gives the same bytes.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_jax.data.errors import escape_controls
from ssd_jax.evaluation.metrics.error_analysis import Analysis
from ssd_jax.evaluation.metrics.tide import ERRORS
from ssd_jax.evaluation.metrics.voc_ap import VocResult
from ssd_jax.inference.drawing import label_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

MAX_CURVES = 100
"""Largest number of classes with a curve, those with the most objects."""

_COLUMNS = 5
_MAX_POINTS = 400
_GREY = "#8a8f98"
_INK = "#22262b"
_COLORS = ("#2f6fb2", "#e08a1e")  # of the two evaluations of a comparison
_DASHES = ("solid", (0, (3, 1.5)))
# Class names are data, not mathematical notation.
_PLAIN: dict[str, Any] = {"parse_math": False}


def plot_curves(results: Mapping[str, VocResult]) -> "Figure":
    """Plot precision against recall, a panel per class, with a line per result.

    Args:
        results: one or two results of the same classes, by name; two have a legend.
    """
    first = next(iter(results.values()))
    with_objects = [k for k, c in enumerate(first.classes) if c.num_objects]
    shown = sorted(sorted(with_objects, key=lambda k: -first.classes[k].num_objects)[:MAX_CURVES])
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = _figure(2.1 * columns + 0.5, 1.9 * rows + 0.6)
    for position, k in enumerate(shown):
        axes = figure.add_subplot(rows, columns, position + 1)
        for run, (name, result) in enumerate(results.items()):
            color = np.array(label_color(k)) / 255 if len(results) == 1 else _COLORS[run]
            recall, precision = _thin_out(result.classes[k].recall, result.classes[k].precision)
            axes.plot(
                recall, precision, color=color, linestyle=_DASHES[run], label=escape_controls(name)
            )
            if len(results) == 1:
                axes.fill_between(recall, precision, color=color, alpha=0.12, linewidth=0)
        aps = " | ".join(f"{result.classes[k].ap:.3f}" for result in results.values())
        axes.set_title(f"{_short(first.classes[k].name)}  area {aps}", fontsize=8, **_PLAIN)
        left, bottom = position % columns == 0, position + columns >= len(shown)
        _unit_square(axes, left=left, bottom=bottom)
        if len(results) > 1 and position == 0:
            axes.legend(fontsize=6, loc="lower left", frameon=False)
    return figure


def plot_confusion(matrix: Array, classes: Sequence[str]) -> "Figure":
    """Plot a confusion matrix, see `tide.confusion_matrix`; shades are shares of a row.

    The counts are written into the cells of up to 30 classes.
    """
    names = [*classes, "(background)"]
    side = len(names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    inches = min(14.0, max(4.2, 1.8 + 0.36 * side))
    figure = _figure(inches + 0.6, inches)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 8 if side <= 25 else max(3.0, 8 * 25 / side)
    axes.set_xticks(range(side), [_short(n) for n in names], rotation=90, fontsize=size, **_PLAIN)
    axes.set_yticks(range(side), [_short(n) for n in names], fontsize=size, **_PLAIN)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("ground truth")
    if side <= 31:
        for i, j in np.argwhere(matrix > 0):
            color = "white" if share[i, j] > 0.5 else _INK
            text = f"{matrix[i, j]}"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=0.85 * size)
    return figure


def plot_errors(analyses: Mapping[str, Analysis]) -> "Figure":
    """Plot number and delta AP of the errors by type, for one or two named evaluations."""
    figure = _figure(8.6, 2.4 + 0.35 * len(analyses))
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(analyses)
    for run, (name, analysis) in enumerate(analyses.items()):
        position = np.arange(len(ERRORS)) + (run - (len(analyses) - 1) / 2) * height
        for axes, values, form in (
            (left, analysis.counts, "{:,.0f}"),
            (right, analysis.delta_ap, "{:.3f}"),
        ):
            widths = [values[error] for error in ERRORS]
            bars = axes.barh(position, widths, height, color=_COLORS[run])
            axes.bar_label(bars, fmt=form, fontsize=7, padding=2)
            bars.set_label(escape_controls(name))
    for axes, title in ((left, "number of errors"), (right, "delta AP")):
        axes.margins(x=0.18)
        axes.set_title(title, fontsize=9)
        _style_spines(axes)
    left.set_yticks(range(len(ERRORS)), ERRORS)
    left.invert_yaxis()
    if len(analyses) > 1:
        right.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def to_svg(figure: "Figure") -> bytes:
    """Encode a figure as SVG with text as text, so that the viewer's fonts show any alphabet."""
    import matplotlib

    buffer = io.BytesIO()
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ssd_jax"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # matplotlib measures text by its own font, which lacks some letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    """Create an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _unit_square(axes: "Axes", *, left: bool, bottom: bool) -> None:
    """Set limits, ticks and grid of a curve; labels only at the left and bottom of the figure."""
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.tick_params(labelsize=6, labelleft=left, labelbottom=bottom)
    axes.grid(alpha=0.3, linewidth=0.5)
    if left:
        axes.set_ylabel("precision", fontsize=7)
    if bottom:
        axes.set_xlabel("recall", fontsize=7)
    _style_spines(axes)


def _style_spines(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)


def _short(name: str) -> str:
    name = escape_controls(name)
    return name if len(name) <= 18 else f"{name[:17]}…"


def _thin_out(recall: Array, precision: Array) -> tuple[Array, Array]:
    """Select about 400 points of a curve and extend it to recall 0."""
    points = np.unique(np.linspace(0, len(recall) - 1, _MAX_POINTS).astype(int))
    points = points[: len(recall)]
    if len(points) == 0:
        return np.zeros(1), np.zeros(1)
    return np.append(0.0, recall[points]), np.append(precision[:1], precision[points])
