"""Timing of programs that a device runs asynchronously."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.runner import summarize


def throughput(
    run: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    seconds: float,
    calls: int = 10,
    warm_up: int = 3,
) -> dict[str, float]:
    """Time a call of `run` in blocks of queued calls, as in a training loop.

    Args:
        run: The program; it returns before the device is done.
        wait: Called with the last result of a block; returns when the device is done.
        seconds: Duration of the measurement (s); at least three blocks are timed.
        calls: Calls per block; 1 measures latency.
        warm_up: Calls before the measurement.

    Returns:
        "s", "s_min", "s_max": median and range of the blocks, in seconds per call; "calls".
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
    return {**summarize(blocks), "calls": float(calls * len(blocks))}


def milliseconds(times: dict[str, float]) -> dict[str, float]:
    """Return median and range of `throughput` as "ms", "ms_min" and "ms_max"."""
    return {key.replace("s", "ms", 1): 1e3 * times[key] for key in ("s", "s_min", "s_max")}
