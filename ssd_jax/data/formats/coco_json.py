"""COCO annotation files: reading and checking their records."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ssd_jax.data.errors import (
    DataError,
    Finding,
    Location,
    OnFinding,
    brief,
    errors_to,
    raise_errors,
)
from ssd_jax.io import MAX_JSON, read_bytes, reason

Id: TypeAlias = int | str
Record: TypeAlias = dict[str, Any]
"""An entry of images, categories or annotations."""


@dataclass(frozen=True)
class Instances:
    """The content of a COCO annotation file, without its images; boxes are not clipped."""

    images: dict[Id, str]
    """Id -> file name, "" if it has none."""
    sizes: dict[Id, tuple[int, int]]
    """Id -> width and height, of the images that have both."""
    categories: dict[int, str]
    """Id -> name."""
    annotations: list[tuple[Id, int, tuple[float, float, float, float], float, bool]]
    """(image id, category id, (x, y, width, height) in pixels, area in square pixels, crowd); the
    area is the box's if the file has none."""


def read_instances(path: Path) -> Instances:
    """Read an annotation file whose images may be missing and have no sizes.

    Raises:
        DataError: the file cannot be read, or a record is invalid.
    """
    content = read_json(path)
    images: dict[Id, str] = {}
    sizes: dict[Id, Any] = {}
    for k, record in enumerate(content["images"]):
        key = new_id(Location(path, item=f"images[{k}]"), "image", record, images)
        images[key] = str(record.get("file_name", ""))
        size = record.get("width"), record.get("height")
        if all(type(side) is int and 0 < side < 1e9 for side in size):
            sizes[key] = size
    categories = {k: name or "" for k, name in read_categories(path, content, raise_errors).items()}
    annotations = []
    for k, record in enumerate(content["annotations"]):
        location = Location(path, item=f"annotations[{k}]")
        new_id(location, "annotation", record, ())
        image = read_reference(location, record, "image", images)
        category = read_reference(location, record, "category", categories)
        x, y, w, h = read_bbox(location, record)
        crowd = read_crowd(location, record)
        area = read_area(location, record, w * h)
        annotations.append((image, category, (x, y, w, h), area, crowd))
    return Instances(images, sizes, categories, annotations)


def read_json(path: Path) -> dict[str, list[Any]]:
    """Read an annotation file and check that it has the three lists of records.

    Raises:
        DataError: the file cannot be read or is not such a file.
    """
    try:
        content = json.loads(read_bytes(path, MAX_JSON))
    except OSError as error:
        raise DataError(Finding(f"{path} cannot be read ({reason(error)})", file=path)) from None
    except (ValueError, RecursionError) as error:
        problem = f"{path} is not usable JSON: {error}"
        raise DataError(Finding(problem, "fix it", file=path)) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            advice = "it must have images, annotations and categories, as COCO's instances files do"
            raise DataError(Finding(f"{path} has no list of {key}", advice, file=path))
    return content


def read_categories(
    path: Path, content: dict[str, list[Any]], on_finding: OnFinding
) -> dict[int, str | None]:
    """Return id -> name, None for a category that is skipped."""
    categories: dict[int, str | None] = {}
    names: set[str] = set()
    for k, record in enumerate(content["categories"]):
        with errors_to(on_finding):
            location = Location(path, item=f"categories[{k}]")
            key = new_id(location, "category", record, categories)
            location = location._replace(item=f"category {brief(key)}")
            if not isinstance(key, int):
                raise location.error("has an id that is not a whole number", "write one")
            categories[key] = None
            name = get_field(location, record, "name")
            if not isinstance(name, str) or not name.strip():
                raise location.error(f"has the name {brief(name)}", "write its class")
            if name in names:
                problem = f"has the name of another category, {brief(name)}"
                raise location.error(problem, "rename it", "duplicate")
            categories[key] = name
            names.add(name)
    if not categories:
        raise DataError(Finding(f"{path} has no category", "list the classes there", file=path))
    return categories


def read_crowd(location: Location, record: Record) -> bool:
    """Return whether an annotation is a crowd."""
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise location.error(f"has iscrowd {brief(crowd)}", "write 0 or 1")
    return bool(crowd)


def read_area(location: Location, record: Record, box_area: float) -> float:
    """Return the area of the segmentation; of the box if it is absent, null or 0."""
    area = record.get("area")
    if area is None:
        area = 0
    # The range rejects nan and infinity, too.
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < 1e18:
        advice = "write a number of square pixels or remove it"
        raise location.error(f"has area {brief(area)}", advice)
    return float(area) or float(box_area)


def read_bbox(location: Location, record: Record) -> list[float]:
    """Return x, y, width and height of an annotation."""
    box = get_field(location, record, "bbox")
    if not isinstance(box, list) or len(box) != 4:
        advice = "write [x, y, width, height] in pixels"
        raise location.error(f"has bbox {brief(box)}", advice)
    return [to_number(location, "has in its bbox", value) for value in box]


def new_id(location: Location, kind: str, record: Any, seen: Container[Any]) -> Id:
    """Return the id of a record, which must not be in `seen`."""
    if not isinstance(record, dict):
        raise location.error(f"is {brief(record)}", "write an object with an id")
    value = get_field(location, record, "id")
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise location.error(f"has id {brief(value)}", "write a whole number")
    if value in seen:
        problem = f"has the id of another {kind}, {brief(value)}"
        raise location.error(problem, "remove one or give it another id", "duplicate")
    return value


def read_reference(location: Location, record: Record, kind: str, ids: Container[Any]) -> Any:
    """Return the image_id or category_id of an annotation, which must be in `ids`."""
    value = get_field(location, record, f"{kind}_id")
    if not isinstance(value, int | str) or isinstance(value, bool) or value not in ids:
        problem = f"has {kind}_id {brief(value)}, which no {kind} has"
        raise location.error(problem, f"add the {kind} or remove the annotation")
    return value


def get_field(location: Location, record: Record, key: str) -> Any:
    """Return a field that a record must have."""
    if key not in record:
        raise location.error(f"has no {key}", "add it")
    return record[key]


def to_number(location: Location, problem: str, value: Any) -> float:
    """Return a number of pixels; `problem` begins the message about any other value."""
    # The range rejects NaN and infinity, which Python's JSON reads, too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise location.error(f"{problem} {brief(value)}", "write a number of pixels")
    return float(value)
