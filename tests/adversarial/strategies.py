"""Hypothesis strategies for unexpected values and edited files."""

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

HOSTILE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Settings with the same cases in every run; `limits.limits` limits the time of each."""

NUMBERS = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**12, 10**30, -(10**30), 10**400),
            *(0.0, -0.0, 1e-300, 1e300, 1e39, float("nan"), float("inf"), float("-inf"), 0.5),
        ]
    ),
    st.integers(),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "\0", "\n", "a\nb", "\x1b[31mred", "../../etc/passwd", "/dev/zero"),
            *("nan", "inf", "1_0", "١٢", "1e999", "--help", "%s%n", "\ud800", "\u202e", "a" * 5000),
            *("[bold]x[/bold]", "<script>alert(1)</script>", "{{ 7 * 7 }}", "true", "null"),
        ]
    ),
    st.text(max_size=30),
)
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def edit_json(document: Any, draw: Any, edits: int) -> str:
    """Replace, remove or duplicate some nodes of a JSON document; return its text."""
    document = json.loads(json.dumps(document))
    for _ in range(edits):
        nodes = list(_nodes(document))
        parent, key = draw(st.sampled_from(nodes))
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "duplicate"]))
        if action == "replace":
            parent[key] = draw(VALUES)
        elif action == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(parent[key])
        if not document:
            break
    return json.dumps(document)


def _nodes(document: Any) -> Any:
    pairs = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in list(pairs):
        yield document, key
        yield from _nodes(value)


@st.composite
def edited_bytes(draw: Any, data: bytes) -> bytes:
    """Replace, insert, remove, duplicate or cut off some bytes of `data`."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(0, len(out) - 1)))
        end = min(len(out), start + draw(st.integers(0, 40)))
        action = draw(st.sampled_from(["flip", "insert", "remove", "duplicate", "cut"]))
        if action == "flip" and out:
            out[start] = draw(st.integers(0, 255))
        elif action == "insert":
            out[start:start] = draw(st.binary(max_size=20))
        elif action == "remove":
            del out[start:end]
        elif action == "duplicate":
            out[start:start] = out[start:end] * draw(st.sampled_from([1, 2, 1000]))
        elif action == "cut":
            del out[start:]
    return bytes(out)
