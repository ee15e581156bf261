"""PASCAL VOC's layout: Annotations/, JPEGImages/ and ImageSets/Main/, or a devkit of several.

A box in pixels is continuous: pixel k covers [k, k + 1). VOC counts pixels from 1 and its boxes
include the last one; `to_continuous` converts them.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_jax.config import shorten
from ssd_jax.data.errors import DataError, Finding, Location, OnFinding, errors_to, raise_errors
from ssd_jax.data.images import ImageFileSource, read_image_size
from ssd_jax.data.types import Annotation, distinct_ids
from ssd_jax.io import MAX_TEXT, is_dir, is_file, read_bytes, read_text, reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

MAX_XML = 1 << 24
"""Largest annotation file that is read (bytes)."""

_MAX_TAGS = 500_000  # of an annotation: 20,000 objects; a tree takes about 200 bytes a tag
_MAX_COORDINATE = 1e9  # pixels; exact enough in float32, and below int32's limit
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FIRST_PIXEL = np.array([1, 1, 0, 0])


class VocSource(ImageFileSource):
    """A folder in PASCAL VOC's layout, or a VOCdevkit that holds one for each year.

    Annotations are read when the source is created, images on access. Objects whose box has no
    area inside the image are skipped.

    Args:
        root: the folder; ~ is the home directory.
        split: a list in ImageSets/Main without .txt; YEAR:LIST is one of the folder VOC{YEAR} in
            `root`. Several are joined by +, and an image that is in two lists of a folder counts
            once. A second column, as in VOC's lists of one class, is ignored.
        classes: names of the classes, without background.
        on_finding: receives each error and warning. If it returns from an error, the image is
            skipped, or only the object if the error is about one object.

    Raises:
        DataError: the folder or the list is missing or invalid; or, unless `on_finding` returns,
            an annotation or an image is.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: tuple[str, ...],
        on_finding: OnFinding = raise_errors,
    ) -> None:
        records = _split_records(root, split)
        images = {folder: _find_images(folder) for folder in dict.fromkeys(f for f, _ in records)}
        missing = [(folder, name) for folder, name in records if name not in images[folder]]
        for folder, name in missing:
            location = Location(folder / "JPEGImages" / f"{name}.jpg", name)
            problem = f"is missing ({len(missing)} of {len(records)} images of split {split!r} are)"
            advice = f"add it as {', '.join(IMAGE_SUFFIXES)}, or remove its id from the list"
            on_finding(location.finding(problem, advice, "missing_image"))
        records = [(folder, name) for folder, name in records if name in images[folder]]
        labels = {name: k for k, name in enumerate(classes)}
        files: list[Path] = []
        annotations: list[Annotation] = []
        # VOC's own years share no id, but other devkits may.
        ids = distinct_ids([name for _, name in records], [folder.name for folder, _ in records])
        for (folder, name), image_id in zip(records, ids, strict=True):
            file = images[folder][name]
            with errors_to(on_finding, name):
                voc = read_annotation(folder, name, on_finding)
                annotations.append(_to_annotation(image_id, voc, file, labels, on_finding))
                files.append(file)
        super().__init__(classes, files, annotations)


def voc_classes(
    root: str | Path, split: str, on_finding: OnFinding = raise_errors
) -> tuple[str, ...]:
    """Return the sorted names of the classes that the objects of a split have.

    Raises:
        DataError: as for `VocSource`, except for images.
    """
    names: set[str] = set()
    for folder, image_id in _split_records(root, split):
        with errors_to(on_finding):
            names.update(o.name for o in read_annotation(folder, image_id, on_finding).objects)
    return tuple(sorted(names))


def annotated_ids(folder: Path, split: str = "") -> list[str]:
    """Return the distinct image ids of a split; of all files in Annotations/ if it is empty.

    Raises:
        DataError: the folder or the list is missing, or names no image.
    """
    if split:
        ids = list(dict.fromkeys(_list_ids(folder, split)))
    else:
        ids = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if not ids:
        where = f"split {split!r} of {folder}" if split else f"{folder / 'Annotations'}"
        raise DataError(f"{where} lists no images; name a folder that contains Annotations/*.xml")
    return ids


