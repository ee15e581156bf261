"""Opening the data source that a config describes, and finding its classes."""

from pathlib import Path

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.errors import DataError, OnFinding, raise_errors
from ssd_jax.data.formats.coco import CocoSource, coco_classes
from ssd_jax.data.formats.synthetic import SHAPES, SyntheticSource
from ssd_jax.data.formats.voc import VocSource, voc_classes
from ssd_jax.data.formats.yolo import YoloSource, yolo_classes
from ssd_jax.data.formats.yolo_yaml import YAML_SUFFIXES, is_described_by, yaml_files
from ssd_jax.data.types import Annotation, DataSource, Example
from ssd_jax.io import is_file, reason
from ssd_jax.weights.class_names import read_class_names

__all__ = [
    "Annotation",
    "DataError",
    "DataSource",
    "Example",
    "SyntheticSource",
    "find_classes",
    "open_source",
]


def open_source(
    data: DataConfig, split: str, classes: tuple[str, ...], on_finding: OnFinding = raise_errors
) -> DataSource:
    """Open the source that the config describes, for one of its splits.

    Args:
        data: the dataset.
        split: data.train_split, data.eval_split or another of that form.
        classes: names of the classes, without background; see `find_classes`.
        on_finding: receives errors and warnings; see `VocSource`, `CocoSource` and `YoloSource`.

    Raises:
        ConfigError: the split or the classes cannot be used with this format.
        DataError: the data is missing or cannot be used.
    """
    format_ = detect_format(data)
    if format_ == "voc":
        return VocSource(data.root, split, classes, on_finding)
    if format_ == "coco":
        return CocoSource(data.root, split, classes, on_finding)
    if format_ == "yolo":
        return YoloSource(data.root, split, classes, on_finding)
    if format_ == "tfds":
        # TFDS takes a second to import.
        from ssd_jax.data.tfds.source import TfdsSource

        return TfdsSource(data.root, split, classes, data.tfds, on_finding)
    if tuple(classes) != SHAPES:
        raise ConfigError(
            f"model.classes is {tuple(classes)}; generated shapes have {', '.join(SHAPES)}: "
            "leave it and data.class_file empty"
        )
    stream, _, count = split.partition(":")
    if not (stream and count.isascii() and count.isdecimal() and int(count) > 0):
        field = "data.eval_split" if split == data.eval_split else "data.train_split"
        raise ConfigError(
            f"{field} is {split!r}; generated shapes need NAME:COUNT, e.g. train:2000"
        )
    return SyntheticSource(int(count), stream)


def find_classes(
    data: DataConfig, classes: tuple[str, ...], on_finding: OnFinding = raise_errors
) -> tuple[str, ...]:
    """Return the names of the classes, without background, in the order of their labels.

    Args:
        data: the dataset.
        classes: model.classes.
        on_finding: receives errors and warnings about the annotations.

    Returns:
        `classes`; if empty the lines of data.class_file; if there is none, the classes of
        data.train_split: the sorted names in VOC's annotations, COCO's categories in the order of
        their ids, the names of YOLO's data.yaml, or the classes of TFDS's datasets in their order.

    Raises:
        ConfigError: data.class_file cannot be read or names a class twice.
        DataError: the annotations cannot be used, or have no object.
    """
    if classes:
        return tuple(classes)
    if data.class_file:
        return read_class_names(Path(data.class_file), "data.class_file")
    format_ = detect_format(data)
    if format_ == "shapes":
        return SHAPES
    if format_ == "coco":
        return coco_classes(data.root, data.train_split, on_finding)
    if format_ == "yolo":
        return yolo_classes(data.root)
    if format_ == "tfds":
        from ssd_jax.data.tfds.source import tfds_classes

        return tfds_classes(data.root, data.train_split, data.tfds)
    names = voc_classes(data.root, data.train_split, on_finding)
    if not names:
        raise DataError(
            f"{data.root} has no object in split {data.train_split!r}; "
            "name the classes in model.classes or data.class_file"
        )
    return names


def detect_format(data: DataConfig) -> str:
    """Return data.format; if it is auto, detect the layout of the folder.

    Raises:
        ConfigError: the folder has several layouts.
        DataError: the folder cannot be read, or has none of them.
    """
    if data.format not in ("auto", "voc", "coco", "yolo"):
        return data.format
    base = Path(data.root).expanduser()
    if data.format in ("auto", "yolo") and base.suffix in YAML_SUFFIXES and is_file(base):
        return "yolo"
    try:
        # Compare names exactly: some file systems ignore case.
        names = {path.name for path in base.iterdir()}
    except OSError as error:
        raise DataError(
            f"data.root {base} is not a folder that can be read ({reason(error)}); "
            "name the folder of the dataset"
        ) from None
    if data.format != "auto":
        return data.format
    layouts = {}
    if names & {"Annotations", "ImageSets"} or any(base.glob("VOC*/Annotations")):
        layouts["voc"] = "VOC's Annotations"
    if "annotations" in names and any((base / "annotations").glob("*.json")):
        layouts["coco"] = "COCO's annotations"
    # Beside another layout a YAML file may be about anything; alone, its errors are of interest.
    files = [path for path in yaml_files(base) if not layouts or is_described_by(path)]
    if files:
        layouts["yolo"] = f"YOLO's {files[0].name}"
    if len(layouts) > 1:
        raise ConfigError(
            f"data.format is auto, and data.root {base} has {' and '.join(layouts.values())}; "
            f"set data.format to {' or '.join(layouts)}"
        )
    if not layouts:
        raise DataError(
            f"data.root {base} is neither VOC's (Annotations/, ImageSets/Main/; VOC2007/ and "
            "others with them) nor COCO's (annotations/*.json) nor YOLO's (data.yaml with names "
            "and the paths of splits); name a folder in one of these layouts, or set data.format"
        )
    return next(iter(layouts))
