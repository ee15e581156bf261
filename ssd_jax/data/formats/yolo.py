"""YOLO's layout: a data.yaml, folders or lists of images, and a text file of labels for each.

A label is `class x y width height`, the centre and the size of the box as fractions of the image;
here boxes become xyxy in continuous pixels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_jax.data.errors import (
    DataError,
    Finding,
    Location,
    OnFinding,
    brief,
    errors_to,
    raise_errors,
)
from ssd_jax.data.formats.voc import parse_number
from ssd_jax.data.formats.yolo_yaml import DataYaml, find_yaml, read_data_yaml
from ssd_jax.data.headers import SUFFIXES
from ssd_jax.data.images import ImageFileSource, read_image_size
from ssd_jax.data.types import Annotation, distinct_ids
from ssd_jax.io import MAX_TEXT, is_dir, is_file, read_text, reason

MAX_LABELS = 1 << 24
"""Largest file of labels that is read (bytes)."""
TOLERANCE = 0.01
"""Largest distance of a coordinate from [0, 1]; the box is clipped."""

_MAX_LINES = 100_000  # of a file of labels
_IMAGES, _LABELS = "images", "labels"
_BOX, _TRIANGLE = 5, 7  # columns


class YoloSource(ImageFileSource):
    """Images and objects of a dataset in the format of Ultralytics' YOLO.

    The labels of images/train/a.jpg and train/images/a.jpg are in labels/train/a.txt and
    train/labels/a.txt; if a path has no folder images, or the file is missing there, beside the
    image. An image whose file of labels is empty or missing has no object.

    A line has five columns. A sixth, a confidence or the number of a track, is ignored. Seven
    columns or more are the class and the corners of a polygon, whose extent is the box; in a
    dataset with keypoints (kpt_shape) they are the box and the keypoints, which are ignored.

    Labels and the sizes of the images are read when the source is created, pixels on access.

    Args:
        root: the folder that holds data.yaml, or that file; ~ is the home directory.
        split: train, val or test of data.yaml; valid and validation mean val. Several are joined
            by +, and an image that is in two counts once.
        classes: names of the classes, without background.
        on_finding: receives each error and warning. If it returns from an error, the image is
            skipped, or only the object if the error is about one line.

    Raises:
        DataError: data.yaml or a path of the split is missing or invalid; or, unless `on_finding`
            returns, an image or its labels are.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: tuple[str, ...],
        on_finding: OnFinding = raise_errors,
    ) -> None:
        data = read_data_yaml(find_yaml(root))
        images = _split_images(data, split, on_finding)
        labels = {name: k for k, name in enumerate(classes)}
        parse = _LineParser(data, labels)
        ids = _distinct_ids(data, images)
        files: list[Path] = []
        annotations: list[Annotation] = []
        for image, image_id in zip(images, ids, strict=True):
            with errors_to(on_finding, image.file.stem):
                annotations.append(_read_annotation(image, image_id, parse, on_finding))
                files.append(image.file)
        super().__init__(classes, files, annotations)


def yolo_classes(root: str | Path) -> tuple[str, ...]:
    """Return the names of the classes in data.yaml, in the order of their indices.

    Raises:
        DataError: data.yaml is missing or invalid.
    """
    return read_data_yaml(find_yaml(root)).names


@dataclass(frozen=True)
class _Image:
    file: Path
    labels: Path | None
    """File of labels; None if it is missing."""


