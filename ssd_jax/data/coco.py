"""COCO's layout: annotations/instances_SPLIT.json beside folders of images.

Coordinates are turned once, here. COCO's boxes are continuous pixels already: x, y, width, height
become [x, y, x + width, y + height].
"""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ssd_jax.data.errors import DataError, reason, shorten, unknown_class
from ssd_jax.data.pictures import Pictures
from ssd_jax.data.records import Annotation, distinct_ids

PREFIX = "instances_"


class CocoJson(Pictures):
    """Images and objects as COCO's annotation files have them.

    All annotations are read when the source is made; images when they are asked for. Images
    without objects are kept. A crowd (iscrowd 1) is marked as difficult too.

    Args:
        root: the folder that holds annotations/; ~ is the home directory.
        split: SPLIT of annotations/instances_SPLIT.json, or of annotations/SPLIT.json if there is
            no such file; several are joined by +. Its images lie in SPLIT/, images/SPLIT/,
            images/ or JPEGImages/ of the root.
        classes: names of the classes, without background; labels follow their order.

    Attributes:
        classes: as given.
        set_aside: one line for each object that is left out of training and of evaluation,
            because its box has no area inside the image.

    Raises:
        DataError: a file is missing, or a record of one cannot be used.
    """

    def __init__(self, root: str | Path, split: str, classes: tuple[str, ...]) -> None:
        labels = {name: k + 1 for k, name in enumerate(classes)}
        set_aside: list[str] = []
        images: list[_Image] = []
        origins: dict[Path, str] = {}  # file -> the record that has it
        for name, path in _split_paths(root, split):
            content = _read_json(path)
            found = _read_images(path, content)
            _add_objects(path, content, found, labels, set_aside)
            _find_files(Path(root).expanduser(), name, path, list(found.values()))
            for image in found.values():
                if image.file in origins:
                    raise DataError(
                        f"{path}: image {image.id!r} is {image.file}, which is image "
                        f"{origins[image.file]} (SPLIT-ID) already; take one of the two out"
                    )
                origins[image.file] = f"{name}-{image.id}"
            images += found.values()
        if not images:
            raise DataError(f"{root}: split {split!r} has no image; name another")
        # COCO's own files are called by the image's id; other tools use a name in many folders.
        ids = distinct_ids([i.file.stem for i in images], [origins[i.file] for i in images])
        super().__init__(
            classes,
            [image.file for image in images],
            [_to_annotation(*pair) for pair in zip(ids, images, strict=True)],
            set_aside,
        )


def coco_classes(root: str | Path, split: str) -> tuple[str, ...]:
    """Names of a split's categories in the order of their ids, whether they have objects or not.

    Categories that only a later one of several joined files has come last.

    Raises:
        DataError: a file is missing, or its categories cannot be used.
    """
    names: dict[str, None] = {}
    for _, path in _split_paths(root, split):
        categories = _read_categories(path, _read_json(path))
        names.update((categories[key], None) for key in sorted(categories))
    return tuple(names)


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


def _split_paths(root: str | Path, split: str) -> list[tuple[str, Path]]:
    """(name, annotation file) of each part of a split, each once."""
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"data.root {base} is not a folder; name the one of the data set")
    folder = base / "annotations"
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; data.root must be the folder that holds it")
    paths = {}
    for item in split.split("+"):
        name = item.strip().removeprefix(PREFIX)
        tried = [folder / f"{PREFIX}{name}.json", folder / f"{name}.json"]
        path = next((p for p in tried if p.is_file()), None)
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
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not usable JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path} has no list of {key}; it must have images, annotations and categories, "
                "as COCO's instances files do"
            )
    return content


def _read_images(path: Path, content: dict[str, list[Any]]) -> dict[int | str, _Image]:
    images: dict[int | str, _Image] = {}
    for k, record in enumerate(content["images"]):
        image_id = _id(path, f"images[{k}]", record)
        where = f"image {image_id!r}"
        if image_id in images:
            raise DataError(f"{path} has {where} twice; take one out or give it another id")
        name = _get(path, where, record, "file_name")
        if not isinstance(name, str) or not _is_inside(name):
            raise DataError(
                f"{path}: {where} has file_name {name!r}; write it relative to the folder of images"
            )
        width, height = (
            _number(path, f"{where} has {side}", _get(path, where, record, side))
            for side in ("width", "height")
        )
        if min(width, height) < 1 or width % 1 or height % 1:
            raise DataError(
                f"{path}: {where} has {width:g}x{height:g} pixels; write whole numbers above 0"
            )
        images[image_id] = _Image(image_id, name, int(width), int(height))
    return images


