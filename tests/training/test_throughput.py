"""Timer of the training speed."""

import pytest

from ssd_jax.training.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by a list whose last value is the time (seconds)."""
    times = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: times[-1])
    return times


def test_speed_excludes_pauses(clock):
    throughput = Throughput(batch_size=8, step=10)
    clock.append(104.0)
    throughput.add_data_wait(0.5)
    throughput.exclude(2.0)
    assert throughput.measure(15) == {"images_per_s": 20.0, "data_wait": 0.25}


def test_no_speed_before_the_first_step_after_a_restart(clock):
    throughput = Throughput(batch_size=8, step=10)
    throughput.add_data_wait(1.0)
    clock.append(103.0)
    throughput.restart(12)
    assert throughput.measure(12) == {}
    clock.append(104.0)
    assert throughput.measure(13) == {"images_per_s": 8.0, "data_wait": 0.0}