@dataclass(frozen=True)
class VocObject:
    """An object in an annotation file."""

    item: str
    """Number and class, for messages: object 2 (cat)."""
    name: str
    """Class."""
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as in the file."""
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """The content of an annotation file."""

    path: Path
    size: tuple[int, int] | None
    """Width and height; None if the file has none."""
    objects: list[VocObject]


def read_annotation(
    folder: Path, image_id: str, on_finding: OnFinding = raise_errors
) -> VocAnnotation:
    """Read an annotation file in Annotations/.

    Raises:
        DataError: the file is missing or invalid; or, unless `on_finding` returns, an object is.
    """
    location = Location(folder / "Annotations" / f"{image_id}.xml", image_id)
    try:
        root = parse_xml(read_bytes(location.path, MAX_XML))
    except FileNotFoundError:
        advice = f"add it or remove {image_id} from the list"
        raise location.error("is missing", advice) from None
    except OSError as error:
        raise location.error(f"cannot be read ({reason(error)})", "replace it") from None
    except (ET.ParseError, LookupError, ValueError) as error:
        raise location.error(f"is not a usable annotation: {error}", "fix it") from None
    if root.tag.lower() != "annotation":
        problem = f"is not a usable annotation: it is <{root.tag[:40]}>, not <annotation>"
        raise location.error(problem, "replace it")
    objects = []
    for k, node in enumerate(root.findall("object")):
        with errors_to(on_finding):
            objects.append(_read_object(location, k, node))
    return VocAnnotation(location.path, _read_size(location, root), objects)


def to_continuous(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Convert VOC's boxes to continuous pixels, clipped to the image.

    VOC counts pixels from 1 and includes the last one: xmin..xmax becomes [xmin - 1, xmax].

    Args:
        boxes: [..., 4], xmin, ymin, xmax, ymax.
        size: [..., 4], width, height, width, height (pixels).
    """
    return np.clip(boxes - _FIRST_PIXEL, 0, size)


class _PlainTreeBuilder(ET.TreeBuilder):
    """Rejects a DOCTYPE, whose entities can exhaust memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a DOCTYPE, which an annotation does not need; remove it")


def parse_xml(data: bytes) -> ET.Element:
    """Parse an annotation file with a limited number of tags.

    Raises:
        ValueError: the file has a DOCTYPE or too many tags.
        ET.ParseError, LookupError, ValueError: the file is not XML.
    """
    # In every encoding that expat reads, a tag holds this byte.
    tags = data.count(b"<")
    if tags > _MAX_TAGS:
        raise ValueError(f"has {tags:,} tags; at most {_MAX_TAGS:,} are supported")
    return ET.fromstring(data, ET.XMLParser(target=_PlainTreeBuilder()))


def parse_number(text: str) -> float:
    """Parse a decimal number in ASCII digits, ignoring white space around it.

    Python's `float` also takes 1_0, digits of other alphabets, nan and infinity, which other
    programs read differently or not at all.

    Raises:
        ValueError: the text is not such a number.
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}")
    return float(text)


def _split_records(root: str | Path, split: str) -> list[tuple[Path, str]]:
    """Return the distinct (folder, image id) of a split in the order of its lists."""
    base = Path(root).expanduser()
    if not is_dir(base):
        raise DataError(f"data.root {base} is not a folder; name the folder of the dataset")
    records: dict[tuple[Path, str], None] = {}
    for item in split.split("+"):
        year, colon, name = item.strip().rpartition(":")
        folder = base / f"VOC{year.strip()}" if colon else base
        _check_layout(base, folder)
        records.update(((folder, image_id), None) for image_id in _list_ids(folder, name.strip()))
    if not records:
        raise DataError(f"{base}: split {split!r} lists no images; write one image id per line")
    return list(records)


def _check_layout(base: Path, folder: Path) -> None:
    """Raise DataError if `folder`, which is `base` or one year in it, is not in VOC's layout."""
    years = sorted(p.name.removeprefix("VOC") for p in base.glob("VOC*") if p.is_dir())
    if not is_dir(folder):
        advice = "data.root must be the VOCdevkit that holds it, or the split must not name a year"
        if years:
            advice = f"the years of this devkit are {shorten(years, 20)}"
        raise DataError(f"{folder} is missing; {advice}")
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if (folder / part).is_dir():
            continue
        subject = "data.root" if folder == base else folder.name
        advice = f"; splits of a VOCdevkit name a year: {years[0]}:trainval" if years else ""
        raise DataError(
            f"{folder / part} is missing; {subject} must be the folder that holds "
            f"Annotations, JPEGImages and ImageSets/Main{advice if folder == base else ''}"
        )


