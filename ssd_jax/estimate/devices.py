"""Devices of a target without the hardware, for its compiler."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_jax.config import ConfigError
from ssd_jax.estimate.accelerators import SLICES, Target


def describe_devices(target: Target) -> Sequence[Any]:
    """Return JAX's descriptions of the target's devices, for compiling only.

    Raises:
        ConfigError: the compiler is missing or does not start.
    """
    tpu = target.accelerator.platform == "tpu"
    packages = ["libtpu"] if tpu else ["jax_cuda12_plugin", "jax_cuda13_plugin"]
    if not any(map(importlib.util.find_spec, packages)):
        extra = "plan-tpu" if tpu else "plan-cuda"
        raise ConfigError(
            f"--target {target.name}: its compiler is missing; pip install 'ssd_jax[{extra}]'"
        )

    from jax.experimental import topologies

    count = target.compiled_devices
    try:
        if tpu:
            name = f"{target.name.split('-')[0]}:{SLICES[count]}"
            return topologies.get_topology_desc(name, "tpu").devices
        text = Path(__file__).with_name("targets") / "h100.txt"
        return topologies.get_topology_desc(
            "h100", "cuda", topology=f"1x1x{count}", target_config=text.read_text()
        ).devices
    except Exception as error:  # whatever the plugin raises
        raise ConfigError(
            f"--target {target.name}: the compiler does not start: {str(error).splitlines()[0]}"
        ) from error


def set_environment() -> None:
    """Set the environment of JAX and its compilers for a machine without an accelerator."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Without these libtpu looks for a TPU host and logs errors.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
