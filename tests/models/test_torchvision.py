"""torchvision's ssd300_vgg16 against the network that is imported from its weights.

The fast tests compare with recorded figures (torchvision 0.29.1, PyTorch 2.14.1, CPU); the others
run torchvision beside ours, where it is installed.
"""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.checkpoints.reader import read_config, restore_model
from ssd_jax.data.augmentation import preprocess_eval
from ssd_jax.inference.detect import DetectFn
from ssd_jax.models.ssd import make_model, model_priors
from ssd_jax.ops.boxes import cxcywh_to_xyxy
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.ops.matching import make_targets
from ssd_jax.weights.class_names import COCO91_CLASSES
from ssd_jax.weights.name_maps import torchvision_ssd_names
from tests.models.torchvision_case import (
    RECORDED,
    differences,
    import_state,
    is_a_tie,
    seeded_image,
    seeded_state,
    torchvision_model,
    torchvision_run,
)


@pytest.fixture(scope="module")
def recorded(golden, tmp_path_factory):
    """(figures of torchvision, our config, model, variables, outputs for the same image)."""
    expected = np.load(golden / "torchvision.npz")
    seed, num_classes = RECORDED
    checkpoint = import_state(seeded_state(seed, num_classes), tmp_path_factory.mktemp("tv"))
    config = read_config(checkpoint)
    model, variables = restore_model(checkpoint, config)
    outputs = jax.jit(model.apply)(variables, seeded_image(seed)[None])
    return expected, config, model, variables, outputs


def assert_close(ours, theirs):
    """Equal to 1e-4 of the largest value."""
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_outputs_equal_torchvision(recorded):
    expected, _, _, _, (loc, conf) = recorded
    assert_close(loc[0, expected["prior_index"]], expected["loc"])
    assert_close(conf[0, expected["prior_index"]], expected["conf"])


@pytest.mark.slow
def test_priors_equal_torchvision(recorded):
    expected, config, *_ = recorded
    corners = cxcywh_to_xyxy(model_priors(config.model, config.priors)) * 300
    np.testing.assert_allclose(corners[expected["prior_index"]], expected["anchors"], atol=1e-4)


@pytest.mark.slow
def test_detections_equal_torchvision(recorded):
    expected, config, model, variables, _ = recorded
    detections = DetectFn(model, config)(variables, seeded_image(RECORDED[0])[None])
    theirs = {name: expected[name] for name in ("boxes", "scores", "labels")}
    assert int(detections.count[0]) == len(theirs["labels"]) > 20
    assert differences(in_pixels(detections, 0, 300, 300), theirs, pixels=0.01, score=1e-4) == []


def in_pixels(detections, b, width, height):
    n = int(detections.count[b])
    boxes = np.asarray(detections.boxes[b, :n]) * [width, height, width, height]
    return {
        "boxes": boxes,
        "scores": np.asarray(detections.scores[b, :n]),
        "labels": np.asarray(detections.labels[b, :n]),
    }


@pytest.mark.slow
def test_names_cover_torchvisions_state_dict(recorded):
    expected, config, *_ = recorded
    assert set(torchvision_ssd_names(config.model)) == set(map(str, expected["names"]))


def test_coco_classes_keep_torchvisions_indices():
    assert len(COCO91_CLASSES) == len(set(COCO91_CLASSES)) == 90
    for index, name in ((1, "person"), (13, "stop sign"), (67, "dining table"), (90, "toothbrush")):
        assert COCO91_CLASSES[index - 1] == name
    gaps = [k for k, name in enumerate(COCO91_CLASSES, start=1) if name.startswith("N/A")]
    assert gaps == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