def _split_images(data: DataYaml, split: str, on_finding: OnFinding) -> list[_Image]:
    """Return the distinct images of a split in the order of its paths."""
    files: dict[str, Path] = {}
    for name in split.split("+"):
        for text in data.paths(name.strip()):
            for file in _find_images(data, name.strip(), text, on_finding):
                files.setdefault(os.path.normpath(file), file)
    images: dict[Path, _Image] = {}
    for file in files.values():
        candidates = _label_paths(file)
        # The suffix alone differs: both images would have the same labels.
        if other := images.get(candidates[0]):
            problem = f"{file} and {other.file} have the same file of labels, {candidates[0]}"
            on_finding(Finding(problem, "rename or remove one", kind="duplicate", file=file))
            continue
        found = next((path for path in candidates if os.path.lexists(path)), None)
        images[candidates[0]] = _Image(file, found)
    if not images:
        raise DataError(f"{data.path}: split {split!r} has no image; name another")
    if not any(image.labels for image in images.values()):
        problem = (
            f"{data.path}: none of the {len(images)} images of split {split!r} has a file of labels"
        )
        advice = f"the first one would be {next(iter(images))}"
        on_finding(Finding(problem, advice, file=data.path))
    return list(images.values())


def _find_images(data: DataYaml, split: str, text: str, on_finding: OnFinding) -> list[Path]:
    """Return the images of one path of a split."""
    path = data.find(text)
    if path is None:
        problem = f"{data.path}: {split} {brief(text)} is missing"
        advice = "write a folder or a list of images, relative to the folder of this file"
        raise DataError(Finding(problem, advice, file=data.path))
    if is_file(path):
        return _listed_images(data, path, on_finding)
    root, folder = (os.path.realpath(p) for p in (data.path.parent, path))
    # The whole disk, for example.
    if root != folder and os.path.commonpath([root, folder]) == folder:
        problem = f"{data.path}: {split} {brief(text)} is {path}, which holds the whole dataset"
        raise DataError(Finding(problem, "write a folder of images", file=data.path))
    images = []
    for parent, folders, names in os.walk(path):
        folders.sort()
        images += [Path(parent, name) for name in sorted(names) if _has_image_suffix(name)]
    if not images:
        suffixes = ", ".join(SUFFIXES)
        problem = f"{path} has no image; it is {split} of {data.path}"
        on_finding(Finding(problem, f"put images there: {suffixes}", file=data.path))
    return images


def _listed_images(data: DataYaml, path: Path, on_finding: OnFinding) -> list[Path]:
    """Return the images of a list file, one path a line."""
    if path.suffix.lower() != ".txt":
        problem = f"{data.path} names {path}, which is neither a folder nor a .txt file"
        raise DataError(Finding(problem, "write a folder or a list of images", file=data.path))
    try:
        lines = read_text(path, MAX_TEXT, errors="replace").splitlines()
    except OSError as error:
        raise DataError(Finding(f"{path} cannot be read ({reason(error)})", file=path)) from None
    texts = [line.strip() for line in lines if line.strip()]
    files = [data.find(text, path.parent) for text in texts]
    images = [file for file in files if file and is_file(file)]
    for text, file in zip(texts, files, strict=True):
        location = Location(path, Path(text).stem[:200])
        if file is None or is_dir(file):
            problem = f"lists {brief(text)}, which is missing"
            count = f"({len(texts) - len(images)} of {len(texts)} images are)"
            advice = "write its path relative to the list, or remove it"
            on_finding(location.finding(f"{problem} {count}", advice, "missing_image"))
    return images


def _has_image_suffix(name: str) -> bool:
    # Files that begin with ._ are attributes that macOS writes to other disks.
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("._")


def _label_paths(file: Path) -> list[Path]:
    """Return where the labels of an image may be: in the folder labels, or beside the image."""
    beside = file.with_suffix(".txt")
    folders = list(beside.parts[:-1])
    if _IMAGES not in folders:
        return [beside]
    last = len(folders) - 1 - folders[::-1].index(_IMAGES)
    return [Path(*folders[:last], _LABELS, *folders[last + 1 :], beside.name), beside]


def _distinct_ids(data: DataYaml, images: Sequence[_Image]) -> list[str]:
    """Return the stems of the images, with their folders where a stem repeats."""
    root = data.path.parent
    folders = [os.path.relpath(image.file.parent, root) for image in images]
    origins = ["-".join(p for p in Path(f).parts if p != "..") for f in folders]
    return distinct_ids([image.file.stem for image in images], origins)


