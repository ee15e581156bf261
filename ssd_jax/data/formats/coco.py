"""COCO's layout: annotations/instances_SPLIT.json beside folders of images.

COCO's boxes are x, y, width, height in continuous pixels; here they become xyxy.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from ssd_jax.config import shorten
from ssd_jax.data.errors import (
    DataError,
    Finding,
    Location,
    OnFinding,
    brief,
    errors_to,
    raise_errors,
)
from ssd_jax.data.formats.coco_json import (
    Id,
    Record,
    get_field,
    new_id,
    read_area,
    read_bbox,
    read_categories,
    read_crowd,
    read_json,
    read_reference,
    to_number,
)
from ssd_jax.data.images import ImageFileSource
from ssd_jax.data.types import Annotation, distinct_ids
from ssd_jax.io import is_dir, is_file

PREFIX = "instances_"


class CocoSource(ImageFileSource):
    """Images and objects of COCO annotation files.

    Annotations are read when the source is created, images on access. Images without objects are
    kept. A crowd (iscrowd 1) is also marked as difficult. Objects whose box has no area inside the
    image are skipped.

    Args:
        root: the folder that holds annotations/; ~ is the home directory.
        split: SPLIT of annotations/instances_SPLIT.json, or of annotations/SPLIT.json if there is
            no such file; several are joined by +. Its images are in SPLIT/, images/SPLIT/,
            images/ or JPEGImages/ of the root.
        classes: names of the classes, without background.
        on_finding: receives each error and warning. If it returns from an error, the image is
            skipped with its objects, or the category with its objects, or the object.

    Attributes:
        image_numbers: id of each record in its annotation file; may repeat if files are joined.
        category_ids: category name -> id, the first file's if several differ.

    Raises:
        DataError: an annotation file is missing or cannot be read; or, unless `on_finding`
            returns, a record is invalid or an image is missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: tuple[str, ...],
        on_finding: OnFinding = raise_errors,
    ) -> None:
        labels = {name: k for k, name in enumerate(classes)}
        images: list[_Image] = []
        origins: dict[Path, str] = {}  # file -> the record that has it
        self.category_ids: dict[str, int] = {}
        for name, path in _split_paths(root, split):
            file = _AnnotationFile(path, on_finding)
            file.read_objects(labels)
            for key, category in file.categories.items():
                if category is not None:
                    self.category_ids.setdefault(category, key)
            for image in file.find_images(Path(root).expanduser(), name):
                if image.file in origins:
                    problem = (
                        f"is {image.file}, which is image {origins[image.file]} (SPLIT-ID) already"
                    )
                    location = Location(path, item=f"image {brief(image.id)}")
                    on_finding(location.finding(problem, "remove one of the two", "duplicate"))
                    continue
                origins[image.file] = f"{name}-{image.id}"
                images.append(image)
        if not images:
            raise DataError(f"{root}: split {split!r} has no image; name another")
        self.image_numbers = tuple(image.id for image in images)
        # COCO's own files are named by the image's id; other tools repeat names across folders.
        ids = distinct_ids([i.file.stem for i in images], [origins[i.file] for i in images])
        super().__init__(
            classes,
            [image.file for image in images],
            [_to_annotation(*pair) for pair in zip(ids, images, strict=True)],
        )


def coco_classes(
    root: str | Path, split: str, on_finding: OnFinding = raise_errors
) -> tuple[str, ...]:
    """Return the names of a split's categories in the order of their ids, used or not.

    Categories that occur only in a later one of several joined files come last.

    Raises:
        DataError: a file is missing, or its categories are invalid.
    """
    names: dict[str, None] = {}
    for _, path in _split_paths(root, split):
        categories = read_categories(path, read_json(path), on_finding)
        names.update((name, None) for _, name in sorted(categories.items()) if name is not None)
    return tuple(names)


@dataclass
class _Image:
    id: Id
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


