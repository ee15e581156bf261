"""Estimates: programs as text, rooflines, the largest batch, the report, recorded programs."""

import dataclasses
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ssd_jax.cli import estimate
from ssd_jax.config import Config, ConfigError, DataConfig, ModelConfig
from ssd_jax.config_file import load_config
from ssd_jax.estimate import step_cost
from ssd_jax.estimate.accelerators import ACCELERATORS, Target, parse_target
from ssd_jax.estimate.batch_search import find_largest
from ssd_jax.estimate.devices import describe_devices, set_environment
from ssd_jax.estimate.hlo import AllReduce, Program, array_bytes, convolution_flops, memory_bytes
from ssd_jax.estimate.roofline import Times, all_reduce_seconds, ring_seconds, roofline
from ssd_jax.kernels.conv2d import conv2d, use_cpu_conv
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.training.step import shard_batch
from tests.training.test_step import TINY, TINY_PRIORS, tiny_batch

CONFIGS = Path(__file__).parents[2] / "configs"

# A loop of four sums of 16 bytes, one of 12 bytes, and one of 400 in two halves.
PROGRAM = """\
HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation_layout={()}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %k = s32[] get-tuple-element(%state), index=0
  %v = f32[4]{0} get-tuple-element(%state), index=1
  %inner = f32[4]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %again = (s32[], f32[4]{0}) tuple(%k, %inner)
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %c = (s32[], f32[4]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%cut (p0: f32[100], p1: f32[5]) -> f32[5] {
  %p0 = f32[100]{0} parameter(0)
  %p1 = f32[5]{0} parameter(1)
  %part = f32[5]{0} slice(%p0), slice={[0:5]}
  ROOT %out = f32[5]{0} add(%part, %p1)
}

%turn (p2: f32[2,3]) -> f32[3,2] {
  %p2 = f32[2,3]{1,0} parameter(0)
  ROOT %turned = f32[3,2]{1,0} transpose(%p2), dimensions={1,0}
}

ENTRY %main (a: f32[100], b: f32[5], c0: f32[2,3], s: (s32[], f32[4])) -> f32[5] {
  %a = f32[100]{0} parameter(0)
  %b = f32[5]{0} parameter(1)
  %c0 = f32[2,3]{1,0} parameter(2)
  %s = (s32[], f32[4]{0}) parameter(3)
  %loop = (s32[], f32[4]{0}) while(%s), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
  %both = (f32[]{:T(128)}, f32[2]{0}) all-reduce(%b, %b), replica_groups={{0,1}}, to_apply=%add
  %started = f32[100]{0} all-reduce-start(%a), replica_groups={{0,1}}, to_apply=%add
  %done = f32[100]{0} all-reduce-done(%started)
  %turned.1 = f32[3,2]{1,0} fusion(%c0), kind=kLoop, calls=%turn
  %held = f32[5]{0:T(128)S(1)} copy(%b)
  ROOT %result = f32[5]{0} fusion(%done, %held), kind=kLoop, calls=%cut
}
"""


def test_all_reduces_are_counted_with_their_bytes():
    all_reduces = Program.parse(PROGRAM).all_reduces()
    assert all_reduces == [AllReduce(4, 16), AllReduce(1, 12), AllReduce(1, 400)]


def test_transposes_and_copies_are_counted_alone_and_in_fusions():
    program = Program.parse(PROGRAM)
    assert (program.count("transpose"), program.count("copy"), program.count("sort")) == (1, 1, 0)


def test_bytes_accessed_by_each_kernel():
    loop = 4 * (16 + 16)
    both = 2 * 20 + 4 + 8
    halves = 400 + 400
    turned = 24 + 24
    copy = 20 + 0  # to the chip
    result = 20 + 0 + 20  # of 400 bytes it reads a slice
    expected = loop + both + halves + turned + copy + result
    assert Program.parse(PROGRAM).bytes_accessed() == expected


