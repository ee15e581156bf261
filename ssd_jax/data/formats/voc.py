"""PASCAL VOC's layout: Annotations/, JPEGImages/ and ImageSets/Main/, or a devkit of several.

Coordinates are turned once, here. A box in pixels is continuous: pixel k covers [k, k + 1). VOC
counts pixels from 1 and its boxes include the last one, so xmin..xmax becomes [xmin - 1, xmax].
"""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.data.errors import DataError, OnError, class_error, reason, shorten, stop
from ssd_jax.data.images import ImageFileSource, picture_size
from ssd_jax.data.numbers import parse_number
from ssd_jax.data.types import Annotation, distinct_ids
from ssd_jax.io import MAX_TEXT, is_dir, is_file, read_bytes, read_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

MAX_XML = 1 << 24
"""Largest annotation file that is read (bytes)."""

_MAX_TAGS = 500_000  # of an annotation: 20,000 objects; a tree takes some 200 bytes a tag
_FARTHEST = 1e9  # pixels; float32 and int32 are at home below


class VocSource(ImageFileSource):
    """A folder in PASCAL VOC's layout, or a VOCdevkit that holds one for each year.

    All annotations are read when the source is made; images when they are asked for.

    Args:
        root: the folder; ~ is the home directory.
        split: a list in ImageSets/Main without .txt; YEAR:LIST is one of the folder VOC{YEAR} in
            `root`. Several are joined by +, and an image that is in two lists of a folder counts
            once. A second column, as in VOC's lists of one class, is ignored.
        classes: names of the classes, without background.
        on_error: told of each error and warning. If it returns from an error, the image is left
            out, or the object, if the error is one of it alone.

    Attributes:
        classes: as given.
        set_aside: one line for each object that is left out of training and of evaluation,
            because its box has no area inside the image.

    Raises:
        DataError: the folder or the list is missing or cannot be used; or, unless `on_error`
            keeps it, an annotation or an image is or cannot.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: tuple[str, ...],
        on_error: OnError = stop,
    ) -> None:
        records = _split_records(root, split)
        pictures = {
            folder: _find_pictures(folder) for folder in dict.fromkeys(f for f, _ in records)
        }
        missing = [(folder, name) for folder, name in records if name not in pictures[folder]]
        for folder, name in missing:
            file = folder / "JPEGImages" / f"{name}.jpg"
            on_error(
                DataError(
                    f"{file} is missing ({len(missing)} of {len(records)} images of split "
                    f"{split!r} are)",
                    f"put it there, with one of {', '.join(IMAGE_SUFFIXES)}, or take its id off "
                    "the list",
                    kind="missing_image",
                    file=file,
                    record=name,
                )
            )
        records = [(folder, name) for folder, name in records if name in pictures[folder]]
        labels = {name: k + 1 for k, name in enumerate(classes)}
        set_aside: list[str] = []
        files: list[Path] = []
        annotations: list[Annotation] = []
        # Years share no id in VOC itself, but nothing keeps other devkits from it.
        ids = distinct_ids([name for _, name in records], [folder.name for folder, _ in records])
        for (folder, name), image_id in zip(records, ids, strict=True):
            file = pictures[folder][name]
            try:
                voc = _read_voc(folder, name, on_error)
                known = _to_annotation(image_id, voc, file, labels, set_aside, on_error)
            except DataError as error:
                error.record = name
                on_error(error)
            else:
                files.append(file)
                annotations.append(known)
        super().__init__(classes, files, annotations, set_aside)


def voc_classes(root: str | Path, split: str, on_error: OnError = stop) -> tuple[str, ...]:
    """Names of the classes that the objects of a split have, sorted; () if it has no object.

    Raises:
        DataError: as for `VocSource`, images apart.
    """
    names: set[str] = set()
    for folder, image_id in _split_records(root, split):
        try:
            names.update(found.name for found in _read_voc(folder, image_id, on_error).objects)
        except DataError as error:
            on_error(error)
    return tuple(sorted(names))


def annotated_ids(folder: Path, split: str = "") -> list[str]:
    """Image ids of ImageSets/Main/SPLIT.txt, each once; "": of all files in Annotations/, sorted.

    Raises:
        DataError: the folder or the list is missing, or names no image.
    """
    if split:
        ids = list(dict.fromkeys(_list_ids(folder, split)))
    else:
        ids = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if not ids:
        where = f"split {split!r} of {folder}" if split else f"{folder / 'Annotations'}"
        raise DataError(f"{where} names no image", "name a folder that holds Annotations/*.xml")
    return ids


def annotated_objects(
    folder: Path, image_id: str
) -> tuple[tuple[int, int] | None, list[tuple[str, tuple[float, float, float, float], bool]]]:
    """Read an annotation in Annotations/.

    Returns:
        Width and height of the image, None where they are not given; and (class, (xmin, ymin,
        xmax, ymax) as written, difficult) of each object.

    Raises:
        DataError: the annotation is missing or cannot be used.
    """
    voc = _read_voc(folder, image_id, stop)
    return voc.size, [(o.name, o.box, o.difficult) for o in voc.objects]


def _split_records(root: str | Path, split: str) -> list[tuple[Path, str]]:
    """(folder, image id) of a split in the order of its lists, each once."""
    base = Path(root).expanduser()
    if not is_dir(base):
        raise DataError(f"data.root {base} is not a folder; name the one of the data set")
    records: dict[tuple[Path, str], None] = {}
    for item in split.split("+"):
        year, colon, name = item.strip().rpartition(":")
        folder = base / f"VOC{year.strip()}" if colon else base
        _check_layout(base, folder)
        records.update(((folder, image_id), None) for image_id in _list_ids(folder, name.strip()))
    if not records:
        raise DataError(f"{base}: split {split!r} names no image; write one image id a line")
    return list(records)


def _check_layout(base: Path, folder: Path) -> None:
    """Raises DataError if `folder`, which is `base` or one year in it, is not in VOC's layout."""
    years = sorted(p.name.removeprefix("VOC") for p in base.glob("VOC*") if p.is_dir())
    if not is_dir(folder):
        known = (
            f"the years of this devkit are {shorten(years, 20)}"
            if years
            else "data.root must be the VOCdevkit that holds it, or the split be named without year"
        )
        raise DataError(f"{folder} is missing; {known}")
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if (folder / part).is_dir():
            continue
        what = "data.root" if folder == base else folder.name
        advice = f"; a VOCdevkit's splits name a year: {years[0]}:trainval" if years else ""
        raise DataError(
            f"{folder / part} is missing; {what} must be the folder that holds "
            f"Annotations, JPEGImages and ImageSets/Main{advice if folder == base else ''}"
        )


