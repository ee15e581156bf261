"""SSD512 in plain PyTorch, written from the paper: nothing of ssd_jax is used.

Liu et al., section 3.4 and the released SSD512 models: VGG16 reduced fc, five pairs of extra
layers, the last one with a 4x4 kernel; ssd.pytorch's names.

python -m tests.models.torch_ssd512 writes tests/golden/ssd512.npz again.
"""

import math
from pathlib import Path

import numpy as np

SEED = 512
CLASSES = 4
"""With background: COCO's priors, by ssd.pytorch's rule."""
SIZES = [20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72]
STEPS = [8, 16, 32, 64, 128, 256, 512]
CELLS = [64, 32, 16, 8, 4, 2, 1]
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512]


def layers():
    """(name, out channels, in channels, kernel) of every convolution."""
    layers, channels, position = [], 3, 0
    for item in VGG:
        if isinstance(item, str):
            position += 1
            continue
        layers.append((f"vgg.{position}", item, channels, 3))
        channels, position = item, position + 2
    layers += [("vgg.31", 1024, 512, 3), ("vgg.33", 1024, 1024, 1)]
    extras = [(1024, 256, 1), (256, 512, 3)]
    extras += [(512, 128, 1), (128, 256, 3), *[(256, 128, 1), (128, 256, 3)] * 2]
    extras += [(256, 128, 1), (128, 256, 4)]
    layers += [(f"extras.{k}", out, into, size) for k, (into, out, size) in enumerate(extras)]
    for k, into in enumerate([512, 1024, 512, 256, 256, 256, 256]):
        boxes = 2 + 2 * len(RATIOS[k])
        layers += [(f"loc.{k}", 4 * boxes, into, 3), (f"conf.{k}", CLASSES * boxes, into, 3)]
    return layers


def seeded_state():
    state = {"L2Norm.weight": np.full(512, 20, np.float32)}
    for k, (name, out, into, size) in enumerate(layers()):
        rng = np.random.default_rng([SEED, k])
        weight = rng.standard_normal((out, into, size, size), np.float32)
        weight *= np.sqrt(2 / (into * size * size)) / (60 if name == "vgg.0" else 1)
        bias = 0.1 * rng.standard_normal(out, np.float32)
        if name.startswith("conf"):
            bias.reshape(-1, CLASSES)[:, 0] += 3
        state[f"{name}.weight"] = weight.astype(np.float32)
        state[f"{name}.bias"] = bias.astype(np.float32)
    return state


def image():
    """[512, 512, 3] uint8."""
    coarse = np.random.default_rng(SEED).uniform(0, 255, (16, 16, 3))
    return np.kron(coarse, np.ones((32, 32, 1))).astype(np.uint8)


def forward(state, pixels):
    """(loc [P, 4], conf [P, C]) of an RGB image."""
    import torch
    from torch.nn import functional as F

    weights = {name: torch.from_numpy(value) for name, value in state.items()}

    def conv(x, name, **how):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    x = torch.from_numpy(pixels.astype(np.float32) - np.array([123, 117, 104], np.float32))
    x = x.permute(2, 0, 1)[None]
    sources, position = [], 0
    for item in VGG:
        if isinstance(item, str):
            if len(sources) == 0 and position == 23:
                norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
                sources.append(x / norm * weights["L2Norm.weight"][None, :, None, None])
            x = F.max_pool2d(x, 2, 2, ceil_mode=item == "C")
            position += 1
        else:
            x = F.relu(conv(x, f"vgg.{position}", padding=1))
            position += 2
    x = F.max_pool2d(x, 3, 1, 1)
    x = F.relu(conv(x, "vgg.31", padding=6, dilation=6))
    x = F.relu(conv(x, "vgg.33"))
    sources.append(x)
    for k in range(10):
        how = {} if k % 2 == 0 else {"padding": 1, "stride": 1 if k == 9 else 2}
        x = F.relu(conv(x, f"extras.{k}", **how))
        if k % 2:
            sources.append(x)
    assert [s.shape[2] for s in sources] == CELLS
    loc, conf = [], []
    for k, source in enumerate(sources):
        for out, name, values in ((loc, "loc", 4), (conf, "conf", CLASSES)):
            y = conv(source, f"{name}.{k}", padding=1).permute(0, 2, 3, 1)
            out.append(y.reshape(-1, values))
    return torch.cat(loc).numpy(), torch.cat(conf).numpy()


def priors():
    """[P, 4] cxcywh, clipped."""
    boxes = []
    for k, cells in enumerate(CELLS):
        s, larger = SIZES[k] / 512, math.sqrt(SIZES[k] * SIZES[k + 1]) / 512
        for i in range(cells):
            for j in range(cells):
                centre = [(j + 0.5) * STEPS[k] / 512, (i + 0.5) * STEPS[k] / 512]
                boxes += [[*centre, s, s], [*centre, larger, larger]]
                for ratio in RATIOS[k]:
                    root = math.sqrt(ratio)
                    boxes += [[*centre, s * root, s / root], [*centre, s / root, s * root]]
    return np.clip(np.array(boxes), 0, 1)


def detections(loc, conf):
    """Score, class and box (xyxy, fractions) of each, by ssd.pytorch's rules, one by one."""
    prior_boxes = priors()
    centre = prior_boxes[:, :2] + loc[:, :2].astype(float) * 0.1 * prior_boxes[:, 2:]
    size = prior_boxes[:, 2:] * np.exp(loc[:, 2:].astype(float) * 0.2)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    power = np.exp(conf.astype(float) - conf.max(axis=1, keepdims=True))
    scores = power / power.sum(axis=1, keepdims=True)
    kept_detections = {"boxes": [], "scores": [], "labels": []}
    for label in range(1, CLASSES):
        order = np.argsort(-scores[:, label])[:200]
        kept = []
        for k in order[scores[order, label] > 0.01]:
            if all(_iou(boxes[k], boxes[other]) <= 0.45 for other in kept):
                kept.append(k)
        kept_detections["boxes"] += [boxes[k] for k in kept]
        kept_detections["scores"] += [scores[k, label] for k in kept]
        kept_detections["labels"] += [label] * len(kept)
    return {name: np.array(value) for name, value in kept_detections.items()}


def _iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def record():
    loc, conf = forward(seeded_state(), image())
    index = np.unique(
        np.concatenate([np.linspace(0, 24_563, 400).astype(int), range(24_500, 24_564)])
    )
    result = detections(loc, conf)
    np.savez_compressed(
        Path(__file__).parent.parent / "golden" / "ssd512.npz",
        prior_index=index,
        loc=loc[index],
        conf=conf[index],
        **result,
    )
    print(loc.shape, conf.std(axis=0), len(result["labels"]), "detections")


if __name__ == "__main__":
    record()
