"""Detections and ground truth in the files that COCO and VOC ask for, without a model.

COCO's results file is a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height],
"score"} in continuous pixels (cocodataset.org/#format-results). VOC's is a folder with a text file
for each class, comp4_det_test_CLASS.txt, whose lines are image_id score xmin ymin xmax ymax, in
pixels that count from 1 and include the last one (the VOC 2012 devkit, section 8.2).
"""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ssd_jax.config import UserError
from ssd_jax.data.errors import DataError, shorten
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.coco_json import read_instances
from ssd_jax.data.formats.voc import (
    IMAGE_SUFFIXES,
    annotated_ids,
    parse_number,
    read_annotation,
)
from ssd_jax.data.images import read_image_file
from ssd_jax.data.types import DataSource
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.json_array import read_array
from ssd_jax.evaluation.metrics.voc_ap import VOC_PIXELS, BoxConvention, DetectionTable, GroundTruth
from ssd_jax.io import MAX_JSON, atomic_write, is_dir, is_file, read_pieces, reason

_PIECE = 1 << 22  # bytes of a text file that are parsed at once, and of its longest line
_LIMIT = 1e9  # pixels, and of scores
_NUMBERS = re.compile(r"[0-9.eE+\- ]*")  # what `parse_number` takes, and `float` checks
_VOC_FILE = re.compile(r"(?:comp\d+_)?det_[^_]+_(.+)\.txt")
_REPR = reprlib.Repr()
_REPR.maxstring = 80


class ResultsError(UserError):
    """A results file that cannot be used; the message names the file, the entry and the change."""


@dataclass(frozen=True)
class AnnotationFile:
    """The ground truth of a data set, and how its files call images and classes."""

    path: Path
    classes: tuple[str, ...]
    """Names; label k of `objects` is classes[k - 1]."""
    objects: GroundTruth
    """`image` counts `image_ids` from 0; boxes in VOC's pixels; COCO's crowds are difficult."""
    area: np.ndarray
    """float64 [N], square pixels of each object: of its segmentation, or of its box where the file
    has no area, as VOC's have not."""
    image_ids: tuple[int | str, ...]
    image_files: tuple[str, ...]
    """Names of the images' files, VOC's without suffix; "" where there is none."""
    category_ids: tuple[int, ...]
    """COCO's id of each class; empty for VOC."""
    box_convention: BoxConvention | None
    """The pixel convention of all files; None: inclusive for VOC's, exclusive for COCO's."""
    image_sizes: np.ndarray | None
    """int [images, 2], width and height; None where the files do not have all of them."""

    @property
    def rule(self) -> BoxConvention:
        """The pixel convention that the scores go by."""
        return self.box_convention or ("exclusive" if self.category_ids else "inclusive")

    def data_set(self, images: Path | None) -> EvaluationData:
        """The data set, its images read from a folder where there is one.

        Raises ResultsError if the folder is missing.
        """
        if images is not None and not is_dir(images):
            raise ResultsError(f"--images: there is no folder {images}")
        names = [str(key) for key in self.image_ids]
        if len(set(names)) < len(names):  # 1 and "1"
            names = [f"{k}-{name}" for k, name in enumerate(names)]
        return EvaluationData(
            classes=self.classes,
            objects=self.objects,
            area=self.area,
            image_names=names,
            read_image=partial(_read_image, images, self.image_files),
            image_sizes=self.image_sizes,
        )


def _read_image(folder: Path | None, names: Sequence[str], k: int) -> np.ndarray | None:
    """Image k of a folder by its name, with any known suffix where that has none."""
    if folder is None or not names[k]:
        return None
    for suffix in ("", *IMAGE_SUFFIXES):
        path = folder / f"{names[k]}{suffix}"
        if is_file(path):
            try:
                return read_image_file(path)[1]
            except DataError:
                return None
    return None


