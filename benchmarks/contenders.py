"""Programs that are measured side by side, each in a process of its own.

So neither's threads, memory or compiled programs are in the other's way, and the peak of a
process's memory is that of one program. They take turns: what else the machine does in a minute
falls on all of them.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Program = Callable[[], Any]


class Contender:
    """`setup(*arguments)` in a new process, which gives the program that is timed.

    Both must be importable: the process starts afresh. `warm_up` is the time of the first call in
    seconds, with what it compiles, and `started` that of the setup.
    """

    def __init__(self, setup: Callable[..., Program], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.started = self._receive()
        self.warm_up = self.time()
        self.time()  # what the first calls leave to be done

    def time(self) -> float:
        """Seconds of one call."""
        self._pipe.send("run")
        return self._receive()

    def close(self) -> float:
        """End the process; the most memory that it had resident, in MB."""
        self._pipe.send("end")
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> float:
        try:
            found = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the program's process ended; its error is above") from None
        return found


def _serve(pipe: Connection, setup: Callable[..., Program], arguments: Sequence[Any]) -> None:
    begun = time.perf_counter()
    program = setup(*arguments)
    pipe.send(time.perf_counter() - begun)
    while pipe.recv() == "run":
        begun = time.perf_counter()
        program()
        pipe.send(time.perf_counter() - begun)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def race(
    programs: Mapping[str, tuple[Any, ...]], *, rounds: int, least_s: float = 0.2
) -> dict[str, dict[str, float]]:
    """Times of (setup, *arguments) by name: median, fastest, slowest, first call, memory.

    They take turns for `rounds` rounds. A program that is faster than `least_s` seconds is called
    as often in a row as fills them, and the mean of these counts as one time. "s" is the median in
    seconds, "s_min" and "s_max" its range, "first_s" the setup and the first call, "peak_mb" the
    memory.
    """
    contenders = {name: Contender(*program) for name, program in programs.items()}
    calls = {name: _calls(one, least_s) for name, one in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, one in contenders.items():
            times[name].append(float(np.mean([one.time() for _ in range(calls[name])])))
    return {
        name: {
            "s": float(np.median(times[name])),
            "s_min": min(times[name]),
            "s_max": max(times[name]),
            "first_s": one.started + one.warm_up,
            "peak_mb": one.close(),
        }
        for name, one in contenders.items()
    }


def _calls(one: Contender, least_s: float) -> int:
    return max(1, int(np.ceil(least_s / one.time())))
