"""Names and layouts of other programs' weights: which array of theirs is which of ours.

ssd.pytorch numbers its VGG16 by a list that counts ReLUs and pools too; so does torchvision, which
cuts it behind conv4_3. Both keep kernels as OIHW and flatten their heads row by row, column by
column and box by box, as here, so that a kernel is only transposed. torchvision's ssd300_vgg16:
torchvision/models/detection/ssd.py; ssd.pytorch: ssd.py.
"""

import re
from collections.abc import Collection
from typing import Literal

import numpy as np

from ssd_jax.config import BASE_LAYERS, ModelConfig, PriorConfig

Layout = Literal[
    "ssd.pytorch", "torchvision-ssd", "vgg16_reducedfc", "torchvision-vgg16", "vgg16", "keras-vgg16"
]
Path = tuple[str, ...]
"""Where a parameter lies in ours, e.g. ("base", "conv1_1", "conv", "kernel")."""

# Positions of the convolutions in the list of layers: conv1_1 to conv5_3, conv6, conv7.
_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
_KINDS = ("w", "weight", "weights", "kernel", "b", "bias", "biases")
_LEAVES = (("weight", "kernel"), ("bias", "bias"))
_BASE = dict(zip(BASE_LAYERS, _POSITIONS, strict=True))

SSD512_EXTRAS = ((256, 512, 3, 2, 1), *[(128, 256, 3, 2, 1)] * 3, (128, 256, 4, 1, 1))
_STEPS_512 = (8, 16, 32, 64, 128, 256, 512)
_RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
# Sizes of the published models, of VOC and of COCO, by the side of the image.
PRIORS = {
    (300, "voc"): PriorConfig(),
    (300, "coco"): PriorConfig(sizes=(21, 45, 99, 153, 207, 261, 315)),
    (512, "voc"): PriorConfig(
        sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
        steps=_STEPS_512,
        aspect_ratios=_RATIOS_512,
    ),
    (512, "coco"): PriorConfig(
        sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
        steps=_STEPS_512,
        aspect_ratios=_RATIOS_512,
    ),
}


def ssd_model(image_size: int, classes: tuple[str, ...]) -> ModelConfig:
    """SSD300 or SSD512 at the full width."""
    base = ModelConfig(classes=classes)
    if image_size == 300:
        return base
    sources = (*base.feature_layers, "conv12_2")
    return ModelConfig(
        classes=classes, image_size=512, feature_layers=sources, extras=SSD512_EXTRAS
    )


def _both(theirs: str, ours: Path) -> dict[str, Path]:
    """Weight and bias of a convolution."""
    return {f"{theirs}.{leaf}": (*ours, name) for leaf, name in _LEAVES}


def ssd_pytorch_names(model: ModelConfig) -> dict[str, Path]:
    """The names of ssd.pytorch's state dict, in its order, and the place of each here."""
    names: dict[str, Path] = {}
    for layer, position in _BASE.items():
        names |= _both(f"vgg.{position}", ("base", layer, "conv"))
    names["L2Norm.weight"] = ("l2norm_conv4_3", "scale")
    for k in range(2 * len(model.extras)):
        names |= _both(f"extras.{k}", ("extras", f"conv{8 + k // 2}_{1 + k % 2}", "conv"))
    for head in ("loc", "conf"):
        for i, source in enumerate(model.feature_layers):
            names |= _both(f"{head}.{i}", (f"head_{source}", head))
    return names


def torchvision_ssd_names(model: ModelConfig) -> dict[str, Path]:
    """The names of torchvision's ssd300_vgg16 and the place of each here."""
    names: dict[str, Path] = {"backbone.scale_weight": ("l2norm_conv4_3", "scale")}
    for layer, position in _BASE.items():
        if layer in ("conv6", "conv7"):
            # A pool comes first; there is a ReLU between the two.
            theirs = f"backbone.extra.0.7.{1 if layer == 'conv6' else 3}"
        elif layer.startswith("conv5"):
            theirs = f"backbone.extra.0.{position - 23}"
        else:
            theirs = f"backbone.features.{position}"
        names |= _both(theirs, ("base", layer, "conv"))
    for k in range(len(model.extras)):
        for i in (1, 2):
            names |= _both(
                f"backbone.extra.{k + 1}.{2 * i - 2}", ("extras", f"conv{8 + k}_{i}", "conv")
            )
    for theirs, head in (("classification", "conf"), ("regression", "loc")):
        for i, source in enumerate(model.feature_layers):
            names |= _both(f"head.{theirs}_head.module_list.{i}", (f"head_{source}", head))
    return names


def vgg_names(layout: Layout, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """(layer, kernel or bias) of each array of a VGG16: layer conv1_1 to conv7, or fc6, fc7.

    What is left out belongs to no layer of the base, as the classifier's last layer.
    """
    found = {}
    for name in names:
        place = _vgg_place(layout, name)
        if place is not None:
            found[name] = place
    return found


def _vgg_place(layout: Layout, name: str) -> tuple[str, str] | None:
    if layout in ("vgg16_reducedfc", "torchvision-vgg16"):
        *room, index, leaf = ("", *name.split("."))
        position = int(index) if index.isdigit() else -1
        kind = dict(_LEAVES).get(leaf)
        if kind is None:
            return None
        if "classifier" in room:
            fc = {0: "fc6", 3: "fc7"}.get(position)
            return (fc, kind) if fc else None
        layers = {p: layer for layer, p in _BASE.items()}
        return (layers[position], kind) if position in layers else None
    # LAYER/w and LAYER/b; Keras' own names in their several generations.
    keras = re.search(r"block(\d)_conv(\d)", name)
    layer = f"conv{keras[1]}_{keras[2]}" if keras else None
    if layer is None:
        plain = re.search(r"(?<![a-z0-9])(conv\d_\d|conv[67]|fc[1267])(?![0-9])", name)
        layer = plain[1] if plain else None
    if layer is None:
        return None
    layer = {"fc1": "fc6", "fc2": "fc7"}.get(layer, layer)
    # Keras 1: block1_conv1_W_1:0; Keras 3 numbers a layer's variables: block1_conv1/vars/0.
    old = re.search(r"_([Wb])_\d+(:0)?$", name)
    numbered = re.search(r"/vars/([01])$", name)
    if numbered:
        return layer, "kernel" if numbered[1] == "0" else "bias"
    last = old[1] if old else re.split(r"[/_.]", name.removesuffix(":0"))[-1]
    kind = {"w": "kernel", "b": "bias"}.get(last[:1].lower())
    kind = "kernel" if last == "kernel" else kind
    return (layer, kind) if kind and last.lower() in _KINDS else None


def detect_format(names: Collection[str]) -> Layout | None:
    """The layout that the names of a file's arrays are of, None for none that is known."""
    if "vgg.0.weight" in names:
        return "ssd.pytorch"
    if "backbone.features.0.weight" in names:
        return "torchvision-ssd"
    if "features.0.weight" in names:
        return "torchvision-vgg16"
    if "0.weight" in names:
        return "vgg16_reducedfc"
    if any("block1_conv1" in name for name in names):
        return "keras-vgg16"
    if any(re.search(r"(?<![a-z0-9])conv1_1(?![0-9])", name) for name in names):
        return "vgg16"
    return None


def oihw_to_hwio(value: np.ndarray) -> np.ndarray:
    """OIHW to HWIO; what is no kernel stays."""
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if value.ndim == 4 else value


def hwio_to_oihw(value: np.ndarray) -> np.ndarray:
    """HWIO to OIHW; what is no kernel stays."""
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
