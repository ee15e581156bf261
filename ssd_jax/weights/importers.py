"""Other programs' weights as a network of ours: its config and its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from ssd_jax.config import (
    BASE_LAYERS,
    Config,
    EvalConfig,
    ModelConfig,
    PriorConfig,
    TrainConfig,
    from_json,
)
from ssd_jax.models.ssd import make_model
from ssd_jax.weights import name_maps
from ssd_jax.weights.class_names import COCO91_CLASSES, VOC_CLASSES
from ssd_jax.weights.files import WeightFile, WeightsError
from ssd_jax.weights.name_maps import Layout
from ssd_jax.weights.reduced_fc import reduce_fc

Flat = dict[name_maps.Path, np.ndarray]

CONFIG_KEY = "ssd_jax_config"
"""Metadata of a safetensors file that this project wrote."""

_MEAN_TORCHVISION = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)
_MEAN_KERAS = (123.68, 116.779, 103.939)
# What torchvision's classifiers see: (image / 255 - mean) / std.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The order that conv1_1 wants; a layout that is not here does not tell.
_CHANNELS = {
    "torchvision-ssd": "rgb",
    "torchvision-vgg16": "rgb",
    "vgg16_reducedfc": "bgr",
    "keras-vgg16": "bgr",
}


class Imported(NamedTuple):
    """A network from a file."""

    config: Config
    """The whole config, with what the other program does otherwise."""
    params: dict[str, Any]
    """Parameters; of the base alone where the file holds a classifier."""
    batch_stats: dict[str, Any]
    """Running statistics; empty without batch norm."""
    summary: str
    """One line: what it is."""


def import_arrays(
    path: Path,
    arrays: WeightFile,
    *,
    layout: Layout | None = None,
    channels: str | None = None,
    classes: Sequence[str] = (),
) -> Imported:
    """The network in `arrays`, which were read from `path`.

    `layout` None: found from the names. `channels` is the order, "rgb" or "bgr", that the first
    convolution of the file wants; None where the layout tells. A bgr kernel is turned round, so
    that every network here eats RGB. `classes` are the names without background, for a file whose
    classes are not known.

    Raises WeightsError, naming the file, if it is of no known layout, if an array is missing,
    surplus, of another shape or not finite, or if channels or classes do not fit.
    """
    values = {name.removeprefix("module."): v for name, v in arrays.values.items()}
    if layout is None and CONFIG_KEY in arrays.metadata:
        return _import_own(path, WeightFile(values, arrays.metadata))
    layout = layout or name_maps.detect_format(values)
    if layout is None:
        some = ", ".join(sorted(values)[:3])
        raise WeightsError(
            f"{path} is of no known layout: it holds {some}; docs/weights.md has the known ones"
        )
    channels = channels or _CHANNELS.get(layout)
    if channels is None:
        raise WeightsError(
            f"--channels is missing: {path} does not tell whether it wants rgb or bgr. Trained by "
            "ssd.pytorch or torchvision: rgb; converted from Caffe: bgr. If in doubt evaluate "
            "both: the wrong one loses some five points of mAP"
        )
    if layout in ("ssd.pytorch", "torchvision-ssd"):
        imported = _import_ssd(path, values, layout, tuple(classes))
    else:
        imported = _import_vgg(path, values, layout)
    if channels == "bgr":
        conv = imported.params["base"]["conv1_1"]["conv"]
        conv["kernel"] = np.ascontiguousarray(conv["kernel"][:, :, ::-1])
    turned = "turned from bgr" if channels == "bgr" else "as they are"
    summary = f"{imported.summary}; channels {turned}"
    return imported._replace(summary=summary)


def _import_ssd(
    path: Path, values: Mapping[str, np.ndarray], layout: Layout, classes: tuple[str, ...]
) -> Imported:
    torchvision = layout == "torchvision-ssd"
    image_size = 512 if not torchvision and "extras.8.weight" in values else 300
    first = "head.classification_head.module_list.0.bias" if torchvision else "conf.0.bias"
    if first not in values:
        raise WeightsError(f"{path} misses {first}; it is no {layout} state dict of an SSD")
    num_classes, rest = divmod(values[first].size, 4)
    if rest or num_classes < 2:
        raise WeightsError(
            f"{path}: {first} has shape {values[first].shape}; 4 boxes of at least 2 classes, with "
            "background, were expected"
        )
    names = _class_names(path, num_classes - 1, classes, torchvision)
    model = name_maps.ssd_model(image_size, names)
    # ssd.pytorch's own rule: 21 classes have VOC's priors, all others COCO's.
    kind = "voc" if num_classes == 21 and not torchvision else "coco"
    priors = name_maps.PRIORS[image_size, kind]
    if torchvision:
        config = Config(
            model=replace(model, image_mean=_MEAN_TORCHVISION),
            priors=replace(priors, clip_wh=True),
            train=TrainConfig(matching="per_object"),
            eval=EvalConfig(clip_boxes=True, max_box_scale=1000 / 16),
        )
        place = name_maps.torchvision_ssd_names(model)
    else:
        # The best 200 of each class, and no limit to an image.
        config = Config(
            model=model,
            priors=replace(priors, clip=True),
            train=TrainConfig(matching="per_object"),
            eval=EvalConfig(topk_candidates=200, detections_per_image=200 * len(names)),
        )
        place = name_maps.ssd_pytorch_names(model)
    flat = _place_all(path, values, place, _shapes(model, priors))
    summary = f"{layout} SSD{image_size}, {len(names)} classes, {kind.upper()}'s priors"
    return Imported(config, traverse_util.unflatten_dict(flat), {}, summary)


def _class_names(
    path: Path, count: int, given: tuple[str, ...], torchvision: bool
) -> tuple[str, ...]:
    if given:
        if len(given) != count:
            raise WeightsError(
                f"--classes names {len(given)} classes and {path} has {count} beside background"
            )
        return given
    if torchvision and count == 90:
        return COCO91_CLASSES
    if not torchvision and count == 20:
        return VOC_CLASSES
    return tuple(f"class {k}" for k in range(1, count + 1))


def _shapes(model: ModelConfig, priors: PriorConfig) -> dict[name_maps.Path, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), "uint8")
    tree = jax.eval_shape(make_model(model, priors).init, jax.random.key(0), image)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _place_all(
    path: Path,
    values: Mapping[str, np.ndarray],
    place: Mapping[str, name_maps.Path],
    shapes: Mapping[name_maps.Path, tuple[int, ...]],
) -> Flat:
    missing = [name for name in place if name not in values]
    if missing:
        raise WeightsError(f"{path} misses {_some(missing)}")
    surplus = sorted(set(values) - set(place))
    if surplus:
        raise WeightsError(f"{path} has {_some(surplus)}, which no layer here takes")
    flat = {}
    for name, ours in place.items():
        shape = shapes[ours]
        theirs = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        _check_array(path, name, values[name], theirs)
        flat[ours] = name_maps.oihw_to_hwio(values[name])
    return flat


def _check_array(path: Path, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise WeightsError(f"{path}: {name} has shape {value.shape} and the network {shape}")
    if not np.issubdtype(value.dtype, np.floating):
        raise WeightsError(f"{path}: {name} is of type {value.dtype}; expected floating point")
    if not np.all(np.isfinite(value)):
        raise WeightsError(f"{path}: {name} is not finite")


def _import_vgg(path: Path, values: Mapping[str, np.ndarray], layout: Layout) -> Imported:
    by_torch = layout in ("vgg16_reducedfc", "torchvision-vgg16")
    found: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    for name, (layer, kind) in name_maps.vgg_names(layout, values).items():
        value = values[name]
        value = name_maps.oihw_to_hwio(value) if by_torch else value
        found.setdefault(layer, {})[kind] = (name, value)
    half = [layer for layer, kinds in found.items() if len(kinds) == 1]
    if half:
        raise WeightsError(f"{path} has only half of {half[0]}")

    shapes = _shapes(ModelConfig(classes=("object",)), PriorConfig())
    shapes |= _fc_shapes(by_torch)
    base: dict[str, Any] = {}
    features_only = False
    for layer, kinds in found.items():
        for kind, (name, value) in kinds.items():
            if layer.startswith("fc") and layout == "torchvision-vgg16" and np.isnan(value).all():
                # IMAGENET1K_FEATURES: the weights that SSD starts from have no classifier.
                features_only = True
                continue
            _check_array(path, name, value, shapes["base", layer, "conv", kind])
    if features_only:
        found = {layer: kinds for layer, kinds in found.items() if not layer.startswith("fc")}
    for layer, kinds in found.items():
        if not layer.startswith("fc"):
            base[layer] = {"conv": {kind: value for kind, (_, value) in kinds.items()}}
    missing = [name for name in BASE_LAYERS[:13] if name not in base]
    if missing:
        raise WeightsError(f"{path} misses {_some(missing)} of VGG16")
    if "conv6" not in base and {"fc6", "fc7"} <= set(found):
        fc = {f"{layer}_{kind}": found[layer][kind][1] for layer in ("fc6", "fc7") for kind in _FC}
        if by_torch:  # Dense layers of PyTorch are [out, in], and their input is flat CHW.
            kernel = fc["fc6_kernel"].reshape(4096, 512, 7, 7).transpose(2, 3, 1, 0)
            fc |= {"fc6_kernel": kernel, "fc7_kernel": fc["fc7_kernel"].T}
        else:
            fc["fc6_kernel"] = fc["fc6_kernel"].reshape(7, 7, 512, 4096)
        for layer, (kernel, bias) in reduce_fc(**fc).items():
            base[layer] = {"conv": {"kernel": np.array(kernel), "bias": np.array(bias)}}
        how = "conv6 and conv7 subsampled from fc6 and fc7"
    else:
        how = "conv6 and conv7 as they are" if "conv6" in base else "conv6 and conv7 start fresh"

    mean = ModelConfig().image_mean
    if layout == "keras-vgg16":
        mean = _MEAN_KERAS
    elif features_only:
        mean = _MEAN_TORCHVISION
    elif layout == "torchvision-vgg16":
        # The division goes into the first kernel; padding is 0 before and after it.
        mean = (255 * _IMAGENET_MEAN[0], 255 * _IMAGENET_MEAN[1], 255 * _IMAGENET_MEAN[2])
        scale = 255 * np.array(_IMAGENET_STD, np.float64)[None, None, :, None]
        conv = base["conv1_1"]["conv"]
        conv["kernel"] = (conv["kernel"] / scale).astype(np.float32)
    config = Config(model=ModelConfig(image_mean=mean))
    summary = f"{layout}, the base of SSD; {how}; start from it with model.init_from"
    return Imported(config, {"base": base}, {}, summary)


_FC = ("kernel", "bias")


def _fc_shapes(by_torch: bool) -> dict[name_maps.Path, tuple[int, ...]]:
    shapes: dict[name_maps.Path, tuple[int, ...]] = {}
    for layer, inputs in (("fc6", 7 * 7 * 512), ("fc7", 4096)):
        shape = (4096, inputs) if by_torch else (inputs, 4096)
        shapes["base", layer, "conv", "kernel"] = shape
        shapes["base", layer, "conv", "bias"] = (4096,)
    return shapes


def _import_own(path: Path, arrays: WeightFile) -> Imported:
    """What `exports` wrote: the same network, to the bit."""
    config = from_json(arrays.metadata[CONFIG_KEY])
    image = jax.ShapeDtypeStruct((1, config.model.image_size, config.model.image_size, 3), "uint8")
    model = make_model(config.model, config.priors)
    like = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")
    missing, surplus = (
        sorted(set(like) - set(arrays.values)),
        sorted(set(arrays.values) - set(like)),
    )
    if missing:
        raise WeightsError(f"{path} misses {_some(missing)}")
    if surplus:
        raise WeightsError(f"{path} has {_some(surplus)}, which no layer of its config takes")
    for name, leaf in like.items():
        _check_array(path, name, arrays.values[name], leaf.shape)
    tree = traverse_util.unflatten_dict(arrays.values, sep="/")
    summary = f"ssd_jax SSD{config.model.image_size}, {len(config.model.classes)} classes"
    return Imported(config, tree["params"], tree.get("batch_stats", {}), summary)
