"""Limits for every hostile input: time, memory, and errors of one line."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssd_jax.config import UserError

SECONDS = 20
BYTES = 2e9
LONGEST_LINE = 2000
_READ = """
import sys, time
from pathlib import Path
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import read_arrays
from tests.adversarial.limits import memory, reset_peak_memory

before, start = reset_peak_memory(), time.process_time()
try:
    read_arrays(Path(sys.argv[1]))
    print("read")
except WeightsError as error:
    print(error)
print(time.process_time() - start, memory("VmHWM") - before)
"""


class Hang(BaseException):
    """Time limit exceeded; a BaseException, so that the code under test does not catch it."""


@contextlib.contextmanager
def limits(num_bytes: float = BYTES) -> Iterator[None]:
    """Raise Hang after SECONDS; fail if peak memory grows by more than `num_bytes`."""

    def time_out(*_: object) -> None:
        raise Hang(f"no result after {SECONDS} s")

    previous_handler = signal.signal(signal.SIGALRM, time_out)
    signal.alarm(SECONDS)
    start = reset_peak_memory()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous_handler)
    growth = memory("VmHWM") - start
    assert growth < num_bytes, f"peak memory grew by {growth / 1e9:.1f} GB"


def result_or_error(call: Callable[[], Any], *, num_bytes: float = BYTES) -> Any:
    """Return the result of `call` within the limits, or the UserError that it raises.

    The test fails with any other exception, or if the error is not one printable line.
    """
    with limits(num_bytes):
        try:
            return call()
        except UserError as error:
            assert_one_line(str(error))
            return error


def assert_one_line(line: str) -> None:
    """Fail unless an error message is one printable line of readable length."""
    assert line.strip(), "the error is empty"
    assert line.isprintable(), f"not printable: {line[:200]!r}"
    assert len(line) <= LONGEST_LINE, f"{len(line)} characters: {line[:200]!r}"


def reset_peak_memory() -> int:
    """Reset the process's peak memory, if the system can; return its present memory in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Read a field of /proc/self/status in bytes; 0 on other systems."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def read_weights_in_process(path: Path, *, seconds: float, num_bytes: float) -> str:
    """Read a file of weights in a new process, whose memory nothing else has used.

    Returns:
        The error, or "read". The test fails above these limits of CPU time and peak memory.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", _READ, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    error, figures = result.stdout.splitlines()
    used_seconds, used_bytes = map(float, figures.split())
    print(f"{path.name}: {used_seconds:.2f} s, {used_bytes / 1e6:.0f} MB: {error}")
    assert used_seconds < seconds
    assert used_bytes < num_bytes
    return error
