"""Measure programs side by side.

Each program runs in its own process, so that threads, memory and compiled programs of one do not
affect another, and the peak memory of the process is that of the program. The programs alternate,
so that other load on the machine affects all of them.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Program = Callable[[], Any]


class ProgramProcess:
    """The program that `setup(*arguments)` returns, in a new process.

    `setup` must be importable. `setup_s` is the time of the setup and `first_call_s` that of the
    first call, including compilation.
    """

    def __init__(self, setup: Callable[..., Program], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, setup, arguments), daemon=True)
        self._process.start()
        remote.close()
        self.setup_s = self._receive()
        self.first_call_s = self.time()
        self.time()  # a second warm-up call

    def time(self) -> float:
        """Time one call (s)."""
        self._pipe.send("run")
        return self._receive()

    def close(self) -> float:
        """End the process and return its peak resident memory (MB)."""
        self._pipe.send("end")
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> float:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("the program's process ended; its error is above") from None


def _serve(pipe: Connection, setup: Callable[..., Program], arguments: Sequence[Any]) -> None:
    begun = time.perf_counter()
    program = setup(*arguments)
    pipe.send(time.perf_counter() - begun)
    while pipe.recv() == "run":
        begun = time.perf_counter()
        program()
        pipe.send(time.perf_counter() - begun)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare(
    programs: Mapping[str, tuple[Any, ...]], *, rounds: int, min_turn_s: float = 0.2
) -> dict[str, dict[str, float]]:
    """Time programs in processes that alternate.

    Args:
        programs: (setup, *arguments) by name, see `ProgramProcess`.
        rounds: Turns of each program.
        min_turn_s: Shortest turn (s). A faster program is called several times in a row, and the
            mean counts as one time.

    Returns:
        By name: "s", "s_min" and "s_max" (median and range of a call), "first_s" (setup and first
        call) and "peak_mb".
    """
    processes = {name: ProgramProcess(*program) for name, program in programs.items()}
    calls = {
        name: max(1, int(np.ceil(min_turn_s / process.time())))
        for name, process in processes.items()
    }
    times: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            times[name].append(float(np.mean([process.time() for _ in range(calls[name])])))
    return {
        name: {
            **summarize(times[name]),
            "first_s": process.setup_s + process.first_call_s,
            "peak_mb": process.close(),
        }
        for name, process in processes.items()
    }


def compare_in_process(
    programs: Mapping[str, Program],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time programs that alternate in this process; a call above ten seconds is timed once."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            if times[name] and times[name][0] > 10:
                continue
            begun = clock()
            program()
            times[name].append(clock() - begun)
    return {name: summarize(values) for name, values in times.items()}


def summarize(times: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of times as "s", "s_min" and "s_max"."""
    return {"s": float(np.median(times)), "s_min": min(times), "s_max": max(times)}
