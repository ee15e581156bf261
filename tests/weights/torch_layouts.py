"""SSDs of other programs in PyTorch and NumPy, with the names of their files.

Nothing of ssd_jax is used. Each program has its own modules, priors and detections; chainercv's
arrays are looked up by name, because modules of PyTorch cannot have its names.

python -m tests.weights.torch_layouts writes tests/golden/layouts.npz again.
"""

import json
import math
from pathlib import Path

import numpy as np

SEED = 20170606
CLASSES = 4
"""With background."""
VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512]
SOURCES = (512, 1024, 512, 256, 256, 256)
CELLS = {300: (38, 19, 10, 5, 3, 1), 512: (64, 32, 16, 8, 4, 2, 1)}
STEPS = {300: (8, 16, 32, 64, 100, 300), 512: (8, 16, 32, 64, 128, 256, 512)}
RATIOS = {300: ([2], [2, 3], [2, 3], [2, 3], [2], [2])}
RATIOS[512] = ([2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2])
PROGRAMS = ("lufficc", "mmdetection", "qfgaohao", "chainercv", "qfgaohao-bn")
SEEDS = ("lufficc", "mmdetection", "qfgaohao", "chainercv", "timm", "qfgaohao-bn")


def image():
    """[300, 300, 3] uint8, RGB."""
    coarse = np.random.default_rng(SEED).uniform(0, 255, (12, 12, 3))
    return np.kron(coarse, np.ones((25, 25, 1))).astype(np.uint8)


def seeded_state(program, shapes):
    """Arrays by name, for shapes by name: values with which a few dozen boxes are detected."""
    state = {}
    for k, (name, shape) in enumerate(sorted(shapes.items())):
        rng = np.random.default_rng([SEED, SEEDS.index(program), k])
        value = rng.standard_normal(shape, np.float32)
        if not shape:  # num_batches_tracked
            state[name] = np.array(7)
            continue
        if name.endswith(("running_var", "add_ons.0.weight")):
            value = np.exp(value / 4)
        elif len(shape) == 4:
            value *= np.sqrt(2 / np.prod(shape[1:]))
            if shape[1] == 3 and program != "timm":  # pixels become values around 1
                value /= 60
        elif name.endswith(("norm.weight", "scale")):
            value = 20 + value
        else:
            value *= 0.1
            if any(part in name for part in ("cls_", "classification", "/conf/")):
                value.reshape(-1, CLASSES)[:, -1 if program == "mmdetection" else 0] += 10
        state[name] = value.astype(np.float32)
    return state


# Networks.


def vgg_layers(*, ceil=False):
    """VGG16 as SSD changes it: a list of layers with ReLUs and pools."""
    from torch import nn

    layers, channels = [], 3
    for item in VGG:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil or item == "C"))
        else:
            layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
            channels = item
    layers += [nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
    return [*layers, nn.Conv2d(1024, 1024, 1), nn.ReLU()]


def extra_convs():
    """The eight convolutions after the base of SSD300."""
    from torch import nn

    convs, channels = [], 1024
    for squeeze, out, how in (
        (256, 512, {"stride": 2, "padding": 1}),
        (128, 256, {"stride": 2, "padding": 1}),
        (128, 256, {}),
        (128, 256, {}),
    ):
        convs += [nn.Conv2d(channels, squeeze, 1), nn.Conv2d(squeeze, out, 3, **how)]
        channels = out
    return convs


def head_convs(values):
    from torch import nn

    boxes = [2 + 2 * len(ratios) for ratios in RATIOS[300]]
    return [
        nn.Conv2d(channels, n * values, 3, padding=1)
        for channels, n in zip(SOURCES, boxes, strict=True)
    ]


def flatten(maps, values):
    """Outputs of the heads, [B, n, H, W], as [P, values] of the first image."""
    import torch

    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, values) for m in maps], 1)[0]


def make(**children):
    """A module with these children."""
    from torch import nn

    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def l2_norm(parameter="weight"):
    import torch

    module = make()
    module.register_parameter(parameter, torch.nn.Parameter(torch.empty(512)))
    return module


def normalized(x, scale, epsilon=1e-10):
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + epsilon) * scale[None, :, None, None]