def _list_ids(folder: Path, name: str) -> list[str]:
    lists = folder / "ImageSets" / "Main"
    path = lists / f"{name}.txt"
    if not is_file(path):
        splits = sorted(p.stem for p in lists.glob("*.txt"))
        raise DataError(
            f"{path} is missing; the splits of this dataset are "
            f"{shorten(splits, 20) if splits else '(none: write one image id per line)'}"
        )
    try:
        lines = read_text(path, MAX_TEXT, errors="replace").splitlines()
    except OSError as error:
        raise DataError(Finding(f"{path} cannot be read ({reason(error)})", file=path)) from None
    return [row[0] for row in map(str.split, lines) if row]


def _find_images(folder: Path) -> dict[str, Path]:
    """Return image id -> file. If an id has several files, the first of IMAGE_SUFFIXES wins."""
    images: dict[str, Path] = {}
    files = [p for p in (folder / "JPEGImages").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    for path in sorted(files, key=lambda p: (IMAGE_SUFFIXES.index(p.suffix.lower()), p.name)):
        images.setdefault(path.stem, path)
    return images


def _read_size(location: Location, root: ET.Element) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    location = location._replace(item="<size>")
    width, height = (_read_number(location, "", text or "") for text in texts)
    # Some tools write 0 for an unknown size.
    return (int(width), int(height)) if width >= 1 and height >= 1 else None


def _read_object(location: Location, k: int, node: ET.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    location = location._replace(item=f"object {k + 1} ({name[:40] or 'no name'})")
    if not name:
        raise location.error("has no <name>", "write its class")
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{side}")
        if text is None:
            raise location.error(f"has no <bndbox> with <{side}>", "write it in pixels")
        box.append(_read_number(location, f"<{side}> ", text))
    flag = (node.findtext("difficult") or "0").strip().lower()
    if flag not in ("0", "1", "false", "true"):
        raise location.error(f"has <difficult> {flag!r}", "write 0 or 1")
    return VocObject(location.item, name, (box[0], box[1], box[2], box[3]), flag in ("1", "true"))


def _read_number(location: Location, tag: str, text: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        value = math.nan
    if not -_MAX_COORDINATE < value < _MAX_COORDINATE:  # rejects nan, too
        raise location.error(f"has {tag}{text[:40]!r}", "write a number of pixels")
    return value


def _to_annotation(
    image_id: str,
    voc: VocAnnotation,
    file: Path,
    labels: Mapping[str, int],
    on_finding: OnFinding,
) -> Annotation:
    size = voc.size or read_image_size(file)
    boxes = np.array([o.box for o in voc.objects], np.float64).reshape(-1, 4)
    boxes_px = to_continuous(boxes, np.array(size * 2))
    # With inclusive pixels xmin = xmax is one pixel wide, but it is a stray click, not an object.
    has_area = (boxes[:, :2] < boxes[:, 2:]) & (boxes_px[:, :2] < boxes_px[:, 2:])
    is_outside = (boxes[:, :2] <= 0) | (boxes[:, 2:] >= np.array(size) + 1)
    kept = []
    for k, object_ in enumerate(voc.objects):
        location = Location(voc.path, voc.path.stem, object_.item)
        if object_.name not in labels:
            on_finding(location.unknown_class(object_.name, tuple(labels)))
        elif location.check_box(
            f"({', '.join(f'{c:g}' for c in object_.box)})",
            size,
            on_finding,
            has_area=has_area[k].all(),
            is_outside=is_outside[k].any(),
            advice="; VOC counts pixels from 1",
        ):
            kept.append(k)
    objects = [voc.objects[k] for k in kept]
    return Annotation(
        image_id=image_id,
        width=size[0],
        height=size[1],
        boxes_px=boxes_px[kept].astype(np.float32),
        labels=np.array([labels[o.name] for o in objects], np.int32),
        difficult=np.array([o.difficult for o in objects], bool),
        crowd=np.zeros(len(kept), bool),
    )
