"""Tables and plots of measurements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Rows = Mapping[str, Mapping[str, float]]


def print_table(title: str, rows: Rows) -> None:
    """Print rows by name; all have the columns of the first one."""
    columns = list(next(iter(rows.values())))
    _print(
        title, columns, {name: [f"{row[c]:,.3g}" for c in columns] for name, row in rows.items()}
    )


def print_comparison(title: str, rows: Rows, *, base: str) -> None:
    """Print the times of programs and their speed-up over `base`."""
    columns = {
        "ms": lambda row: f"{1e3 * row['s']:,.1f}",
        "range": lambda row: f"{1e3 * row['s_min']:,.1f} to {1e3 * row['s_max']:,.1f}",
        "speed-up": lambda row: f"{rows[base]['s'] / row['s']:.2f}",
        "first call, s": lambda row: f"{row['first_s']:.1f}" if "first_s" in row else "",
        "peak MB": lambda row: f"{row['peak_mb']:,.0f}" if "peak_mb" in row else "",
        "of matmul": lambda row: f"{row['matmul_share']:.0%}" if "matmul_share" in row else "",
    }
    _print(
        title,
        list(columns),
        {name: [cell(row) for cell in columns.values()] for name, row in rows.items()},
    )


def _print(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=110).print(table)


def plot_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    ylabel: str,
    size: tuple[float, float],
    marker: str = "",
) -> None:
    """Draw a panel of lines (x, y) for each x label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (xlabel, lines) in zip(all_axes, panels.items(), strict=True):
        for (label, (x, y)), color in zip(lines.items(), ("#2f6fb2", "#e08a1e"), strict=False):
            axes.plot(x, y, "-", marker=marker, color=color, label=label, markersize=4)
        axes.set_xlabel(xlabel)
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
        axes.grid(color="#e3e5e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel(ylabel)
    if len(lines) > 1:
        all_axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
