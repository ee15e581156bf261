"""Examples for TFDS's builders of voc and coco, from folders of the downloaded datasets.

The built datasets equal those of TFDS, which needs all archives, and fields that other tools omit.
"""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tensorflow_datasets as tfds

from ssd_jax.config import ConfigError, shorten
from ssd_jax.data.errors import DataError, Finding
from ssd_jax.data.formats.voc import MAX_XML, parse_number, parse_xml
from ssd_jax.data.images import read_image_size
from ssd_jax.io import MAX_JSON, MAX_TEXT, read_bytes, read_text, reason

Examples: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
"""Keys and records for a builder."""


@dataclass(frozen=True)
class FolderSplit:
    """The files of one of TFDS's splits."""

    name: str
    """TFDS's name: train, validation or test."""
    index: Path
    """VOC: the list of image ids; COCO: the annotation file."""
    images: Path
    """Folder of the images."""


def find_splits(name: str, folder: Path) -> list[FolderSplit]:
    """Find the splits of a dataset in a folder.

    Args:
        name: voc/2007, voc/2012, coco/2014 or coco/2017.
        folder: a VOCdevkit, its parent, or one of its years; or the folder of COCO's annotations/
            and images, which are in train2017/, images/train2017/, images/ or JPEGImages/.

    Raises:
        ConfigError: `name` is another dataset.
        DataError: the folder has no split.
    """
    base = folder.expanduser()
    if name in ("voc/2007", "voc/2012"):
        year = f"VOC{name[-4:]}"
        folders = [base / year, base / "VOCdevkit" / year, base]
        candidates = [
            FolderSplit(split, root / f"ImageSets/Main/{part}.txt", root / "JPEGImages")
            for root in folders
            for split, part in (("train", "train"), ("validation", "val"), ("test", "test"))
        ]
    elif name in ("coco/2014", "coco/2017"):
        candidates = [
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
            "downloaded; your own folder needs no preparation: use data.format voc, coco or yolo"
        )
    splits: dict[str, FolderSplit] = {}
    for split in candidates:
        if split.index.is_file() and split.images.is_dir():
            splits.setdefault(split.name, split)
    if not splits:
        raise DataError(
            f"--from {folder} has no {candidates[0].index.relative_to(base)} with its images; "
            f"name the folder that {name} was downloaded to"
        )
    return list(splits.values())


def voc_examples(builder: Any, split: FolderSplit) -> Examples:
    """Yield the records of TFDS's voc.

    Raises:
        DataError: a file is missing or invalid.
    """
    objects = builder.info.features["objects"]
    # The annotations of VOC2012's test split are not public.
    annotated = split.name != "test" or builder.builder_config.has_test_annotations
    for row in map(str.split, _read_list(split.index)):
        if not row:
            continue
        image_id = row[0]
        image = split.images / f"{image_id}.jpg"
        _check_image(image)
        path = split.images.parent / "Annotations" / f"{image_id}.xml"
        classes, poses = objects["label"].names, objects["pose"].names
        records = _voc_objects(path, image, classes, poses) if annotated else []
        yield (
            image_id,
            {
                "image": str(image),
                "image/filename": image.name,
                "objects": records,
                "labels": sorted({o["label"] for o in records}),
                "labels_no_difficult": sorted(
                    {o["label"] for o in records if not o["is_difficult"]}
                ),
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
            width, height = read_image_size(image)
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
        raise _invalid(path, f" cannot be used: {reason(error)}") from None
    return objects


def _read_list(path: Path) -> list[str]:
    try:
        return read_text(path, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(Finding(f"{path} cannot be read ({reason(error)})", file=path)) from None


def coco_examples(builder: Any, split: FolderSplit) -> Examples:
    """Yield the records of TFDS's coco.

    Raises:
        DataError: a file is missing or invalid.
    """
    path = split.index
    label = builder.info.features["objects"]["label"]
    try:
        content = json.loads(read_bytes(path, MAX_JSON))
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = sorted(content["images"], key=lambda image: image["id"])
        objects = defaultdict(list)
        for annotation in sorted(content.get("annotations", []), key=lambda a: a["id"]):
            objects[annotation["image_id"]].append(annotation)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _invalid(path, f" cannot be used: {_describe(error)}") from None
    if len(names) != label.num_classes:
        raise DataError(
            f"{path} has {len(names)} categories and TFDS's coco {label.num_classes}; "
            "read your own dataset without preparation: use data.format coco"
        )
    label.names = list(names.values())
    for image in images:
        try:
            record = _coco_record(image, objects[image["id"]], names)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            problem = f": image {image['id']!r} cannot be used: {_describe(error)}"
            raise _invalid(path, problem) from None
        file = split.images / record["image/filename"]
        _check_image(file)
        yield record["image/filename"], {"image": str(file), **record}


def _coco_record(
    image: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]
) -> dict[str, Any]:
    records = []
    for annotation in objects:
        x, y, width, height = annotation["bbox"]
        corners = (y, x, y + height, x + width)
        records.append(
            {
                "id": annotation["id"],
                "area": annotation.get("area", width * height),
                "bbox": _box(corners, image["width"], image["height"]),
                "label": names[annotation["category_id"]],
                "is_crowd": bool(annotation.get("iscrowd", 0)),
            }
        )
    return {"image/filename": image["file_name"], "image/id": image["id"], "objects": records}


def _image_folders(base: Path, part: str) -> list[Path]:
    """Return the possible folders of the images of a part of COCO, such as train2017."""
    shared = [f for f in (base / "images", base / "JPEGImages") if any(f.glob("*.jpg"))]
    return [base / part, base / "images" / part, *shared]


def _check_image(file: Path) -> None:
    if not file.is_file():
        advice = "add it or remove it from the list"
        raise DataError(Finding(f"{file} is missing", advice, kind="missing_image", file=file))


def _box(corners: Sequence[float], width: float, height: float) -> Any:
    """Make TFDS's box of ymin, xmin, ymax, xmax, clipped; a flipped box loses its area."""
    ymin, xmin, ymax, xmax = (
        min(max(side / length, 0.0), 1.0)
        for side, length in zip(corners, (height, width, height, width), strict=True)
    )
    return tfds.features.BBox(ymin, xmin, max(ymin, ymax), max(xmin, xmax))


def _invalid(path: Path, problem: str) -> DataError:
    return DataError(Finding(f"{path}{problem}", "fix it", file=path))


def _describe(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else reason(error)