CASES = [(0, 91), (1, 21), (2, 4)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"seed{case[0]}-{case[1]}classes")
def both(request, tmp_path_factory):
    """(torchvision's model, our config, model and variables) with the same random weights."""
    pytest.importorskip("torchvision")
    seed, num_classes = request.param
    state = seeded_state(seed, num_classes)
    checkpoint = import_state(state, tmp_path_factory.mktemp("live"))
    config = read_config(checkpoint)
    return torchvision_model(state, num_classes), config, *restore_model(checkpoint, config)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_live_outputs_priors_and_detections_on_real_images(both, shared_data):
    theirs, config, model, variables = both
    priors = cxcywh_to_xyxy(model_priors(config.model, config.priors)) * 300
    outputs = jax.jit(model.apply)
    detect = DetectFn(model, config)
    files = sorted((shared_data / "voc-mini" / "JPEGImages").glob("*.jpg"))[::15][:20]
    assert len(files) == 20
    total, ties, alone, rounded = 0, 0, [], 0
    for file in files:
        image = cv2.imread(str(file))[..., ::-1]
        height, width = image.shape[:2]
        loc, conf, anchors, reference = torchvision_run(theirs, image)
        # The resized image without rounding, as torchvision has it.
        resized = cv2.resize(image.astype(np.float32), (300, 300), interpolation=cv2.INTER_LINEAR)
        ours = [np.asarray(x)[0] for x in outputs(variables, resized[None])]
        assert_close(ours[0], loc)
        assert_close(ours[1], conf)
        np.testing.assert_allclose(priors, anchors, atol=1e-4)
        result = in_pixels(detect(variables, resized[None]), 0, width, height)
        assert len(result["labels"]) == len(reference["labels"])
        differ = differences(result, reference, pixels=0.05, score=2e-4)
        ties += len(differ)
        alone += [
            d
            for d in differ
            if not is_a_tie(d, result, reference, iou=config.eval.nms_iou_threshold)
        ]
        # With evaluate.py's image, whose pixels are rounded to whole numbers.
        whole = in_pixels(detect(variables, preprocess_eval(image, 300)[None]), 0, width, height)
        rounded += len(differences(whole, reference, pixels=2, score=0.02))
        total += len(reference["labels"])
    print(f"{total} detections, {ties} differ by a tie; with rounded pixels {rounded}")
    assert total > 100
    assert alone == []
    assert ties < 0.001 * total
    assert rounded < 0.05 * total


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_live_training_loss(both):
    import torch

    theirs, config, _, variables = both
    rng = np.random.default_rng(5)
    images = np.stack([seeded_image(k) for k in (1, 2)])
    corners = np.sort(rng.uniform(0, 300, (2, 6, 2, 2)), axis=2)
    corners[:, :, 1] += 9  # no box without area
    boxes = np.minimum(corners, 300).reshape(2, 6, 4).astype(np.float32)
    labels = rng.integers(1, config.model.num_classes, (2, 6))
    theirs.train()
    with torch.no_grad():
        losses = theirs(
            [torch.from_numpy(i.transpose(2, 0, 1).copy()).float() / 255 for i in images],
            [
                {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(k)}
                for b, k in zip(boxes, labels, strict=True)
            ],
        )
    theirs.eval()

    loc, conf = jax.jit(make_model(config.model, config.priors).apply)(variables, images)
    targets = jax.vmap(
        partial(
            make_targets,
            model_priors(config.model, config.priors),
            threshold=config.train.match_iou_threshold,
            rule=config.train.matching,
            variances=config.priors.variances,
        )
    )(boxes / 300, labels, np.ones((2, 6), bool))
    positives = jnp.sum(targets.label > 0)
    loss = jax.vmap(
        partial(multibox_loss, neg_pos_ratio=config.train.neg_pos_ratio), (0, 0, 0, None)
    )(loc, conf, targets, positives)
    print(f"loss: {loss.loc.sum():.6f} {loss.conf.sum():.6f} {losses}")
    np.testing.assert_allclose(loss.loc.sum(), losses["bbox_regression"], rtol=1e-4)
    np.testing.assert_allclose(loss.conf.sum(), losses["classification"], rtol=1e-4)
