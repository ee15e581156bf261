"""COCO's layout: annotations/instances_SPLIT.json beside folders of images.

Coordinates are turned once, here. COCO's boxes are continuous pixels already: x, y, width, height
become [x, y, x + width, y + height].
"""

import json
import reprlib
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ssd_jax.data.errors import DataError, OnError, class_error, reason, shorten, stop
from ssd_jax.data.images import ImageFileSource
from ssd_jax.data.types import Annotation, distinct_ids
from ssd_jax.io import MAX_JSON, is_dir, is_file, read_bytes

PREFIX = "instances_"

_REPR = reprlib.Repr()
_REPR.maxstring = 80


class CocoSource(ImageFileSource):
    """Images and objects as COCO's annotation files have them.

    All annotations are read when the source is made; images when they are asked for. Images
    without objects are kept. A crowd (iscrowd 1) is marked as difficult too.

    Args:
        root: the folder that holds annotations/; ~ is the home directory.
        split: SPLIT of annotations/instances_SPLIT.json, or of annotations/SPLIT.json if there is
            no such file; several are joined by +. Its images lie in SPLIT/, images/SPLIT/,
            images/ or JPEGImages/ of the root.
        classes: names of the classes, without background; labels follow their order.
        on_error: told of each error and warning. If it returns from an error, the image is left
            out with its objects, or the category with its objects, or the object.

    Attributes:
        classes: as given.
        set_aside: one line for each object that is left out of training and of evaluation,
            because its box has no area inside the image.
        image_numbers: the id of each record in its annotation file; ids of joined files may be
            the same.
        category_ids: name of each category -> its id, the first file's where several differ.

    Raises:
        DataError: an annotation file is missing or cannot be read; or, unless `on_error` keeps
            it, a record of one cannot be used, or an image is missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: tuple[str, ...],
        on_error: OnError = stop,
    ) -> None:
        labels = {name: k + 1 for k, name in enumerate(classes)}
        set_aside: list[str] = []
        images: list[_Image] = []
        origins: dict[Path, str] = {}  # file -> the record that has it
        self.category_ids: dict[str, int] = {}
        for name, path in _split_paths(root, split):
            content = _read_json(path)
            found = _read_images(path, content, on_error)
            for key, category in _add_objects(
                path, content, found, labels, set_aside, on_error
            ).items():
                if category is not None:
                    self.category_ids.setdefault(category, key)
            there = [image for image in found.values() if image]
            for image in _find_files(Path(root).expanduser(), name, path, there, on_error):
                if image.file in origins:
                    what = (
                        f"{path}: image {_brief(image.id)} is {image.file}, which is image "
                        f"{origins[image.file]} (SPLIT-ID) already"
                    )
                    where = f"image {_brief(image.id)}"
                    on_error(_wrong(path, where, what, "take one of the two out", "twice"))
                    continue
                origins[image.file] = f"{name}-{image.id}"
                images.append(image)
        if not images:
            raise DataError(f"{root}: split {split!r} has no image; name another")
        self.image_numbers = tuple(image.id for image in images)
        # COCO's own files are called by the image's id; other tools use a name in many folders.
        ids = distinct_ids([i.file.stem for i in images], [origins[i.file] for i in images])
        super().__init__(
            classes,
            [image.file for image in images],
            [_to_annotation(*pair) for pair in zip(ids, images, strict=True)],
            set_aside,
        )


def coco_classes(root: str | Path, split: str, on_error: OnError = stop) -> tuple[str, ...]:
    """Names of a split's categories in the order of their ids, whether they have objects or not.

    Categories that only a later one of several joined files has come last.

    Raises:
        DataError: a file is missing, or its categories cannot be used.
    """
    names: dict[str, None] = {}
    for _, path in _split_paths(root, split):
        categories = _read_categories(path, _read_json(path), on_error)
        names.update((name, None) for _, name in sorted(categories.items()) if name is not None)
    return tuple(names)


@dataclass(frozen=True)
class Instances:
    """What an annotation file in COCO's form says, without its images; nothing is clipped."""

    images: dict[int | str, str]
    """Id -> file name, "" where it has none."""
    sizes: dict[int | str, tuple[int, int]]
    """Id -> width and height, of the images that have both."""
    categories: dict[int, str]
    """Id -> name."""
    annotations: list[tuple[int | str, int, tuple[float, float, float, float], float, bool]]
    """(image id, category id, (x, y, width, height) in pixels, area in square pixels, crowd); the
    area is the box's where the file has none."""