@pytest.mark.parametrize(
    ("shape", "logical", "stored"),
    [
        ("f32[2,3]{1,0}", 24, 24),
        ("bf16[7]", 14, 14),
        ("pred[3,3]{1,0}", 9, 9),
        ("(f32[2]{0}, u8[0]{0}, s32[])", 12, 12),
        # The fastest dimension is filled to 128, the next one to 8.
        ("f32[9,3]{1,0:T(8,128)}", 108, 16 * 128 * 4),
        ("bf16[2,9,3]{1,2,0:T(8,128)(2,1)}", 108, 2 * 8 * 128 * 2),
        ("f32[9,3]{1,0:T(8,128)S(1)}", 108, 0),
    ],
)
def test_bytes_of_a_shape(shape, logical, stored):
    assert (array_bytes(shape), memory_bytes(shape)) == (logical, stored)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        Program.parse("module @jit_step {\n}\n")


def test_all_reduces_of_a_compiled_program():
    def step(x):
        return jax.lax.psum((x, jnp.sum(x)), "batch")

    shape = jax.ShapeDtypeStruct((2, 10, 3), jnp.float32)
    text = jax.pmap(step, axis_name="batch").lower(shape).compile().as_text()
    sums = Program.parse(text).all_reduces()
    assert sum(one.times * one.size for one in sums) == 4 * 31


def multiplications(rows, kernel, stride, channels_in, channels_out, batch):
    """Count the multiplications one by one, including padding."""
    out = range(0, rows, stride)
    taps = [(i, j) for i in range(kernel) for j in range(kernel)]
    return sum(
        channels_in * channels_out for _ in range(batch) for _ in out for _ in out for _ in taps
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_a_convolution_and_its_gradients(stride):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def both(x, kernel):
        return jax.value_and_grad(lambda *a: jnp.sum(conv(*a) ** 2), (0, 1))(x, kernel)

    x = jax.ShapeDtypeStruct((2, 8, 8, 5), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 5, 7), jnp.float32)
    one = 2 * multiplications(8, 3, stride, 5, 7, 2)
    assert convolution_flops(jax.jit(conv).lower(x, kernel).as_text()) == one
    assert convolution_flops(jax.jit(both).lower(x, kernel).as_text()) == 3 * one


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_the_plain_convolution(platform):
    def loss(x, kernel):
        bias = jnp.zeros(64)
        return jnp.sum(conv2d(x, kernel, bias, ConvGeometry(1, 1)))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 16, 64), (3, 3, 64, 64))]
    with use_cpu_conv("winograd"):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*shapes)
    there = traced.lower(lowering_platforms=(platform,)).as_text()
    here = traced.lower(lowering_platforms=("cpu",)).as_text()
    # The layer itself, and its gradients for the input and for the weights.
    assert there.count("stablehlo.convolution") == 3
    assert there.count("stablehlo.dot_general") == 0
    assert here.count("stablehlo.convolution") == 0


def tiny_config(**train):
    config = Config(model=TINY, priors=TINY_PRIORS, data=DataConfig(max_objects=3))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_lowered_step_takes_the_arrays_of_shard_batch():
    shares = shard_batch(tiny_batch(), 2)
    lowered = step_cost.lower_step(tiny_config(), jax.local_devices()[:2], batch=4)
    _, batch = lowered.in_avals[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shares.items()
    }


@pytest.mark.slow
def test_measured_cost_of_a_step():
    config = tiny_config()
    lowered = step_cost.lower_step(config, jax.local_devices()[:2], batch=4)
    cost = step_cost.measure(config, lowered, lowered.compile(), 4, seconds=1.0)
    state, _ = lowered.in_avals[0]
    floats = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # The gradient, three sums, the stop flag, and the statistics of batch norm.
    assert cost.allreduce_bytes > 4 * (floats + 4)
    assert cost.bytes_accessed > 4 * floats
    assert cost.flops > 0
    assert cost.memory > 8 * floats  # at least parameters and momentum


def fake_program(**memory):
    names = ("argument", "output", "alias", "temp", "generated_code")
    used = SimpleNamespace(**{f"{n}_size_in_bytes": memory.get(n, 0) for n in names})
    return SimpleNamespace(memory_analysis=lambda: used, as_text=lambda: PROGRAM)


