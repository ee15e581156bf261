"""Published weights: where they are, how a download is verified, and what they hold.

An entry states only what its sources publish; an unknown size or hash is None. `download.fetch`
downloads an entry.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ssd_jax.config import shorten
from ssd_jax.weights.errors import WeightsError


@dataclass(frozen=True)
class Score:
    """A published result."""

    value: float
    """Score in percent."""
    metric: str
    """AP (COCO's), mAP (VOC's, 2007 metric) or top-1."""
    dataset: str
    """Dataset and split."""
    source: str
    """URL of the publication."""


@dataclass(frozen=True)
class Licence:
    """A licence and where it is stated."""

    name: str
    """SPDX identifier."""
    source: str
    """URL of the statement."""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file."""

    name: str
    """Network and data, then the origin if another entry has the same ones."""
    description: str
    """Network, data and origin in one line."""
    urls: tuple[str, ...]
    """URLs of the file, tried in order."""
    file: str = ""
    """Name of the file in the cache and in mirrors; default: that of the first URL."""
    size: int | None = None
    """Size (bytes)."""
    rounded_size: int | None = None
    """Size if only a rounded one is published (bytes)."""
    sha256: str | None = None
    """SHA-256, or the prefix of it that is published."""
    sha1: str | None = None
    """SHA-1."""
    md5: str | None = None
    """MD5."""
    layout: str
    """Names and order of the arrays, as `layouts.Layout`, which may lack it: see `note`."""
    channels: Literal["rgb", "bgr"]
    """Channel order that the first convolution expects."""
    dataset: str
    """Training data."""
    classes: int | None
    """Number of detected classes, without background; None: the weights are of a base network."""
    licence: Licence | None
    """Licence; None: not stated."""
    score: Score | None = None
    """Published result, if any."""
    config: str | None = None
    """Config with the same network or base network."""
    note: str = ""
    """Remark in one line."""

    def __post_init__(self) -> None:
        if not self.file:
            object.__setattr__(self, "file", urlsplit(self.urls[0]).path.rpartition("/")[2])

    @property
    def hashes(self) -> tuple[tuple[str, str], ...]:
        """Names and values of the known hashes; that of SHA-256 may be a prefix."""
        named = (("SHA-256", self.sha256), ("SHA-1", self.sha1), ("MD5", self.md5))
        return tuple((name, value) for name, value in named if value is not None)

    @property
    def size_text(self) -> str:
        """Size in MB, or "unknown"."""
        size = self.size or self.rounded_size
        if size is None:
            return "unknown"
        return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"

    @property
    def classes_text(self) -> str:
        """Number of classes and dataset."""
        return self.dataset if self.classes is None else f"{self.classes} {self.dataset}"