def _list_ids(folder: Path, name: str) -> list[str]:
    lists = folder / "ImageSets" / "Main"
    path = lists / f"{name}.txt"
    if not is_file(path):
        known = sorted(p.stem for p in lists.glob("*.txt"))
        raise DataError(
            f"{path} is missing; the splits of this data set are "
            f"{shorten(known, 20) if known else '(none: write one image id a line)'}"
        )
    try:
        lines = read_text(path, MAX_TEXT, errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})", file=path) from None
    return [row[0] for row in map(str.split, lines) if row]


def _find_pictures(folder: Path) -> dict[str, Path]:
    """Image id -> file. Where one id has several files, the earlier suffix is taken."""
    pictures: dict[str, Path] = {}
    files = [p for p in (folder / "JPEGImages").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    for path in sorted(files, key=lambda p: (IMAGE_SUFFIXES.index(p.suffix.lower()), p.name)):
        pictures.setdefault(path.stem, path)
    return pictures


@dataclass(frozen=True)
class _VocObject:
    item: str  # object 2 (cat)
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
        raise ValueError("has a DOCTYPE, which an annotation does not need; remove it")


def parse_xml(data: bytes) -> ET.Element:
    """Parse an annotation file, whose size and number of tags are limited.

    Raises:
        ValueError: the file has a DOCTYPE or too many tags.
        ET.ParseError, LookupError, ValueError: the file is not XML.
    """
    # In every encoding that expat reads, a tag holds this byte.
    tags = data.count(b"<")
    if tags > _MAX_TAGS:
        raise ValueError(f"has {tags:,} tags, and {_MAX_TAGS:,} is the most")
    return ET.fromstring(data, ET.XMLParser(target=_PlainTree()))


def _read_voc(folder: Path, image_id: str, on_error: OnError) -> _VocFile:
    path = folder / "Annotations" / f"{image_id}.xml"
    try:
        root = parse_xml(read_bytes(path, MAX_XML))
    except FileNotFoundError:
        what, change = f"{path} is missing", f"add it or take {image_id} off the list"
        raise _wrong(path, what, change) from None
    except OSError as error:
        raise _wrong(path, f"{path} cannot be read ({reason(error)})", "replace it") from None
    except (ET.ParseError, LookupError, ValueError) as error:
        raise _wrong(path, f"{path} is not a usable annotation: {error}", "fix it") from None
    if root.tag.lower() != "annotation":
        what = f"{path} is not a usable annotation: it is <{root.tag[:40]}>, not <annotation>"
        raise _wrong(path, what, "replace it")
    size = _voc_size(path, root)
    objects = []
    for k, node in enumerate(root.findall("object")):
        try:
            objects.append(_voc_object(path, k, node))
        except DataError as error:
            on_error(error)
    return _VocFile(path, size, objects)


def _voc_size(path: Path, root: Any) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    width, height = (_number(path, "<size>", "", text) for text in texts)
    # Some tools write 0 where they do not know the size.
    return (int(width), int(height)) if width >= 1 and height >= 1 else None


def _voc_object(path: Path, k: int, node: Any) -> _VocObject:
    name = (node.findtext("name") or "").strip()
    item = f"object {k + 1} ({name[:40] or 'no name'})"
    if not name:
        raise _wrong(path, f"{path}: {item} has no <name>", "write its class", item)
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{side}")
        if text is None:
            what = f"{path}: {item} has no <bndbox> with <{side}>"
            raise _wrong(path, what, "write it in pixels", item)
        box.append(_number(path, item, f"<{side}> ", text))
    flag = (node.findtext("difficult") or "0").strip().lower()
    if flag not in ("0", "1", "false", "true"):
        raise _wrong(path, f"{path}: {item} has <difficult> {flag!r}", "write 0 or 1", item)
    return _VocObject(item, name, (box[0], box[1], box[2], box[3]), flag in ("1", "true"))


def _number(path: Path, item: str, side: str, text: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        value = math.nan
    if not -_FARTHEST < value < _FARTHEST:  # nor is it nan
        what = f"{path}: {item} has {side}{text[:40]!r}"
        raise _wrong(path, what, "write a number of pixels", item)
    return value


def _wrong(
    path: Path, what: str, change: str, item: str = "", kind: str = "annotation"
) -> DataError:
    return DataError(what, change, kind=kind, file=path, record=path.stem, item=item)


def _to_annotation(
    image_id: str,
    voc: _VocFile,
    file: Path,
    labels: dict[str, int],
    set_aside: list[str],
    on_error: OnError,
) -> Annotation:
    width, height = voc.size or picture_size(file)
    path = voc.path
    kept = []
    for found in voc.objects:
        if found.name not in labels:
            known = tuple(labels)
            on_error(class_error(path, found.name, known, record=path.stem, item=found.item))
            continue
        xmin, ymin, xmax, ymax = found.box
        box = (max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height))
        corners = f"({', '.join(f'{c:g}' for c in found.box)})"
        # By inclusive pixels xmin = xmax is one pixel wide, but it is what a slip of the mouse
        # leaves, not an object.
        if xmin >= xmax or ymin >= ymax or box[0] >= box[2] or box[1] >= box[3]:
            line = f"{path.name}: {found.name} {corners} has no area in {width}x{height} pixels"
            set_aside.append(line)
            what = f"{path}: {found.item} {corners} has no area in {width}x{height} pixels"
            change = "fix the box or take the object out"
            on_error(_wrong(path, what, change, found.item, "no_area"))
            continue
        if min(xmin, ymin) <= 0 or xmax >= width + 1 or ymax >= height + 1:
            what = f"{path}: {found.item} {corners} reaches outside of {width}x{height} pixels"
            change = "fix the box; VOC counts pixels from 1"
            on_error(_wrong(path, what, change, found.item, "outside"))
        kept.append((box, labels[found.name], found.difficult))
    return Annotation(
        image_id=image_id,
        width=width,
        height=height,
        boxes_px=np.array([k[0] for k in kept], np.float32).reshape(-1, 4),
        labels=np.array([k[1] for k in kept], np.int32),
        difficult=np.array([k[2] for k in kept], bool),
        crowd=np.zeros(len(kept), bool),
    )
