"""Folders as VOC and COCO are downloaded, in the form that TFDS's builders of voc and coco take.

What comes out is what TFDS's own reading of its archives gives. That reading wants all archives,
and fields that other tools leave out.
"""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tensorflow_datasets as tfds

from ssd_jax.config import ConfigError
from ssd_jax.data.errors import DataError, reason, shorten
from ssd_jax.data.formats.voc import MAX_XML, parse_xml
from ssd_jax.data.images import picture_size
from ssd_jax.data.numbers import parse_number
from ssd_jax.io import MAX_JSON, MAX_TEXT, read_bytes, read_text

Examples: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
"""Keys and records as a builder takes them."""


@dataclass(frozen=True)
class FolderSplit:
    """Where one of TFDS's splits lies in a folder."""

    name: str
    """As TFDS calls it: train, validation, test."""
    listed: Path
    """VOC: the list of its image ids; COCO: its annotation file."""
    images: Path
    """Folder of its images."""


def find_splits(name: str, folder: Path) -> list[FolderSplit]:
    """The splits of a data set that lie in a folder, one or more.

    Args:
        name: voc/2007, voc/2012, coco/2014 or coco/2017.
        folder: a VOCdevkit, or what holds one, or one of its years; or what holds COCO's
            annotations/ and images, those in train2017/, images/train2017/, images/ or
            JPEGImages/.

    Raises:
        ConfigError: it is another data set.
        DataError: there is no split in the folder.
    """
    base = folder.expanduser()
    if name in ("voc/2007", "voc/2012"):
        year = f"VOC{name[-4:]}"
        folders = [base / year, base / "VOCdevkit" / year, base]
        tried = [
            FolderSplit(split, found / f"ImageSets/Main/{part}.txt", found / "JPEGImages")
            for found in folders
            for split, part in (("train", "train"), ("validation", "val"), ("test", "test"))
        ]
    elif name in ("coco/2014", "coco/2017"):
        tried = [
            FolderSplit(split, base / f"annotations/{file}_{part}.json", images)
            for split, part, file in (
                ("train", f"train{name[-4:]}", "instances"),
                ("validation", f"val{name[-4:]}", "instances"),
                ("test", f"test{name[-4:]}", "image_info"),
            )
            for images in _image_folders(base, part)
        ]
    else:
        raise ConfigError(
            f"--from builds voc/2007, voc/2012, coco/2014 and coco/2017, and {name} has to be "
            "downloaded; a folder of your own is read as it is, by data.format voc or coco"
        )
    splits: dict[str, FolderSplit] = {}
    for split in tried:
        if split.listed.is_file() and split.images.is_dir():
            splits.setdefault(split.name, split)
    if not splits:
        raise DataError(
            f"--from {folder} has no {tried[0].listed.relative_to(base)} with its images",
            f"name the folder that {name} was downloaded to",
        )
    return list(splits.values())


def voc_examples(builder: Any, split: FolderSplit) -> Examples:
    """Records of TFDS's voc.

    Raises:
        DataError: a file is missing or cannot be used.
    """
    objects = builder.info.features["objects"]
    # TFDS takes no annotations from VOC2012's test, of which there are none in public.
    annotated = split.name != "test" or builder.builder_config.has_test_annotations
    for row in map(str.split, _read_list(split.listed)):
        if not row:
            continue
        image_id = row[0]
        image = split.images / f"{image_id}.jpg"
        _check_image(image)
        path = split.images.parent / "Annotations" / f"{image_id}.xml"
        classes, poses = objects["label"].names, objects["pose"].names
        found = _voc_objects(path, image, classes, poses) if annotated else []
        yield (
            image_id,
            {
                "image": str(image),
                "image/filename": image.name,
                "objects": found,
                "labels": sorted({o["label"] for o in found}),
                "labels_no_difficult": sorted({o["label"] for o in found if not o["is_difficult"]}),
            },
        )