def test_memory_counts_donated_buffers_once():
    # A donated buffer is argument and result at once.
    compiled = fake_program(argument=1000, output=900, alias=800, temp=70, generated_code=5)
    lowered = SimpleNamespace(as_text=lambda: "")
    assert step_cost.measure(tiny_config(), lowered, compiled, 4, seconds=1.0).memory == 1175


@pytest.mark.slow
def test_accumulation_has_the_same_flops():
    flops = []
    for parts in (1, 2):
        config = tiny_config(grad_accumulation_steps=parts)
        lowered = step_cost.lower_step(config, jax.local_devices()[:2], batch=4)
        flops.append(step_cost.measure(config, lowered, fake_program(), 4, seconds=1.0).flops)
    assert flops[0] == flops[1] > 0


def ring_traffic(devices):
    """Simulate a ring; return the parts that each device sends until all hold the sum."""
    parts = [[{d} for _ in range(devices)] for d in range(devices)]
    sent = 0
    for phase in ("reduce", "gather"):
        for step in range(devices - 1):
            first = 0 if phase == "reduce" else 1
            moves = [(d, (d + first - step) % devices) for d in range(devices)]
            values = [parts[d][p] for d, p in moves]
            for (d, p), value in zip(moves, values, strict=True):
                parts[(d + 1) % devices][p] = parts[(d + 1) % devices][p] | value
            sent += 1
    assert all(part == set(range(devices)) for row in parts for part in row)
    return sent


@pytest.mark.parametrize("devices", [1, 2, 5, 8])
def test_ring_time_equals_a_simulation(devices):
    size, bandwidth = 840.0, 7.0
    expected = ring_traffic(devices) * size / devices / bandwidth
    assert ring_seconds(size, devices, bandwidth) == pytest.approx(expected)


def test_all_reduce_over_several_hosts():
    accelerator = dataclasses.replace(
        ACCELERATORS["h100"],
        devices_per_host=8,
        intra_host_bandwidth=100.0,
        inter_host_bandwidth=10.0,
    )
    assert all_reduce_seconds(800, 1, accelerator) == 0
    assert all_reduce_seconds(800, 8, accelerator) == pytest.approx(2 * 7 / 8 * 8)
    # Each of the eight sends its 100 bytes through its own network adapter, four hosts in a ring.
    assert all_reduce_seconds(800, 32, accelerator) == pytest.approx(14 + 2 * 3 / 4 * 10)


def test_roofline():
    accelerator = dataclasses.replace(
        ACCELERATORS["v5e"],
        bfloat16=100.0,
        float32=50.0,
        bandwidth=10.0,
        devices_per_host=4,
        intra_host_bandwidth=1.0,
    )
    times = roofline(accelerator, "bfloat16", 2, flops=300, bytes_accessed=40, allreduce_bytes=5)
    assert times == Times(3, 4, 5)
    assert (times.single_device, times.overlapped, times.sequential) == (4, 5, 9)
    assert times.bound == "interconnect"
    assert roofline(
        accelerator, "float32", 1, flops=300, bytes_accessed=40, allreduce_bytes=5
    ) == Times(6, 4, 0)
    assert Times(3, 4, 0).bound == "memory bandwidth"
    assert Times(5, 4, 0).bound == "compute"


@pytest.mark.parametrize(
    ("start", "room", "unit", "expected"),
    [
        (4, 100, 1, 45),  # 10 + 2 a image
        (64, 100, 1, 45),  # the first does not fit
        (4, 100, 4, 44),
        (4, 11, 1, 0),
        (1, 12, 1, 1),
    ],
)
def test_largest_batch(start, room, unit, expected):
    compiled = []

    def need(batch):
        compiled.append(batch)
        return 10 + 2 * batch

    batch, how = find_largest(need, room, start=start, unit=unit)
    assert batch == expected
    assert len(compiled) < 14
    assert expected == 0 or batch in compiled
    assert how


def test_largest_batch_with_nonlinear_memory_and_compiler_errors():
    def need(batch):
        size = 10 + 2 * batch + (20 if batch > 35 else 0)
        return size if size <= 100 else None

    batch, how = find_largest(need, 100, start=32, unit=1)
    # The line through 16 and 32 promises 45.
    assert 32 < batch <= 35
    assert "compiled" in how