def lufficc_net():
    from torch.nn import ModuleList

    heads = {"cls_headers": CLASSES, "reg_headers": 4}
    return make(
        backbone=make(
            vgg=ModuleList(vgg_layers()), extras=ModuleList(extra_convs()), l2_norm=l2_norm()
        ),
        box_head=make(
            predictor=make(**{name: ModuleList(head_convs(n)) for name, n in heads.items()})
        ),
    )


def lufficc_forward(net, x):
    backbone, predictor = net.backbone, net.box_head.predictor
    for layer in backbone.vgg[:23]:
        x = layer(x)
    features = [normalized(x, backbone.l2_norm.weight)]
    for layer in backbone.vgg[23:]:
        x = layer(x)
    features.append(x)
    for k, layer in enumerate(backbone.extras):
        x = layer(x).relu()
        if k % 2 == 1:
            features.append(x)
    loc = [head(f) for head, f in zip(predictor.reg_headers, features, strict=True)]
    conf = [head(f) for head, f in zip(predictor.cls_headers, features, strict=True)]
    return flatten(loc, 4), flatten(conf, CLASSES)


def mmdetection_net():
    from torch.nn import ModuleList, Sequential

    convs = [make(conv=conv) for conv in extra_convs()]
    heads = {"cls_convs": CLASSES, "reg_convs": 4}
    return make(
        backbone=make(features=Sequential(*vgg_layers(ceil=True))),
        neck=make(
            l2_norm=l2_norm(),
            extra_layers=ModuleList(Sequential(*convs[k : k + 2]) for k in range(0, 8, 2)),
        ),
        bbox_head=make(
            **{k: ModuleList(Sequential(conv) for conv in head_convs(n)) for k, n in heads.items()}
        ),
    )


def mmdetection_forward(net, x):
    outs = []
    for k, layer in enumerate(net.backbone.features):
        x = layer(x)
        if k in (22, 34):
            outs.append(x)
    outs[0] = normalized(outs[0], net.neck.l2_norm.weight)
    for block in net.neck.extra_layers:
        for module in block:
            x = module.conv(x).relu()
        outs.append(x)
    loc = [conv(x) for conv, x in zip(net.bbox_head.reg_convs, outs, strict=True)]
    conf = [conv(x) for conv, x in zip(net.bbox_head.cls_convs, outs, strict=True)]
    return flatten(loc, 4), flatten(conf, CLASSES)


def qfgaohao_net(norm=None):
    from torch.nn import ModuleList, ReLU, Sequential

    convs = extra_convs()
    return make(
        base_net=ModuleList(vgg_layers()),
        extras=ModuleList(
            Sequential(convs[k], ReLU(), convs[k + 1], ReLU()) for k in range(0, 8, 2)
        ),
        classification_headers=ModuleList(head_convs(CLASSES)),
        regression_headers=ModuleList(head_convs(4)),
        source_layer_add_ons=ModuleList([norm or l2_norm("scale")]),
    )


def qfgaohao_bn_net():
    from torch.nn import BatchNorm2d

    return qfgaohao_net(BatchNorm2d(512))


def qfgaohao_forward(net, x):
    from torch.nn import functional as F

    features = []
    for k, layer in enumerate(net.base_net):
        if k == 23:
            norm = net.source_layer_add_ons[0]
            if hasattr(norm, "running_mean"):
                features.append(norm(x))
            else:
                features.append(F.normalize(x, p=2, dim=1) * norm.scale[None, :, None, None])
        x = layer(x)
    for block in (None, *net.extras):
        x = x if block is None else block(x)
        features.append(x)
    loc = [head(f) for head, f in zip(net.regression_headers, features, strict=True)]
    conf = [head(f) for head, f in zip(net.classification_headers, features, strict=True)]
    return flatten(loc, 4), flatten(conf, CLASSES)


CHAINER = {"1": (64, 2), "2": (128, 2), "3": (256, 3), "4": (512, 3), "5": (512, 3)}


def chainercv_shapes():
    shapes, channels = {"extractor/norm4/scale": (512,)}, 3
    convs = {}
    for block, (width, count) in CHAINER.items():
        for k in range(1, count + 1):
            convs[f"extractor/conv{block}_{k}"] = (width, channels, 3, 3)
            channels = width
    convs |= {"extractor/conv6": (1024, 512, 3, 3), "extractor/conv7": (1024, 1024, 1, 1)}
    for block, (into, squeeze, out) in enumerate(
        ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)), start=8
    ):
        convs[f"extractor/conv{block}_1"] = (squeeze, into, 1, 1)
        convs[f"extractor/conv{block}_2"] = (out, squeeze, 3, 3)
    for k, channels in enumerate(SOURCES):
        boxes = (len(RATIOS[300][k]) + 1) * 2
        convs[f"multibox/loc/{k}"] = (boxes * 4, channels, 3, 3)
        convs[f"multibox/conf/{k}"] = (boxes * CLASSES, channels, 3, 3)
    for name, shape in convs.items():
        shapes |= {f"{name}/W": shape, f"{name}/b": shape[:1]}
    return shapes


