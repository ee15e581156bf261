"""The first signal is noted, the second one ends the process, whatever it is doing."""

import signal
import subprocess
import sys
import time

import pytest

from ssd_jax.training.interrupts import Interrupts

PROGRAM = """
import time
from ssd_jax.training.interrupts import Interrupts
with Interrupts() as interrupts:
    print("ready", flush=True)
    while not interrupts.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    # Calls that are away from Python for long, as a compiler's.
    import ctypes
    for _ in range(10):
        ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_signals(number):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "requested\n"
        process.send_signal(number)
        assert process.wait(10) == 128 + number
    finally:
        process.kill()
        process.stdout.close()


def test_afterwards_signals_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while not interrupts.requested and time.monotonic() < until:
            time.sleep(0.01)
        assert interrupts.requested
    assert signal.getsignal(signal.SIGTERM) is before
    with Interrupts() as again:
        assert not again.requested
