"""Times of programs that a device runs asynchronously."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Wait = Callable[[Any], Any]


def throughput(
    run: Callable[[], Any], wait: Wait, *, seconds: float, calls: int = 10, warm_up: int = 3
) -> dict[str, float]:
    """Time a call of `run` as part of a queue of calls.

    Calls are queued `calls` at a time, as a training loop does, and `wait` is given the last
    result. Blocks are repeated for about `seconds` seconds.

    Returns:
        Median, fastest and slowest block in seconds a call: "s", "s_min", "s_max"; and "calls".
    """
    for _ in range(warm_up):
        wait(run())
    blocks: list[float] = []
    begun = time.perf_counter()
    while len(blocks) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        blocks.append((time.perf_counter() - started) / calls)
    return summary(blocks, calls * len(blocks))


def latency(
    run: Callable[[], Any], wait: Wait, *, seconds: float, warm_up: int = 3
) -> dict[str, float]:
    """Time single calls of `run`, each waited for; see `throughput` for the result."""
    return throughput(run, wait, seconds=seconds, calls=1, warm_up=warm_up)


def summary(times: list[float], calls: int) -> dict[str, float]:
    """Median, fastest and slowest of `times`, and the number of calls behind them."""
    return {
        "s": float(np.median(times)),
        "s_min": min(times),
        "s_max": max(times),
        "calls": float(calls),
    }