def chainercv_forward(links, h):
    from torch.nn import functional as F

    def conv(h, name, **how):
        return F.conv2d(h, links[f"{name}/W"], links[f"{name}/b"], **how)

    ys = []
    for block, (_, count) in CHAINER.items():
        for k in range(1, count + 1):
            h = conv(h, f"extractor/conv{block}_{k}", padding=1).relu()
        if block == "4":
            ys.append(normalized(h, links["extractor/norm4/scale"], 1e-5))
        # Chainer's pools cover the border.
        how = {"stride": 1, "padding": 1} if block == "5" else {"ceil_mode": True}
        h = F.max_pool2d(h, 3 if block == "5" else 2, **how)
    h = conv(h, "extractor/conv6", padding=6, dilation=6).relu()
    h = conv(h, "extractor/conv7").relu()
    ys.append(h)
    for block in range(8, 12):
        h = conv(h, f"extractor/conv{block}_1").relu()
        how = {"stride": 2, "padding": 1} if block < 10 else {}
        h = conv(h, f"extractor/conv{block}_2", **how).relu()
        ys.append(h)
    loc = [conv(y, f"multibox/loc/{k}", padding=1) for k, y in enumerate(ys)]
    conf = [conv(y, f"multibox/conf/{k}", padding=1) for k, y in enumerate(ys)]
    return flatten(loc, 4), flatten(conf, CLASSES)


NETS = {
    "lufficc": lufficc_net,
    "mmdetection": mmdetection_net,
    "qfgaohao": qfgaohao_net,
    "qfgaohao-bn": qfgaohao_bn_net,
}
FORWARD = {
    "lufficc": lufficc_forward,
    "mmdetection": mmdetection_forward,
    "qfgaohao": qfgaohao_forward,
    "qfgaohao-bn": qfgaohao_forward,
    "chainercv": chainercv_forward,
}
MEANS = dict.fromkeys(PROGRAMS, (123, 117, 104)) | {"mmdetection": (123.675, 116.28, 103.53)}


def torch_shapes(program):
    """Shapes of the program's arrays, by name."""
    if program == "chainercv":
        return chainercv_shapes()
    return {name: tuple(value.shape) for name, value in NETS[program]().state_dict().items()}


def forward(program, state, pixels):
    """(loc [P, 4], conf [P, C]) of an RGB image, in the order of the program."""
    import torch

    torch.set_num_threads(2)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    net = tensors
    if program in NETS:
        net = NETS[program]().eval()
        net.load_state_dict(tensors)
    x = torch.from_numpy(pixels.astype(np.float32) - np.array(MEANS[program], np.float32))
    with torch.no_grad():
        return tuple(y.numpy() for y in FORWARD[program](net, x.permute(2, 0, 1)[None]))


def timm_net():
    """VGG16 with its classifier as convolutions."""
    from torch.nn import Conv2d, Linear, MaxPool2d, Sequential

    features = [*vgg_layers()[:30], MaxPool2d(2, 2)]
    features[16] = MaxPool2d(2, 2)
    return make(
        features=Sequential(*features),
        pre_logits=make(fc1=Conv2d(512, 4096, 7), fc2=Conv2d(4096, 4096, 1)),
        head=make(fc=Linear(4096, 1000)),
    )


def timm_image():
    """[64, 64, 3] uint8, RGB."""
    return image()[:256:4, :256:4]


def timm_shapes():
    import torch

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in timm_net().state_dict().items()}


def timm_state(shapes):
    """The convolutions; the classifier is not needed for features."""
    features = {name: shape for name, shape in shapes.items() if name.startswith("features")}
    return seeded_state("timm", features)


