"""What the benchmarks race against gives what ours gives, so that they measure the same work."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import case, checkpoints, contenders, evaluation, growth, literal, ours
from ssd_jax.evaluation.metrics.coco_ap import evaluate_coco
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from ssd_jax.models.ssd import model_priors
from ssd_jax.training.step import image_losses, image_targets

NAMES = tuple("abcde")


def test_the_loop_of_voc_gives_the_same_precision():
    tables = evaluation._tables(60, 40, 5, 2.4)
    ours_ = [c.ap for c in evaluate_voc(*tables, NAMES).classes]
    assert min(ours_) > 0.01
    np.testing.assert_allclose(literal.voc_ap(*tables, 5), ours_, rtol=0, atol=1e-12)


def test_pycocotools_is_given_the_same():
    tables = evaluation._tables(40, 25, 5, 7.3)
    precision = evaluation._pycocotools(*tables, 5)["precision"][:, :, :, 0, 2]
    ours_ = evaluate_coco(*tables, NAMES).figures["AP"]
    assert precision[precision > -1].mean() == pytest.approx(ours_, abs=1e-9)


@pytest.fixture(scope="module")
def loss_case():
    config = case.voc_config()
    priors = model_priors(config.model, config.priors)
    given = (*case.predictions(1, len(priors)), *case.objects(1, 8, each=3))
    rule = dataclasses.replace(config.train, matching="per_object")

    def loss(outputs):
        batch = dict(zip(("boxes", "labels", "mask"), given[2:], strict=True))
        targets = image_targets(batch, priors, config.priors.variances, rule)
        found = image_losses(*outputs, targets, rule)
        total = jnp.sum(found.loc) + jnp.sum(found.conf)
        return total / jnp.sum(targets.label > 0), total

    (_, total), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(given[:2])
    return given, priors, float(total), gradients


def test_the_loops_of_the_loss_give_the_same(loss_case):
    given, priors, total, _ = loss_case
    (value,) = literal.match_and_loss_by_loops(*given, priors)()
    assert total > 100
    assert value == pytest.approx(total, rel=1e-5)


def test_the_reference_in_pytorch_gives_the_same_gradient(loss_case):
    pytest.importorskip("torch")
    given, priors, _, gradients = loss_case
    loc, conf = literal.match_and_loss(*given, priors)()
    for theirs, mine in zip((loc, conf), gradients, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=1e-4 * np.abs(mine).max())


def test_a_race_tells_the_times_of_each():
    # A setup that gives a program: partial(sleep, seconds).
    pause = functools.partial, time.sleep
    found = contenders.race({"slow": (*pause, 0.06), "quick": (*pause, 0.001)}, rounds=3)
    assert found["slow"]["s"] >= 0.06
    assert 0.001 <= found["quick"]["s"] < found["slow"]["s"]
    for of in found.values():
        assert of["s_min"] <= of["s"] <= of["s_max"]
        assert of["peak_mb"] > 5
        assert of["first_s"] > 0


def test_matching_takes_no_more_memory_than_places_times_priors():
    many = {"batch": 4, "objects": 6, "classes": 20, "size": 300}
    assert 0 < ours.matching_memory(many, 64) <= 4 * 64 * 8732 * 4


def test_growth_is_drawn(tmp_path):
    of = {"training, ms": 2.0, "detection, ms": 1.0}
    growth.plot({"batch": {"1": of, "2": of}, "classes": {"20": of, "80": of}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_growth_and_checkpoints_are_measured():
    found = growth.run(1, {"batch": (1,), "size": (512,)})
    assert set(found) == {"batch", "priors"}
    assert found["priors"]["24564"]["detection, ms"] > 0
    times = checkpoints.run(1)
    assert times["save, blocking"]["ms"] > 0
    assert times["size_mb"] == pytest.approx(2 * 4 * 26.285486, rel=0.01)


def test_our_own_post_processing_finds_something():
    loc, conf = case.predictions(1, 8732)
    found = ours.suppress(loc, conf)()
    assert 5 < int(found.count[0]) <= 200
