"""Layouts of other programs' weights: names and order of the arrays, and settings of the programs.

Sources: ssd.pytorch's ssd.py and data/config.py; lufficc/SSD's ssd/modeling/, ssd/config/ and
configs/vgg_ssd*.yaml; mmdetection's (2.14 and later) ssd_vgg.py, ssd_neck.py, ssd_head.py,
anchor_generator.py and configs/_base_/models/ssd300.py; torchvision's models/detection/ssd.py;
pytorch-ssd's vision/ssd/vgg_ssd.py and vision/ssd/config/vgg_ssd_config.py; chainercv's
links/model/ssd/ and examples/ssd/caffe2npz.py; examples/ssd/ssd_pascal*.py, ssd_coco.py and
python/caffe/model_libs.py of weiliu89/caffe, branch ssd; timm's models/vgg.py.

All flatten their heads by rows, columns and boxes, and order the boxes of a cell as
`ssd_jax.ops.priors.make_priors` does.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from ssd_jax.config import EvalConfig, ExtraBlock, ModelConfig, PriorConfig
from ssd_jax.weights.class_names import COCO91_CLASSES, COCO_CLASSES, VOC_CLASSES

Layout = Literal[
    "ssd.pytorch",
    "lufficc",
    "mmdetection",
    "torchvision-ssd",
    "qfgaohao",
    "chainercv",
    "caffe-ssd",
    "vgg16_reducedfc",
    "torchvision-vgg16",
    "timm-vgg16",
    "caffe-vgg16",
    "caffe-vgg16-reduced",
    "vgg16",
    "keras-vgg16",
]
Channels = Literal["rgb", "bgr"]
Dataset = Literal["voc", "coco"]
Color = tuple[float, float, float]

SSD512_EXTRAS = (
    ExtraBlock(256, 512, stride=2, padding=1),
    *[ExtraBlock(128, 256, stride=2, padding=1)] * 3,
    ExtraBlock(128, 256, kernel_size=4, padding=1),
)
_STEPS_512 = (8, 16, 32, 64, 128, 256, 512)
_RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
PRIORS: Mapping[tuple[int, Dataset], PriorConfig] = {
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
_MEAN, _EVAL = ModelConfig().image_mean, EvalConfig()
_MAX_DETECTIONS = 100_000  # the range of eval.detections_per_image


def ssd_model(image_size: int, classes: tuple[str, ...]) -> ModelConfig:
    """Return the config of SSD300 or SSD512 at full width."""
    base = ModelConfig(classes=classes)
    if image_size == 300:
        return base
    feature_layers = (*base.feature_layers, "conv12_2")
    return replace(base, image_size=512, feature_layers=feature_layers, extras=SSD512_EXTRAS)


class Marker(NamedTuple):
    """An array by which a layout is detected."""

    name: str
    """Its name."""
    shape: tuple[int | None, ...] | None = None
    """Its shape, if other networks have arrays of that name; None in it: any size."""
    pattern: str = ""
    """Regular expression that a part of the name matches, instead of the whole name."""

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether an array is the marker."""
        if not (re.search(self.pattern, name) if self.pattern else name == self.name):
            return False
        if self.shape is None:
            return True
        pairs = zip(self.shape, shape, strict=False)
        return len(self.shape) == len(shape) and all(a in (None, b) for a, b in pairs)

    def __str__(self) -> str:
        """Return the name and the shape, for error messages."""
        sizes = ", ".join("*" if n is None else str(n) for n in self.shape or ())
        return f"{self.name} [{sizes}]" if sizes else self.name


