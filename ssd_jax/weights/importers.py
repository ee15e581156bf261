"""Convert other programs' weights to a network: config and parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ssd_jax.config import (
    BASE_LAYERS,
    Config,
    ConfigError,
    ModelConfig,
    PriorConfig,
    TrainConfig,
    from_json,
)
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.weights import name_maps
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import WeightFile, check_array, first_of
from ssd_jax.weights.layouts import (
    LAYOUTS,
    SSD_LAYOUTS,
    Layout,
    SSDLayout,
    detect_format,
    markers_text,
    ssd_model,
    unsupported_network,
)
from ssd_jax.weights.vgg16 import load_vgg16

Flat = dict[name_maps.Path, np.ndarray]

_BN_EPSILON = 1e-5  # PyTorch's default
CONFIG_KEY = "ssd_jax_config"
"""Metadata key of the config in safetensors files written by `exporters`."""


class Imported(NamedTuple):
    """A network read from a file."""

    config: Config
    """Resolved config, with the settings of the other program."""
    params: dict[str, Any]
    """Parameters; of the base network alone if the file holds a classifier."""
    batch_stats: dict[str, Any]
    """Running statistics; empty without batch norm."""
    summary: str
    """Description in one line."""


def import_arrays(
    path: Path,
    arrays: WeightFile,
    *,
    layout: Layout | None = None,
    channels: str | None = None,
    classes: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> Imported:
    """Convert the arrays of a file to a network.

    Args:
        path: the file with the arrays, for error messages.
        arrays: content of the file.
        layout: layout of the names; None: detected.
        channels: channel order of the file's first convolution, "rgb" or "bgr"; None: the layout
            determines it. A BGR kernel is reversed, so that every network takes RGB.
        classes: class names without background, for a file without known ones.
        base: parameters of the base network to load a VGG16 into, which may have any width, and
            of which the file may hold a part. None: complete VGG16 at full width.

    Raises:
        WeightsError: the layout is unknown, an array is missing, unexpected or not finite, or its
            shape differs, or channels or classes do not fit. The message names the file.
    """
    values = {name.removeprefix("module."): v for name, v in arrays.values.items()}
    if CONFIG_KEY in arrays.metadata:
        return _import_own(path, WeightFile(values, arrays.metadata))
    layout = layout or detect_format(values)
    if layout is None and (network := unsupported_network(values)):
        raise WeightsError(f"{path} has the layout {network}; its network is not supported yet")
    if layout is None:
        names = ", ".join(sorted(values)[:3])
        raise WeightsError(
            f"{path} has an unknown layout, with the arrays {names}; expected one of "
            f"{markers_text()}; docs/weights.md lists the supported layouts"
        )
    channels = channels or LAYOUTS[layout].channels
    if channels is None:
        raise WeightsError(
            f"{path} does not specify the channel order of its images; import it with ssd-jax "
            f"weights import {path} --channels rgb, or bgr, --out DIR. Trained by ssd.pytorch: "
            "rgb; converted from Caffe: bgr. The incorrect order loses about five points of mAP"
        )
    if layout in SSD_LAYOUTS:
        imported = _import_ssd(path, values, layout, tuple(classes))
    else:
        imported = _import_vgg16(path, values, layout, base)
    if channels == "bgr" and (layer := imported.params["base"].get("conv1_1")):
        layer["conv"]["kernel"] = np.ascontiguousarray(layer["conv"]["kernel"][:, :, ::-1])
    order = "reversed from bgr" if channels == "bgr" else "rgb"
    return imported._replace(summary=f"{imported.summary}; channels {order}")


def _import_ssd(
    path: Path, values: Mapping[str, np.ndarray], layout: Layout, classes: tuple[str, ...]
) -> Imported:
    entry = SSD_LAYOUTS[layout]
    for name, reason in entry.unsupported.items():
        if name in values:
            raise WeightsError(f"{path} has {name}, {reason}")
    first = entry.name(entry.head("conf", 0), "bias")
    if first not in values:
        raise WeightsError(f"{path} lacks {first}; it is not a {layout} state dict of an SSD")
    num_classes, rest = divmod(values[first].size, 4)
    if rest or num_classes < 2:
        raise WeightsError(
            f"{path}: {first} has shape {values[first].shape}; expected 4 boxes of at least 2 "
            "classes, with background"
        )
    # SSD512 has a fifth pair of extra layers.
    large = entry.name(entry.extra(8), "kernel")
    image_size = 512 if 512 in entry.image_sizes and large in values else 300
    names = _class_names(path, num_classes - 1, classes, entry)
    model = replace(ssd_model(image_size, names), image_mean=entry.image_mean)
    if entry.batch_norm and f"{entry.batch_norm}.running_mean" in values:
        values = _fold_batch_norm(path, values, entry.batch_norm)
        model = replace(model, feature_norm="affine")
    dataset, priors = entry.priors(image_size, len(names))
    flat = _to_flat_params(path, values, entry, model, priors)
    config = Config(
        model=model,
        priors=priors,
        train=TrainConfig(matching=entry.matching),
        eval=entry.eval_config(len(names)),
    )
    summary = f"{layout} SSD{image_size}, {len(names)} classes, {dataset.upper()}'s priors"
    return Imported(config, traverse_util.unflatten_dict(flat), {}, summary)


def _fold_batch_norm(
    path: Path, values: Mapping[str, np.ndarray], name: str
) -> dict[str, np.ndarray]:
    """Replace conv4_3's batch norm in PyTorch by the arrays of `name_maps.AFFINE_NAMES`."""
    rest = {k: v for k, v in values.items() if k != f"{name}.num_batches_tracked"}
    arrays = []
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        key = f"{name}.{leaf}"
        if key not in rest:
            raise WeightsError(f"{path} lacks {key}")
        check_array(path, key, rest[key], (512,))
        arrays.append(rest.pop(key).astype(np.float64))
    weight, bias, mean, var = arrays
    if var.min() < 0:
        raise WeightsError(f"{path}: {name}.running_var is negative")
    scale = weight / np.sqrt(var + _BN_EPSILON)
    folded = {"scale": scale, "offset": bias - mean * scale}
    return rest | {f"{name}.{k}": v.astype(np.float32) for k, v in folded.items()}


