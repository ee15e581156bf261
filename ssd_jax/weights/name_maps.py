"""Maps from the array names of other programs' weights to parameters.

ssd.pytorch numbers VGG16's layers in a list with ReLUs and pools; so does torchvision, which splits
the list after conv4_3. Both store kernels as OIHW and flatten their heads by rows, columns and
boxes, as here, so kernels only need a transpose. Sources: torchvision/models/detection/ssd.py and
ssd.pytorch's ssd.py.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import numpy as np

from ssd_jax.config import ExtraBlock, ModelConfig, PriorConfig
from ssd_jax.models.vgg import VGG16_LAYERS, ConvLayer, extra_layers

Layout = Literal[
    "ssd.pytorch", "torchvision-ssd", "vgg16_reducedfc", "torchvision-vgg16", "vgg16", "keras-vgg16"
]
Path = tuple[str, ...]
"""Path of a parameter in the network's tree, e.g. ("base", "conv1_1", "conv", "kernel")."""

_KINDS = ("w", "weight", "weights", "kernel", "b", "bias", "biases")
_LEAVES = (("weight", "kernel"), ("bias", "bias"))

SSD512_EXTRAS = (
    ExtraBlock(256, 512, stride=2, padding=1),
    *[ExtraBlock(128, 256, stride=2, padding=1)] * 3,
    ExtraBlock(128, 256, kernel_size=4, padding=1),
)
_STEPS_512 = (8, 16, 32, 64, 128, 256, 512)
_RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
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
"""Priors of the published models, by image size and dataset."""


def ssd_model(image_size: int, classes: tuple[str, ...]) -> ModelConfig:
    """Return the config of SSD300 or SSD512 at full width."""
    base = ModelConfig(classes=classes)
    if image_size == 300:
        return base
    feature_layers = (*base.feature_layers, "conv12_2")
    return replace(base, image_size=512, feature_layers=feature_layers, extras=SSD512_EXTRAS)


def _vgg_positions() -> dict[str, int]:
    """Return the position of each convolution in a list of layers with ReLUs and pools."""
    positions: dict[str, int] = {}
    position = 0
    for layer in VGG16_LAYERS:
        if isinstance(layer, ConvLayer):
            positions[layer.name] = position
            position += 1  # the ReLU
        position += 1
    return positions


VGG16_POSITIONS = _vgg_positions()
"""Position of each convolution of the base in the module lists of ssd.pytorch and torchvision."""


def _weight_and_bias(name: str, path: Path) -> dict[str, Path]:
    return {f"{name}.{leaf}": (*path, parameter) for leaf, parameter in _LEAVES}


def ssd_pytorch_names(model: ModelConfig) -> dict[str, Path]:
    """Map the names of ssd.pytorch's state dict, in its order, to parameter paths."""
    names: dict[str, Path] = {}
    for layer, position in VGG16_POSITIONS.items():
        names |= _weight_and_bias(f"vgg.{position}", ("base", layer, "conv"))
    names["L2Norm.weight"] = ("l2norm_conv4_3", "scale")
    for k, extra in enumerate(extra_layers(model)):
        names |= _weight_and_bias(f"extras.{k}", ("extras", extra.name, "conv"))
    for head in ("loc", "conf"):
        for k, layer in enumerate(model.feature_layers):
            names |= _weight_and_bias(f"{head}.{k}", (f"head_{layer}", head))
    return names


def torchvision_ssd_names(model: ModelConfig) -> dict[str, Path]:
    """Map the names of torchvision's ssd300_vgg16 state dict to parameter paths."""
    names: dict[str, Path] = {"backbone.scale_weight": ("l2norm_conv4_3", "scale")}
    for layer, position in VGG16_POSITIONS.items():
        # `extra.0` starts with pool4, and its nested `extra.0.7` with pool5.
        module, start = "backbone.features", 0
        if layer in ("conv6", "conv7"):
            module, start = "backbone.extra.0.7", 30
        elif layer.startswith("conv5"):
            module, start = "backbone.extra.0", 23
        names |= _weight_and_bias(f"{module}.{position - start}", ("base", layer, "conv"))
    for k, extra in enumerate(extra_layers(model)):
        # Pairs of two convolutions, each followed by a ReLU.
        name = f"backbone.extra.{1 + k // 2}.{k % 2 * 2}"
        names |= _weight_and_bias(name, ("extras", extra.name, "conv"))
    for module, head in (("classification", "conf"), ("regression", "loc")):
        for k, layer in enumerate(model.feature_layers):
            name = f"head.{module}_head.module_list.{k}"
            names |= _weight_and_bias(name, (f"head_{layer}", head))
    return names


def vgg_names(layout: Layout, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Map the names of a VGG16 file's arrays to (layer, kernel or bias).

    Layers are conv1_1 to conv7, fc6 and fc7. Arrays of other layers, such as the last one of the
    classifier, are left out.
    """
    targets = {name: _vgg_layer(layout, name) for name in names}
    return {name: target for name, target in targets.items() if target is not None}


def _vgg_layer(layout: Layout, name: str) -> tuple[str, str] | None:
    if layout in ("vgg16_reducedfc", "torchvision-vgg16"):
        *module, index, leaf = ("", *name.split("."))
        position = int(index) if index.isdigit() else -1
        kind = dict(_LEAVES).get(leaf)
        if kind is None:
            return None
        if "classifier" in module:
            fc = {0: "fc6", 3: "fc7"}.get(position)
            return (fc, kind) if fc else None
        layers = {p: layer for layer, p in VGG16_POSITIONS.items()}
        return (layers[position], kind) if position in layers else None
    # LAYER/w and LAYER/b, or the names of several generations of Keras.
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
    """Detect the layout of a file from the names of its arrays; None if unknown."""
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
    """Transpose a kernel from OIHW to HWIO; other arrays are returned unchanged."""
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if value.ndim == 4 else value


def hwio_to_oihw(value: np.ndarray) -> np.ndarray:
    """Transpose a kernel from HWIO to OIHW; other arrays are returned unchanged."""
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
