"""Parts of the benchmark, in their order."""

from typing import NamedTuple


class Part(NamedTuple):
    """A part and its time limits."""

    name: str
    function: str
    """MODULE:FUNCTION, called with a Context in a separate process."""
    limit: float
    """Time limit in a run of eight minutes (s)."""
    minimum: float
    """Time below which the part is not started (s)."""


def _part(name: str, limit: float, minimum: float, function: str = "") -> Part:
    return Part(name, f"benchmarks.accelerator.{function or name + ':run'}", limit, minimum)


PARTS = (
    _part("machine", 20, 10),
    _part("correctness", 80, 30),
    _part("training_step", 75, 30),
    _part("training_step_torchvision", 30, 10, "training_step:run_torchvision"),
    _part("trace", 20, 10),
    _part("detection", 35, 15),
    _part("detection_torchvision", 20, 10, "detection:run_torchvision"),
    _part("pipeline", 20, 10),
    _part("finetune", 180, 100),
)