@dataclass(frozen=True, kw_only=True)
class SSDLayout:
    """SSD of another program.

    Numbers of classes do not include background.
    """

    markers: tuple[Marker, ...]
    """The layout is detected by any of these."""
    base: Callable[[str, int], str]
    """Returns the name of a layer of the base, given its name here and its position in a list of
    layers with ReLUs and pools."""
    norm: str
    """Name of the scale of conv4_3's L2 normalization."""
    batch_norm: str = ""
    """Name of conv4_3's batch norm, in variants of the network that have one instead."""
    extra: Callable[[int], str]
    """Returns the name of an extra layer, given its index."""
    loc: str
    """Name of a head's convolution to box offsets, with {} for the name or index of the head."""
    conf: str
    """Name of a head's convolution to class logits."""
    heads: tuple[str, ...] = ()
    """Names of the heads; empty: their indices."""
    leaf: str = "{}.{}"
    """Name of a kernel or bias, with {} for the names of the layer and of the parameter."""
    kernel: str = "weight"
    bias: str = "bias"
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """Arrays of variants of the network that cannot be imported, each with the reason."""

    image_sizes: tuple[int, ...] = (300, 512)
    """Input sizes of the program's models."""
    background_last: bool = False
    """Background is the last class, not the first."""
    offset_order: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Indices of the offsets of cx, cy, w and h."""
    channels: Channels | None = "rgb"
    """Channel order of conv1_1; None: the layout does not determine it."""
    image_mean: Color = _MEAN
    """RGB mean (0 to 255)."""

    classes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Class names by number of classes."""
    dataset: Dataset = "voc"
    """Dataset whose priors the program uses."""
    datasets: Mapping[int, Dataset] = field(default_factory=dict)
    """The same for certain numbers of classes."""
    sizes: Mapping[tuple[int, Dataset], tuple[float, ...]] = field(default_factory=dict)
    """Sizes of priors that differ from `PRIORS`."""
    clip: Literal["clip", "clip_wh"] | None = None
    """Field of the config that clips the priors as the program does."""
    matching: Literal["bipartite", "per_object"] = "per_object"
    """Matching rule of training."""
    eval: EvalConfig = _EVAL
    """Settings of detection."""
    limit_per_image: bool = True
    """False: the program keeps any number of detections per image."""

    def head(self, name: Literal["loc", "conf"], index: int) -> str:
        """Return the name of a head's convolution."""
        pattern = self.loc if name == "loc" else self.conf
        return pattern.format(self.heads[index] if self.heads else index)

    def name(self, layer: str, parameter: Literal["kernel", "bias"]) -> str:
        """Return the name of a parameter of a convolution."""
        return self.leaf.format(layer, getattr(self, parameter))

    def priors(self, image_size: int, num_classes: int) -> tuple[Dataset, PriorConfig]:
        """Return the program's priors, and the dataset they are made for."""
        dataset = self.datasets.get(num_classes, self.dataset)
        priors = PRIORS[image_size, dataset]
        changes: dict[str, Any] = {self.clip: True} if self.clip else {}
        if (image_size, dataset) in self.sizes:
            changes["sizes"] = self.sizes[image_size, dataset]
        return dataset, replace(priors, **changes)

    def eval_config(self, num_classes: int) -> EvalConfig:
        """Return the program's settings of detection."""
        if self.limit_per_image:
            return self.eval
        most = min(self.eval.topk_candidates * num_classes, _MAX_DETECTIONS)
        return replace(self.eval, detections_per_image=most)


def _torchvision_base(layer: str, position: int) -> str:
    # Split after conv4_3: `extra.0` starts with pool4, and its nested `extra.0.7` with pool5.
    if layer in ("conv6", "conv7"):
        return f"backbone.extra.0.7.{position - 30}"
    if layer.startswith("conv5"):
        return f"backbone.extra.0.{position - 23}"
    return f"backbone.features.{position}"


_TORCHVISION_SSD_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)