@pytest.mark.parametrize(
    ("name", "accelerator", "devices"),
    [("h100", "h100", 1), ("h100x8", "h100", 8), ("h100x64", "h100", 64), ("v5e-256", "v5e", 256)],
)
def test_targets(name, accelerator, devices):
    assert parse_target(name) == Target(name, ACCELERATORS[accelerator], devices)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "use h100"),
        ("a100", "use h100"),
        ("v9e-4", "use h100"),
        ("v5e-5", "1, 4, 8"),
        ("h100x0", "use 1 to 8"),
        ("h100x12", "a multiple of 8"),
    ],
)
def test_invalid_targets(name, words):
    with pytest.raises(ConfigError, match=words):
        parse_target(name)


def test_several_hosts_run_the_program_of_one():
    assert parse_target("h100x64").compiled_devices == 8
    assert parse_target("v5e-4").compiled_devices == 4


def test_images_per_device():
    config = tiny_config(batch_size=32, grad_accumulation_steps=2)
    assert step_cost.images_per_device(config, parse_target("v5e-4"), None) == 8
    assert step_cost.images_per_device(config, parse_target("v5e-4"), 6) == 6
    with pytest.raises(ConfigError, match=r"multiple of train\.grad_accumulation_steps 2"):
        step_cost.images_per_device(config, parse_target("v5e-4"), 5)
    with pytest.raises(ConfigError, match="must be divisible by the 256 devices"):
        step_cost.images_per_device(config, parse_target("v5e-256"), None)


@pytest.mark.parametrize(
    ("data", "asked", "count", "noted"),
    [
        (DataConfig(), None, 4, False),  # generated shapes name theirs
        (DataConfig(format="voc", root="nowhere"), None, 20, True),
        (DataConfig(format="coco", root="nowhere"), None, 80, True),
        (DataConfig(format="coco", root="nowhere"), 7, 7, False),
    ],
)
def test_classes(data, asked, count, noted):
    config, notes = step_cost.fill_in_classes(Config(data=data), asked)
    assert len(config.model.classes) == count
    assert bool(notes) == noted


def test_classes_of_the_config_stay():
    config = Config(model=ModelConfig(classes=("a", "b")))
    assert step_cost.fill_in_classes(config, None) == (config, [])


def run_estimate(monkeypatch, *arguments, need):
    """Run main() with programs of `need(batch)` bytes that are not compiled; return its status."""

    def compile_step(config, devices, batch):
        size = need(batch)
        if size is None:
            raise step_cost.TooLargeError("RESOURCE_EXHAUSTED: out of memory")
        return step_cost.StepCost(batch, 1e12, 1e9, size, (AllReduce(2, 50_000_000),), 3, 4, 5.0)

    monkeypatch.setattr(estimate, "compile_step", compile_step)
    monkeypatch.setattr(estimate, "set_environment", lambda: None)
    monkeypatch.setattr(estimate, "describe_devices", lambda target: [])
    config = str(CONFIGS / "ssd300_voc0712.py")
    return estimate.main(["--config", config, "--model.dtype", "bfloat16", *arguments])


def test_report_of_a_batch_that_fits(monkeypatch, capsys):
    arguments = ("--target", "h100x8", "--batch", "32")
    assert run_estimate(monkeypatch, *arguments, need=lambda b: 10**9 * b) == 0
    out = capsys.readouterr().out
    assert out.startswith("PREDICTION")
    assert "fits: 32.0 GB of 63.7 GB (75% of its memory: " in out
    assert "63 images per device (a line through" in out
    assert "2 a step, 100.0 MB together" in out
    assert "compute 1.01 ms (989 TFLOP/s)" in out
    assert "bound by" in out
    assert "1,024 devices" in out


def test_report_of_a_batch_that_does_not_fit(monkeypatch, capsys):
    arguments = ("--target", "h100x8", "--batch", "128", "--no-largest")
    assert run_estimate(monkeypatch, *arguments, need=lambda b: 10**9 * b) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT: 128.0 GB of 63.7 GB" in out
    assert "63 images per device" in out


