"""Accelerators as their makers describe them, and the least time that a step takes on them."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ssd_jax.config import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """An accelerator as its maker describes it; bytes, seconds, and FLOP without sparsity."""

    platform: str
    """What JAX calls it: cuda or tpu."""
    kind: str
    bfloat16: float
    """Peak of convolutions in bfloat16 (FLOP/s)."""
    float32: float
    """Peak of float32 as JAX computes it by default: TF32 on NVIDIA, bfloat16 passes on a TPU."""
    memory: int
    """Main memory (bytes)."""
    share: float
    """What a program may use of it."""
    share_note: str
    bandwidth: float
    """Main memory's (bytes/s)."""
    group: int
    """Devices that are joined directly: a host's GPUs, a TPU slice."""
    link: float
    """What a device sends to the next one of a ring within the group (bytes/s, one direction)."""
    network: float
    """What a device sends to other groups (bytes/s, one direction)."""
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s of convolutions in `dtype`, bfloat16 or float32."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}[dtype]


ACCELERATORS = {
    "h100": Accelerator(
        platform="cuda",
        kind="NVIDIA H100 80GB HBM3 (SXM5)",
        bfloat16=989.4e12,
        float32=494.7e12,
        memory=84_942_979_072,
        share=0.75,
        share_note="JAX's default, XLA_PYTHON_CLIENT_MEM_FRACTION",
        bandwidth=3.35e12,
        group=8,
        # NVLink 4 has 900 GB/s in both directions together; a DGX H100 has a network card of
        # 400 Gb/s for each GPU.
        link=450e9,
        network=50e9,
        source="NVIDIA H100 data sheet and architecture white paper; DGX H100 user guide",
    ),
    "v5e": Accelerator(
        platform="tpu",
        kind="Cloud TPU v5e",
        bfloat16=197e12,
        float32=197e12,
        memory=16 * 2**30,
        share=1.0,
        share_note="the compiler keeps some of it back",
        bandwidth=819e9,
        group=256,
        # Four links of 50 GB/s in each direction, of which a ring uses two; 6.4 Tb/s to the data
        # centre's network for 256 chips.
        link=100e9,
        network=3.125e9,
        source="cloud.google.com/tpu/docs/v5e",
    ),
    "v6e": Accelerator(
        platform="tpu",
        kind="Cloud TPU v6e",
        bfloat16=918e12,
        float32=918e12,
        memory=32 * 2**30,
        share=1.0,
        share_note="the compiler keeps some of it back",
        bandwidth=1600e9,
        group=256,
        # Four links of 100 GB/s in each direction; 25.6 Tb/s for 256 chips.
        link=200e9,
        network=12.5e9,
        source="cloud.google.com/tpu/docs/v6e",
    ),
}

SLICES = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"},
    **{64: "8x8", 128: "8x16", 256: "16x16"},
}
"""The shapes of TPU slices, by their chips."""


class Target(NamedTuple):
    """Devices of one kind, and how many of them there are."""

    name: str
    card: Accelerator
    devices: int

    @property
    def compiled_devices(self) -> int:
        """Devices that the program is compiled for; the other groups run the same one."""
        return min(self.devices, self.card.group)


def parse_target(name: str) -> Target:
    """The target of a name as h100, h100x8 or v5e-256. Raises ConfigError for any other."""
    found = re.fullmatch(r"(h100)(?:x(\d+))?|(v\de)-(\d+)", name)
    card = found and ACCELERATORS.get(found[1] or found[3])
    if not found or not card:
        raise ConfigError(
            f"--target: {name!r} is not known; use h100, h100x8, v5e-4, v5e-256, v6e-8, ..."
        )
    devices = int(found[2] or found[4] or 1)
    if card.platform == "tpu" and devices not in SLICES:
        raise ConfigError(
            f"--target: {name} is no slice; it has {', '.join(map(str, SLICES))} chips"
        )
    if devices < 1 or (devices > card.group and devices % card.group):
        raise ConfigError(
            f"--target: {name}: use 1 to {card.group} devices, or a multiple of {card.group}"
        )
    return Target(name, card, devices)


def ring_seconds(size: float, devices: int, bandwidth: float) -> float:
    """Time for a sum of `size` bytes over a ring: each device sends 2 (n - 1) / n of it.

    Patarasuk and Yuan, 2009; latency is not counted.
    """
    return 2 * (devices - 1) / devices * size / bandwidth


def all_reduce_seconds(size: float, devices: int, card: Accelerator) -> float:
    """Time for a sum of `size` bytes over the devices.

    Beyond one group: within each, where every device comes to hold the sum of its part, then of
    that part among the groups.
    """
    inner = min(devices, card.group)
    groups = devices // inner
    return ring_seconds(size, inner, card.link) + ring_seconds(size / inner, groups, card.network)


class Times(NamedTuple):
    """Least times of a step (s)."""

    compute: float
    memory: float
    all_reduce: float

    @property
    def alone(self) -> float:
        """Without other devices: arithmetic and memory at their peaks, side by side."""
        return max(self.compute, self.memory)

    @property
    def hidden(self) -> float:
        """With the sums over the devices beside it."""
        return max(self.alone, self.all_reduce)

    @property
    def added(self) -> float:
        """With the sums over the devices after it."""
        return self.alone + self.all_reduce

    @property
    def bound(self) -> str:
        """What takes longest."""
        names = {"compute": self.compute, "memory bandwidth": self.memory}
        names["interconnect"] = self.all_reduce
        return max(names, key=lambda name: names[name])


def roofline(
    card: Accelerator, dtype: str, devices: int, *, flops: float, moved: float, reduced: float
) -> Times:
    """The roofline (Williams, Waterman and Patterson, 2009) of a step, and the sums beside it.

    A device computes `flops`, moves `moved` bytes to and from its main memory, and gives `reduced`
    bytes to sums over all devices.
    """
    return Times(
        compute=flops / card.peak(dtype),
        memory=moved / card.bandwidth,
        all_reduce=all_reduce_seconds(reduced, devices, card),
    )
