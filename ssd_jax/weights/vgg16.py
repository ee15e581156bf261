"""VGG16 classifiers of several programs as parameters of SSD's base network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ssd_jax.config import BASE_LAYERS
from ssd_jax.weights import name_maps
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import check_array
from ssd_jax.weights.layouts import VGG16_LAYOUTS, Layout, VGG16Layout

# Every third of fc6's 7x7 taps, every fourth of the 4096 units: 3x3x512x1024 and 1x1x1024x1024.
_TAPS, _UNITS = 3, 4


class VGG16Weights(NamedTuple):
    """Layers of the base network."""

    base: dict[str, Any]
    """Parameters by layer, e.g. `base["conv1_1"]["conv"]["kernel"]`."""
    image_mean: tuple[float, float, float]
    """RGB mean with which the weights were trained (0 to 255)."""
    summary: str
    """Origin of conv6 and conv7, and unused arrays."""


def load_vgg16(
    path: Path,
    values: Mapping[str, np.ndarray],
    layout: Layout,
    shapes: Mapping[name_maps.Path, tuple[int, ...]],
    *,
    advice: str = "",
) -> VGG16Weights:
    """Load the layers of a VGG16 that are in a file.

    Args:
        path: the file, for error messages.
        values: arrays of the file by name.
        layout: layout of the names.
        shapes: shapes of the network's variables, by path.
        advice: correction to name if a shape differs.

    Raises:
        WeightsError: an array is missing from a layer, has another shape or is not finite.
    """
    entry = VGG16_LAYOUTS[layout]
    names = name_maps.vgg_names(layout, values)
    layers: dict[str, dict[name_maps.Parameter, tuple[str, np.ndarray]]] = {}
    for name, (layer, kind) in names.items():
        value = values[name]
        if entry.names != "keras" and not layer.startswith("fc"):
            value = name_maps.oihw_to_hwio(value)
        layers.setdefault(layer, {})[kind] = (name, value)
    for layer, arrays in layers.items():
        if len(arrays) == 1:
            name = next(iter(arrays.values()))[0]
            raise WeightsError(f"{path} has only the kernel or the bias of {layer}: {name}")
    fc = {layer: arrays for layer, arrays in layers.items() if layer.startswith("fc")}
    features_only = entry.features_mean is not None and any(
        np.isnan(value).all() for arrays in fc.values() for _, value in arrays.values()
    )
    base: dict[str, Any] = {}
    for layer in (name for name in BASE_LAYERS if name in layers):
        for kind, (name, value) in layers[layer].items():
            check_array(path, name, value, shapes["params", "base", layer, "conv", kind], advice)
        base[layer] = {"conv": {kind: value for kind, (_, value) in layers[layer].items()}}
    if not base:
        raise WeightsError(f"{path} contains no layer of VGG16")
    subsample = "conv6" not in base and len(fc) == 2 and not features_only
    if subsample:
        base |= _reduce_classifier(path, fc, entry)
        origin = "conv6 and conv7 subsampled from fc6 and fc7"
    else:
        origin = "conv6 and conv7 as in the file" if "conv6" in base else "without conv6 and conv7"
    used = {name for name, (layer, _) in names.items() if subsample or layer not in fc}
    unused = sorted(set(values) - used)

    mean = entry.image_mean
    if features_only and entry.features_mean is not None:
        mean = entry.features_mean
    elif entry.image_std is not None and "conv1_1" in base:
        # Fold the division by the deviation into the first kernel; padding is 0 in both cases.
        scale = 255 * np.array(entry.image_std, np.float64)[None, None, :, None]
        conv = base["conv1_1"]["conv"]
        conv["kernel"] = (conv["kernel"] / scale).astype(np.float32)
    return VGG16Weights(base, mean, origin + (f"; unused: {', '.join(unused)}" if unused else ""))


def _reduce_classifier(
    path: Path,
    fc: Mapping[str, Mapping[name_maps.Parameter, tuple[str, np.ndarray]]],
    layout: VGG16Layout,
) -> dict[str, Any]:
    """Convert the arrays of fc6 and fc7 in a file to parameters of conv6 and conv7."""
    arrays = {}
    for layer, shape in layout.fc_shapes.items():
        for kind in ("kernel", "bias"):
            name, value = fc[layer][kind]
            check_array(path, name, value, shape if kind == "kernel" else (4096,))
            arrays[f"{layer}_{kind}"] = value
    if layout.names != "keras":  # Maps are flattened as (channel, row, column).
        fc6 = arrays["fc6_kernel"].reshape(4096, 512, 7, 7).transpose(2, 3, 1, 0)
        fc7 = arrays["fc7_kernel"].reshape(4096, 4096).T
    else:
        fc6, fc7 = arrays["fc6_kernel"].reshape(7, 7, 512, 4096), arrays["fc7_kernel"]
    arrays |= {"fc6_kernel": fc6, "fc7_kernel": fc7}
    return {
        layer: {"conv": {"kernel": np.array(kernel), "bias": np.array(bias)}}
        for layer, (kernel, bias) in reduce_fc(**arrays).items()
    }


def reduce_fc(
    fc6_kernel: Float[ndarray, "7 7 512 4096"],
    fc6_bias: Float[ndarray, " 4096"],
    fc7_kernel: Float[ndarray, "4096 4096"],
    fc7_bias: Float[ndarray, " 4096"],
) -> dict[str, tuple[Float[ndarray, "k k i 1024"], Float[ndarray, " 1024"]]]:
    """Subsample fc6 and fc7 to the dilated 3x3 conv6 and the 1x1 conv7.

    SSD, section 3: "we convert fc6 and fc7 to convolutional layers, subsample parameters from fc6
    and fc7", as DeepLab-LargeFOV does (Chen et al., ICLR 2015). The remaining taps lie three apart
    there; SSD dilates by 6.

    Args:
        fc6_kernel: axes are row, column, channel and unit.
        fc6_bias: bias of each unit of fc6.
        fc7_kernel: axes are unit of fc6 and unit of fc7.
        fc7_bias: bias of each unit of fc7.

    Returns:
        Kernel (HWIO) and bias of conv6 and conv7.
    """
    kernel6 = fc6_kernel[::_TAPS, ::_TAPS, :, ::_UNITS]
    kernel7 = fc7_kernel[::_UNITS, ::_UNITS][None, None]
    return {
        "conv6": (kernel6, fc6_bias[::_UNITS]),
        "conv7": (kernel7, fc7_bias[::_UNITS]),
    }