def read_instances(path: Path) -> Instances:
    """The annotation file, whose images need not be there nor have sizes.

    Raises:
        DataError: it cannot be read, or a record of it cannot be used.
    """
    content = _read_json(path)
    images: dict[int | str, str] = {}
    sizes: dict[int | str, Any] = {}
    for k, record in enumerate(content["images"]):
        key = _new_id(path, f"images[{k}]", "image", record, images)
        images[key] = str(record.get("file_name", ""))
        size = record.get("width"), record.get("height")
        if all(type(side) is int and 0 < side < 1e9 for side in size):
            sizes[key] = size
    categories = {k: name or "" for k, name in _read_categories(path, content, stop).items()}
    annotations = []
    for k, record in enumerate(content["annotations"]):
        where = f"annotations[{k}]"
        _new_id(path, where, "annotation", record, ())
        image = _known(path, where, record, "image", images)
        category = _known(path, where, record, "category", categories)
        x, y, w, h = _bbox(path, where, record)
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            what = f"{path}: {where} has iscrowd {_brief(crowd)}"
            raise _wrong(path, where, what, "write 0 or 1")
        area = _area(path, where, record, np.array((0, 0, w, h)))
        annotations.append((image, category, (x, y, w, h), area, bool(crowd)))
    return Instances(images, sizes, categories, annotations)


@dataclass
class _Image:
    id: int | str
    name: str
    width: int
    height: int
    file: Path = Path()
    objects: list["_Object"] = field(default_factory=list)


@dataclass(frozen=True)
class _Object:
    box: np.ndarray  # float32 [4], xyxy
    label: int
    crowd: bool
    area: float  # square pixels


def _split_paths(root: str | Path, split: str) -> list[tuple[str, Path]]:
    """(name, annotation file) of each part of a split, each once."""
    base = Path(root).expanduser()
    if not is_dir(base):
        raise DataError(f"data.root {base} is not a folder; name the one of the data set")
    folder = base / "annotations"
    if not is_dir(folder):
        raise DataError(f"{folder} is missing; data.root must be the folder that holds it")
    paths = {}
    for item in split.split("+"):
        name = item.strip().removeprefix(PREFIX)
        tried = [folder / f"{PREFIX}{name}.json", folder / f"{name}.json"]
        path = next((p for p in tried if is_file(p)), None)
        if path is None:
            known = sorted(p.stem for p in folder.glob("*.json"))
            # COCO's captions and keypoints lie there too.
            known = [k.removeprefix(PREFIX) for k in known if k.startswith(PREFIX)] or known
            raise DataError(
                f"{tried[0]} is missing; the splits of this data set are "
                f"{shorten(known, 20) if known else '(none: put an annotation file there)'}"
            )
        paths[name] = path
    return list(paths.items())


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(read_bytes(path, MAX_JSON))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})", file=path) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not usable JSON: {error}", "fix it", file=path) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path} has no list of {key}",
                "it must have images, annotations and categories, as COCO's instances files do",
                file=path,
            )
    return content


def _read_images(
    path: Path, content: dict[str, list[Any]], on_error: OnError
) -> dict[int | str, _Image | None]:
    """Id -> image, None for one that is left out."""
    images: dict[int | str, _Image | None] = {}
    for k, record in enumerate(content["images"]):
        try:
            key = _new_id(path, f"images[{k}]", "image", record, images)
            images[key] = None
            images[key] = _read_image(path, key, record)
        except DataError as error:
            on_error(error)
    return images


def _read_image(path: Path, key: int | str, record: dict[str, Any]) -> _Image:
    where = f"image {_brief(key)}"
    name = _get(path, where, record, "file_name")
    if not isinstance(name, str) or not _is_inside(name):
        what = f"{path}: {where} has file_name {_brief(name)}"
        raise _wrong(path, where, what, "write it relative to the folder of images")
    width, height = (
        _number(path, where, f"{where} has {side}", _get(path, where, record, side))
        for side in ("width", "height")
    )
    if min(width, height) < 1 or width % 1 or height % 1:
        what = f"{path}: {where} has {width:g}x{height:g} pixels"
        raise _wrong(path, where, what, "write whole numbers above 0")
    return _Image(key, name, int(width), int(height))


