"""The first signal requests a stop, the second one ends the process at once."""

import signal
import subprocess
import sys
import time

import pytest

from ssd_jax.training.preemption import PreemptionHandler

PROGRAM = """
import time
from ssd_jax.training.preemption import PreemptionHandler
with PreemptionHandler() as preemption:
    print("ready", flush=True)
    while not preemption.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    # Calls that do not return to Python for long, as of a compiler.
    import ctypes
    for _ in range(10):
        ctypes.CDLL(None).sleep(60)
"""


COMPILING = """
import ctypes, os
from ssd_jax.training.preemption import AbandonedError, PreemptionHandler
notify = lambda line: print(line, flush=True)
with PreemptionHandler(notify) as preemption:
    assert preemption.call(lambda: 7) == 7
    print("ready", flush=True)
    try:
        preemption.call(lambda: ctypes.CDLL(None).sleep(60))
    except AbandonedError:
        print(f"abandoned {preemption.abandoned}", flush=True)
        os._exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process(number):
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


def test_blocking_call_is_abandoned_after_a_signal():
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


def test_call_raises_the_error_of_its_function():
    with PreemptionHandler() as preemption, pytest.raises(ZeroDivisionError):
        preemption.call(lambda: 1 // 0)


def test_call_that_ends_soon_after_a_signal_returns_its_result():
    with PreemptionHandler() as preemption:

        def signalled():
            signal.raise_signal(signal.SIGTERM)
            while not preemption.requested:
                time.sleep(0.01)
            return 7

        assert preemption.call(signalled) == 7
        assert not preemption.abandoned


def test_previous_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as preemption:
        signal.raise_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while not preemption.requested and time.monotonic() < until:
            time.sleep(0.01)
        assert preemption.requested
    assert signal.getsignal(signal.SIGTERM) is before
    with PreemptionHandler() as again:
        assert not again.requested
