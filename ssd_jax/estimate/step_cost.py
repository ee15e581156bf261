"""A config compiled for an accelerator that is not here: whether it fits, how fast it can be."""

import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ssd_jax.config import Config, ConfigError, UserError
from ssd_jax.estimate.accelerators import SLICES, Accelerator, Target, Times, roofline
from ssd_jax.estimate.hlo import AllReduce, Program, convolution_flops

# Processor time to decode and augment an image of about 500x375 pixels, by data.augment.
_LOADING_MS = {"caffe": 3.4, "ssd.pytorch": 4.2, "none": 1.3}


class StepCost(NamedTuple):
    """What a device does in a step, as the compiled program has it."""

    batch: int
    """Images."""
    flops: float
    """Of the convolutions (FLOP)."""
    moved: float
    """To and from main memory (bytes)."""
    memory: int
    """What the program needs of it (bytes)."""
    all_reduces: tuple[AllReduce, ...]
    transposes: int
    copies: int
    seconds: float
    """Time that the compilation took (s)."""

    @property
    def reduced(self) -> int:
        """Bytes that are summed over the devices."""
        return sum(one.times * one.size for one in self.all_reduces)

    def times(self, card: Accelerator, dtype: str, devices: int) -> Times:
        """Least times of a step on so many devices."""
        return roofline(
            card, dtype, devices, flops=self.flops, moved=self.moved, reduced=self.reduced
        )


# Compiling.


class TooLargeError(UserError):
    """The compiler says that the program does not fit the device."""


def compile_step(config: Config, devices: Sequence[Any], batch: int) -> StepCost:
    """The training step of `config`, its pmap and all, for `batch` images on each of `devices`.

    No array is made. `model.classes` must be filled in.

    Raises TooLargeError where the compiler finds no room.
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
    """What a device does in a step, read from the program before and after the compilation."""
    used = compiled.memory_analysis()
    program = Program.parse(compiled.as_text())
    return StepCost(
        batch=batch,
        # With accumulation all convolutions are in the loop over the parts.
        flops=config.train.grad_accumulation_steps * convolution_flops(lowered.as_text()),
        moved=program.bytes_moved(),
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
    """The same step as `ssd_jax.training.loop` makes it, lowered for `devices`."""
    import jax
    import jax.numpy as jnp

    from ssd_jax.models.ssd import make_model, model_priors
    from ssd_jax.training.state import create_train_state, make_optimizer, make_schedule
    from ssd_jax.training.step import AXIS, pmap_train_step, train_step

    model = make_model(config.model, config.priors, AXIS)
    optimizer = make_optimizer(config.optim)
    create = partial(create_train_state, model, optimizer, ema=config.optim.ema_decay > 0)
    state = jax.eval_shape(create, jax.random.key(0))

    size, objects = config.model.image_size, config.data.max_objects
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((batch, size, size, 3), jnp.uint8),
        "boxes": ((batch, objects, 4), jnp.float32),
        "labels": ((batch, objects), jnp.int32),
        "mask": ((batch, objects), jnp.bool_),
        "stop": ((), jnp.float32),
        "decay_per_step": ((), jnp.float32),
    }
    step = pmap_train_step(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            schedule=make_schedule(config.optim, batch_size=batch * len(devices)),
            priors=model_priors(config.model, config.priors),
            variances=config.priors.variances,
            config=config.train,
            ema_decay=config.optim.ema_decay,
        ),
        devices,
    )
    shares = {
        key: jax.ShapeDtypeStruct((len(devices), *shape), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    return step.lower(state, shares)


def describe_devices(target: Target) -> Sequence[Any]:
    """The target's devices as JAX describes them; nothing can be run on them.

    Raises ConfigError where the compiler is missing.
    """
    tpu = target.card.platform == "tpu"
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
    """What JAX and its compilers are to know before they start: there is no accelerator here."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Without these libtpu looks for its host, and complains of finding none.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


# The largest batch.