def _is_inside(name: str) -> bool:
    path = PurePath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _read_categories(path: Path, content: dict[str, list[Any]]) -> dict[int, str]:
    """Id -> name."""
    categories: dict[int, str] = {}
    for k, record in enumerate(content["categories"]):
        key = _id(path, f"categories[{k}]", record)
        where = f"category {key!r}"
        if not isinstance(key, int):
            raise DataError(f"{path}: {where} has an id that is no whole number; write one")
        if key in categories:
            raise DataError(f"{path} has {where} twice; take one out or give it another id")
        name = _get(path, where, record, "name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: {where} has the name {name!r}; write its class")
        if name in categories.values():
            raise DataError(f"{path}: {where} has the name of another one, {name!r}; rename it")
        categories[key] = name
    if not categories:
        raise DataError(f"{path} has no category; list the classes there")
    return categories


def _add_objects(
    path: Path,
    content: dict[str, list[Any]],
    images: dict[int | str, _Image],
    labels: dict[str, int],
    set_aside: list[str],
) -> None:
    """Gives the objects to their images."""
    categories = _read_categories(path, content)
    seen: set[int | str] = set()
    for k, record in enumerate(content["annotations"]):
        key = _id(path, f"annotations[{k}]", record)
        where = f"annotation {key!r}"
        if key in seen:
            raise DataError(f"{path} has {where} twice; take one out or give it another id")
        seen.add(key)
        image_id, category = (
            _get(path, where, record, name) for name in ("image_id", "category_id")
        )
        image = images.get(image_id) if isinstance(image_id, int | str) else None
        if image is None:
            raise DataError(
                f"{path}: {where} has image_id {image_id!r}, which no image has; "
                "add the image or take the annotation out"
            )
        name = categories.get(category) if isinstance(category, int) else None
        if name is None:
            raise DataError(
                f"{path}: {where} has category_id {category!r}, which no category has; "
                "add the category or take the annotation out"
            )
        if name not in labels:
            unknown_class(path, name, tuple(labels))
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{path}: {where} has iscrowd {crowd!r}; write 0 or 1")
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
        if box[0] < box[2] and box[1] < box[3]:
            image.objects.append(_Object(box, labels[name], bool(crowd)))
        else:
            set_aside.append(
                f"{path.name}: {where} on {image.name}, {name} ({x:g}, {y:g}, {w:g}, {h:g}), has "
                f"no area in {image.width}x{image.height} pixels"
            )


def _bbox(path: Path, where: str, record: dict[str, Any]) -> list[float]:
    box = _get(path, where, record, "bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{path}: {where} has bbox {box!r}; write [x, y, width, height] in pixels")
    return [_number(path, f"{where} has in its bbox", value) for value in box]


def _find_files(base: Path, split: str, path: Path, images: list[_Image]) -> None:
    """Gives the images their files, all from the folder that has the most of them."""
    folders = [base / split, base / "images" / split, base / "images", base / "JPEGImages"]
    missing: dict[Path, list[_Image]] = {}
    for folder in filter(Path.is_dir, folders):
        missing[folder] = [i for i in images if not (folder / i.name).is_file()]
        if not missing[folder]:
            break
    if not missing:
        looked = ", ".join(str(f.relative_to(base)) for f in folders)
        raise DataError(f"{base} has no folder of images for {path.name}; put them in {looked}")
    folder = min(missing, key=lambda f: len(missing[f]))
    if missing[folder]:
        image = missing[folder][0]
        raise DataError(
            f"{folder / image.name} is missing, image {image.id!r} of {path} "
            f"({len(missing[folder])} of {len(images)} images are); put it there or take it out"
        )
    for image in images:
        image.file = folder / image.name


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
    )


def _id(path: Path, where: str, record: Any) -> int | str:
    if not isinstance(record, dict):
        raise DataError(f"{path}: {where} is {str(record)[:40]!r}; write an object with an id")
    value = _get(path, where, record, "id")
    if not isinstance(value, int | str):
        raise DataError(f"{path}: {where} has id {value!r}; write a whole number")
    return value


def _get(path: Path, where: str, record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise DataError(f"{path}: {where} has no {key}; add it")
    return record[key]


def _number(path: Path, what: str, value: Any) -> float:
    # NaN and infinity, which Python's JSON has, are not in the range either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise DataError(f"{path}: {what} {value!r}; write a number of pixels")
    return float(value)