def timm_features(state):
    """Output of conv5_3 after its ReLU, [h, w, c]."""
    import torch

    with torch.device("meta"):
        net = timm_net().features[:30]
    tensors = {k.removeprefix("features."): torch.from_numpy(v) for k, v in state.items()}
    net.load_state_dict(tensors, assign=True)
    x = torch.from_numpy(timm_image().astype(np.float32) / 255)
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return net(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


# Priors.


def loop_priors(size, min_sizes, max_sizes):
    """cx, cy, w, h of lufficc/SSD and pytorch-ssd, clipped."""
    priors = []
    for k, cells in enumerate(CELLS[size]):
        scale = size / STEPS[size][k]
        small, large = min_sizes[k] / size, math.sqrt(min_sizes[k] * max_sizes[k]) / size
        for row in range(cells):
            for column in range(cells):
                center = [(column + 0.5) / scale, (row + 0.5) / scale]
                priors += [[*center, small, small], [*center, large, large]]
                for ratio in map(math.sqrt, RATIOS[size][k]):
                    priors += [[*center, small * ratio, small / ratio]]
                    priors += [[*center, small / ratio, small * ratio]]
    return np.clip(np.array(priors), 0, 1)


LUFFICC_SIZES = {
    (300, "voc"): ((30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315)),
    (300, "coco"): ((21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315)),
    (512, "voc"): (
        (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8),
        (76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.65),
    ),
    (512, "coco"): (
        (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8),
        (51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    ),
}


def lufficc_priors(size=300, dataset="voc"):
    return loop_priors(size, *LUFFICC_SIZES[size, dataset])


def qfgaohao_priors():
    return loop_priors(300, (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315))


def mmdetection_anchors(size=300, dataset="coco"):
    """Corners in pixels: base anchors, shifted from cell to cell."""
    ratio_range = {
        (300, "coco"): (15, 90),
        (300, "voc"): (20, 90),
        (512, "coco"): (10, 90),
        (512, "voc"): (15, 90),
    }[size, dataset]
    first = {15: (7, 15), 20: (10, 20)} if size == 300 else {10: (4, 10), 15: (7, 15)}
    low, high = ratio_range
    step = int(math.floor(high - low) / (len(CELLS[size]) - 2))
    percents = [first[low], *((p, p + step) for p in range(low, high + 1, step))]
    anchors = []
    for k, cells in enumerate(CELLS[size]):
        smallest, largest = (int(size * p / 100) for p in percents[k])
        scales = (1, math.sqrt(largest / smallest))
        ratios = [1, *(r for ratio in RATIOS[size][k] for r in (1 / ratio, ratio))]  # h / w
        shapes = [
            (smallest * s / math.sqrt(r), smallest * s * math.sqrt(r))
            for s in scales
            for r in ratios
        ]
        order = [0, len(ratios), *range(1, len(ratios))]
        center = STEPS[size][k] / 2
        for row in range(cells):
            for column in range(cells):
                x, y = column * STEPS[size][k] + center, row * STEPS[size][k] + center
                for w, h in (shapes[i] for i in order):
                    anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(anchors)


def chainercv_default_boxes(size=300):
    """cy, cx, h, w."""
    sizes = {
        300: (30, 60, 111, 162, 213, 264, 315),
        512: (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    }[size]
    boxes = []
    for k, cells in enumerate(CELLS[size]):
        s, larger = sizes[k] / size, math.sqrt(sizes[k] * sizes[k + 1]) / size
        for v in range(cells):
            for u in range(cells):
                center = ((v + 0.5) * STEPS[size][k] / size, (u + 0.5) * STEPS[size][k] / size)
                boxes += [(*center, s, s), (*center, larger, larger)]
                for ratio in map(math.sqrt, RATIOS[size][k]):
                    boxes += [(*center, s / ratio, s * ratio), (*center, s * ratio, s / ratio)]
    return np.array(boxes)


# Detections: boxes (x1, y1, x2, y2, fractions of the image), scores, and labels from 1.


def softmax(conf):
    power = np.exp(conf.astype(float) - conf.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def suppress(boxes, scores, *, epsilon=0.0, suppressed=np.greater):
    """Indices of the boxes that greedy suppression at IoU 0.45 keeps, best first."""
    kept = []
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    for k in np.argsort(-scores, kind="stable"):
        low = np.maximum(boxes[k, :2], boxes[kept, :2])
        high = np.minimum(boxes[k, 2:], boxes[kept, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=1)
        iou = both / np.maximum(area[k] + area[kept] - both + epsilon, 1e-30)
        if not suppressed(iou, 0.45).any():
            kept.append(k)
    return np.array(kept, int)


def decode(loc, priors):
    """Boxes (corners) from offsets and priors (center and size), in the same order of x and y."""
    loc = loc.astype(float)
    center = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    size = priors[:, 2:] * np.exp(loc[:, 2:] * 0.2)
    return np.concatenate([center - size / 2, center + size / 2], axis=1)


def collect(found, limit=None):
    boxes, scores, labels = (np.concatenate(x) for x in zip(*found, strict=True))
    best = np.argsort(-scores, kind="stable")[:limit]
    return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best]}


def by_class(boxes, scores, first, *, candidates=None, **how):
    """(boxes, scores, labels) of each class, from the columns after `first`."""
    for label, column in enumerate(scores.T[first:], start=1):
        order = np.argsort(-column, kind="stable")
        order = order[column[order] > 0.01][:candidates]
        kept = order[suppress(boxes[order], column[order], **how)]
        yield boxes[kept], column[kept], np.full(len(kept), label)


def lufficc_detections(loc, conf):
    return collect(by_class(decode(loc, lufficc_priors()), softmax(conf), 1), 100)


def qfgaohao_detections(loc, conf):
    boxes = decode(loc, qfgaohao_priors())
    return collect(by_class(boxes, softmax(conf), 1, candidates=200, epsilon=1e-5))


def chainercv_detections(loc, conf):
    boxes = decode(loc, chainercv_default_boxes())[:, [1, 0, 3, 2]]
    return collect(by_class(boxes, softmax(conf), 1, suppressed=np.greater_equal))


def mmdetection_detections(loc, conf):
    scores, anchors = softmax(conf)[:, :-1], mmdetection_anchors()
    boxes = [2 + 2 * len(ratios) for ratios in RATIOS[300]]
    ends = np.cumsum([n * cells**2 for n, cells in zip(boxes, CELLS[300], strict=True)])
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        prior, label = np.nonzero(scores[start:end] > 0.02)
        best = np.argsort(-scores[start + prior, label], kind="stable")[:1000]
        found += zip(start + prior[best], label[best], strict=True)
    prior, label = np.array(found).T
    delta = loc[prior].astype(float) * [0.1, 0.1, 0.2, 0.2]
    size = anchors[prior, 2:] - anchors[prior, :2]
    center = (anchors[prior, :2] + anchors[prior, 2:]) / 2 + delta[:, :2] * size
    size = size * np.exp(np.clip(delta[:, 2:], -math.log(62.5), math.log(62.5)))
    corners = np.clip(np.concatenate([center - size / 2, center + size / 2], axis=1), 0, 300)
    result = []
    for k in range(CLASSES - 1):
        of_class = np.flatnonzero(label == k)
        score = scores[prior[of_class], k]
        kept = suppress(corners[of_class], score)
        result.append((corners[of_class][kept] / 300, score[kept], np.full(len(kept), k + 1)))
    return collect(result, 200)


DETECTIONS = {
    "lufficc": lufficc_detections,
    "mmdetection": mmdetection_detections,
    "qfgaohao": qfgaohao_detections,
    "qfgaohao-bn": qfgaohao_detections,
    "chainercv": chainercv_detections,
}


def record():
    index = np.unique([*np.linspace(0, 8731, 200).astype(int), *range(8732 - 44, 8732)])
    golden = {"prior_index": index}
    for program in PROGRAMS:
        shapes = torch_shapes(program)
        loc, conf = forward(program, seeded_state(program, shapes), image())
        detections = DETECTIONS[program](loc, conf)
        golden |= {f"{program}/{name}": value for name, value in detections.items()}
        golden |= {f"{program}/loc": loc[index], f"{program}/conf": conf[index]}
        golden[f"{program}/shapes"] = np.array(json.dumps(shapes))
        scores = softmax(conf)
        print(
            program,
            loc.std(),
            conf.std(axis=0),
            (scores > 0.01).sum(axis=0),
            len(detections["labels"]),
        )
    shapes = timm_shapes()
    features = timm_features(timm_state(shapes))
    golden |= {"timm/shapes": np.array(json.dumps(shapes)), "timm/conv5_3": features[..., ::8]}
    print("timm", features.shape, features.mean(), (features > 0).mean())
    np.savez_compressed(Path(__file__).parent.parent / "golden" / "layouts.npz", **golden)


if __name__ == "__main__":
    record()