def _voc_objects(
    path: Path, image: Path, classes: list[str], poses: list[str]
) -> list[dict[str, Any]]:
    try:
        root = parse_xml(read_bytes(path, MAX_XML))
        width, height = (
            parse_number(root.findtext(f"size/{side}", "0")) for side in ("width", "height")
        )
        if min(width, height) < 1:
            width, height = picture_size(image)
        objects = []
        for node in root.findall("object"):
            label = node.findtext("name", "").strip().lower()
            if label not in classes:
                raise ValueError(f"class {label!r}, which is not one of {shorten(classes, 20)}")
            sides = ("ymin", "xmin", "ymax", "xmax")
            corners = [parse_number(node.findtext(f"bndbox/{side}", "")) for side in sides]
            pose = node.findtext("pose", "").strip().lower()
            objects.append(
                {
                    "label": label,
                    "pose": pose if pose in poses else "unspecified",
                    "bbox": _box(corners, width, height),
                    "is_truncated": node.findtext("truncated") == "1",
                    "is_difficult": node.findtext("difficult") == "1",
                }
            )
    except DataError:
        raise
    except (OSError, ET.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path} cannot be used: {reason(error)}", "mend it", file=path) from None
    return objects


def _read_list(path: Path) -> list[str]:
    try:
        return read_text(path, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)})", file=path) from None


def coco_examples(builder: Any, split: FolderSplit) -> Examples:
    """Records of TFDS's coco.

    Raises:
        DataError: a file is missing or cannot be used.
    """
    path = split.listed
    label = builder.info.features["objects"]["label"]
    try:
        content = json.loads(read_bytes(path, MAX_JSON))
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = sorted(content["images"], key=lambda image: image["id"])
        objects = defaultdict(list)
        for found in sorted(content.get("annotations", []), key=lambda found: found["id"]):
            objects[found["image_id"]].append(found)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be used: {_why(error)}", "mend it", file=path) from None
    if len(names) != label.num_classes:
        raise DataError(
            f"{path} has {len(names)} categories and TFDS's coco {label.num_classes}",
            "read a data set of your own as it is, by data.format coco",
        )
    label.names = list(names.values())
    for image in images:
        try:
            record = _coco_record(image, objects[image["id"]], names)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{path}: image {image['id']!r} cannot be used: {_why(error)}", "mend it", file=path
            ) from None
        file = split.images / record["image/filename"]
        _check_image(file)
        yield record["image/filename"], {"image": str(file), **record}


def _coco_record(
    image: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]
) -> dict[str, Any]:
    found = []
    for known in objects:
        x, y, width, height = known["bbox"]
        corners = (y, x, y + height, x + width)
        found.append(
            {
                "id": known["id"],
                "area": known.get("area", width * height),
                "bbox": _box(corners, image["width"], image["height"]),
                "label": names[known["category_id"]],
                "is_crowd": bool(known.get("iscrowd", 0)),
            }
        )
    return {"image/filename": image["file_name"], "image/id": image["id"], "objects": found}


def _image_folders(base: Path, part: str) -> list[Path]:
    """Where the images of COCO's part may lie; a folder of several parts holds images itself."""
    shared = [f for f in (base / "images", base / "JPEGImages") if any(f.glob("*.jpg"))]
    return [base / part, base / "images" / part, *shared]


def _check_image(file: Path) -> None:
    if not file.is_file():
        raise DataError(
            f"{file} is missing", "put it there or take it off the list", kind="missing_image"
        )


def _box(corners: Sequence[float], width: float, height: float) -> Any:
    """TFDS's box of ymin, xmin, ymax, xmax: inside the image, and without area if it is turned."""
    ymin, xmin, ymax, xmax = (
        min(max(side / length, 0.0), 1.0)
        for side, length in zip(corners, (height, width, height, width), strict=True)
    )
    return tfds.features.BBox(ymin, xmin, max(ymin, ymax), max(xmin, xmax))


def _why(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else reason(error)