SSD_LAYOUTS: Mapping[Layout, SSDLayout] = {
    "ssd.pytorch": SSDLayout(
        markers=(Marker("vgg.0.weight"),),
        base=lambda layer, position: f"vgg.{position}",
        norm="L2Norm.weight",
        extra=lambda k: f"extras.{k}",
        loc="loc.{}",
        conf="conf.{}",
        channels=None,
        classes={20: VOC_CLASSES},
        dataset="coco",
        datasets={20: "voc"},
        clip="clip",
        eval=EvalConfig(topk_candidates=200),
        limit_per_image=False,
    ),
    "lufficc": SSDLayout(
        markers=(Marker("backbone.vgg.0.weight"),),
        base=lambda layer, position: f"backbone.vgg.{position}",
        norm="backbone.l2_norm.weight",
        extra=lambda k: f"backbone.extras.{k}",
        loc="box_head.predictor.reg_headers.{}",
        conf="box_head.predictor.cls_headers.{}",
        classes={20: VOC_CLASSES, 80: COCO_CLASSES},
        datasets={80: "coco"},
        sizes={(512, "voc"): (*PRIORS[512, "voc"].sizes[:-1], 537.65)},
        clip="clip",
        eval=EvalConfig(detections_per_image=100),
    ),
    "mmdetection": SSDLayout(
        markers=(
            Marker("neck.l2_norm.weight"),
            Marker("bbox_head.cls_convs.0.0.weight"),
            Marker("bbox_head.cls_convs.0.weight", (None, 512, 3, 3)),
        ),
        base=lambda layer, position: f"backbone.features.{position}",
        norm="neck.l2_norm.weight",
        extra=lambda k: f"neck.extra_layers.{k // 2}.{k % 2}.conv",
        loc="bbox_head.reg_convs.{}.0",
        conf="bbox_head.cls_convs.{}.0",
        background_last=True,
        image_mean=(123.675, 116.28, 103.53),
        classes={20: VOC_CLASSES, 80: COCO_CLASSES},
        dataset="coco",
        datasets={20: "voc"},
        # Whole pixels.
        sizes={
            (512, "voc"): (35, 76, 153, 230, 307, 384, 460, 537),
            (512, "coco"): (20, 51, 133, 215, 296, 378, 460, 542),
        },
        eval=EvalConfig(score_threshold=0.02, clip_boxes=True, max_box_scale=1000 / 16),
        # Before 2.0 background was the first class; the file does not show it.
        unsupported={
            "bbox_head.cls_convs.0.weight": "a name of mmdetection before 2.14; convert a file of "
            "2.0 to 2.13 with mmdetection's tools/model_converters/upgrade_ssd_version.py"
        },
    ),
    "torchvision-ssd": SSDLayout(
        markers=(Marker("backbone.features.0.weight"),),
        base=_torchvision_base,
        norm="backbone.scale_weight",
        extra=lambda k: f"backbone.extra.{1 + k // 2}.{k % 2 * 2}",
        loc="head.regression_head.module_list.{}",
        conf="head.classification_head.module_list.{}",
        image_sizes=(300,),
        image_mean=_TORCHVISION_SSD_MEAN,
        classes={90: COCO91_CLASSES},
        dataset="coco",
        clip="clip_wh",
        eval=EvalConfig(clip_boxes=True, max_box_scale=1000 / 16),
    ),
    "qfgaohao": SSDLayout(
        markers=(Marker("base_net.0.weight"),),
        base=lambda layer, position: f"base_net.{position}",
        norm="source_layer_add_ons.0.scale",
        batch_norm="source_layer_add_ons.0",
        extra=lambda k: f"extras.{k // 2}.{k % 2 * 2}",
        loc="regression_headers.{}",
        conf="classification_headers.{}",
        image_sizes=(300,),
        classes={20: VOC_CLASSES},
        clip="clip",
        eval=EvalConfig(topk_candidates=200),
        limit_per_image=False,
    ),
    "chainercv": SSDLayout(
        markers=(Marker("extractor/conv1_1/W"),),
        base=lambda layer, position: f"extractor/{layer}",
        norm="extractor/norm4/scale",
        extra=lambda k: f"extractor/conv{8 + k // 2}_{1 + k % 2}",
        loc="multibox/loc/{}",
        conf="multibox/conf/{}",
        leaf="{}/{}",
        kernel="W",
        bias="b",
        # Boxes are (cy, cx, h, w).
        offset_order=(1, 0, 3, 2),
        classes={20: VOC_CLASSES},
        matching="bipartite",
        limit_per_image=False,
    ),
    "caffe-ssd": SSDLayout(
        markers=(Marker("conv4_3_norm_mbox_conf/0"), Marker("conv4_3_norm/0")),
        base=lambda layer, position: {"conv6": "fc6", "conv7": "fc7"}.get(layer, layer),
        norm="conv4_3_norm/0",
        extra=lambda k: f"conv{6 + k // 2}_{1 + k % 2}",
        loc="{}_mbox_loc",
        conf="{}_mbox_conf",
        heads=("conv4_3_norm", "fc7", *(f"conv{k}_2" for k in range(6, 11))),
        leaf="{}/{}",
        kernel="0",
        bias="1",
        channels="bgr",
        classes={20: VOC_CLASSES, 80: COCO_CLASSES},
        datasets={80: "coco"},
        matching="bipartite",
    ),
}
"""SSDs of other programs. Of several layouts whose markers a file has, it has the first."""


_TORCHVISION_FC = {"classifier.0": "fc6", "classifier.3": "fc7"}
_DENSE_FC = {"fc6": (4096, 512 * 7 * 7), "fc7": (4096, 4096)}
_CAFFE_FC = {"fc6": "fc6", "fc7": "fc7"}
_KERAS_FC = {"fc6": (7 * 7 * 512, 4096), "fc7": (4096, 4096)}


