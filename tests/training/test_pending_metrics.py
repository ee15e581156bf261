"""Steps in flight, with simulated times of host and devices."""

import numpy as np
import pytest

from ssd_jax.training import pending_metrics as module
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps


class Simulation:
    """Host and device clocks (seconds); the device takes one step after the other."""

    def __init__(self, *, device_step):
        self.host = self.device = self.idle = 0.0
        self.device_step = device_step

    def dispatch(self):
        """Dispatch a step and return the time of its end."""
        begin = max(self.host, self.device)
        if self.device:
            self.idle += begin - self.device
        self.device = begin + self.device_step
        return self.device

    def device_get(self, metrics):
        """Wait for the end of a step."""
        self.host = max(self.host, metrics["end"])
        return {"end": metrics["end"], "nonfinite": 0.0, "stop": 0.0, "loss": 1.0}


def simulate(monkeypatch, *, in_flight, host_step, device_step, steps=50):
    """Return the device's idle time (seconds) and the most steps in flight.

    The host needs `host_step` for a batch, a hundredth of it to dispatch the step.
    """
    simulation = Simulation(device_step=device_step)
    monkeypatch.setattr(module, "jax", simulation)
    pending, most = PendingSteps([], in_flight=in_flight), 0
    for k in range(steps):
        simulation.host += 0.99 * host_step
        pending.make_room()
        simulation.host += 0.01 * host_step
        pending.add(PendingStep({"end": simulation.dispatch()}, {}, k))
        most = max(most, len(pending))
    pending.flush()
    assert len(pending.completed) == steps
    assert len(pending) == 0
    return simulation.idle, most


@pytest.mark.parametrize("host_step", [0.001, 0.5, 0.99])
def test_two_steps_in_flight_keep_an_accelerator_busy(monkeypatch, host_step):
    idle, most = simulate(monkeypatch, in_flight=2, host_step=host_step, device_step=1.0)
    assert idle == pytest.approx(0, abs=1e-9)
    assert most == 2


def test_one_step_in_flight_waits_only_for_the_dispatch(monkeypatch):
    idle, most = simulate(monkeypatch, in_flight=1, host_step=0.5, device_step=1.0)
    assert most == 1
    assert idle == pytest.approx(49 * 0.005)


def test_nonfinite_step_is_detected_before_the_next_log_line():
    pending = PendingSteps([], in_flight=2)
    for k, nonfinite in enumerate((0.0, 1.0, 0.0)):
        pending.make_room()
        metrics = {"loss": np.float32(k), "nonfinite": np.float32(nonfinite), "stop": np.float32(0)}
        pending.add(PendingStep(metrics, {}, k))
    assert pending.nonfinite is None
    pending.make_room()
    assert pending.nonfinite.position == 1
    assert [m["loss"] for m in pending.completed] == [0.0]


def test_stop_request_is_seen_when_the_step_is_completed():
    pending = PendingSteps([{"loss": 0.0, "nonfinite": 0.0, "stop": 1.0}], in_flight=1)
    assert not pending.stop_requested  # that step was before this start
    metrics = {"loss": np.float32(1), "nonfinite": 0.0, "stop": np.float32(2)}
    pending.add(PendingStep(metrics, {}, 0))
    assert not pending.stop_requested
    pending.make_room()
    assert pending.stop_requested
