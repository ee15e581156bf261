"""Numbers in annotation and results files."""

import re

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def parse_number(text: str) -> float:
    """Parse a decimal number in ASCII digits; white space around it is ignored.

    Python's `float` also takes 1_0, digits of other alphabets, nan and infinity, which other
    programs read differently or not at all.

    Raises:
        ValueError: the text is not such a number.
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}")
    return float(text)
