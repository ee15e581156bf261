"""SSD512 against an independent definition in PyTorch, recorded and live."""

import jax
import numpy as np
import pytest

from ssd_jax.checkpoints.reader import read_config, restore_model
from ssd_jax.inference.detect import DetectFn
from ssd_jax.models.ssd import model_priors
from tests.models import torch_ssd512 as reference
from tests.models.torchvision_case import differences, import_state


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(config, model, variables, outputs) of the seeded weights."""
    folder = tmp_path_factory.mktemp("ssd512")
    checkpoint = import_state(reference.seeded_state(), folder, "--channels", "rgb")
    config = read_config(checkpoint)
    model, variables = restore_model(checkpoint, config)
    outputs = jax.jit(model.apply)(variables, reference.image()[None])
    return config, model, variables, [np.asarray(x)[0] for x in outputs]


def assert_close(ours, theirs):
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_priors_equal_the_double_loop(imported):
    config = imported[0]
    expected = reference.priors()
    assert expected.shape == (24_564, 4)
    np.testing.assert_allclose(model_priors(config.model, config.priors), expected, atol=1e-6)


@pytest.mark.slow
def test_outputs_equal_the_recorded_ones(imported, golden):
    expected = np.load(golden / "ssd512.npz")
    for ours, name in zip(imported[3], ("loc", "conf"), strict=True):
        assert_close(ours[expected["prior_index"]], expected[name])


@pytest.mark.slow
@pytest.mark.nightly
def test_detections_equal_the_recorded_ones(imported, golden):
    config, model, variables, _ = imported
    expected = np.load(golden / "ssd512.npz")
    detections = DetectFn(model, config)(variables, reference.image()[None])
    n = int(detections.count[0])
    assert n == len(expected["labels"]) > 20
    ours = {
        name: np.asarray(getattr(detections, name)[0, :n]) for name in ("boxes", "scores", "labels")
    }
    assert differences(ours, expected, pixels=1e-4, score=1e-4) == []


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_outputs_equal_pytorch_live(imported):
    pytest.importorskip("torch")
    state = reference.seeded_state()
    for ours, theirs in zip(imported[3], reference.forward(state, reference.image()), strict=True):
        assert_close(ours, theirs)