def read_annotations(
    path: Path, split: str = "", box_convention: BoxConvention | None = None
) -> AnnotationFile:
    """The ground truth of a COCO annotations file, or of a folder with VOC's Annotations/.

    Args:
        path: of the file or the folder; ~ is the home directory.
        split: a list in the folder's ImageSets/Main, without .txt; "": all annotations.
        box_convention: see `AnnotationFile`; the results files count as the annotations do.

    Raises UserError, naming the file, if it is missing or cannot be used.
    """
    path = path.expanduser()
    if is_dir(path / "Annotations"):
        return _read_known_voc(path, split, box_convention)
    if is_file(path) and not split:
        return _read_known_coco(path, box_convention)
    if split and is_file(path):
        raise ResultsError(f"--split is for VOC folders and {path} is a file; leave it out")
    raise ResultsError(
        f"{path} is neither a COCO annotations file nor a folder with VOC's Annotations/"
    )


def read_detections(
    path: Path, known: AnnotationFile, on_note: Callable[[str], object] = lambda _: None
) -> DetectionTable:
    """Read a COCO results file or a folder of VOC's text files; boxes in VOC's pixels.

    `image` and labels are those of `known`. `on_note` is called with a line for each file of a
    class that `known` has no object of; the file is ignored.

    Raises:
        ResultsError: an entry is malformed, or of an image or a category that `known` has not; the
            message names the file and the entry.
    """
    path = path.expanduser()
    if is_dir(path):
        return _read_voc_results(path, known, on_note)
    if not known.category_ids:
        raise ResultsError(
            f"{path} must be a folder of comp4_det_test_CLASS.txt: the annotations of "
            f"{known.path} are VOC's, which have no category ids"
        )
    return _read_coco_results(path, known)


def write_results(out_dir: Path, found: DetectionTable, source: DataSource, split: str) -> Path:
    """Write the detections of a source in its data set's own form; the path of what is written.

    That is out_dir/detections.json for COCO's layout with its own image and category ids, and
    else the folder out_dir/detections with VOC's files. `found` is in VOC's pixels.

    Raises UserError where the source's ids or classes do not fit the form, OSError where it cannot
    write.
    """
    if isinstance(source, CocoSource):
        path = out_dir / "detections.json"
        if len(set(source.image_numbers)) < len(source):
            raise ResultsError(
                f"{path} cannot tell the images of data.eval_split {split!r} apart: two have the "
                "same id; evaluate one of the joined files at a time"
            )
        missing = [name for name in source.classes if name not in source.category_ids]
        if missing:
            raise ResultsError(
                f"{path} needs category ids and the annotations have none for "
                f"{shorten(missing, 20)}; add them to the file's categories"
            )
        categories = [source.category_ids[name] for name in source.classes]
        write_coco_results(path, found, source.image_numbers, categories)
        return path
    ids = [source.annotation(i).image_id for i in range(len(source))]
    list_name = re.sub(r"[^A-Za-z0-9]+", "-", split).strip("-")
    folder = out_dir / "detections"
    write_voc_results(folder, found, ids, source.classes, split=list_name or "test")
    return folder


