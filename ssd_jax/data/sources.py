"""Where images and their objects come from: random-access sources, one record an image.

Coordinates are turned once, here. A box in pixels is continuous: pixel k covers [k, k + 1). VOC
counts pixels from 1 and its boxes include the last one, so xmin..xmax becomes [xmin - 1, xmax].
"""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.shapes import SHAPES, Scene, draw_scene, lay_out_scene

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class DataError(ValueError):
    """Data that cannot be used; the message names the file and what to change."""


@dataclass(frozen=True)
class Annotation:
    """The objects of one image, known without reading the image."""

    image_id: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    boxes_px: np.ndarray
    """float32 [n, 4], xyxy, continuous pixels, inside the image and of positive area."""
    labels: np.ndarray
    """int32 [n]; class k of the source's list is k + 1, 0 is background."""
    difficult: np.ndarray
    """bool [n]; evaluation sets these objects aside."""


@dataclass(frozen=True)
class Example:
    """One image with its objects."""

    image_id: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    boxes: np.ndarray
    """float32 [n, 4], xyxy, in [0, 1]."""
    labels: np.ndarray
    """int32 [n]; class k of the source's list is k + 1, 0 is background."""
    difficult: np.ndarray
    """bool [n]."""


class Source(Protocol):
    """A data set: what the pipeline, the evaluation and the pictures ask of it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background; the label of the k-th is k + 1."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading its image."""

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB."""

    def __getitem__(self, i: int) -> Example: ...


def normalize_boxes(boxes_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 [n, 4] in [0, 1] from xyxy in pixels of an image of that size."""
    return (boxes_px / np.array([width, height, width, height], np.float32)).astype(np.float32)


class VocFolder:
    """A folder in PASCAL VOC's layout: Annotations/, JPEGImages/ and ImageSets/Main/.

    All annotations are read when the source is made; images when they are asked for.

    Args:
        root: the folder; ~ is the home directory.
        split: a list in ImageSets/Main without .txt; several are joined by +, and an image that
            is in two of them counts once. A second column, as in VOC's lists of one class, is
            ignored.
        classes: names of the classes, without background.

    Attributes:
        classes: as given.
        set_aside: one line for each object that is left out of training and of evaluation,
            because its box has no area inside the image.

    Raises:
        DataError: the folder, the list, an annotation or an image is missing or cannot be used.
    """

    def __init__(self, root: str | Path, split: str, classes: tuple[str, ...]) -> None:
        self.classes = tuple(classes)
        folder = _voc_root(root)
        ids = _split_ids(folder, split)
        pictures = _find_pictures(folder)
        missing = [image_id for image_id in ids if image_id not in pictures]
        if missing:
            raise DataError(
                f"{folder / 'JPEGImages' / missing[0]}.jpg is missing ({len(missing)} of "
                f"{len(ids)} images of split {split!r} are); put it there, with one of "
                f"{', '.join(IMAGE_SUFFIXES)}, or take its id off the list"
            )
        labels = {name: k + 1 for k, name in enumerate(self.classes)}
        set_aside: list[str] = []
        self._files = [pictures[image_id] for image_id in ids]
        self._annotations = [
            _to_annotation(image_id, _read_voc(folder, image_id), file, labels, set_aside)
            for image_id, file in zip(ids, self._files, strict=True)
        ]
        self.set_aside = tuple(set_aside)

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading its image."""
        return self._annotations[i]

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB, as it is stored.

        An EXIF orientation is not applied: VOC's boxes are for the pixels as stored.

        Raises:
            DataError: the file cannot be read, or its size is not the annotation's.
        """
        file, known = self._files[i], self._annotations[i]
        image = _read_image(file)
        height, width = image.shape[:2]
        if (width, height) != (known.width, known.height):
            raise DataError(
                f"{file} has {width}x{height} pixels as stored and its annotation says "
                f"{known.width}x{known.height}; mend <size>, or, where the boxes were drawn on a "
                "turned photograph, save the image turned"
            )
        return image

    def __getitem__(self, i: int) -> Example:
        return _to_example(self._annotations[i], self.image(i))