def test_report_of_a_batch_that_the_compiler_refuses(monkeypatch, capsys):
    def need(batch):
        return 10**9 * batch if batch < 18 else None

    assert run_estimate(monkeypatch, "--target", "v5e-4", "--batch", "32", need=need) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT: more of 17.2 GB" in out
    assert "17 images per device" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        (["--config", "CONFIG", "--target", "tpu"], "--target: 'tpu' is unknown"),
        (["--config", "CONFIG", "--target", "h100", "--efficiency", "40"], "--efficiency is 40"),
        (["--config", "CONFIG", "--target", "h100", "--classes", "0"], "--classes is 0"),
        (["--config", "CONFIG", "--target", "h100", "--model.dtyp", "x"], "model.dtyp"),
        (["--config", "CONFIG", "--target", "v5e-256"], "must be divisible by the 256 devices"),
    ],
)
def test_errors_of_the_command_line(arguments, words):
    arguments = [str(CONFIGS / "ssd300_voc0712.py") if a == "CONFIG" else a for a in arguments]
    with pytest.raises(ConfigError, match=words) as caught:
        estimate.main(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("h100", "plan-cuda"), ("v5e-4", "plan-tpu")])
def test_missing_compiler_names_the_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"pip install 'ssd_jax\[{extra}\]'"):
        describe_devices(parse_target(name))


def test_environment_of_a_machine_without_accelerators(monkeypatch):
    monkeypatch.setattr(os, "environ", {"JAX_PLATFORMS": "cuda", "TPU_WORKER_ID": "7"})
    set_environment()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] == "1"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_WORKER_ID"] == "7"


# Programs of accelerators: SSD300 for 20 classes, trained by its config.

# Compiled with jax 0.10.2: GB a device, all-reduces, transposes and copies a step.
RECORDED = {
    ("h100x8", "bfloat16", 32): (3.4, 4, 82, 72),
    ("h100x8", "bfloat16", 128): (12.9, 4, 82, 72),
    ("h100x8", "float32", 32): (6.5, 4, 82, 50),
    ("h100x8", "float32", 128): (25.0, 4, 82, 50),
    ("v5e-4", "bfloat16", 32): (6.42, 1, 4, 338),
    ("v5e-4", "float32", 32): (7.88, 1, 4, 509),
}


@pytest.fixture
def compilers(monkeypatch):
    """Set the environment of the command, and reset it afterwards."""
    for name in (
        *("JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "TF_CPP_MIN_LOG_LEVEL"),
        *("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
        "ALLOW_MULTIPLE_LIBTPU_LOAD",
    ):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    set_environment()


@pytest.mark.nightly
@pytest.mark.usefixtures("compilers")
@pytest.mark.parametrize(("name", "dtype", "batch"), RECORDED)
def test_recorded_programs_of_accelerators(name, dtype, batch):
    try:
        devices = describe_devices(parse_target(name))
    except ConfigError as error:
        pytest.skip(str(error))
    config = load_config(CONFIGS / "ssd300_voc0712.py")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    lowered = step_cost.lower_step(config, devices, batch)
    compiled = lowered.compile()
    text = compiled.as_text()
    cost = step_cost.measure(config, lowered, compiled, batch, seconds=0.0)

    memory, all_reduces, transposes, copies = RECORDED[name, dtype, batch]
    state, _ = lowered.in_avals[0]
    leaves = jax.tree.leaves(state)
    floats = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # 29 convolutions with two gradients each, but for the image's.
    assert lowered.as_text().count("stablehlo.convolution") == 3 * 29 - 1
    assert sum(one.times for one in cost.all_reduces) <= all_reduces
    # The gradient, three sums and the stop flag, in float32.
    assert cost.allreduce_bytes == 4 * (floats + 4)
    assert cost.transposes <= transposes
    assert cost.copies <= copies
    assert cost.memory <= 1.05 * memory * 1e9
    assert "f64[" not in text
    for sign in ("callback", " infeed(", " outfeed(", "is_host_transfer=true"):
        assert sign not in text
    # The whole state is donated: each of its arrays is aliased with one of the result.
    assert text.splitlines()[0].count("-alias)") == len(leaves)