def write_coco_results(
    path: Path,
    found: DetectionTable,
    image_ids: Sequence[int | str],
    category_ids: Sequence[int],
) -> None:
    """Write detections in VOC's pixels as COCO's results file, one a line.

    Args:
        path: of the file; its folder is there. It is written in one step.
        found: `image` counts `image_ids` from 0, label k is category_ids[k - 1]. Scores keep nine
            digits, which are all of a float32, and boxes a millionth of a pixel.
        image_ids: as in the annotations.
        category_ids: as in the annotations.
    """
    corners = found.boxes - VOC_PIXELS
    boxes = np.round(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), 6)
    rows = zip(
        found.image.tolist(),
        found.label.tolist(),
        found.score.tolist(),
        boxes.tolist(),
        strict=True,
    )
    lines = [
        json.dumps(
            {
                "image_id": image_ids[image],
                "category_id": category_ids[label - 1],
                "bbox": box,
                "score": float(f"{score:.9g}"),
            }
        )
        for image, label, score, box in rows
    ]
    atomic_write(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def write_voc_results(
    folder: Path,
    found: DetectionTable,
    image_ids: Sequence[str],
    classes: Sequence[str],
    *,
    split: str = "test",
) -> None:
    """Write detections in VOC's pixels as folder/comp4_det_SPLIT_CLASS.txt, making the folder.

    Every class has a file, if an empty one. `split` is without _, which ends it in the name.
    Scores keep nine digits and boxes a millionth of a pixel. Raises ResultsError for a class that
    no file can be called by.
    """
    for name in classes:
        if PurePath(name).name != name:
            raise ResultsError(f"class {name!r} cannot be part of a file's name; rename it")
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(classes, start=1):
        lines = [
            f"{image_ids[image]} {score:.9g} {' '.join(f'{side:.6f}' for side in box)}\n"
            for image, score, box in zip(
                found.image[found.label == k].tolist(),
                found.score[found.label == k].tolist(),
                found.boxes[found.label == k].tolist(),
                strict=True,
            )
        ]
        atomic_write(folder / f"comp4_det_{split}_{name}.txt", "".join(lines).encode())


def _read_known_coco(path: Path, box_convention: BoxConvention | None) -> AnnotationFile:
    instances = read_instances(path)
    # Equal scores are taken by the order of the images, which is that of their ids in pycocotools.
    ids = sorted(instances.images, key=lambda key: (isinstance(key, str), key))
    categories = sorted(instances.categories)
    images = {key: k for k, key in enumerate(ids)}
    labels = {key: k for k, key in enumerate(categories, start=1)}
    rows = instances.annotations
    boxes = np.array([box for _, _, box, _, _ in rows], np.float64).reshape(-1, 4)
    return AnnotationFile(
        path=path,
        classes=tuple(instances.categories[key] for key in categories),
        objects=GroundTruth(
            image=np.array([images[image] for image, *_ in rows]),
            label=np.array([labels[category] for _, category, *_ in rows]),
            boxes=_from_xywh(boxes, box_convention),
            difficult=np.array([crowd for *_, crowd in rows], bool),
        ),
        area=np.array([area for *_, area, _ in rows], np.float64),
        image_ids=tuple(ids),
        image_files=tuple(instances.images[key] for key in ids),
        category_ids=tuple(categories),
        box_convention=box_convention,
        image_sizes=_all_sizes([instances.sizes.get(key) for key in ids]),
    )


def _read_known_voc(
    folder: Path, split: str, box_convention: BoxConvention | None
) -> AnnotationFile:
    ids = annotated_ids(folder, split)
    annotations = [read_annotation(folder, image_id) for image_id in ids]
    # A list may have no object of a class that others have.
    everywhere = (
        [read_annotation(folder, image_id) for image_id in annotated_ids(folder)]
        if split
        else annotations
    )
    classes = tuple(sorted({o.name for annotation in everywhere for o in annotation.objects}))
    rows = [(k, o) for k, annotation in enumerate(annotations) for o in annotation.objects]
    boxes = np.array([o.box for _, o in rows], np.float64).reshape(-1, 4)
    boxes = _from_corners(boxes, box_convention or "inclusive")
    return AnnotationFile(
        path=folder,
        classes=classes,
        objects=GroundTruth(
            image=np.array([image for image, _ in rows]),
            label=np.array([classes.index(o.name) + 1 for _, o in rows]),
            boxes=boxes,
            difficult=np.array([o.difficult for _, o in rows], bool),
        ),
        area=np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1),
        image_ids=tuple(ids),
        image_files=tuple(ids),
        category_ids=(),
        box_convention=box_convention,
        image_sizes=_all_sizes([annotation.size for annotation in annotations]),
    )


def _all_sizes(sizes: Sequence[tuple[int, int] | None]) -> np.ndarray | None:
    known = [size for size in sizes if size]
    return np.array(known) if known and len(known) == len(sizes) else None


