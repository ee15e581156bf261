"""Data sheets of accelerators, and targets: several accelerators of one kind."""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from ssd_jax.config import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """Data sheet of an accelerator; FLOP without sparsity."""

    platform: str
    """JAX's name of the platform: cuda or tpu."""
    kind: str
    bfloat16: float
    """Peak rate in bfloat16 (FLOP/s)."""
    float32: float
    """Peak rate of float32 as JAX computes it by default (FLOP/s): TF32 on GPUs, else bfloat16."""
    memory: int
    """Size of the main memory (bytes)."""
    usable_fraction: float
    """Fraction of the main memory that a program may use."""
    usable_note: str
    """Reason for `usable_fraction`."""
    bandwidth: float
    """Bandwidth of the main memory (bytes/s)."""
    devices_per_host: int
    """Directly connected devices: GPUs of a host, chips of a TPU slice."""
    intra_host_bandwidth: float
    """Bandwidth to the next device of a ring within the host (bytes/s, one direction)."""
    inter_host_bandwidth: float
    """Bandwidth of a device to other hosts (bytes/s, one direction)."""
    source: str
    """Source of the figures."""

    def peak(self, dtype: str) -> float:
        """Return the peak rate (FLOP/s) in `dtype`, bfloat16 or float32."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}[dtype]


_V5E = Accelerator(
    platform="tpu",
    kind="Cloud TPU v5e",
    bfloat16=197e12,
    float32=197e12,
    memory=16 * 2**30,
    usable_fraction=1.0,
    usable_note="the compiler reserves some of it",
    bandwidth=819e9,
    devices_per_host=256,
    # Four links of 50 GB/s in each direction, of which a ring uses two; 6.4 Tb/s to the data
    # centre's network for 256 chips.
    intra_host_bandwidth=100e9,
    inter_host_bandwidth=3.125e9,
    source="cloud.google.com/tpu/docs/v5e",
)

ACCELERATORS = {
    "h100": Accelerator(
        platform="cuda",
        kind="NVIDIA H100 80GB HBM3 (SXM5)",
        bfloat16=989.4e12,
        float32=494.7e12,
        memory=84_942_979_072,
        usable_fraction=0.75,
        usable_note="JAX's default, XLA_PYTHON_CLIENT_MEM_FRACTION",
        bandwidth=3.35e12,
        devices_per_host=8,
        # NVLink 4 has 900 GB/s in both directions together; a DGX H100 has a network adapter of
        # 400 Gb/s for each GPU.
        intra_host_bandwidth=450e9,
        inter_host_bandwidth=50e9,
        source="NVIDIA H100 data sheet and architecture white paper; DGX H100 user guide",
    ),
    "v5e": _V5E,
    "v6e": replace(
        _V5E,
        kind="Cloud TPU v6e",
        bfloat16=918e12,
        float32=918e12,
        memory=32 * 2**30,
        bandwidth=1600e9,
        # Four links of 100 GB/s in each direction; 25.6 Tb/s for 256 chips.
        intra_host_bandwidth=200e9,
        inter_host_bandwidth=12.5e9,
        source="cloud.google.com/tpu/docs/v6e",
    ),
}

SLICES = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"},
    **{64: "8x8", 128: "8x16", 256: "16x16"},
}
"""Topologies of TPU slices by number of chips."""


class Target(NamedTuple):
    """A number of accelerators of one kind."""

    name: str
    accelerator: Accelerator
    devices: int

    @property
    def compiled_devices(self) -> int:
        """Number of devices to compile for: those of a host; all hosts run the same program."""
        return min(self.devices, self.accelerator.devices_per_host)


def parse_target(name: str) -> Target:
    """Parse the name of a target, such as h100, h100x8 or v5e-256.

    Raises:
        ConfigError: the name or the number of devices is invalid.
    """
    match = re.fullmatch(r"(h100)(?:x(\d+))?|(v\de)-(\d+)", name)
    accelerator = match and ACCELERATORS.get(match[1] or match[3])
    if not match or not accelerator:
        raise ConfigError(
            f"--target: {name!r} is unknown; use h100, h100x8, v5e-4, v5e-256, v6e-8, ..."
        )
    devices, per_host = int(match[2] or match[4] or 1), accelerator.devices_per_host
    if accelerator.platform == "tpu" and devices not in SLICES:
        raise ConfigError(
            f"--target: {name}: invalid slice size; use {', '.join(map(str, SLICES))} chips"
        )
    if devices < 1 or (devices > per_host and devices % per_host):
        raise ConfigError(
            f"--target: {name}: use 1 to {per_host} devices, or a multiple of {per_host}"
        )
    return Target(name, accelerator, devices)
