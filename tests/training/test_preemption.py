"""The first signal is noted, the second one ends the process, whatever it is doing."""

import signal
import subprocess
import sys
import time

import pytest

from ssd_jax.training.preemption import PreemptionHandler

PROGRAM = """
import time
from ssd_jax.training.preemption import PreemptionHandler
with PreemptionHandler() as interrupts:
    print("ready", flush=True)
    while not interrupts.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    # Calls that are away from Python for long, as a compiler's.
    import ctypes
    for _ in range(10):
        ctypes.CDLL(None).sleep(60)
"""


COMPILING = """
import ctypes, os
from ssd_jax.training.preemption import AbandonedError, PreemptionHandler
tell = lambda line: print(line, flush=True)
with PreemptionHandler(tell) as interrupts:
    assert interrupts.call(lambda: 7) == 7
    print("ready", flush=True)
    try:
        interrupts.call(lambda: ctypes.CDLL(None).sleep(60))
    except AbandonedError:
        print(f"abandoned {interrupts.abandoned}", flush=True)
        os._exit(75)
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


def test_a_call_that_does_not_come_back_is_abandoned():
    process = subprocess.Popen([sys.executable, "-c", COMPILING], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        line = process.stdout.readline()  # at once
        assert line == "stopping now; a second signal ends the run at once\n"
        assert process.stdout.readline() == "abandoned True\n"
        assert process.wait(10) == 75
    finally:
        process.kill()
        process.stdout.close()


def test_a_call_gives_the_error_of_its_function():
    with PreemptionHandler() as interrupts, pytest.raises(ZeroDivisionError):
        interrupts.call(lambda: 1 // 0)


def test_a_call_that_ends_soon_after_a_signal_is_no_loss():
    with PreemptionHandler() as interrupts:

        def signalled():
            signal.raise_signal(signal.SIGTERM)
            while not interrupts.requested:
                time.sleep(0.01)
            return 7

        assert interrupts.call(signalled) == 7
        assert not interrupts.abandoned


def test_afterwards_signals_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while not interrupts.requested and time.monotonic() < until:
            time.sleep(0.01)
        assert interrupts.requested
    assert signal.getsignal(signal.SIGTERM) is before
    with PreemptionHandler() as again:
        assert not again.requested