def _read_coco_results(path: Path, known: AnnotationFile) -> DetectionTable:
    images = {key: k for k, key in enumerate(known.image_ids)}
    labels = {key: k for k, key in enumerate(known.category_ids, start=1)}
    tables, count = [], 0
    try:
        for rows in read_array(path, MAX_JSON):
            table = _convert_entries(rows, images, labels, known.box_convention)
            if table is None:
                for k, row in enumerate(rows, start=count):
                    _check_entry(f"{path}: entry {k}", row, images, labels, known.path)
                raise AssertionError(f"{path}: entries {count} to {count + len(rows)}")
            tables.append(table)
            count += len(rows)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read ({reason(error)})") from None
    except TypeError:
        raise ResultsError(
            f"{path} is no list; a results file is a list of objects with image_id, category_id, "
            "bbox and score"
        ) from None
    except ResultsError:
        raise
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not usable JSON: {error}; fix it") from None
    return DetectionTable(*_join(tables))


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""image int64 [n], label int64 [n], score float64 [n] and box float64 [n, 4] of detections."""


def _join(tables: Sequence[_Columns]) -> _Columns:
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))
    image, label, score, boxes = map(np.concatenate, zip(none, *tables, strict=True))
    return image, label, score, boxes


def _convert_entries(
    rows: Sequence[Any],
    images: dict[Any, int],
    labels: dict[Any, int],
    box_convention: BoxConvention | None,
) -> _Columns | None:
    """Convert the entries of a COCO results file; None if `_check_entry` refuses one of them."""
    try:
        keys = [row["image_id"] for row in rows], [row["category_id"] for row in rows]
        bboxes, scores = [row["bbox"] for row in rows], [row["score"] for row in rows]
        numbers = [*(side for bbox in bboxes for side in bbox), *scores]
        # True and 1.0 equal 1, and are no ids.
        if not (
            {type(key) for of_kind in keys for key in of_kind} <= {int, str}
            and {type(bbox) for bbox in bboxes} <= {list}
            and {len(bbox) for bbox in bboxes} <= {4}
            and {type(value) for value in numbers} <= {int, float}
        ):
            return None
        image = np.array([images[key] for key in keys[0]], np.int64)
        label = np.array([labels[key] for key in keys[1]], np.int64)
        values = np.array(numbers, np.float64)
    except (KeyError, TypeError, OverflowError):
        return None
    boxes, score = values[: 4 * len(rows)].reshape(-1, 4), values[4 * len(rows) :]
    # Nan is not below the limit either.
    if not ((np.abs(values) < _LIMIT).all() and (boxes[:, 2:] >= 0).all()):
        return None
    return image, label, score, _from_xywh(boxes, box_convention)


def _check_entry(
    where: str, row: Any, images: dict[Any, int], labels: dict[Any, int], annotations: Path
) -> None:
    """Raise ResultsError for an entry of a COCO results file that cannot be used."""
    if not isinstance(row, dict):
        raise ResultsError(f"{where} is {_REPR.repr(row)}; write an object")
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in row:
            raise ResultsError(f"{where} has no {key}; add it")
    _look_up(where, row, "image_id", images, annotations)
    _look_up(where, row, "category_id", labels, annotations)
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ResultsError(
            f"{where} has bbox {_REPR.repr(box)}; write [x, y, width, height] in pixels"
        )
    if min(box[2:]) < 0:
        raise ResultsError(f"{where} has bbox {box}, of negative size; write [x, y, width, height]")
    if not _is_number(row["score"]):
        raise ResultsError(f"{where} has score {_REPR.repr(row['score'])}; write a number")


def _read_voc_results(
    folder: Path, known: AnnotationFile, on_note: Callable[[str], object]
) -> DetectionTable:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        match = _VOC_FILE.fullmatch(path.name)
        if match is None:
            continue
        if match[1] in files:
            raise ResultsError(
                f"{folder} has {files[match[1]].name} and {path.name}, both of class {match[1]!r}; "
                "keep one"
            )
        files[match[1]] = path
    if not files:
        raise ResultsError(f"{folder} has no comp4_det_test_CLASS.txt; write one for each class")
    if not set(files) & set(known.classes):
        raise ResultsError(
            f"{folder} has files of {shorten(list(files), 20)}, and {known.path} has objects of "
            f"{shorten(known.classes, 20)}; rename the files or name other annotations"
        )
    images = {name: k for k, name in enumerate(known.image_files) if name}
    if known.category_ids:  # VOC's names have no suffix, and may have dots
        images |= {PurePath(name).stem: k for name, k in images.items()}
    images |= {str(key): k for k, key in enumerate(known.image_ids)}
    labels = {name: k for k, name in enumerate(known.classes, start=1)}
    tables = []
    for name, path in files.items():
        if name not in labels:
            on_note(
                f"{path} is ignored: {known.path} has no object of class {name!r}; it has "
                f"{shorten(known.classes, 20)}"
            )
            continue
        try:
            count = 0
            for lines in _read_lines(path):
                table = _convert_lines(lines, images, labels[name], known.box_convention)
                if table is None:
                    for k, line in enumerate(lines, start=count + 1):
                        _check_line(f"{path}: line {k}", line, images, known.path)
                    raise AssertionError(f"{path}: lines {count + 1} to {count + len(lines)}")
                tables.append(table)
                count += len(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} cannot be read ({reason(error)})") from None
    return DetectionTable(*_join(tables))


def _read_lines(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a text file, many at a time.

    Raises OSError or UnicodeDecodeError where it cannot be read, ResultsError for a long line.
    """
    encoding, rest = "utf-8-sig", b""
    for piece in read_pieces(path, MAX_JSON, size=_PIECE):
        whole, newline, rest_of_piece = piece.rpartition(b"\n")
        if not newline:
            rest += piece
            if len(rest) > _PIECE:
                raise ResultsError(
                    f"{path} has a line of more than {_PIECE:,} bytes; write one detection per line"
                )
            continue
        yield (rest + whole).decode(encoding).splitlines()
        encoding, rest = "utf-8", rest_of_piece
    yield rest.decode(encoding).splitlines()