def find_largest(
    need: Callable[[int], int | None], room: float, *, start: int, unit: int
) -> tuple[int, str]:
    """The largest batch found to fit, 0 if none, and how it was found.

    `need(batch)` compiles it and gives the bytes, or None where the compiler finds no room.
    Memory grows linearly with the batch: two batches give the line, and the one that the line
    allows is compiled; while it does not fit, 5 % less is tried.
    """
    known: dict[int, int] = {}

    def fits(batch: int) -> bool:
        found = need(batch)
        if found is not None:
            known[batch] = found
        return found is not None and found <= room

    small = _multiple(start, unit)
    while not fits(small):
        if small == unit:
            return 0, f"not even {unit}"
        small = _multiple(small // 2, unit)
    for other in (2 * small, _multiple(small // 2, unit)):
        if len(known) < 2:
            fits(other)
    best = max(n for n in known if known[n] <= room)
    if len(known) < 2:
        return best, "compiled"
    a, b = sorted(known)[:2]
    line = f"a line through {a} and {b}"
    guess = a + (room - known[a]) / (known[b] - known[a]) * (b - a)
    for _ in range(6):
        if (batch := _multiple(int(guess), unit)) <= best:
            break
        if fits(batch):
            return batch, f"{line}, then compiled"
        guess *= 0.95
    return best, f"compiled; {line} led to none larger"


def _multiple(batch: int, unit: int) -> int:
    return max(unit, batch // unit * unit)


# The report.


def images_a_device(config: Config, target: Target, asked: int | None) -> int:
    """Images a device and step. Raises ConfigError where the batch cannot be shared equally."""
    size, parts, n = config.train.batch_size, config.train.grad_accumulation_steps, target.devices
    if asked is not None:
        if asked < 1 or asked % parts:
            raise ConfigError(
                f"--batch is {asked}; use a multiple of train.grad_accumulation_steps {parts}"
            )
        return asked
    if size % (n * parts):
        raise ConfigError(
            f"train.batch_size {size} must divide by the {n} devices times "
            "train.grad_accumulation_steps "
            f"{parts}; give --batch, images a device, e.g. --batch {max(32, parts)}"
        )
    return size // n


def fill_in_classes(config: Config, asked: int | None) -> tuple[Config, list[str]]:
    """The config with names of classes, and what is to be told of them.

    They are the config's, or those of its data where that is here, or else `asked` or a usual
    number of placeholders: the number is all that the program depends on.
    """
    from ssd_jax.data.sources import find_classes

    notes = []
    try:
        classes = find_classes(config.data, config.model.classes)
    except UserError:
        coco = config.data.format == "coco" or config.data.train_split.startswith("coco")
        count = asked or (80 if coco else 20)
        classes = tuple(f"class {k}" for k in range(count))
        if not asked:
            notes.append(
                f"The data is not here: {count} classes are taken; --classes N says it better."
            )
    model = dataclasses.replace(config.model, classes=classes)
    return dataclasses.replace(config, model=model), notes


def report(
    config: Config,
    target: Target,
    batch: int,
    work: StepCost | None,
    largest: str,
    efficiency: float,
) -> list[str]:
    """What to print; `work` is None where the compiler found no room."""
    import jax

    card, n, dtype = target.card, target.devices, config.model.dtype
    took = f", compiled in {work.seconds:.0f} s" if work else ""
    rows = [
        (
            "PREDICTION",
            "from the compiled program and the card's published peaks; nothing was run",
        ),
        (
            "config",
            f"SSD{config.model.image_size}, {len(config.model.classes)} classes, {dtype}, "
            f"{batch} images a device, {batch * n} a step",
        ),
        ("target", f"{n} x {card.kind}; jax {jax.__version__}{took}"),
    ]
    room = card.memory * card.share
    of = f"of {room / 1e9:.1f} GB ({card.share:.0%} of the card's: {card.share_note})"
    if work is None or work.memory > room:
        need = f"{work.memory / 1e9:.1f} GB" if work else "more"
        rows += [("memory", f"DOES NOT FIT: {need} {of}"), ("largest batch", largest)]
    else:
        rows.append(("memory", f"fits: {work.memory / 1e9:.1f} GB {of}"))
        if largest:
            rows.append(("largest batch", largest))
    if work:
        rows += _speed(config, target, work, efficiency)
    rows.append(("peaks from", card.source))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _speed(
    config: Config, target: Target, work: StepCost, efficiency: float
) -> list[tuple[str, str]]:
    card, n, dtype = target.card, target.devices, config.model.dtype
    times = work.times(card, dtype, n)
    rate = work.batch * n / times.hidden
    slow = work.batch * n / (times.alone / efficiency + times.all_reduce)
    images = config.train.steps * config.train.batch_size
    sums = "none"
    if work.all_reduces:
        runs = sum(one.times for one in work.all_reduces)
        sums = f"{runs} a step, {work.reduced / 1e6:.1f} MB together"
    loading = _LOADING_MS[config.data.augment]
    rows = [
        (
            "a step, a device",
            f"{work.flops / 1e12:.2f} TFLOP in convolutions, {work.moved / 1e9:.1f} GB to and "
            f"from memory; {work.transposes} transposes, {work.copies} copies",
        ),
        ("all-reduces", sums),
        (
            "least times",
            f"compute {_ms(times.compute)} ({card.peak(dtype) / 1e12:.0f} TFLOP/s), memory "
            f"{_ms(times.memory)} ({card.bandwidth / 1e9:.0f} GB/s), all-reduce "
            f"{_ms(times.all_reduce)}",
        ),
        ("bound by", times.bound),
        (
            "images/s",
            f"{rate:,.0f} at best, {slow:,.0f} at {efficiency:.0%} of that with the all-reduces "
            "after the rest",
        ),
        (
            "loading",
            f"{slow:,.0f} images/s ask for {math.ceil(slow * loading / 1e3):,} processor cores, at "
            f"{loading} ms an image (docs/performance.md)",
        ),
        (
            "schedule",
            f"{images:,} images (the config's {config.train.steps:,} steps of "
            f"{config.train.batch_size}): {_days(images / rate)} at best, "
            f"{_days(images / slow)} at {efficiency:.0%}",
        ),
    ]
    if work.reduced:
        rows += [
            (f"{count:,} devices", scaling_line(work, card, dtype, count))
            for count in (8, 64, 1024)
        ]
    return rows


def scaling_line(work: StepCost, card: Accelerator, dtype: str, devices: int) -> str:
    """Images/s of that many devices, and how much of a device's speed alone each one keeps."""
    times = work.times(card, dtype, devices)
    rates = [work.batch * devices / step for step in (times.added, times.hidden)]
    kept = [times.alone / step for step in (times.added, times.hidden)]
    return (
        f"{rates[0]:,.0f} to {rates[1]:,.0f} images/s at best, efficiency {kept[0]:.1%} to "
        f"{kept[1]:.1%}: all-reduce {_ms(times.all_reduce)}, after the rest or beside it"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _days(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.2f} hours"
