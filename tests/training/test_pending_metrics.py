"""Steps in flight, on devices and a host of simulated time."""

import numpy as np
import pytest

from ssd_jax.training import pending_metrics as module
from ssd_jax.training.pending_metrics import PendingStep, PendingSteps


class Simulation:
    """A host and a device that count seconds; a device takes its steps one after the other."""

    def __init__(self, *, device_step):
        self.host = self.device = self.idle = 0.0
        self.device_step = device_step

    def dispatch(self):
        """Give the device a step; return the time of its end."""
        begin = max(self.host, self.device)
        if self.device:
            self.idle += begin - self.device
        self.device = begin + self.device_step
        return self.device

    def device_get(self, metrics):
        """Wait for the end of a step."""
        self.host = max(self.host, metrics["end"])
        return {"end": metrics["end"], "bad": 0.0, "stop": 0.0, "loss": 1.0}


def simulate(monkeypatch, *, in_flight, host_step, device_step, steps=50):
    """(idle seconds of the device, most steps in flight).

    The host prepares a batch in `host_step`, of which a hundredth goes to the call of the step.
    """
    simulation = Simulation(device_step=device_step)
    monkeypatch.setattr(module, "jax", simulation)
    window, most = PendingSteps([], in_flight=in_flight), 0
    for k in range(steps):
        simulation.host += 0.99 * host_step
        window.make_room()
        simulation.host += 0.01 * host_step
        window.add(PendingStep({"end": simulation.dispatch()}, {}, k))
        most = max(most, len(window))
    window.settle()
    assert len(window.known) == steps
    assert len(window) == 0
    return simulation.idle, most


@pytest.mark.parametrize("host_step", [0.001, 0.5, 0.99])
def test_with_two_steps_in_flight_no_accelerator_waits_for_the_host(monkeypatch, host_step):
    idle, most = simulate(monkeypatch, in_flight=2, host_step=host_step, device_step=1.0)
    assert idle == pytest.approx(0, abs=1e-9)
    assert most == 2


def test_with_one_step_in_flight_it_waits_for_the_call_alone(monkeypatch):
    idle, most = simulate(monkeypatch, in_flight=1, host_step=0.5, device_step=1.0)
    assert most == 1
    assert idle == pytest.approx(49 * 0.005)


def test_a_bad_step_is_known_before_the_log_is_due(monkeypatch):
    window = PendingSteps([], in_flight=2)
    for k, bad in enumerate((0.0, 1.0, 0.0)):
        window.make_room()
        metrics = {"loss": np.float32(k), "bad": np.float32(bad), "stop": np.float32(0)}
        window.add(PendingStep(metrics, {}, k))
    assert window.bad is None
    window.make_room()
    assert window.bad.position == 1
    assert [m["loss"] for m in window.known] == [0.0]


def test_who_asks_to_stop_is_heard_when_the_step_is_known():
    window = PendingSteps([{"loss": 0.0, "bad": 0.0, "stop": 1.0}], in_flight=1)
    assert not window.asked_to_stop  # that was before this start
    window.add(PendingStep({"loss": np.float32(1), "bad": 0.0, "stop": np.float32(2)}, {}, 0))
    assert not window.asked_to_stop
    window.make_room()
    assert window.asked_to_stop