def _convert_lines(
    lines: Sequence[str], images: dict[str, int], label: int, box_convention: BoxConvention | None
) -> _Columns | None:
    """Convert the lines of a VOC results file; None if `_check_line` refuses one of them."""
    # An image's name may have spaces.
    rows = [line.rsplit(None, 5) for line in lines if line.strip()]
    numbers = [field for row in rows for field in row[1:]]
    if not ({len(row) for row in rows} <= {6} and _NUMBERS.fullmatch(" ".join(numbers))):
        return None
    try:
        image = np.array([images[row[0].strip()] for row in rows], np.int64)
        values = np.array([float(number) for number in numbers]).reshape(-1, 5)
    except (KeyError, ValueError):
        return None
    boxes = values[:, 1:]
    if not ((np.abs(values) < _LIMIT).all() and (boxes[:, 2:] >= boxes[:, :2] - 1).all()):
        return None
    boxes = _from_corners(boxes, box_convention or "inclusive")
    return image, np.full(len(rows), label), values[:, 0], boxes


def _check_line(where: str, line: str, images: dict[str, int], annotations: Path) -> None:
    """Raise ResultsError for a line of a VOC results file that cannot be used."""
    if not line.strip():
        return
    fields = line.rsplit(None, 5)
    try:
        row = [parse_number(field) for field in fields[1:]]
    except ValueError:
        row = []
    if len(row) != 5 or not all(map(_is_number, row)):
        raise ResultsError(
            f"{where} is {_REPR.repr(line)}; write image_id score xmin ymin xmax ymax"
        )
    if row[3] < row[1] - 1 or row[4] < row[2] - 1:
        raise ResultsError(f"{where} has a box of negative size; write xmin ymin xmax ymax")
    key = fields[0].strip()
    if key not in images:
        raise ResultsError(
            f"{where} has image {key[:80]!r}, which {annotations} has not; take the line out"
        )


def _look_up(
    where: str, row: dict[str, Any], key: str, numbers: dict[Any, int], annotations: Path
) -> None:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in numbers:
        raise ResultsError(
            f"{where} has {key} {_REPR.repr(value)}, which {annotations} has not; take the entry "
            "out or name the annotations that it is of"
        )


def _from_xywh(boxes: np.ndarray, box_convention: BoxConvention | None) -> np.ndarray:
    """VOC's pixels [N, 4] from x, y, width, height, by default in continuous pixels."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return _from_corners(corners, box_convention or "exclusive")


def _from_corners(boxes: np.ndarray, box_convention: BoxConvention) -> np.ndarray:
    """VOC's pixels [N, 4] from xmin, ymin, xmax, ymax."""
    return boxes if box_convention == "inclusive" else boxes + VOC_PIXELS


def _is_number(value: Any) -> bool:
    # NaN and infinity, which Python's JSON has, are not in the range either.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LIMIT