def _is_inside(name: str) -> bool:
    path = PurePath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _read_categories(
    path: Path, content: dict[str, list[Any]], on_error: OnError
) -> dict[int, str | None]:
    """Id -> name, None for one that is left out."""
    categories: dict[int, str | None] = {}
    names: set[str] = set()
    for k, record in enumerate(content["categories"]):
        try:
            key = _new_id(path, f"categories[{k}]", "category", record, categories)
            where = f"category {_brief(key)}"
            if not isinstance(key, int):
                what = f"{path}: {where} has an id that is no whole number"
                raise _wrong(path, where, what, "write one")
            categories[key] = None
            name = _get(path, where, record, "name")
            if not isinstance(name, str) or not name.strip():
                what = f"{path}: {where} has the name {_brief(name)}"
                raise _wrong(path, where, what, "write its class")
            if name in names:
                what = f"{path}: {where} has the name of another one, {_brief(name)}"
                raise _wrong(path, where, what, "rename it", "twice")
            categories[key] = name
            names.add(name)
        except DataError as error:
            on_error(error)
    if not categories:
        raise DataError(f"{path} has no category", "list the classes there", file=path)
    return categories


def _add_objects(
    path: Path,
    content: dict[str, list[Any]],
    images: dict[int | str, _Image | None],
    labels: dict[str, int],
    set_aside: list[str],
    on_error: OnError,
) -> dict[int, str | None]:
    """Gives the objects to their images. Those of what is left out go with it.

    Returns the categories.
    """
    categories = _read_categories(path, content, on_error)
    seen: set[int | str] = set()
    for k, record in enumerate(content["annotations"]):
        try:
            key = _new_id(path, f"annotations[{k}]", "annotation", record, seen)
            seen.add(key)
            where = f"annotation {_brief(key)}"
            image = images[_known(path, where, record, "image", images)]
            name = categories[_known(path, where, record, "category", categories)]
            if image is None or name is None:
                continue
            if name not in labels:
                raise class_error(path, name, tuple(labels), record=image.name, item=where)
            found = _read_object(path, where, record, image, name, set_aside, on_error)
            if found is not None:
                box, crowd = found
                area = _area(path, where, record, box)
                image.objects.append(_Object(box, labels[name], crowd, area))
        except DataError as error:
            on_error(error)
    return categories


def _read_object(
    path: Path,
    where: str,
    record: dict[str, Any],
    image: _Image,
    name: str,
    set_aside: list[str],
    on_error: OnError,
) -> tuple[np.ndarray, bool] | None:
    """The box, float32 [4], xyxy, and whether it is a crowd's; None where it has no area."""
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        what = f"{path}: {where} has iscrowd {_brief(crowd)}"
        raise _wrong(path, where, what, "write 0 or 1")
    x, y, w, h = _bbox(path, where, record)
    box = np.array(
        (
            min(max(x, 0), image.width),
            min(max(y, 0), image.height),
            min(max(x + w, 0), image.width),
            min(max(y + h, 0), image.height),
        ),
        np.float32,
    )
    size = f"{image.width}x{image.height} pixels"
    line = f"{where} on {image.name}, {name} ({x:g}, {y:g}, {w:g}, {h:g}),"
    if box[0] >= box[2] or box[1] >= box[3]:
        set_aside.append(f"{path.name}: {line} has no area in {size}")
        what, change = f"has no area in {size}", "fix the box or take the object out"
        on_error(_wrong(path, where, f"{path}: {line} {what}", change, "no_area", image.name))
        return None
    if max(-x, -y, x + w - image.width, y + h - image.height) >= 1:
        what, change = f"reaches outside of {size}", "fix the box: it is [x, y, width, height]"
        on_error(_wrong(path, where, f"{path}: {line} {what}", change, "outside", image.name))
    return box, bool(crowd)


def _area(path: Path, where: str, record: dict[str, Any], box: np.ndarray) -> float:
    """Return the area of an annotation's segmentation.

    The area of its box, xyxy, replaces one that is absent, null or 0, as many tools write it.
    """
    area = record.get("area")
    if area is None:
        area = 0
    # Neither nan nor infinity is in the range.
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < 1e18:
        what = f"{path}: {where} has area {_brief(area)}"
        raise _wrong(path, where, what, "write a number of square pixels or take it out")
    return float(area) or float((box[2] - box[0]) * (box[3] - box[1]))