def _read_annotation(
    image: _Image, image_id: str, parse: "_LineParser", on_finding: OnFinding
) -> Annotation:
    size = read_image_size(image.file)
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    for k, columns in enumerate(_read_lines(image)):
        location = Location(image.labels or image.file, image.file.stem, f"line {k + 1}")
        if not columns:
            continue
        with errors_to(on_finding):
            label, corners = parse(location, columns)
            scale = np.array(size * 2)
            box = (np.clip(corners, 0, 1) * scale).astype(np.float32)
            overlap = np.concatenate([-corners[:2], corners[2:] - 1]) * scale
            if location.check_box(
                f"({' '.join(columns[1:5])})",
                size,
                on_finding,
                has_area=bool((box[:2] < box[2:]).all()),
                is_outside=overlap.max() >= 1,
                advice="; it is x, y, width, height of its centre and size",
            ):
                boxes.append(box)
                labels.append(label)
    return Annotation(
        image_id=image_id,
        width=size[0],
        height=size[1],
        boxes_px=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        difficult=np.zeros(len(labels), bool),
        crowd=np.zeros(len(labels), bool),
    )


def _read_lines(image: _Image) -> list[list[str]]:
    """Return the columns of each line of an image's labels."""
    if image.labels is None:
        return []
    location = Location(image.labels, image.file.stem)
    try:
        lines = read_text(image.labels, MAX_LABELS, errors="replace").splitlines()
    except OSError as error:
        raise location.error(f"cannot be read ({reason(error)})", "replace it") from None
    if len(lines) > _MAX_LINES:
        raise location.error(f"has {len(lines):,} lines", f"at most {_MAX_LINES:,} are supported")
    return [line.split() for line in lines]


class _LineParser:
    """Parses a line of labels to an index in the source's classes and a box."""

    def __init__(self, data: DataYaml, labels: dict[str, int]) -> None:
        self._names = data.names
        self._labels = labels
        self._has_keypoints = data.has_keypoints

    def __call__(self, location: Location, columns: list[str]) -> tuple[int, np.ndarray]:
        """Return the label, and the box as xyxy fractions of the image, not clipped.

        Raises:
            DataError: the line is invalid.
        """
        is_box = len(columns) in (_BOX, _BOX + 1) or (self._has_keypoints and len(columns) > _BOX)
        if not is_box and (len(columns) < _TRIANGLE or len(columns) % 2 == 0):
            problem = f"has {len(columns)} columns"
            raise location.error(problem, "write class, x, y, width, height, or a polygon")
        label = self._parse_class(location, columns[0])
        values = [
            _parse_fraction(location, c) for c in (columns[1:_BOX] if is_box else columns[1:])
        ]
        if is_box:
            x, y, w, h = values
            return label, np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        points = np.array(values).reshape(-1, 2)
        return label, np.concatenate([points.min(0), points.max(0)])

    def _parse_class(self, location: Location, text: str) -> int:
        try:
            value = parse_number(text)
        except ValueError:
            value = 0.5
        if value % 1:  # infinity, too
            raise location.error(f"has class {text[:40]!r}", "write the index of a class")
        if not 0 <= value < len(self._names):
            advice = f"data.yaml has {len(self._names)} names, counted from 0: add one, or correct"
            raise location.error(f"has class {text[:40]}", advice, "unknown_class")
        name = self._names[int(value)]
        if name not in self._labels:
            raise DataError(location.unknown_class(name, tuple(self._labels)))
        return self._labels[name]


def _parse_fraction(location: Location, text: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        raise location.error(f"has {text[:40]!r}", "write a number") from None
    if not -TOLERANCE <= value <= 1 + TOLERANCE:
        raise location.error(f"has {text[:40]}", "write a fraction of the image, 0 to 1")
    return value