@dataclass(frozen=True, kw_only=True)
class VGG16Layout:
    """VGG16 classifier, or SSD's base network, of another program."""

    markers: tuple[Marker, ...]
    """The layout is detected by any of these."""
    names: Literal["torch", "caffe", "keras"] = "torch"
    """torch: names of layers are positions in a list. caffe: conv1_1/0 and conv1_1/1. keras: names
    contain conv1_1 or block1_conv1; kernels are HWIO and dense kernels (in, out), otherwise OIHW
    and (out, in)."""
    fc: Mapping[str, str] = field(default_factory=lambda: _TORCHVISION_FC)
    """Layers here by names of the classifier's layers in PyTorch or Caffe."""
    fc_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: _DENSE_FC)
    """Shapes of their kernels."""
    channels: Channels
    """Channel order of conv1_1."""
    image_mean: Color = _MEAN
    """RGB mean (0 to 255)."""
    image_std: Color | None = None
    """The network takes (image / 255 - mean) / std in RGB; None: it takes image - mean."""
    features_mean: Color | None = None
    """RGB mean of files whose classifier is NaN, which take image - mean."""


_IMAGE_KERNEL = (None, 3, 3, 3)
_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_IMAGENET_STD = (0.229, 0.224, 0.225)

VGG16_LAYOUTS: Mapping[Layout, VGG16Layout] = {
    "timm-vgg16": VGG16Layout(
        markers=(Marker("pre_logits.fc1.weight", (None, None, 7, 7)),),
        fc={"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7"},
        fc_shapes={"fc6": (4096, 512, 7, 7), "fc7": (4096, 4096, 1, 1)},
        channels="rgb",
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
    ),
    "torchvision-vgg16": VGG16Layout(
        markers=(Marker("features.0.weight", _IMAGE_KERNEL),),
        channels="rgb",
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
        # IMAGENET1K_FEATURES, the initial weights of torchvision's SSD.
        features_mean=_TORCHVISION_SSD_MEAN,
    ),
    "vgg16_reducedfc": VGG16Layout(
        markers=(Marker("0.weight", _IMAGE_KERNEL),),
        channels="bgr",
    ),
    # VGG_ILSVRC_16_layers_fc_reduced.caffemodel, the initial weights of the SSDs in Caffe.
    "caffe-vgg16-reduced": VGG16Layout(
        markers=(Marker("fc6/0", (1024, 512, 3, 3)),),
        names="caffe",
        fc={"fc6": "conv6", "fc7": "conv7"},
        channels="bgr",
    ),
    # VGG_ILSVRC_16_layers.caffemodel.
    "caffe-vgg16": VGG16Layout(
        markers=(Marker("conv1_1/0", _IMAGE_KERNEL),),
        names="caffe",
        fc=_CAFFE_FC,
        channels="bgr",
        image_mean=_CAFFE_MEAN,
    ),
    "keras-vgg16": VGG16Layout(
        markers=(Marker("block1_conv1", pattern="block1_conv1"),),
        names="keras",
        fc_shapes=_KERAS_FC,
        channels="bgr",
        image_mean=_CAFFE_MEAN,
    ),
    "vgg16": VGG16Layout(
        markers=(Marker("conv1_1", pattern="(?<![a-z0-9])conv1_1(?![0-9])"),),
        names="keras",
        fc_shapes=_KERAS_FC,
        channels="bgr",
    ),
}
"""VGG16 of other programs. Of several layouts whose markers a file has, it has the first."""

LAYOUTS: Mapping[Layout, SSDLayout | VGG16Layout] = {**SSD_LAYOUTS, **VGG16_LAYOUTS}

UNSUPPORTED_NETWORKS: Mapping[str, Marker] = {
    "caffe-mobilenet-ssd": Marker("conv11_mbox_loc/0", (None, 512, 1, 1)),
}
"""Markers of networks that are recognised but not supported, by layout."""


def detect_format(values: Mapping[str, np.ndarray]) -> Layout | None:
    """Detect the layout of a file from the names and shapes of its arrays; None if unknown."""
    shapes = {name: np.shape(value) for name, value in values.items()}
    for layout, entry in LAYOUTS.items():
        for marker in entry.markers:
            if any(marker.matches(name, shape) for name, shape in shapes.items()):
                return layout
    return None


def unsupported_network(values: Mapping[str, np.ndarray]) -> str | None:
    """Return the layout of an unsupported network, given its arrays; None if unknown."""
    for layout, marker in UNSUPPORTED_NETWORKS.items():
        if any(marker.matches(name, np.shape(value)) for name, value in values.items()):
            return layout
    return None


def markers_text() -> str:
    """List the arrays by which layouts are detected, for error messages."""
    return ", ".join(
        f"{' or '.join(map(str, entry.markers))} ({layout})" for layout, entry in LAYOUTS.items()
    )
