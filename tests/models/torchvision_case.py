"""torchvision's ssd300_vgg16 with seeded weights, and a way to compare detections.

python -m tests.models.torchvision_case writes tests/golden/torchvision.npz again; it needs
torchvision.
"""

from pathlib import Path

import numpy as np

from ssd_jax.cli.weights import main
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.ops.boxes import pairwise_iou
from ssd_jax.weights.layouts import PRIORS, ssd_model
from ssd_jax.weights.name_maps import torchvision_ssd_names

SEED = 20240229
RECORDED = (0, 21)
"""Seed and classes, with background, of the case whose figures are recorded."""


def seeded_state(seed, num_classes):
    """A state dict by torchvision's names: values that a trained network could have.

    The classes' logits spread over several units and background leads, so that a few dozen boxes
    pass the threshold; the offsets' spread makes some boxes reach past the image and the limit of
    their growth.
    """
    from flax import traverse_util

    model = ssd_model(300, tuple(map(str, range(1, num_classes))))
    tree = variable_shapes(make_model(model, PRIORS[300, "coco"]))
    shapes = traverse_util.flatten_dict(tree["params"])
    state = {}
    for k, (name, place) in enumerate(sorted(torchvision_ssd_names(model).items())):
        shape = shapes[place].shape
        if name == "backbone.scale_weight":
            state[name] = np.full(shape, 20, np.float32)
            continue
        rng = np.random.default_rng([SEED, seed, k])
        if name.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape, np.float32)
            if "classification" in name:
                value.reshape(-1, num_classes)[:, 0] += 8
        else:
            value = rng.standard_normal((shape[3], shape[2], *shape[:2]), np.float32)
            value *= np.sqrt(2 / np.prod(value.shape[1:]))
            if name == "backbone.features.0.weight":
                value /= 60  # pixels become values around 1
            elif "classification" in name:
                value *= 1.3
        state[name] = value.astype(np.float32)
    return state


def seeded_image(seed):
    """[300, 300, 3] uint8, smooth as photographs are."""
    rng = np.random.default_rng([SEED, seed])
    coarse = rng.uniform(0, 255, (12, 12, 3))
    return np.kron(coarse, np.ones((25, 25, 1))).astype(np.uint8)


def torchvision_model(state, num_classes):
    import torch
    from torchvision.models.detection import ssd300_vgg16

    torch.set_num_threads(2)
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=num_classes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval()


def torchvision_run(model, image):
    """(loc, conf, anchors in pixels, detections) for a uint8 image, by torchvision alone."""
    import torch

    seen = {}
    model.head.register_forward_hook(lambda _, __, out: seen.update(out))
    model.anchor_generator.register_forward_hook(lambda _, __, out: seen.update(anchors=out[0]))
    with torch.no_grad():
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255
        (detections,) = model([tensor])
    figures = (seen["bbox_regression"][0], seen["cls_logits"][0], seen["anchors"])
    return (
        *(f.numpy() for f in figures),
        {name: value.numpy() for name, value in detections.items()},
    )


def import_state(state, folder, *more):
    """The checkpoint that the command makes of a state dict, through a .safetensors file."""
    from safetensors.numpy import save_file

    file = Path(folder) / "weights.safetensors"
    save_file(state, file)
    main(["import", str(file), "--out", str(Path(folder) / "run"), *more])
    return Path(folder) / "run" / "checkpoints" / "0"


def differences(ours, theirs, *, pixels, score):
    """Detections of one that the other has not: same class, box within `pixels`, score within.

    Both are dicts of boxes (xyxy, pixels), scores and labels.
    """
    left = list(range(len(ours["labels"])))
    alone = []
    for box, value, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
        for k in left:
            if (
                ours["labels"][k] == label
                and abs(ours["scores"][k] - value) <= score
                and np.abs(ours["boxes"][k] - box).max() <= pixels
            ):
                left.remove(k)
                break
        else:
            alone.append(("theirs", int(label), float(value), box.tolist()))
    for k in left:
        box = ours["boxes"][k].tolist()
        alone.append(("ours", int(ours["labels"][k]), float(ours["scores"][k]), box))
    return alone


def is_a_tie(one, ours, theirs, *, iou):
    """Return whether rounding alone can leave one of `differences` without a partner.

    It overlaps a better one of the other side by `iou`, so that the other may drop it, or it is the
    last of its side, in the place of one that was dropped.
    """
    side, label, score, box = one
    rows, other = (ours, theirs) if side == "ours" else (theirs, ours)
    better = other["boxes"][(other["labels"] == label) & (other["scores"] > score)]
    overlaps = np.asarray(pairwise_iou(np.float32([box]), np.float32(better).reshape(-1, 4)))
    return score == rows["scores"].min() or bool((abs(overlaps - iou) < 1e-5).any())


def record():
    seed, num_classes = RECORDED
    model = torchvision_model(seeded_state(seed, num_classes), num_classes)
    loc, conf, anchors, detections = torchvision_run(model, seeded_image(seed))
    index = np.unique(np.linspace(0, len(loc) - 1, 400).astype(int))
    index = np.unique(np.concatenate([index, np.arange(len(loc) - 44, len(loc))]))
    np.savez_compressed(
        Path(__file__).parent.parent / "golden" / "torchvision.npz",
        prior_index=index,
        loc=loc[index],
        conf=conf[index],
        anchors=anchors[index],
        names=np.array(list(model.state_dict())),
        **detections,
    )
    print(
        len(detections["labels"]), "detections;", conf.std(axis=0)[:4], loc.std(axis=0), loc.max()
    )


if __name__ == "__main__":
    record()
