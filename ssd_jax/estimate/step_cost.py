"""Cost of a training step that is compiled for an accelerator without running it."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ssd_jax.config import Config, ConfigError, UserError
from ssd_jax.estimate.accelerators import Accelerator, Target
from ssd_jax.estimate.hlo import AllReduce, Program, convolution_flops
from ssd_jax.estimate.roofline import Times, roofline


class StepCost(NamedTuple):
    """Work and memory of a device in one step, from the compiled program."""

    batch: int
    """Images."""
    flops: float
    """FLOP of the convolutions."""
    bytes_accessed: float
    """Bytes read from and written to main memory."""
    memory: int
    """Main memory in use (bytes)."""
    all_reduces: tuple[AllReduce, ...]
    transposes: int
    copies: int
    seconds: float
    """Duration of the compilation (s)."""

    @property
    def allreduce_bytes(self) -> int:
        """Bytes that are summed over the devices."""
        return sum(one.times * one.size for one in self.all_reduces)

    def times(self, accelerator: Accelerator, dtype: str, devices: int) -> Times:
        """Return the lower bounds of a step's duration on a number of devices."""
        return roofline(
            accelerator,
            dtype,
            devices,
            flops=self.flops,
            bytes_accessed=self.bytes_accessed,
            allreduce_bytes=self.allreduce_bytes,
        )


class TooLargeError(UserError):
    """Error of a program that does not fit in the device's memory."""


def compile_step(config: Config, devices: Sequence[Any], batch: int) -> StepCost:
    """Compile the training step for `batch` images on each of `devices` and return its cost.

    Args:
        config: with `model.classes` filled in.
        devices: real devices, or those of `describe_devices`.
        batch: images on each device.

    Raises:
        TooLargeError: the program does not fit in the device's memory.
    """
    import jax

    started = time.perf_counter()
    lowered = lower_step(config, devices, batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(str(error).splitlines()[0]) from None
    return measure(config, lowered, compiled, batch, time.perf_counter() - started)


def measure(config: Config, lowered: Any, compiled: Any, batch: int, seconds: float) -> StepCost:
    """Read the cost of a step from its program before and after compilation."""
    used = compiled.memory_analysis()
    program = Program.parse(compiled.as_text())
    return StepCost(
        batch=batch,
        # With accumulation all convolutions are in the body of the loop over the parts.
        flops=config.train.grad_accumulation_steps * convolution_flops(lowered.as_text()),
        bytes_accessed=program.bytes_accessed(),
        memory=used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
        + used.generated_code_size_in_bytes,
        all_reduces=tuple(program.all_reduces()),
        transposes=program.count("transpose"),
        copies=program.count("copy"),
        seconds=seconds,
    )


def lower_step(config: Config, devices: Sequence[Any], batch: int) -> Any:
    """Lower the training step for `batch` images on each of `devices`, without creating arrays.

    The learning rate is that of `train.batch_size`, which does not change the cost.
    """
    import jax
    import jax.numpy as jnp

    from ssd_jax.kernels.conv2d import use_cpu_conv
    from ssd_jax.training.build import build_training

    training = build_training(config, devices)
    size, objects = config.model.image_size, config.data.max_objects
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((batch, size, size, 3), jnp.uint8),
        "boxes": ((batch, objects, 4), jnp.float32),
        "labels": ((batch, objects), jnp.int32),
        "mask": ((batch, objects), jnp.bool_),
        "stop": ((), jnp.float32),
        "decay_per_step": ((), jnp.float32),
    }
    shares = {
        key: jax.ShapeDtypeStruct((len(devices), *shape), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    with use_cpu_conv(config.runtime.cpu_conv):
        return training.step.lower(jax.eval_shape(training.init_state), shares)


def images_per_device(config: Config, target: Target, batch: int | None) -> int:
    """Return the images per device; raise ConfigError if the batch cannot be divided equally."""
    size, parts, n = config.train.batch_size, config.train.grad_accumulation_steps, target.devices
    if batch is not None:
        if batch < 1 or batch % parts:
            raise ConfigError(
                f"--batch is {batch}; use a multiple of train.grad_accumulation_steps {parts}"
            )
        return batch
    if size % (n * parts):
        raise ConfigError(
            f"train.batch_size {size} must be divisible by the {n} devices times "
            f"train.grad_accumulation_steps {parts}; set --batch, the images per device, "
            f"e.g. --batch {max(32, parts)}"
        )
    return size // n


def fill_in_classes(config: Config, num_classes: int | None) -> tuple[Config, list[str]]:
    """Fill in the names of the classes, and return the config with notes for the user.

    The names are the config's, those of its data if they are available, or placeholders: the
    program depends only on their number, which is `num_classes` or a usual one.
    """
    from ssd_jax.data.sources import find_classes

    notes = []
    try:
        classes = find_classes(config.data, config.model.classes)
    except UserError:
        coco = config.data.format == "coco" or config.data.train_split.startswith("coco")
        count = num_classes or (80 if coco else 20)
        classes = tuple(f"class {k}" for k in range(count))
        if not num_classes:
            notes.append(f"The data is not available; assuming {count} classes (see --classes).")
    model = dataclasses.replace(config.model, classes=classes)
    return dataclasses.replace(config, model=model), notes
