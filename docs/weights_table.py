"""Write the table of published weights into docs/weights.md: python docs/weights_table.py."""

import re
from pathlib import Path

from ssd_jax.weights.registry import ENTRIES, PublishedWeights

PAGE = Path(__file__).with_name("weights.md")
BEGIN, END = "<!-- begin: docs/weights_table.py -->", "<!-- end -->"
COLUMNS = (
    ("name", lambda entry: f"`{entry.name}`"),
    ("weights", lambda entry: "; ".join(filter(None, (entry.description, entry.note)))),
    ("published score", lambda entry: _score(entry)),
    ("file", lambda entry: _files(entry)),
    ("licence", lambda entry: _licence(entry)),
    ("config", lambda entry: f"`{entry.config}`" if entry.config else "-"),
)


def make_table() -> str:
    """Return the table in Markdown."""
    header = [f"| {' | '.join(name for name, _ in COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    rows = [f"| {' | '.join(cell(e) for _, cell in COLUMNS)} |" for e in ENTRIES.values()]
    return "\n".join(header + rows)


def replace_table(text: str) -> str:
    """Return the text of the page with the current table."""
    pattern = f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})"
    return re.sub(pattern, lambda _: f"\n{make_table()}\n\n", text, count=1, flags=re.DOTALL)


def _files(entry: PublishedWeights) -> str:
    suffix = entry.file.rpartition(".")[2]
    links = [f"[.{suffix}]({entry.urls[0]})"]
    links += [f"[{k}]({url})" for k, url in enumerate(entry.urls[1:], start=2)]
    size = "" if entry.size_text == "unknown" else f", {entry.size_text}"
    return " ".join(links) + size


def _score(entry: PublishedWeights) -> str:
    score = entry.score
    return f"[{score.value} {score.metric}]({score.source}), {score.dataset}" if score else "-"


def _licence(entry: PublishedWeights) -> str:
    return f"[{entry.licence.name}]({entry.licence.source})" if entry.licence else "unknown"


if __name__ == "__main__":
    PAGE.write_text(replace_table(PAGE.read_text()))
