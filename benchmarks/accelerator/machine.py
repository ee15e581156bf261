"""The accelerator, its software, and its speed in matrix products and copies."""

import importlib.util
import os
import platform
import subprocess
from functools import partial
from importlib.metadata import version

from benchmarks.accelerator.context import Context
from benchmarks.accelerator.timing import throughput

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "torch", "torchvision")


def run(context: Context) -> None:
    """Record the device, versions, matrix products in three precisions, and the copy bandwidth."""
    import jax
    import jax.extend
    import jax.numpy as jnp

    device = jax.devices()[0]
    context.record(
        "machine",
        {
            "device": device.device_kind,
            "platform": device.platform,
            "devices": jax.device_count(),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "driver": nvidia_driver(),
            "backend": jax.extend.backend.get_backend().platform_version.replace("\n", ", "),
        },
    )
    installed = {name: version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    context.record("versions", installed)

    side = 256 if context.tiny else 8192
    seconds = 0.05 if context.tiny else 0.7
    products = {
        "float32": (jnp.float32, "highest"),
        "TF32": (jnp.float32, "default"),
        "bfloat16": (jnp.bfloat16, "default"),
    }
    for name, (dtype, precision) in products.items():
        # Random numbers, because with zeros a GPU runs at a higher clock than with real data.
        a, b = (
            jax.random.normal(jax.random.key(k), (side, side), jnp.float32).astype(dtype)
            for k in (0, 1)
        )
        product = jax.jit(partial(jnp.matmul, precision=precision))
        times = throughput(partial(product, a, b), jax.block_until_ready, seconds=seconds)
        context.record(f"product, {name}", {**times, "flop_per_s": 2 * side**3 / times["s"]})

    x = jnp.zeros((1 << 16 if context.tiny else 1 << 28,), jnp.float32)
    # Adding one keeps the compiler from returning the input.
    copy = jax.jit(lambda x: x + 1)
    times = throughput(partial(copy, x), jax.block_until_ready, seconds=seconds)
    context.record("copy", {**times, "bytes_per_s": 2 * x.nbytes / times["s"]})


def nvidia_driver() -> str:
    """Return the version of NVIDIA's driver, or "none"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return answer.stdout.splitlines()[0].strip()
