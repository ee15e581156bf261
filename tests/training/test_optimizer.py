"""Schedule and optimizer against plain arithmetic."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd_jax.config import OptimConfig
from ssd_jax.training.optimizer import decay_per_step, make_optimizer, make_schedule


def test_multistep_with_warmup():
    schedule = make_schedule(
        OptimConfig(learning_rate=1.0, milestones=(10, 20), warmup_steps=4), batch_size=32
    )
    expected = [0.25, 0.5, 0.75, 1.0] + [1.0] * 6 + [0.1] * 10 + [0.01] * 10
    np.testing.assert_allclose([schedule(k, 0.0) for k in range(30)], expected, rtol=1e-6)


def test_cosine_ends_at_zero():
    config = OptimConfig(learning_rate=2.0, schedule="cosine")
    schedule = make_schedule(config, batch_size=32)
    per_step = decay_per_step(config, steps=10)
    np.testing.assert_allclose(schedule(0, per_step), 2.0)
    np.testing.assert_allclose(schedule(5, per_step), 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule(10, per_step), 0.0, atol=1e-6)


def test_decay_per_step_as_argument_is_bit_identical_to_a_constant():
    config = OptimConfig(learning_rate=0.012, schedule="cosine", warmup_steps=30)
    schedule = make_schedule(config, batch_size=32)

    @jax.jit
    def constant(step):
        step = step.astype(jnp.float32)
        done = (step - 30) / (1000 - 30)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return 0.012 * jnp.minimum(1.0, (step + 1) / 30) * decay

    argument = jax.jit(schedule)
    per_step = decay_per_step(config, steps=1000)
    rates = [(argument(k, per_step), constant(k)) for k in map(jnp.int32, range(1001))]
    np.testing.assert_array_equal(*zip(*rates, strict=True))


@pytest.mark.parametrize("caffe", [False, True])
def test_sgd_step_by_step(caffe):
    biases = {"bias_lr_multiplier": 2.0, "decay_biases": False} if caffe else {}
    config = OptimConfig(learning_rate=0.1, milestones=(2,), weight_decay=0.01, **biases)
    optimizer = make_optimizer(config)
    schedule = make_schedule(config, batch_size=32)
    params = {"conv": {"kernel": jnp.float32(2.0), "bias": jnp.float32(3.0)}}
    state = optimizer.init(params)
    expected, momentum = {"kernel": 2.0, "bias": 3.0}, {"kernel": 0.0, "bias": 0.0}
    for k, grad in enumerate((1.0, -0.5, 2.0, 0.25)):
        grads = {"conv": {"kernel": jnp.float32(grad), "bias": jnp.float32(grad)}}
        updates, state = optimizer.update(grads, state, params)
        updates = jax.tree.map(partial(jnp.multiply, -schedule(k, 0.0)), updates)
        params = optax.apply_updates(params, updates)
        for name in expected:
            plain = caffe and name == "bias"
            decayed = grad + (0 if plain else 0.01) * expected[name]
            momentum[name] = 0.9 * momentum[name] + decayed
            rate = (0.1 if k < 2 else 0.01) * (2 if plain else 1)
            expected[name] -= rate * momentum[name]
        np.testing.assert_allclose(params["conv"]["kernel"], expected["kernel"], rtol=1e-5)
        np.testing.assert_allclose(params["conv"]["bias"], expected["bias"], rtol=1e-5)


def test_nonfinite_gradient_leaves_the_momentum_unchanged():
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1, milestones=()))
    params = {"conv": {"kernel": jnp.float32(2.0), "bias": jnp.float32(3.0)}}
    _, state = optimizer.update(params, optimizer.init(params), params)
    broken = jax.tree.map(lambda p: p * jnp.nan, params)
    _, after = optimizer.update(broken, state, params, good=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_gradient_clipping():
    config = OptimConfig(learning_rate=1.0, milestones=(), weight_decay=0, grad_clip_norm=5.0)
    optimizer = make_optimizer(config)
    params = {"a": jnp.zeros(2)}
    updates, _ = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [3.0, 4.0], rtol=1e-6)


def test_learning_rate_is_proportional_to_the_batch_size():
    config = OptimConfig(learning_rate=1e-3, milestones=(), base_batch_size=32)
    np.testing.assert_allclose(make_schedule(config, batch_size=256)(3, 0.0), 8e-3, rtol=1e-6)