def find_entry(name: str) -> PublishedWeights:
    """Return the entry of a name.

    Raises:
        WeightsError: the name is unknown; the message lists similar ones.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    similar = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.5)
    advice = f"perhaps you meant {' or '.join(similar)}; " if similar else ""
    raise WeightsError(
        f"unknown weights: {shorten([name], 1)}; {advice}ssd-jax weights list shows all names"
    )


_TORCH = "https://download.pytorch.org/models/"
_TORCHVISION = "https://github.com/pytorch/vision/blob/main/"
_LUFFICC = "https://github.com/lufficc/SSD/"
_LUFFICC_FILES = f"{_LUFFICC}releases/download/1.2/"
_LUFFICC_README = f"{_LUFFICC}blob/master/README.md"
_MMDETECTION = "https://github.com/open-mmlab/mmdetection/blob/main/"
_MMDETECTION_FILES = "https://download.openmmlab.com/mmdetection/v2.0/ssd/"
_CHAINERCV = "https://github.com/chainer/chainercv/blob/master/"
_CHAINERCV_FILES = "https://chainercv-models.preferred.jp/"
_SSD_PYTORCH = "https://github.com/amdegroot/ssd.pytorch/"
_SSD_PYTORCH_FILES = "https://s3.amazonaws.com/amdegroot-models/"
_MOBILENET = "https://github.com/chuanqi305/MobileNet-SSD/blob/master/"

_BSD = Licence("BSD-3-Clause", f"{_TORCHVISION}LICENSE")
_LUFFICC_MIT = Licence("MIT", f"{_LUFFICC}blob/master/LICENSE")
_APACHE = Licence("Apache-2.0", f"{_MMDETECTION}LICENSE")
_CHAINERCV_MIT = Licence("MIT", f"{_CHAINERCV}LICENSE")
_SSD_PYTORCH_MIT = Licence("MIT", f"{_SSD_PYTORCH}blob/master/LICENSE")

_OLD_BUCKET = "the bucket is old and may no longer be served"
_FROM_CAFFE = "converted from the Caffe model of the paper's authors"
_NEXT = "the network is not supported yet"


def _table(*entries: PublishedWeights) -> Mapping[str, PublishedWeights]:
    return {entry.name: entry for entry in entries}


ENTRIES: Mapping[str, PublishedWeights] = _table(
    PublishedWeights(
        name="ssd300-vgg16-voc",
        description="SSD300 with VGG16, trained on VOC07+12 by lufficc/SSD",
        urls=(f"{_LUFFICC_FILES}vgg_ssd300_voc0712.pth",),
        rounded_size=201 << 20,
        layout="lufficc",
        channels="rgb",
        dataset="VOC",
        classes=20,
        licence=_LUFFICC_MIT,
        score=Score(77.7, "mAP", "VOC07 test", _LUFFICC_README),
        config="ssd300_voc0712",
    ),
    PublishedWeights(
        name="ssd300-vgg16-voc-amdegroot",
        description="SSD300 with VGG16, trained on VOC07+12 by amdegroot/ssd.pytorch",
        urls=(f"{_SSD_PYTORCH_FILES}ssd300_mAP_77.43_v2.pth",),
        layout="ssd.pytorch",
        channels="rgb",
        dataset="VOC",
        classes=20,
        licence=_SSD_PYTORCH_MIT,
        score=Score(77.43, "mAP", "VOC07 test", f"{_SSD_PYTORCH}blob/master/README.md"),
        config="ssd300_voc0712",
        note=_OLD_BUCKET,
    ),
    PublishedWeights(
        name="ssd300-vgg16-voc-chainercv",
        description="SSD300 with VGG16, trained on VOC07+12 by the paper's authors",
        urls=(f"{_CHAINERCV_FILES}ssd300_voc0712_converted_2017_06_06.npz",),
        md5="d420da9ec06c3d33820658394cfc305a",
        layout="chainercv",
        channels="rgb",
        dataset="VOC",
        classes=20,
        licence=_CHAINERCV_MIT,
        score=Score(77.8, "mAP", "VOC07 test", f"{_CHAINERCV}examples/ssd/README.md"),
        config="ssd300_voc0712",
        note=f"{_FROM_CAFFE}; the server may be gone",
    ),
    PublishedWeights(
        name="ssd300-vgg16-coco",
        description="SSD300 with VGG16, trained on COCO by torchvision",
        urls=(f"{_TORCH}ssd300_vgg16_coco-b556d3b4.pth",),
        size=142_594_222,
        sha256="b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d",
        layout="torchvision-ssd",
        channels="rgb",
        dataset="COCO",
        classes=90,
        licence=_BSD,
        score=Score(
            25.1, "AP", "COCO val2017", f"{_TORCHVISION}torchvision/models/detection/ssd.py"
        ),
        config="ssd300_coco",
        note="ten of the classes are unused category ids",
    ),
    PublishedWeights(
        name="ssd300-vgg16-coco-lufficc",
        description="SSD300 with VGG16, trained on COCO trainval35k by lufficc/SSD",
        urls=(f"{_LUFFICC_FILES}vgg_ssd300_coco_trainval35k.pth",),
        rounded_size=262 << 20,
        layout="lufficc",
        channels="rgb",
        dataset="COCO",
        classes=80,
        licence=_LUFFICC_MIT,
        score=Score(25.2, "AP", "COCO minival2014", _LUFFICC_README),
        config="ssd300_coco",
    ),
    PublishedWeights(
        name="ssd300-vgg16-coco-mmdet",
        description="SSD300 with VGG16, trained on COCO by MMDetection",
        urls=(f"{_MMDETECTION_FILES}ssd300_coco/ssd300_coco_20210803_015428-d231a06e.pth",),
        sha256="d231a06e",
        layout="mmdetection",
        channels="rgb",
        dataset="COCO",
        classes=80,
        licence=_APACHE,
        score=Score(25.5, "AP", "COCO val2017", f"{_MMDETECTION}configs/ssd/metafile.yml"),
        config="ssd300_coco",
    ),
    PublishedWeights(
        name="ssd512-vgg16-voc",
        description="SSD512 with VGG16, trained on VOC07+12 by lufficc/SSD",
        urls=(f"{_LUFFICC_FILES}vgg_ssd512_voc0712.pth",),
        rounded_size=207 << 20,
        layout="lufficc",
        channels="rgb",
        dataset="VOC",
        classes=20,
        licence=_LUFFICC_MIT,
        score=Score(80.7, "mAP", "VOC07 test", _LUFFICC_README),
        config="ssd512_voc0712",
    ),
    PublishedWeights(
        name="ssd512-vgg16-voc-chainercv",
        description="SSD512 with VGG16, trained on VOC07+12 by the paper's authors",
        urls=(f"{_CHAINERCV_FILES}ssd512_voc0712_converted_2017_06_06.npz",),
        md5="45de03b7bdaabb83cf5a25119662cd9e",
        layout="chainercv",
        channels="rgb",
        dataset="VOC",
        classes=20,
        licence=_CHAINERCV_MIT,
        score=Score(79.7, "mAP", "VOC07 test", f"{_CHAINERCV}examples/ssd/README.md"),
        config="ssd512_voc0712",
        note=f"{_FROM_CAFFE}; the server may be gone",
    ),
    PublishedWeights(
        name="ssd512-vgg16-coco",
        description="SSD512 with VGG16, trained on COCO trainval35k by lufficc/SSD",
        urls=(f"{_LUFFICC_FILES}vgg_ssd512_coco_trainval35k.pth",),
        rounded_size=275 << 20,
        layout="lufficc",
        channels="rgb",
        dataset="COCO",
        classes=80,
        licence=_LUFFICC_MIT,
        score=Score(29.0, "AP", "COCO minival2014", _LUFFICC_README),
        config="ssd512_coco",
    ),
    PublishedWeights(
        name="ssd512-vgg16-coco-mmdet",
        description="SSD512 with VGG16, trained on COCO by MMDetection",
        urls=(f"{_MMDETECTION_FILES}ssd512_coco/ssd512_coco_20210803_022849-0a47a1ca.pth",),
        sha256="0a47a1ca",
        layout="mmdetection",
        channels="rgb",
        dataset="COCO",
        classes=80,
        licence=_APACHE,
        score=Score(29.5, "AP", "COCO val2017", f"{_MMDETECTION}configs/ssd/metafile.yml"),
        config="ssd512_coco",
    ),
    PublishedWeights(
        name="vgg16-imagenet",
        description="VGG16 classifier, trained on ImageNet by torchvision",
        urls=(f"{_TORCH}vgg16-397923af.pth",),
        size=553_433_881,
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        layout="torchvision-vgg16",
        channels="rgb",
        dataset="ImageNet",
        classes=None,
        licence=_BSD,
        score=Score(71.592, "top-1", "ImageNet val", f"{_TORCHVISION}torchvision/models/vgg.py"),
        config="ssd300_voc0712",
        note="conv6 and conv7 are subsampled from fc6 and fc7",
    ),
    PublishedWeights(
        name="vgg16-imagenet-timm",
        description="VGG16 classifier of torchvision, as published by timm",
        urls=("https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors",),
        file="vgg16.tv_in1k.safetensors",
        rounded_size=553_000_000,
        sha256="57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
        layout="timm-vgg16",
        channels="rgb",
        dataset="ImageNet",
        classes=None,
        licence=Licence("BSD-3-Clause", "https://huggingface.co/timm/vgg16.tv_in1k"),
        config="ssd300_voc0712",
        note="conv6 and conv7 are subsampled from fc6 and fc7",
    ),
    PublishedWeights(
        name="vgg16-imagenet-keras",
        description="VGG16 without top, trained on ImageNet by VGG, as published by Keras",
        urls=(
            "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "https://github.com/fchollet/deep-learning-models/releases/download/v0.1/"
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        size=58_889_256,
        md5="6d6bbae143d832006294945121d1f1fc",
        layout="keras-vgg16",
        channels="bgr",
        dataset="ImageNet",
        classes=None,
        licence=Licence("CC-BY-4.0", "https://www.robots.ox.ac.uk/~vgg/research/very_deep/"),
        config="ssd300_voc0712",
        note="without conv6 and conv7",
    ),
    PublishedWeights(
        name="vgg16-imagenet-amdegroot",
        description="VGG16 with conv6 and conv7, the base network of amdegroot/ssd.pytorch",
        urls=(f"{_SSD_PYTORCH_FILES}vgg16_reducedfc.pth",),
        layout="vgg16_reducedfc",
        channels="bgr",
        dataset="ImageNet",
        classes=None,
        licence=None,
        config="ssd300_voc0712",
        note=_OLD_BUCKET,
    ),
    PublishedWeights(
        name="vgg16-imagenet-features",
        description="VGG16 of amdegroot/ssd.pytorch without conv6 and conv7, by torchvision",
        urls=(f"{_TORCH}vgg16_features-amdegroot-88682ab5.pth",),
        rounded_size=553_440_510,
        sha256="88682ab5",
        layout="torchvision-vgg16",
        channels="rgb",
        dataset="ImageNet",
        classes=None,
        licence=_BSD,
        config="ssd300_voc0712",
        note="without conv6 and conv7; its classifier is NaN",
    ),
    PublishedWeights(
        name="mobilenet-ssd-voc",
        description="SSD300 with MobileNet, trained on VOC07+12 by chuanqi305/MobileNet-SSD",
        urls=(
            "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public/2021.4/"
            "mobilenet-ssd/MobileNetSSD_deploy.caffemodel",
            "https://github.com/PINTO0309/MobileNet-SSD-RealSense/raw/master/caffemodel/"
            "MobileNetSSD/MobileNetSSD_deploy.caffemodel",
            "https://drive.google.com/uc?export=download&id=0B3gersZ2cHIxRm5PMWRoTkdHdHc",
        ),
        size=23_147_564,
        sha256="761c86fbae3d8361dd454f7c740a964f62975ed32f4324b8b85994edec30f6af",
        sha1="994d30a8afaa9e754d17d2373b2d62a7dfbaaf7a",
        layout="caffe-mobilenet-ssd",
        channels="bgr",
        dataset="VOC",
        classes=20,
        licence=Licence("MIT", f"{_MOBILENET}LICENSE"),
        score=Score(72.7, "mAP", "VOC07 test", f"{_MOBILENET}README.md"),
        note=_NEXT,
    ),
    PublishedWeights(
        name="ssdlite320-mobilenet-v3-coco",
        description="SSDLite320 with MobileNetV3-Large, trained on COCO by torchvision",
        urls=(f"{_TORCH}ssdlite320_mobilenet_v3_large_coco-a79551df.pth",),
        size=14_069_355,
        sha256="a79551df90c79834bcd3bb3845ef9d966b5449a3a9b2833ae8404778ca5d65d2",
        layout="torchvision-ssdlite",
        channels="rgb",
        dataset="COCO",
        classes=90,
        licence=_BSD,
        score=Score(
            21.3, "AP", "COCO val2017", f"{_TORCHVISION}torchvision/models/detection/ssdlite.py"
        ),
        note=_NEXT,
    ),
)
"""Entries by name."""
