"""Maps from the array names of other programs' weights to parameters."""

import re
from collections.abc import Collection
from typing import Literal

import numpy as np

from ssd_jax.config import ModelConfig
from ssd_jax.models.vgg import VGG16_LAYERS, ConvLayer, extra_layers
from ssd_jax.weights.layouts import SSD_LAYOUTS, VGG16_LAYOUTS, Layout, SSDLayout, VGG16Layout

Path = tuple[str, ...]
"""Path of a parameter in the network's tree, e.g. ("base", "conv1_1", "conv", "kernel")."""
Parameter = Literal["kernel", "bias"]

_KINDS = ("w", "weight", "weights", "kernel", "b", "bias", "biases")
AFFINE_NAMES: dict[str, Path] = {
    "scale": ("affine_conv4_3", "scale"),
    "offset": ("affine_conv4_3", "bias"),
}
"""Names of a batch norm with fixed statistics, with the path of each."""
_PARAMETERS: tuple[Parameter, ...] = ("kernel", "bias")


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
"""Position of each convolution of the base in the module lists of programs in PyTorch."""


def ssd_names(layout: SSDLayout, model: ModelConfig) -> dict[str, Path]:
    """Map the names of another program's SSD, in the order of the layers, to parameter paths."""
    names: dict[str, Path] = {}

    def add(layer: str, path: Path) -> None:
        names.update({layout.name(layer, leaf): (*path, leaf) for leaf in _PARAMETERS})

    for layer, position in VGG16_POSITIONS.items():
        add(layout.base(layer, position), ("base", layer, "conv"))
    if model.feature_norm == "affine":
        names |= {f"{layout.batch_norm}.{leaf}": path for leaf, path in AFFINE_NAMES.items()}
    else:
        names[layout.norm] = ("l2norm_conv4_3", "scale")
    for k, extra in enumerate(extra_layers(model)):
        add(layout.extra(k), ("extras", extra.name, "conv"))
    heads: tuple[Literal["loc", "conf"], ...] = ("loc", "conf")
    for head in heads:
        for k, layer in enumerate(model.feature_layers):
            add(layout.head(head, k), (f"head_{layer}", head))
    return names


def ssd_pytorch_names(model: ModelConfig) -> dict[str, Path]:
    """Map the names of ssd.pytorch's state dict to parameter paths."""
    return ssd_names(SSD_LAYOUTS["ssd.pytorch"], model)


def torchvision_ssd_names(model: ModelConfig) -> dict[str, Path]:
    """Map the names of torchvision's ssd300_vgg16 state dict to parameter paths."""
    return ssd_names(SSD_LAYOUTS["torchvision-ssd"], model)


def to_head_order(layout: SSDLayout, path: Path, value: np.ndarray, num_classes: int) -> np.ndarray:
    """Reorder the output channels of a head of another program; other arrays are unchanged.

    Args:
        layout: the program's layout.
        path: path of the parameter.
        value: array of the file, whose first axis is ordered by box, and for each box by class or
            offset.
        num_classes: number of classes with background.
    """
    if path[1] == "conf" and layout.background_last:
        order = (num_classes - 1, *range(num_classes - 1))
    elif path[1] == "loc":
        order = layout.offset_order
    else:
        return value
    return value.reshape(-1, len(order), *value.shape[1:])[:, order].reshape(value.shape)


def vgg_names(layout: Layout, names: Collection[str]) -> dict[str, tuple[str, Parameter]]:
    """Map the names of a VGG16 file's arrays to (layer, kernel or bias).

    Layers are conv1_1 to conv7, fc6 and fc7. Arrays of other layers, such as the last one of the
    classifier, are left out.
    """
    entry = VGG16_LAYOUTS[layout]
    find = {"torch": _torch_vgg_layer, "caffe": _caffe_vgg_layer, "keras": _vgg_layer}[entry.names]
    targets = {name: find(entry, name) for name in names}
    return {name: target for name, target in targets.items() if target is not None}


def _torch_vgg_layer(layout: VGG16Layout, name: str) -> tuple[str, Parameter] | None:
    module, _, leaf = name.rpartition(".")
    kinds: dict[str, Parameter] = {"weight": "kernel", "bias": "bias"}
    if leaf not in kinds:
        return None
    layers = {str(position): layer for layer, position in VGG16_POSITIONS.items()}
    fc = {layer for end, layer in layout.fc.items() if f".{module}".endswith(f".{end}")}
    layer = fc.pop() if fc else layers.get(module.rpartition(".")[2])
    return (layer, kinds[leaf]) if layer else None


def _caffe_vgg_layer(layout: VGG16Layout, name: str) -> tuple[str, Parameter] | None:
    module, _, index = name.rpartition("/")
    kinds: dict[str, Parameter] = {"0": "kernel", "1": "bias"}
    layer = layout.fc.get(module, module)
    known = layer in VGG16_POSITIONS or layer in layout.fc.values()
    return (layer, kinds[index]) if known and index in kinds else None


def _vgg_layer(layout: VGG16Layout, name: str) -> tuple[str, Parameter] | None:
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
    kinds: dict[str, Parameter] = {"w": "kernel", "b": "bias"}
    kind = "kernel" if last == "kernel" else kinds.get(last[:1].lower())
    return (layer, kind) if kind and last.lower() in _KINDS else None


def oihw_to_hwio(value: np.ndarray) -> np.ndarray:
    """Transpose a kernel from OIHW to HWIO; other arrays are returned unchanged."""
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if value.ndim == 4 else value


def hwio_to_oihw(value: np.ndarray) -> np.ndarray:
    """Transpose a kernel from HWIO to OIHW; other arrays are returned unchanged."""
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
