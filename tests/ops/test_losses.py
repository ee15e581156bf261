import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.kernels import losses as kernel
from ssd_jax.ops import losses as reference
from ssd_jax.ops.losses import MultiboxLoss, smooth_l1
from ssd_jax.ops.matching import Targets, make_targets

pytestmark = pytest.mark.smoke

IMPLEMENTATIONS = pytest.mark.parametrize("ops", [reference, kernel], ids=["reference", "kernel"])
SEED = 20161208  # of the golden figures


def slow_hard_negatives(loss: np.ndarray, positive: np.ndarray, ratio: float) -> np.ndarray:
    negatives = [j for j in range(len(loss)) if not positive[j]]
    count = min(int(ratio * positive.sum()), len(negatives))
    mask = np.zeros(len(loss), bool)
    for j in sorted(negatives, key=lambda j: (-loss[j], j))[:count]:
        mask[j] = True
    return mask


def slow_loss(loc, conf, targets, num_positives, ratio) -> tuple[float, float]:
    conf = conf.astype(np.float64)
    cross_entropy = np.zeros(len(conf))
    background = np.zeros(len(conf))
    for j, row in enumerate(conf):
        log_sum = row.max() + np.log(np.exp(row - row.max()).sum())
        cross_entropy[j] = log_sum - row[targets.label[j]]
        background[j] = log_sum - row[0]
    positive = np.asarray(targets.label) > 0
    negative = slow_hard_negatives(background, positive, ratio)
    loc_sum = conf_sum = 0.0
    for j in range(len(conf)):
        if positive[j]:
            for x in np.abs(loc[j].astype(np.float64) - targets.loc[j]):
                loc_sum += 0.5 * x * x if x < 1 else x - 0.5
        if positive[j] or negative[j]:
            conf_sum += cross_entropy[j]
    return loc_sum / max(1, num_positives), conf_sum / max(1, num_positives)


def random_case(rng, priors=40, classes=4, positives=5):
    label = np.zeros(priors, np.int32)
    chosen = rng.choice(priors, positives, replace=False)
    label[chosen] = rng.integers(1, classes, positives)
    loc = rng.normal(0, 2, (priors, 4)).astype(np.float32)
    target = np.where(label[:, None] > 0, rng.normal(0, 2, (priors, 4)), 0).astype(np.float32)
    conf = rng.normal(0, 3, (priors, classes)).astype(np.float32)
    return loc, conf, Targets(target, label)


@functools.partial(jax.jit, static_argnames="ops")
def loss_of(ops, loc, conf, targets, num_positives):
    return ops.multibox_loss(loc, conf, targets, num_positives, neg_pos_ratio=3.0)


def test_smooth_l1_of_known_values():
    x = jnp.array([[-3.0, -1.0, -0.5], [0.0, 0.5, 2.0]])
    np.testing.assert_allclose(smooth_l1(x), [[2.5, 0.5, 0.125], [0.0, 0.125, 1.5]])
    slope = jax.vmap(jax.vmap(jax.grad(smooth_l1)))(x)
    np.testing.assert_allclose(slope, np.clip(x, -1, 1))


@IMPLEMENTATIONS
@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "few ties"])
def test_hard_negatives_equal_a_slow_sort(ops, ratio, levels):
    rng = np.random.default_rng(levels)
    function = jax.jit(functools.partial(ops.hard_negative_mask, ratio=ratio))
    for positives in (0, 1, 2, 7, 15, 29, 30):
        loss = (rng.integers(0, levels, 30) / levels).astype(np.float32)
        positive = rng.permutation(30) < positives
        mask = function(loss, positive)
        np.testing.assert_array_equal(mask, slow_hard_negatives(loss, positive, ratio))


@IMPLEMENTATIONS
def test_loss_equals_a_slow_loop(ops):
    rng = np.random.default_rng(0)
    for positives in (0, 1, 5, 20, 40):
        case = random_case(rng, positives=positives)
        loss = loss_of(ops, *case, 7)
        np.testing.assert_allclose(loss, slow_loss(*case, 7, 3.0), rtol=1e-5)


@IMPLEMENTATIONS
def test_gradient_equals_finite_differences_of_the_slow_loop(ops):
    rng = np.random.default_rng(1)
    loc, conf, targets = random_case(rng, priors=20, positives=3)
    gradient = jax.grad(lambda x: loss_of(ops, loc, x, targets, 3).conf)(conf)
    step = 1e-4
    for j in range(0, 20, 3):
        for c in range(4):
            up, down = conf.astype(np.float64), conf.astype(np.float64)
            up[j, c] += step
            down[j, c] -= step
            rise = slow_loss(loc, up, targets, 3, 3.0)[1] - slow_loss(loc, down, targets, 3, 3.0)[1]
            np.testing.assert_allclose(gradient[j, c], rise / (2 * step), atol=1e-4)