class Shapes:
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
        return _to_example(self._annotate(i, scene), draw_scene(scene))

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
        )


def open_source(data: DataConfig, split: str, classes: tuple[str, ...]) -> Source:
    """The source that the config describes, for one of its splits.

    Args:
        data: where the data is.
        split: data.train_split, data.eval_split or another of that form.
        classes: names of the classes, without background; see `find_classes`.

    Raises:
        ConfigError: the split or the classes cannot be used with this format.
        DataError: the data is missing or cannot be used.
    """
    if data.format == "voc":
        return VocFolder(data.root, split, classes)
    if tuple(classes) != SHAPES:
        raise ConfigError(
            f"model.classes is {tuple(classes)}; generated shapes have {', '.join(SHAPES)}: "
            "leave it and data.class_file empty"
        )
    stream, _, count = split.partition(":")
    if not (stream and count.isdecimal() and int(count) > 0):
        field = "data.eval_split" if split == data.eval_split else "data.train_split"
        raise ConfigError(
            f"{field} is {split!r}; generated shapes need NAME:COUNT, e.g. train:2000"
        )
    return Shapes(int(count), stream)


def find_classes(data: DataConfig, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes, without background, in the order of their labels.

    Args:
        data: where the data is.
        classes: model.classes; given ones are taken as they are.

    Returns:
        `classes`; if that is empty the lines of data.class_file; if there is none, the names
        found in all annotations of data.train_split, sorted. Generated shapes have their own.

    Raises:
        ConfigError: data.class_file cannot be read or names a class twice.
        DataError: the annotations cannot be used, or have no object.
    """
    if classes:
        return tuple(classes)
    if data.class_file:
        return _read_class_file(data.class_file)
    if data.format == "shapes":
        return SHAPES
    folder = _voc_root(data.root)
    names = {
        found.name
        for image_id in _split_ids(folder, data.train_split)
        for found in _read_voc(folder, image_id).objects
    }
    if not names:
        raise DataError(
            f"{folder / 'Annotations'} has no object in split {data.train_split!r}; "
            "name the classes in model.classes or data.class_file"
        )
    return tuple(sorted(names))


def _to_example(known: Annotation, image: np.ndarray) -> Example:
    return Example(
        image_id=known.image_id,
        image=image,
        boxes=normalize_boxes(known.boxes_px, known.width, known.height),
        labels=known.labels,
        difficult=known.difficult,
    )


def _read_class_file(name: str) -> tuple[str, ...]:
    path = Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.class_file {path} cannot be read ({_reason(error)}); "
            "name a text file with one class a line"
        ) from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes:
        raise ConfigError(f"data.class_file {path} is empty; write one class name a line")
    twice = sorted({c for c in classes if classes.count(c) > 1})
    if twice:
        raise ConfigError(f"data.class_file {path} names {', '.join(twice)} twice; once is enough")
    return classes


def _voc_root(root: str | Path) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root {folder} is not a folder; name the one of the data set")
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if not (folder / part).is_dir():
            raise DataError(
                f"{folder / part} is missing; data.root must be the folder that holds "
                "Annotations, JPEGImages and ImageSets/Main"
            )
    return folder


def _split_ids(folder: Path, split: str) -> list[str]:
    """Ids of a split in the order of its lists, each once."""
    lists = folder / "ImageSets" / "Main"
    ids: dict[str, None] = {}
    for name in split.split("+"):
        path = lists / f"{name.strip()}.txt"
        if not path.is_file():
            known = sorted(p.stem for p in lists.glob("*.txt"))
            raise DataError(
                f"{path} is missing; the splits of this data set are "
                f"{_shorten(known, 20) if known else '(none: write one image id a line)'}"
            )
        rows = (line.split() for line in path.read_text("utf-8-sig", "replace").splitlines())
        ids.update((row[0], None) for row in rows if row)
    if not ids:
        raise DataError(f"{lists}: split {split!r} names no image; write one image id a line")
    return list(ids)


def _find_pictures(folder: Path) -> dict[str, Path]:
    """Image id -> file. Where one id has several files, the earlier suffix is taken."""
    pictures: dict[str, Path] = {}
    files = [p for p in (folder / "JPEGImages").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    for path in sorted(files, key=lambda p: (IMAGE_SUFFIXES.index(p.suffix.lower()), p.name)):
        pictures.setdefault(path.stem, path)
    return pictures


def _read_image(file: Path) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of the pixels as stored; grey becomes RGB."""
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({_reason(error)})") from None
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty file, or a size that no image has
        image = None
    if image is None:
        raise DataError(f"{file} is not an image that can be decoded; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class _VocObject:
    name: str
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as written
    difficult: bool


@dataclass(frozen=True)
class _VocFile:
    path: Path
    size: tuple[int, int] | None  # width, height; None: not given
    objects: list[_VocObject]


class _PlainTree(ET.TreeBuilder):
    """Builds a tree and refuses a DOCTYPE: entities, which can blow up memory, live there."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("has a DOCTYPE, which an annotation does not need; remove it")


def _read_voc(folder: Path, image_id: str) -> _VocFile:
    path = folder / "Annotations" / f"{image_id}.xml"
    try:
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_PlainTree()))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; add it or take {image_id} off the list") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)})") from None
    except (ET.ParseError, DataError, LookupError, ValueError) as error:
        raise DataError(f"{path} is not a usable annotation: {error}") from None
    objects = [_voc_object(path, k, node) for k, node in enumerate(root.findall("object"))]
    return _VocFile(path, _voc_size(path, root), objects)


def _voc_size(path: Path, root: Any) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    width, height = (_number(path, f"<size> has {text!r}", text) for text in texts)
    # Some tools write 0 where they do not know the size.
    return (int(width), int(height)) if width >= 1 and height >= 1 else None


def _voc_object(path: Path, k: int, node: Any) -> _VocObject:
    name = (node.findtext("name") or "").strip()
    where = f"object {k + 1} ({name or 'no name'})"
    if not name:
        raise DataError(f"{path}: {where} has no <name>; write its class")
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{side}")
        if text is None:
            raise DataError(f"{path}: {where} has no <bndbox> with <{side}>; write it in pixels")
        box.append(_number(path, f"{where} has <{side}> {text!r}", text))
    flag = (node.findtext("difficult") or "0").strip().lower()
    if flag not in ("0", "1", "false", "true"):
        raise DataError(f"{path}: {where} has <difficult> {flag!r}; write 0 or 1")
    return _VocObject(name, (box[0], box[1], box[2], box[3]), flag in ("1", "true"))


def _number(path: Path, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {what}; write a number of pixels")
    return value


def _to_annotation(
    image_id: str, voc: _VocFile, file: Path, labels: dict[str, int], set_aside: list[str]
) -> Annotation:
    width, height = voc.size or _read_image(file).shape[1::-1]
    kept = []
    for found in voc.objects:
        if found.name not in labels:
            _unknown_class(voc.path, found.name, tuple(labels))
        xmin, ymin, xmax, ymax = found.box
        box = (max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height))
        # By inclusive pixels xmin = xmax is one pixel wide, but it is what a slip of the mouse
        # leaves, not an object.
        if xmin >= xmax or ymin >= ymax or box[0] >= box[2] or box[1] >= box[3]:
            corners = ", ".join(f"{c:g}" for c in found.box)
            set_aside.append(
                f"{voc.path.name}: {found.name} ({corners}) has no area in {width}x{height} pixels"
            )
        else:
            kept.append((box, labels[found.name], found.difficult))
    return Annotation(
        image_id=image_id,
        width=width,
        height=height,
        boxes_px=np.array([k[0] for k in kept], np.float32).reshape(-1, 4),
        labels=np.array([k[1] for k in kept], np.int32),
        difficult=np.array([k[2] for k in kept], bool),
    )


def _unknown_class(path: Path, name: str, known: tuple[str, ...]) -> NoReturn:
    alike = [k for k in known if k.lower() == name.lower()]
    advice = (
        f"write it as {alike[0]!r}: case counts"
        if alike
        else "add it to model.classes or data.class_file, or take the object out"
    )
    raise DataError(
        f"{path} has class {name!r}, which is not one of {_shorten(known, 30)}; {advice}"
    )


def _shorten(names: Any, most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
