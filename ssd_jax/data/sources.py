"""Where images and their objects come from: random-access sources, one record an image."""

from collections import Counter
from pathlib import Path

import numpy as np

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.errors import DataError, OnError, reason, shorten, stop
from ssd_jax.data.formats.coco import CocoSource, coco_classes
from ssd_jax.data.formats.synthetic import SHAPES, Scene, draw_scene, lay_out_scene
from ssd_jax.data.formats.voc import VocSource, voc_classes
from ssd_jax.data.types import Annotation, DataSource, Example, to_example
from ssd_jax.io import MAX_TEXT, read_text

__all__ = [
    "Annotation",
    "DataError",
    "DataSource",
    "Example",
    "SyntheticSource",
    "find_classes",
    "open_source",
]


class SyntheticSource:
    """Scenes of coloured shapes on textured grounds, made on the fly; nothing is stored.

    A scene depends on the stream's name and its index only, so train:2000 and train:4000 share
    their first 2000 scenes and train and test share none.

    Args:
        count: scenes.
        stream: name of the stream.
        image_size: side of the square scenes (pixels).
    """

    classes = SHAPES

    def __init__(self, count: int, stream: str, image_size: int = 200) -> None:
        self._count = count
        self._stream = stream
        self._size = image_size

    def __len__(self) -> int:
        return self._count

    def annotation(self, i: int) -> Annotation:
        """Objects of scene i, without drawing it."""
        return self._annotate(i, self._lay_out(i))

    def image(self, i: int) -> np.ndarray:
        """Scene i drawn: uint8 [H, W, 3], RGB."""
        return draw_scene(self._lay_out(i))

    def __getitem__(self, i: int) -> Example:
        scene = self._lay_out(i)
        return to_example(self._annotate(i, scene), draw_scene(scene))

    def _lay_out(self, i: int) -> Scene:
        # A sequence ends with an IndexError: without it a for loop would go on for ever.
        if not -self._count <= i < self._count:
            raise IndexError(f"scene {i} of {self._count}")
        return lay_out_scene(self._stream, i % self._count, self._size)

    def _annotate(self, i: int, scene: Scene) -> Annotation:
        return Annotation(
            image_id=f"{self._stream}-{i % self._count:06d}",
            width=self._size,
            height=self._size,
            boxes_px=scene.boxes_px,
            labels=scene.labels,
            difficult=np.zeros(len(scene.labels), bool),
            crowd=np.zeros(len(scene.labels), bool),
        )


def open_source(
    data: DataConfig, split: str, classes: tuple[str, ...], on_error: OnError = stop
) -> DataSource:
    """The source that the config describes, for one of its splits.

    Args:
        data: where the data is.
        split: data.train_split, data.eval_split or another of that form.
        classes: names of the classes, without background; see `find_classes`.
        on_error: told of what is wrong; see `VocSource` and `CocoSource`.

    Raises:
        ConfigError: the split or the classes cannot be used with this format.
        DataError: the data is missing or cannot be used.
    """
    kind = _find_format(data)
    if kind == "voc":
        return VocSource(data.root, split, classes, on_error)
    if kind == "coco":
        return CocoSource(data.root, split, classes, on_error)
    if kind == "tfds":
        # TFDS takes a second to import.
        from ssd_jax.data.tfds.source import TfdsSource

        return TfdsSource(data.root, split, classes, data.tfds, on_error)
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
    data: DataConfig, classes: tuple[str, ...], on_error: OnError = stop
) -> tuple[str, ...]:
    """Names of the classes, without background, in the order of their labels.

    Args:
        data: where the data is.
        classes: model.classes; given ones are taken as they are.
        on_error: told of what is wrong in the annotations.

    Returns:
        `classes`; if that is empty the lines of data.class_file; if there is none, what
        data.train_split has: the names found in all of VOC's annotations, sorted, COCO's
        categories in the order of their ids, or the classes of TFDS's data sets in their order.
        Generated shapes have their own.

    Raises:
        ConfigError: data.class_file cannot be read or names a class twice.
        DataError: the annotations cannot be used, or have no object.
    """
    if classes:
        return tuple(classes)
    if data.class_file:
        return _read_class_file(data.class_file)
    kind = _find_format(data)
    if kind == "shapes":
        return SHAPES
    if kind == "coco":
        return coco_classes(data.root, data.train_split, on_error)
    if kind == "tfds":
        from ssd_jax.data.tfds.source import tfds_classes

        return tfds_classes(data.root, data.train_split, data.tfds)
    names = voc_classes(data.root, data.train_split, on_error)
    if not names:
        raise DataError(
            f"{data.root} has no object in split {data.train_split!r}; "
            "name the classes in model.classes or data.class_file"
        )
    return names


def _find_format(data: DataConfig) -> str:
    """data.format, or what the folder is if that is auto.

    Raises:
        ConfigError: the folder is in VOC's layout and in COCO's.
        DataError: it is in neither.
    """
    if data.format != "auto":
        return data.format
    base = Path(data.root).expanduser()
    try:
        # The names as they are written: some file systems find annotations for Annotations.
        names = {path.name for path in base.iterdir()}
    except OSError as error:
        raise DataError(
            f"data.root {base} is not a folder that can be read ({reason(error)})",
            "name the one of the data set",
        ) from None
    voc = bool(names & {"Annotations", "ImageSets"}) or any(base.glob("VOC*/Annotations"))
    coco = "annotations" in names and any((base / "annotations").glob("*.json"))
    if voc and coco:
        raise ConfigError(
            f"data.format is auto, and data.root {base} has VOC's Annotations and COCO's "
            "annotations; set data.format to voc or coco"
        )
    if not voc and not coco:
        raise DataError(
            f"data.root {base} is neither VOC's (Annotations/, ImageSets/Main/; VOC2007/ and "
            "others with them) nor COCO's (annotations/*.json)",
            "name the folder that is, or set data.format",
        )
    return "voc" if voc else "coco"


def _read_class_file(name: str) -> tuple[str, ...]:
    path = Path(name).expanduser()
    try:
        lines = read_text(path, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.class_file {path} cannot be read ({reason(error)}); "
            "name a text file with one class a line"
        ) from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes:
        raise ConfigError(f"data.class_file {path} is empty; write one class name a line")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice:
        raise ConfigError(
            f"data.class_file {path} names {shorten(twice, 20)} twice; once is enough"
        )
    return classes