def _class_names(
    path: Path, count: int, names: tuple[str, ...], layout: SSDLayout
) -> tuple[str, ...]:
    if names and len(names) != count:
        raise WeightsError(
            f"--classes names {len(names)} classes and {path} has {count} without background"
        )
    return names or layout.classes.get(count) or tuple(f"class {k}" for k in range(1, count + 1))


def _shapes(model: ModelConfig, priors: PriorConfig) -> dict[name_maps.Path, tuple[int, ...]]:
    tree = variable_shapes(make_model(model, priors))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def _to_flat_params(
    path: Path,
    values: Mapping[str, np.ndarray],
    layout: SSDLayout,
    model: ModelConfig,
    priors: PriorConfig,
) -> Flat:
    paths = name_maps.ssd_names(layout, model)
    missing = [name for name in paths if name not in values]
    if missing:
        raise WeightsError(f"{path} lacks {first_of(missing)}")
    unexpected = sorted(set(values) - set(paths))
    if unexpected:
        raise WeightsError(
            f"{path} has {first_of(unexpected)}, which belongs to no layer of the network"
        )
    shapes = _shapes(model, priors)
    flat = {}
    for name, target in paths.items():
        shape = shapes["params", *target]
        oihw = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        check_array(path, name, values[name], oihw)
        value = name_maps.to_head_order(layout, target, values[name], model.num_classes)
        flat[target] = name_maps.oihw_to_hwio(value)
    return flat


def _import_vgg16(
    path: Path, values: Mapping[str, np.ndarray], layout: Layout, base: Mapping[str, Any] | None
) -> Imported:
    if base is None:
        shapes = _shapes(ModelConfig(classes=("object",)), PriorConfig())
        weights = load_vgg16(path, values, layout, shapes)
        missing = [name for name in BASE_LAYERS[:13] if name not in weights.base]
        if missing:
            raise WeightsError(f"{path} lacks {first_of(missing)} of VGG16")
    else:
        shapes = {
            k: v.shape
            for k, v in traverse_util.flatten_dict({"params": {"base": dict(base)}}).items()
        }
        advice = "; VGG16's weights need model.width_multiplier 1.0"
        weights = load_vgg16(path, values, layout, shapes, advice=advice)
    config = Config(model=ModelConfig(image_mean=weights.image_mean))
    summary = f"{layout} weights of SSD's base network; {weights.summary}"
    return Imported(config, {"base": weights.base}, {}, summary)


def _import_own(path: Path, arrays: WeightFile) -> Imported:
    """Import what `exporters` wrote: the same network, bit for bit."""
    try:
        config = from_json(arrays.metadata[CONFIG_KEY])
    except (ConfigError, TypeError) as error:
        raise WeightsError(f"{path} has no valid config: {error}") from None
    shapes = {"/".join(p): s for p, s in _shapes(config.model, config.priors).items()}
    if missing := sorted(set(shapes) - set(arrays.values)):
        raise WeightsError(f"{path} lacks {first_of(missing)}")
    if unexpected := sorted(set(arrays.values) - set(shapes)):
        raise WeightsError(
            f"{path} has {first_of(unexpected)}, which belongs to no layer of its config"
        )
    for name, shape in shapes.items():
        check_array(path, name, arrays.values[name], shape)
    tree = traverse_util.unflatten_dict(arrays.values, sep="/")
    summary = f"ssd_jax SSD{config.model.image_size}, {len(config.model.classes)} classes"
    return Imported(config, tree["params"], tree.get("batch_stats", {}), summary)