def _bbox(path: Path, where: str, record: dict[str, Any]) -> list[float]:
    box = _get(path, where, record, "bbox")
    if not isinstance(box, list) or len(box) != 4:
        what = f"{path}: {where} has bbox {_brief(box)}"
        raise _wrong(path, where, what, "write [x, y, width, height] in pixels")
    return [_number(path, where, f"{where} has in its bbox", value) for value in box]


def _find_files(
    base: Path, split: str, path: Path, images: list[_Image], on_error: OnError
) -> list[_Image]:
    """Gives the images their files, all from the folder that has the most of them.

    Returns those that have one.
    """
    folders = [base / split, base / "images" / split, base / "images", base / "JPEGImages"]
    missing: dict[Path, list[_Image]] = {}
    for folder in filter(Path.is_dir, folders):
        missing[folder] = [i for i in images if not is_file(folder / i.name)]
        if not missing[folder]:
            break
    if not missing:
        looked = ", ".join(str(f.relative_to(base)) for f in folders)
        raise DataError(
            f"{base} has no folder of images for {path.name}", f"put them in {looked}", file=path
        )
    folder = min(missing, key=lambda f: len(missing[f]))
    for image in missing[folder]:
        what = (
            f"{folder / image.name} is missing, image {_brief(image.id)} of {path} "
            f"({len(missing[folder])} of {len(images)} images are)"
        )
        where, change = f"image {_brief(image.id)}", "put it there or take it out"
        on_error(_wrong(path, where, what, change, "missing_image", image.name))
    absent = {image.id for image in missing[folder]}
    there = [image for image in images if image.id not in absent]
    for image in there:
        image.file = folder / image.name
    return there


def _to_annotation(image_id: str, image: _Image) -> Annotation:
    crowd = np.array([found.crowd for found in image.objects], bool)
    return Annotation(
        image_id=image_id,
        width=image.width,
        height=image.height,
        boxes_px=np.array([found.box for found in image.objects], np.float32).reshape(-1, 4),
        labels=np.array([found.label for found in image.objects], np.int32),
        difficult=crowd,
        crowd=crowd,
        area=np.array([found.area for found in image.objects], np.float64),
    )


def _new_id(path: Path, where: str, what: str, record: Any, seen: Container[Any]) -> int | str:
    """The id of a record, which none of those seen has."""
    if not isinstance(record, dict):
        line = f"{path}: {where} is {_brief(record)}"
        raise _wrong(path, where, line, "write an object with an id")
    value = _get(path, where, record, "id")
    if not isinstance(value, int | str) or isinstance(value, bool):
        line = f"{path}: {where} has id {_brief(value)}"
        raise _wrong(path, where, line, "write a whole number")
    if value in seen:
        line = f"{path} has {what} {_brief(value)} twice"
        raise _wrong(path, where, line, "take one out or give it another id", "twice")
    return value


def _known(path: Path, where: str, record: dict[str, Any], what: str, known: Container[Any]) -> Any:
    """The image_id or category_id of an annotation, which is one of those known."""
    value = _get(path, where, record, f"{what}_id")
    if not isinstance(value, int | str) or isinstance(value, bool) or value not in known:
        line = f"{path}: {where} has {what}_id {_brief(value)}, which no {what} has"
        raise _wrong(path, where, line, f"add the {what} or take the annotation out")
    return value


def _get(path: Path, where: str, record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise _wrong(path, where, f"{path}: {where} has no {key}", "add it")
    return record[key]


def _number(path: Path, where: str, what: str, value: Any) -> float:
    # NaN and infinity, which Python's JSON has, are not in the range either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise _wrong(path, where, f"{path}: {what} {_brief(value)}", "write a number of pixels")
    return float(value)


def _wrong(
    path: Path,
    where: str,
    what: str,
    change: str,
    kind: str = "annotation",
    record: str = "",
) -> DataError:
    return DataError(what, change, kind=kind, file=path, record=record, item=where)


def _brief(value: Any) -> str:
    """A value as it is written in Python, of a length that a line has room for."""
    return _REPR.repr(value)