class _AnnotationFile:
    """An annotation file whose invalid records are reported and skipped."""

    def __init__(self, path: Path, on_finding: OnFinding) -> None:
        self._path = path
        self._on_finding = on_finding
        self._content = read_json(path)
        # None: a record that is skipped, with its objects.
        self._images: dict[Id, _Image | None] = {}
        for k, record in enumerate(self._content["images"]):
            with errors_to(on_finding):
                location = Location(path, item=f"images[{k}]")
                key = new_id(location, "image", record, self._images)
                self._images[key] = None
                self._images[key] = _read_image(path, key, record)
        self.categories = read_categories(path, self._content, on_finding)

    def read_objects(self, labels: dict[str, int]) -> None:
        """Add the objects to their images."""
        seen: set[Id] = set()
        for k, record in enumerate(self._content["annotations"]):
            try:
                location = Location(self._path, item=f"annotations[{k}]")
                key = new_id(location, "annotation", record, seen)
                seen.add(key)
                location = location._replace(item=f"annotation {brief(key)}")
                image = self._images[read_reference(location, record, "image", self._images)]
                name = self.categories[
                    read_reference(location, record, "category", self.categories)
                ]
                if image is not None and name is not None:
                    self._add_object(location, record, image, name, labels)
            except DataError as error:
                self._on_finding(error.finding)

    def _add_object(
        self, location: Location, record: Record, image: _Image, name: str, labels: dict[str, int]
    ) -> None:
        located = location._replace(record=image.name)
        if name not in labels:
            raise DataError(located.unknown_class(name, tuple(labels)))
        crowd = read_crowd(location, record)
        x, y, w, h = read_bbox(location, record)
        width, height = image.width, image.height
        corners = (
            min(max(x, 0), width),
            min(max(y, 0), height),
            min(max(x + w, 0), width),
            min(max(y + h, 0), height),
        )
        box = np.array(corners, np.float32)
        if located.check_box(
            f"on {image.name}, {name} ({x:g}, {y:g}, {w:g}, {h:g}),",
            (width, height),
            self._on_finding,
            has_area=box[0] < box[2] and box[1] < box[3],
            is_outside=max(-x, -y, x + w - width, y + h - height) >= 1,
            advice="; it is [x, y, width, height]",
        ):
            area = read_area(location, record, (box[2] - box[0]) * (box[3] - box[1]))
            image.objects.append(_Object(box, labels[name], crowd, area))

    def find_images(self, base: Path, split: str) -> list[_Image]:
        """Set the files of the images, all from the folder that has the most of them.

        Returns:
            The images that have a file.
        """
        images = [image for image in self._images.values() if image]
        folders = [base / split, base / "images" / split, base / "images", base / "JPEGImages"]
        missing: dict[Path, list[_Image]] = {}
        for folder in filter(Path.is_dir, folders):
            missing[folder] = [i for i in images if not is_file(folder / i.name)]
            if not missing[folder]:
                break
        if not missing:
            searched = ", ".join(str(f.relative_to(base)) for f in folders)
            problem = f"{base} has no folder of images for {self._path.name}"
            raise DataError(Finding(problem, f"put them in {searched}", file=self._path))
        folder = min(missing, key=lambda f: len(missing[f]))
        for image in missing[folder]:
            item = f"image {brief(image.id)}"
            self._on_finding(
                Finding(
                    f"{folder / image.name} is missing, {item} of {self._path} "
                    f"({len(missing[folder])} of {len(images)} images are)",
                    "add the file or remove the image",
                    kind="missing_image",
                    file=self._path,
                    record=image.name,
                    item=item,
                )
            )
        absent = {image.id for image in missing[folder]}
        images = [image for image in images if image.id not in absent]
        for image in images:
            image.file = folder / image.name
        return images


def _split_paths(root: str | Path, split: str) -> list[tuple[str, Path]]:
    """Return (name, annotation file) of each part of a split, without repetition."""
    base = Path(root).expanduser()
    if not is_dir(base):
        raise DataError(f"data.root {base} is not a folder; name the folder of the dataset")
    folder = base / "annotations"
    if not is_dir(folder):
        raise DataError(f"{folder} is missing; data.root must be the folder that holds it")
    paths = {}
    for item in split.split("+"):
        name = item.strip().removeprefix(PREFIX)
        candidates = [folder / f"{PREFIX}{name}.json", folder / f"{name}.json"]
        path = next((p for p in candidates if is_file(p)), None)
        if path is None:
            splits = sorted(p.stem for p in folder.glob("*.json"))
            # COCO's captions and keypoints are in the same folder.
            splits = [s.removeprefix(PREFIX) for s in splits if s.startswith(PREFIX)] or splits
            raise DataError(
                f"{candidates[0]} is missing; the splits of this dataset are "
                f"{shorten(splits, 20) if splits else '(none: put an annotation file there)'}"
            )
        paths[name] = path
    return list(paths.items())


def _read_image(path: Path, key: Id, record: Record) -> _Image:
    location = Location(path, item=f"image {brief(key)}")
    name = get_field(location, record, "file_name")
    if not isinstance(name, str) or not _is_inside(name):
        advice = "write it relative to the folder of images"
        raise location.error(f"has file_name {brief(name)}", advice)
    width, height = (
        to_number(location, f"has {side}", get_field(location, record, side))
        for side in ("width", "height")
    )
    if min(width, height) < 1 or width % 1 or height % 1:
        raise location.error(f"has {width:g}x{height:g} pixels", "write whole numbers above 0")
    return _Image(key, name, int(width), int(height))


def _is_inside(name: str) -> bool:
    path = PurePath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _to_annotation(image_id: str, image: _Image) -> Annotation:
    crowd = np.array([o.crowd for o in image.objects], bool)
    return Annotation(
        image_id=image_id,
        width=image.width,
        height=image.height,
        boxes_px=np.array([o.box for o in image.objects], np.float32).reshape(-1, 4),
        labels=np.array([o.label for o in image.objects], np.int32),
        difficult=crowd,
        crowd=crowd,
        area=np.array([o.area for o in image.objects], np.float64),
    )
