"""Training step: the reference's trajectory, one device against several, accumulation, EMA."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssd_jax.config import Config, ModelConfig, OptimConfig, PriorConfig, TrainConfig
from ssd_jax.estimate.hlo import Program
from ssd_jax.kernels.conv2d import use_cpu_conv
from ssd_jax.training.build import build_training
from ssd_jax.training.optimizer import decay_per_step
from ssd_jax.training.step import replicate, shard_batch
from tests.models.reference import VOC, our_path, reference_image, reference_params

TINY = ModelConfig(
    classes=("a", "b"),
    image_size=64,
    width_multiplier=0.125,
    feature_layers=("conv4_3", "conv7"),
    extras=(),
    batch_norm=True,
)
TINY_PRIORS = PriorConfig(sizes=(16, 32, 64), steps=(), aspect_ratios=((2,), (2,)))
# A small rate: rounding must not grow until another hard negative is chosen.
OPTIM = OptimConfig(learning_rate=1e-4, milestones=())


def tiny_config(*, model=TINY, optim=OPTIM, **train_fields):
    """Build a config of TINY; the batch has 8 images by default."""
    train = TrainConfig(**({"batch_size": 8} | train_fields))
    return Config(model=model, priors=TINY_PRIORS, optim=optim, train=train)


def build(config, devices=1):
    """Build the step of `config` on local devices, and its initial state."""
    training = build_training(config, jax.local_devices()[:devices])
    return training.step, training.init_state()


def tiny_batch(size=8, seed=0, empty=()):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 0.6, (size, 3, 2)), rng.uniform(0.2, 0.4, (size, 3, 2))
    mask = np.arange(3)[None] < rng.integers(1, 4, (size, 1))
    mask[list(empty)] = False
    return {
        "image": rng.integers(0, 256, (size, 64, 64, 3), np.uint8),
        "boxes": np.concatenate([corner, corner + side], -1).astype(np.float32),
        "labels": rng.integers(0, 2, (size, 3), np.int32),
        "mask": mask,
        "index": np.arange(size),
    }


def run(devices, steps=3, batch=None, **config_fields):
    step, state = build(tiny_config(**config_fields), devices)
    devices = jax.local_devices()[:devices]
    state = replicate(state, devices)
    losses = []
    for k in range(steps):
        global_batch = tiny_batch(seed=k) if batch is None else batch
        state, metrics = step(state, shard_batch(global_batch, len(devices)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.mark.slow
def test_runs_of_any_length_share_one_compiled_step():
    optim = OptimConfig(schedule="cosine", warmup_steps=5)
    step, state = build(tiny_config(optim=optim))
    texts = {
        step.lower(
            state, shard_batch(tiny_batch(), 1, decay_per_step=decay_per_step(optim, steps=steps))
        ).as_text()
        for steps in (20, 30)
    }
    assert len(texts) == 1


def assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_equal_one(devices):
    if jax.local_device_count() < devices:
        pytest.skip("needs 8 devices; test_with_eight_devices (slow) has them")
    one, losses_one = run(1)
    several, losses_several = run(devices)
    np.testing.assert_allclose(losses_one, losses_several, rtol=1e-6)
    assert_close(one.params, several.params, 1e-6)
    assert_close(one.batch_stats, several.batch_stats, 1e-5)
    assert int(several.step) == 3


@pytest.mark.nightly
def test_with_eight_devices():
    if jax.local_device_count() == 8:
        pytest.skip("this is the process with eight devices")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "several and 8", "-m", ""]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        command, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_device_without_positives_equals_one_device():
    """Half the batch has no objects; the loss is divided by the positives of the global batch."""
    batch = tiny_batch(empty=range(4, 8))
    # One step: a few objects leave negatives whose losses are nearly equal, and after a second one
    # rounding decides which of them is chosen.
    one, losses_one = run(1, batch=batch, steps=1)
    two, losses_two = run(2, batch=batch, steps=1)
    np.testing.assert_allclose(losses_one, losses_two, rtol=1e-6)
    assert_close(one.params, two.params, 1e-6)
    assert_close(one.opt_state, two.opt_state, 2e-5)


def test_batch_without_objects_is_finite_and_only_decays_the_weights():
    batch = tiny_batch(empty=range(8))
    before, _ = run(1, steps=0)
    after, losses = run(1, steps=1, batch=batch)
    assert losses == [0.0]
    decayed = jax.tree.map(lambda p: p * (1 - 1e-4 * 5e-4), before.params)
    assert_close(after.params, decayed, 1e-7)


@pytest.mark.slow
def test_frozen_layers_are_constant_and_not_differentiated():
    model = dataclasses.replace(TINY, freeze_before="conv5_1")
    before, _ = run(1, steps=0, model=model)
    after, _ = run(1, steps=2, model=model)
    for name in ("conv1_1", "conv4_3"):
        assert_close(before.params["base"][name], after.params["base"][name], 0)
        assert_close(before.batch_stats["base"][name], after.batch_stats["base"][name], 0)
    changed = np.abs(
        before.params["base"]["conv5_1"]["conv"]["kernel"]
        - after.params["base"]["conv5_1"]["conv"]["kernel"]
    )
    assert changed.max() > 0
    momentum = traverse_util.flatten_dict(after.opt_state[2].trace)
    assert not any("conv1_1" in path for path in momentum)
    assert any("conv5_1" in path for path in momentum)

    def flops(model):
        step, state = build(tiny_config(model=model))
        compiled = step.lower(state, shard_batch(tiny_batch(), 1)).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(model) < 0.7 * flops(TINY)


def test_state_is_donated():
    step, state = build(tiny_config())
    state = replicate(state, jax.local_devices()[:1])
    leaf = state.params["base"]["conv3_1"]["conv"]["kernel"]
    step(state, shard_batch(tiny_batch(), 1))
    assert leaf.is_deleted()


@pytest.mark.nightly
@pytest.mark.parametrize("path", ["plain", "direct", "winograd"])
def test_five_steps_follow_the_reference(golden, path):
    """Follow the reference with XLA's convolutions and the two paths that `auto` chooses from.

    Their rounding differs, and the large steps amplify it: from the fourth step on, the losses
    differ from the reference's by 1e-3, 3e-3 and 4e-3. If the initial weights change by a factor of
    1 + 6e-8, the first path differs by 2e-3 to 3e-3 as well, so only its own rounding is tight.
    """
    expected = np.load(golden / "trajectory.npz")
    loss = np.load(golden / "multibox_loss.npz")
    boxes = np.zeros((2, 64, 4), np.float32)
    labels, mask = np.zeros((2, 64), np.int32), np.zeros((2, 64), bool)
    for b, name in enumerate(("targets_1", "targets_0")):
        n = len(loss[name])
        boxes[b, :n], labels[b, :n] = loss[name][:, :4], loss[name][:, 4]
        mask[b, :n] = True
    image = reference_image()
    batch = {"image": image, "boxes": boxes, "labels": labels, "mask": mask}
    config = Config(
        model=VOC,
        priors=PriorConfig(clip=True),
        optim=OPTIM,
        train=TrainConfig(batch_size=2, matching="per_object"),
    )
    step, state = build(config)
    state = replicate(state.replace(params=reference_params(golden)), jax.local_devices()[:1])
    losses = []
    for _ in range(5):
        with use_cpu_conv(path):
            state, metrics = step(state, shard_batch(batch, 1))
        losses.append([float(metrics[n]) for n in ("loss_loc", "loss_conf", "grad_norm")])
    losses = np.array(losses)
    np.testing.assert_allclose(losses[:3, :2], expected["losses"][:3, :2], rtol=5e-4)
    later = 2e-3 if path == "plain" else 5e-3
    np.testing.assert_allclose(losses[3:, :2], expected["losses"][3:, :2], rtol=later)
    # The steps are large, and rounding errors grow fastest in the norm of the gradient.
    np.testing.assert_allclose(losses[:2, 2], expected["losses"][:2, 2], rtol=2e-3)
    later = 1e-2 if path == "plain" else 4e-2
    np.testing.assert_allclose(losses[2:, 2], expected["losses"][2:, 2], rtol=later)
    params = traverse_util.flatten_dict(jax.device_get(state.params))
    norms = [jnp.linalg.norm(params[our_path(str(n))].ravel()) for n in expected["names"]]
    np.testing.assert_allclose(norms, expected["param_norms"], rtol=1e-3)


WITHOUT_NORM = dataclasses.replace(TINY, batch_norm=False)


@pytest.mark.slow
def test_gradient_accumulation_equals_the_large_batch():
    """The loss is divided by the positives of all parts together; a part may have none."""
    batch = tiny_batch(empty=(0, 1, 5))
    whole, losses = run(1, model=WITHOUT_NORM, batch=batch)
    parts, losses_of_parts = run(2, model=WITHOUT_NORM, batch=batch, grad_accumulation_steps=4)
    np.testing.assert_allclose(losses_of_parts, losses, rtol=1e-5)
    assert_close(parts.params, whole.params, 1e-6)


@pytest.mark.slow
def test_gradient_accumulation_takes_less_memory():
    def temporary(parts):
        step, state = build(tiny_config(grad_accumulation_steps=parts))
        compiled = step.lower(state, shard_batch(tiny_batch(), 1)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(4) < 0.6 * temporary(1)


@pytest.mark.slow
def test_ema_follows_the_weights():
    optim = dataclasses.replace(OPTIM, learning_rate=1e-3, ema_decay=0.5)
    states = [run(1, steps=k, optim=optim)[0] for k in range(4)]
    expected = {"params": states[0].params, "batch_stats": states[0].batch_stats}
    for k, state in enumerate(states[1:], start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        current = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(
            lambda mean, value, decay=decay: decay * mean + (1 - decay) * value, expected, current
        )
        assert_close(state.ema, expected, 1e-6)
    assert states[3].variables is states[3].ema


@pytest.mark.slow
def test_nonfinite_step_changes_nothing_nor_do_later_ones():
    def batch_of_floats(seed):
        batch = tiny_batch(seed=seed)
        return batch | {"image": batch["image"].astype(np.float32)}

    poisoned = batch_of_floats(0)
    poisoned["image"][2, 10, 10, 0] = np.nan
    optim = dataclasses.replace(OPTIM, ema_decay=0.9)
    devices = jax.local_devices()[:2]
    for rule, taken in (("stop", [1, 1, 1]), ("skip", [1, 2, 3])):
        step, state = build(tiny_config(optim=optim, on_nonfinite=rule), devices=2)
        state, _ = step(replicate(state, devices), shard_batch(batch_of_floats(0), 2))
        before, steps, nonfinite = jax.device_get(state), [1], [0]
        for batch in (poisoned, batch_of_floats(1)):
            state, metrics = step(state, shard_batch(batch, 2))
            steps.append(int(state.step))
            nonfinite.append(float(metrics["nonfinite"]))
            if batch is poisoned or rule == "stop":
                counts = {"step": before.step, "nonfinite_steps": before.nonfinite_steps}
                same = jax.device_get(state.replace(**counts))
                jax.tree.map(np.testing.assert_array_equal, same, before)
        assert steps == taken
        assert nonfinite == [0, 1, 0]
        assert int(state.nonfinite_steps) == 1


@pytest.mark.slow
def test_bfloat16_computation_keeps_float32_state():
    model = dataclasses.replace(TINY, dtype="bfloat16")
    state, losses = run(1, model=model)
    _, exact = run(1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    np.testing.assert_allclose(losses, exact, rtol=0.03)
    assert losses != exact


def test_stop_flag_of_one_device_reaches_all():
    step, state = build(tiny_config(), devices=2)
    batch = shard_batch(tiny_batch(), 2)
    batch["stop"][1] = 1
    _, metrics = step(replicate(state, jax.local_devices()[:2]), batch)
    assert float(metrics["stop"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_number_and_size_of_all_reduces(batch_norm):
    """One for all sums of the step; batch norm has one a layer forward and one backward.

    Those cannot be merged: the statistics of a layer depend on the layer before.
    """
    model = dataclasses.replace(TINY, batch_norm=batch_norm)
    step, state = build(tiny_config(model=model), devices=2)
    compiled = step.lower(state, shard_batch(tiny_batch(), 2)).compile()
    all_reduces = Program.parse(compiled.as_text()).all_reduces()
    layers = len(state.batch_stats.get("base", {}))
    assert len(all_reduces) == 1 + 2 * layers
    assert layers == (15 if batch_norm else 0)
    values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Mean and mean of squares forward; their gradients are two more, a sum and a weighted one.
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    sums = 4  # two losses, positives, stop
    assert sum(one.times * one.size for one in all_reduces) == 4 * (values + sums + 2 * statistics)


@pytest.mark.slow
def test_one_device_has_no_all_reduce_and_copies_no_weights():
    optim = dataclasses.replace(OPTIM, bias_lr_multiplier=2.0, decay_biases=False)
    step, state = build(tiny_config(model=WITHOUT_NORM, optim=optim))
    compiled = step.lower(state, shard_batch(tiny_batch(), 1)).compile()
    program = Program.parse(compiled.as_text())
    assert program.all_reduces() == []
    kernels = {
        array.shape
        for array in jax.tree.leaves(state.params)
        if array.ndim == 4 and array.size > 100
    }
    copied = [
        one.shape
        for one, _ in program.running()
        if one.opcode == "copy"
        and any(one.shape.startswith(f"f32[{','.join(map(str, shape))}]") for shape in kernels)
    ]
    assert copied == []


@pytest.mark.slow
def test_all_buffers_of_the_state_are_donated():
    devices = jax.local_devices()[:2]
    optim = dataclasses.replace(OPTIM, ema_decay=0.9)
    step, state = build(tiny_config(optim=optim), devices=2)
    compiled = step.lower(state, shard_batch(tiny_batch(), 2)).compile()
    memory = compiled.memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size
    state = replicate(state, devices)
    leaves = jax.tree.leaves(state)
    step(state, shard_batch(tiny_batch(), 2))
    assert all(leaf.is_deleted() for leaf in leaves)
