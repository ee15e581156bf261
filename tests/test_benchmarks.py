"""Peers of the benchmarks compute the same results as ssd_jax, so that both do the same work."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    checkpoints,
    evaluation,
    reference_loss,
    reference_voc_ap,
    runner,
    scaling,
    ssd_jax_workloads,
)
from benchmarks.inputs import objects, predictions, voc_config
from ssd_jax.evaluation.metrics.coco_ap import evaluate_coco
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from ssd_jax.models.ssd import model_priors
from ssd_jax.training.step import image_losses, image_targets

NAMES = tuple("abcde")


def test_reference_voc_ap_equals_evaluate_voc():
    tables = evaluation.make_tables(60, 40, 5, 2.4)
    aps = [c.ap for c in evaluate_voc(*tables, NAMES).classes]
    assert min(aps) > 0.01
    np.testing.assert_allclose(reference_voc_ap.voc_ap(*tables, 5), aps, rtol=0, atol=1e-12)


def test_pycocotools_equals_evaluate_coco():
    tables = evaluation.make_tables(40, 25, 5, 7.3)
    precision = evaluation.evaluate_pycocotools(*tables, 5)["precision"][:, :, :, 0, 2]
    ap = evaluate_coco(*tables, NAMES).figures["AP"]
    assert precision[precision > -1].mean() == pytest.approx(ap, abs=1e-9)


@pytest.fixture(scope="module")
def loss_case():
    config = voc_config()
    priors = model_priors(config.model, config.priors)
    inputs = predictions(1, len(priors)), objects(1, 8, each=3)
    rule = dataclasses.replace(config.train, matching="per_object")

    def loss(outputs):
        boxes, labels, mask = inputs[1]
        batch = {"boxes": boxes, "labels": labels, "mask": mask}
        targets = image_targets(batch, priors, config.priors.variances, rule)
        losses = image_losses(*outputs, targets, rule)
        total = jnp.sum(losses.loc) + jnp.sum(losses.conf)
        return total / jnp.sum(targets.label > 0), total

    (_, total), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs[0])
    return inputs, priors, float(total), gradients


def test_reference_loss_by_loops_equals_multibox_loss(loss_case):
    inputs, priors, total, _ = loss_case
    (value,) = reference_loss.match_and_loss_by_loops(*inputs, priors)()
    assert total > 100
    assert value == pytest.approx(total, rel=1e-5)


def test_reference_gradients_in_pytorch_equal_those_of_multibox_loss(loss_case):
    pytest.importorskip("torch")
    inputs, priors, _, gradients = loss_case
    reference = reference_loss.match_and_loss(*inputs, priors)()
    for expected, actual in zip(reference, gradients, strict=True):
        np.testing.assert_allclose(expected, actual, atol=1e-4 * np.abs(actual).max())


def test_compare_times_every_program():
    # A setup that returns a program: partial(sleep, seconds).
    pause = functools.partial, time.sleep
    rows = runner.compare({"slow": (*pause, 0.06), "quick": (*pause, 0.001)}, rounds=3)
    assert rows["slow"]["s"] >= 0.06
    assert 0.001 <= rows["quick"]["s"] < rows["slow"]["s"]
    for row in rows.values():
        assert row["s_min"] <= row["s"] <= row["s_max"]
        assert row["peak_mb"] > 5
        assert row["first_s"] > 0


def test_matching_memory_is_at_most_slots_times_priors():
    workload = {"batch": 4, "objects": 6, "classes": 20, "size": 300}
    assert 0 < ssd_jax_workloads.matching_memory(workload, 64) <= 4 * 64 * 8732 * 4


def test_scaling_plot_is_a_png(tmp_path):
    row = {"training, ms": 2.0, "detection, ms": 1.0}
    figures = {"batch": {"1": row, "2": row}, "classes": {"20": row, "80": row}}
    scaling.plot(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.nightly
def test_scaling_and_checkpoints_are_measured():
    figures = scaling.run(1, {"batch": (1,), "size": (512,)})
    assert set(figures) == {"batch", "priors"}
    assert figures["priors"]["24564"]["detection, ms"] > 0
    times = checkpoints.run(1)
    assert times["save, blocking"]["ms"] > 0
    assert times["size_mb"] == pytest.approx(2 * 4 * 26.285486, rel=0.01)


@pytest.mark.slow
def test_post_processing_of_made_up_predictions_gives_detections():
    loc, conf = predictions(1, 8732)
    detections = ssd_jax_workloads.suppress(loc, conf)()
    assert 5 < int(detections.count[0]) <= 200