@IMPLEMENTATIONS
def test_loss_and_gradient_of_the_reference(ops, golden, voc_priors):
    case = np.load(golden / "multibox_loss.npz")
    rng = np.random.default_rng([SEED, 2])
    loc = rng.normal(0, 1, (3, 8732, 4)).astype(np.float32)
    conf = rng.normal(0, 2, (3, 8732, 21)).astype(np.float32)
    boxes, labels, mask = np.zeros((3, 17, 4), np.float32), np.zeros((3, 17)), np.zeros((3, 17))
    for k in range(3):
        objects = case[f"targets_{k}"]
        boxes[k, : len(objects)] = objects[:, :4]
        labels[k, : len(objects)] = objects[:, 4] + 1
        mask[k, : len(objects)] = 1
    rule = {"threshold": 0.5, "rule": "per_object", "variances": (0.1, 0.2)}
    match = jax.jit(jax.vmap(functools.partial(make_targets, **rule), (None, 0, 0, 0)))
    targets = match(voc_priors, boxes, labels.astype(np.int32), mask.astype(bool))

    @jax.jit
    def loss_and_gradient(loc, conf):
        def total(loc, conf):
            positives = jnp.sum(targets.label > 0)
            image_losses = jax.vmap(functools.partial(loss_of, ops), (0, 0, 0, None))(
                loc, conf, targets, positives
            )
            losses = jax.tree.map(jnp.sum, image_losses)
            return losses.loc + losses.conf, losses

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(loc, conf)

    (_, losses), gradients = loss_and_gradient(loc, conf)
    np.testing.assert_allclose(losses.loc, case["loss_loc"], rtol=1e-4)
    np.testing.assert_allclose(losses.conf, case["loss_conf"], rtol=1e-4)
    # The index is also the set of the chosen negatives: elsewhere the gradient is exactly 0.
    for name, gradient in zip(("grad_loc", "grad_conf"), map(np.asarray, gradients), strict=True):
        index, expected = case[f"{name}_index"], case[name]
        np.testing.assert_array_equal(np.stack(np.nonzero(gradient.any(axis=-1))), index)
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient[tuple(index)], expected, rtol=1e-4, atol=atol)


@IMPLEMENTATIONS
def test_zero_positives_give_no_loss_and_no_gradient(ops):
    rng = np.random.default_rng(2)
    loc, conf, targets = random_case(rng, positives=0)

    def total(loc, conf):
        return sum(loss_of(ops, loc, conf, targets, 0))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(loc, conf)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@IMPLEMENTATIONS
def test_rows_of_very_different_size_do_not_underflow(ops):
    conf = jnp.array([[1e4, 0.0], [-1e4, -1e4], [0.0, 1e4]])
    targets = Targets(jnp.zeros((3, 4)), jnp.array([0, 1, 1]))
    loss, gradient = jax.value_and_grad(
        lambda c: loss_of(ops, jnp.zeros((3, 4)), c, targets, 1).conf
    )(conf)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert np.all(np.isfinite(gradient))


@IMPLEMENTATIONS
def test_prediction_that_overflows_at_a_negative_does_not_reach_the_loss(ops):
    rng = np.random.default_rng(3)
    loc, conf, targets = random_case(rng)
    wild = np.where(targets.label[:, None] > 0, loc, np.inf)
    expected = jax.value_and_grad(lambda x: loss_of(ops, x, conf, targets, 5).loc)(loc)
    result = jax.value_and_grad(lambda x: loss_of(ops, x, conf, targets, 5).loc)(wild)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


@IMPLEMENTATIONS
def test_images_share_the_divisor_of_the_batch(ops):
    rng = np.random.default_rng(4)
    case = random_case(rng)
    one, eight = loss_of(ops, *case, 1), loss_of(ops, *case, jnp.array(8))
    np.testing.assert_allclose(np.array(one) / 8, np.array(eight), rtol=1e-6)


@IMPLEMENTATIONS
def test_bfloat16_is_computed_in_float32(ops):
    rng = np.random.default_rng(5)
    loc, conf, targets = random_case(rng, priors=400, positives=100)
    loc, conf = jnp.asarray(loc, jnp.bfloat16), jnp.asarray(conf, jnp.bfloat16)
    loss = loss_of(ops, loc, conf, targets, 100)
    exact = loss_of(ops, loc.astype(jnp.float32), conf.astype(jnp.float32), targets, 100)
    assert loss.loc.dtype == loss.conf.dtype == jnp.float32
    np.testing.assert_array_equal(loss, exact)


@IMPLEMENTATIONS
def test_jit_and_vmap_equal_eager(ops):
    rng = np.random.default_rng(6)
    cases = [random_case(rng, positives=k) for k in (0, 3, 20)]
    batch = jax.tree.map(lambda *x: np.stack(x), *cases)
    batched = jax.jit(jax.vmap(functools.partial(loss_of, ops), (0, 0, 0, None)))(*batch, 23)
    assert isinstance(batched, MultiboxLoss)
    for k, case in enumerate(cases):
        eager = ops.multibox_loss(*case, 23, neg_pos_ratio=3.0)
        np.testing.assert_allclose([batched.loc[k], batched.conf[k]], eager, rtol=1e-5)
