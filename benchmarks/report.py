"""Tables of what was measured."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table


def print_figures(title: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """Print figures by row and column; all rows have the first one's columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    columns = list(next(iter(found.values())))
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    for row, of in found.items():
        table.add_row(row, *(f"{of[column]:,.3g}" for column in columns))
    Console(width=110).print(table)


def print_race(title: str, found: Mapping[str, Mapping[str, float]], *, base: str) -> None:
    """Print the times of programs, and how many times as fast as `base` each is."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "ms", "range", "times as fast", "first call s", "peak MB", "of product"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, of in found.items():
        table.add_row(
            name,
            f"{1e3 * of['s']:,.1f}",
            f"{1e3 * of['s_min']:,.1f} to {1e3 * of['s_max']:,.1f}",
            f"{found[base]['s'] / of['s']:.2f}",
            f"{of['first_s']:.1f}" if "first_s" in of else "",
            f"{of['peak_mb']:,.0f}" if "peak_mb" in of else "",
            f"{of['of_product']:.0%}" if "of_product" in of else "",
        )
    Console(width=110).print(table)
