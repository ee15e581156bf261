"""Roofline of a training step: lower bounds of its duration on an accelerator."""

from typing import NamedTuple

from ssd_jax.estimate.accelerators import Accelerator


def ring_seconds(size: float, devices: int, bandwidth: float) -> float:
    """Return the time of a ring all-reduce of `size` bytes: each device sends 2 (n - 1) / n of it.

    Patarasuk and Yuan, 2009; without latency.
    """
    return 2 * (devices - 1) / devices * size / bandwidth


def all_reduce_seconds(size: float, devices: int, accelerator: Accelerator) -> float:
    """Return the time of an all-reduce of `size` bytes over the devices.

    Over several hosts: first within each host, after which every device holds the sum of its part,
    then of these parts between the hosts.
    """
    local = min(devices, accelerator.devices_per_host)
    hosts = devices // local
    return ring_seconds(size, local, accelerator.intra_host_bandwidth) + ring_seconds(
        size / local, hosts, accelerator.inter_host_bandwidth
    )


class Times(NamedTuple):
    """Lower bounds of the duration of a step (s)."""

    compute: float
    memory: float
    all_reduce: float

    @property
    def single_device(self) -> float:
        """Bound without an all-reduce: arithmetic and memory access overlap."""
        return max(self.compute, self.memory)

    @property
    def overlapped(self) -> float:
        """Bound with an all-reduce that overlaps the rest."""
        return max(self.single_device, self.all_reduce)

    @property
    def sequential(self) -> float:
        """Bound with an all-reduce after the rest."""
        return self.single_device + self.all_reduce

    @property
    def bound(self) -> str:
        """Name of the longest one."""
        names = {"compute": self.compute, "memory bandwidth": self.memory}
        names["interconnect"] = self.all_reduce
        return max(names, key=lambda name: names[name])


def roofline(
    accelerator: Accelerator,
    dtype: str,
    devices: int,
    *,
    flops: float,
    bytes_accessed: float,
    allreduce_bytes: float,
) -> Times:
    """Return the roofline of a step (Williams, Waterman and Patterson, 2009) and its all-reduces.

    Args:
        accelerator: data sheet.
        dtype: bfloat16 or float32.
        devices: number of devices.
        flops: FLOP of each device.
        bytes_accessed: bytes that each device reads from and writes to main memory.
        allreduce_bytes: bytes of each device that are summed over all devices.
    """
    return Times(
        compute=flops / accelerator.peak(dtype),
        memory=bytes_accessed / accelerator.bandwidth,
        all_reduce=all_reduce_seconds(allreduce_bytes, devices, accelerator),
    )
