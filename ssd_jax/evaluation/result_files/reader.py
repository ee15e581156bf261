"""Read detections in the results formats of COCO and VOC."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ssd_jax.config import shorten
from ssd_jax.data.errors import brief
from ssd_jax.data.formats.voc import parse_number
from ssd_jax.data.tables import DetectionTable
from ssd_jax.evaluation.metrics.matching import BoxConvention
from ssd_jax.evaluation.result_files.annotations import AnnotationFile, ResultsError
from ssd_jax.evaluation.result_files.json_array import read_array
from ssd_jax.evaluation.result_files.pixels import corners_to_continuous, xywh_to_continuous
from ssd_jax.io import MAX_JSON, is_dir, read_pieces, reason

Array = np.ndarray[Any, Any]

_PIECE = 1 << 22  # bytes of a text file that are parsed at once, and of its longest line
_LIMIT = 1e9  # pixels, and of scores
_NUMBERS = re.compile(r"[0-9.eE+\- ]*")  # accepted by `parse_number` and to be checked by `float`
_VOC_FILE = re.compile(r"(?:comp\d+_)?det_[^_]+_(.+)\.txt")

_Columns = tuple[Array, Array, Array, Array]
"""image int64 [n], label int64 [n], score float64 [n] and box float64 [n, 4] of detections."""


def read_detections(
    path: Path, annotations: AnnotationFile, on_note: Callable[[str], object] = lambda _: None
) -> DetectionTable:
    """Read a COCO results file or a folder of VOC's text files.

    Args:
        path: of the file or the folder; ~ is the home directory.
        annotations: ground truth, whose images and class ids the table refers to.
        on_note: called with a line for each file of a class without objects in the annotations;
            the file is ignored.

    Raises:
        ResultsError: an entry is malformed, or its image or category is not in the annotations;
            the message names the file and the entry.
    """
    path = path.expanduser()
    if is_dir(path):
        return _read_voc_results(path, annotations, on_note)
    if not annotations.category_ids:
        raise ResultsError(
            f"{path} must be a folder of comp4_det_test_CLASS.txt: the annotations "
            f"{annotations.path} are VOC's, which have no category ids"
        )
    return _read_coco_results(path, annotations)


def _read_coco_results(path: Path, annotations: AnnotationFile) -> DetectionTable:
    images = {key: k for k, key in enumerate(annotations.image_ids)}
    labels = {key: k for k, key in enumerate(annotations.category_ids)}
    tables, count = [], 0
    try:
        for rows in read_array(path, MAX_JSON):
            table = _convert_entries(rows, images, labels, annotations.box_convention)
            if table is None:
                for k, row in enumerate(rows, start=count):
                    _check_entry(f"{path}: entry {k}", row, images, labels, annotations.path)
                raise AssertionError(f"{path}: entries {count} to {count + len(rows)}")
            tables.append(table)
            count += len(rows)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read ({reason(error)})") from None
    except TypeError:
        raise ResultsError(
            f"{path} is not a list; a results file is a list of objects with image_id, "
            "category_id, bbox and score"
        ) from None
    except ResultsError:
        raise
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not valid JSON: {error}; fix it") from None
    return DetectionTable(*_join(tables))


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
    """Convert the entries of a COCO results file; None if `_check_entry` rejects one of them."""
    try:
        keys = [row["image_id"] for row in rows], [row["category_id"] for row in rows]
        bboxes, scores = [row["bbox"] for row in rows], [row["score"] for row in rows]
        numbers = [*(side for bbox in bboxes for side in bbox), *scores]
        # True and 1.0 equal 1, but are not ids.
        if not (
            {type(key) for column in keys for key in column} <= {int, str}
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
    # nan is not below the limit either.
    if not ((np.abs(values) < _LIMIT).all() and (boxes[:, 2:] >= 0).all()):
        return None
    return image, label, score, xywh_to_continuous(boxes, box_convention or "exclusive")


def _check_entry(
    where: str, row: Any, images: dict[Any, int], labels: dict[Any, int], annotations: Path
) -> None:
    """Raise ResultsError for an invalid entry of a COCO results file."""
    if not isinstance(row, dict):
        raise ResultsError(f"{where} is {brief(row)}; write an object")
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in row:
            raise ResultsError(f"{where} has no {key}; add it")
    _check_id(where, row, "image_id", images, annotations)
    _check_id(where, row, "category_id", labels, annotations)
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ResultsError(f"{where} has bbox {brief(box)}; write [x, y, width, height] in pixels")
    if min(box[2:]) < 0:
        raise ResultsError(f"{where} has bbox {box}, of negative size; write [x, y, width, height]")
    if not _is_number(row["score"]):
        raise ResultsError(f"{where} has score {brief(row['score'])}; write a number")


def _read_voc_results(
    folder: Path, annotations: AnnotationFile, on_note: Callable[[str], object]
) -> DetectionTable:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        match = _VOC_FILE.fullmatch(path.name)
        if match is None:
            continue
        if match[1] in files:
            raise ResultsError(
                f"{folder} contains {files[match[1]].name} and {path.name}, both of class "
                f"{match[1]!r}; keep one"
            )
        files[match[1]] = path
    if not files:
        raise ResultsError(f"{folder} contains no comp4_det_test_CLASS.txt; write one per class")
    if not set(files) & set(annotations.classes):
        raise ResultsError(
            f"{folder} has files of {shorten(list(files), 20)}, and {annotations.path} has objects "
            f"of {shorten(annotations.classes, 20)}; rename the files or use other annotations"
        )
    images = {name: k for k, name in enumerate(annotations.image_files) if name}
    if annotations.category_ids:  # the names of VOC have no suffix, and may contain dots
        images |= {PurePath(name).stem: k for name, k in images.items()}
    images |= {str(key): k for k, key in enumerate(annotations.image_ids)}
    labels = {name: k for k, name in enumerate(annotations.classes)}
    tables = []
    for name, path in files.items():
        if name not in labels:
            on_note(
                f"{path} is ignored: {annotations.path} has no objects of class {name!r}; its "
                f"classes are {shorten(annotations.classes, 20)}"
            )
            continue
        try:
            count = 0
            for lines in _read_lines(path):
                table = _convert_lines(lines, images, labels[name], annotations.box_convention)
                if table is None:
                    for k, line in enumerate(lines, start=count + 1):
                        _check_line(f"{path}: line {k}", line, images, annotations.path)
                    raise AssertionError(f"{path}: lines {count + 1} to {count + len(lines)}")
                tables.append(table)
                count += len(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} cannot be read ({reason(error)})") from None
    return DetectionTable(*_join(tables))


def _read_lines(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a text file, many at a time.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not UTF-8.
        ResultsError: a line is too long.
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
    """Convert the lines of a VOC results file; None if `_check_line` rejects one of them."""
    # The name of an image may contain spaces.
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
    boxes = corners_to_continuous(boxes, box_convention or "inclusive")
    return image, np.full(len(rows), label), values[:, 0], boxes


def _check_line(where: str, line: str, images: dict[str, int], annotations: Path) -> None:
    """Raise ResultsError for an invalid line of a VOC results file."""
    if not line.strip():
        return
    fields = line.rsplit(None, 5)
    try:
        row = [parse_number(field) for field in fields[1:]]
    except ValueError:
        row = []
    if len(row) != 5 or not all(map(_is_number, row)):
        raise ResultsError(f"{where} is {brief(line)}; write image_id score xmin ymin xmax ymax")
    if row[3] < row[1] - 1 or row[4] < row[2] - 1:
        raise ResultsError(f"{where} has a box of negative size; write xmin ymin xmax ymax")
    key = fields[0].strip()
    if key not in images:
        raise ResultsError(
            f"{where} has image {key[:80]!r}, which is not in {annotations}; remove the line"
        )


def _check_id(
    where: str, row: dict[str, Any], key: str, ids: dict[Any, int], annotations: Path
) -> None:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in ids:
        raise ResultsError(
            f"{where} has {key} {brief(value)}, which is not in {annotations}; remove the "
            "entry or use the annotations that it belongs to"
        )


def _is_number(value: Any) -> bool:
    # NaN and infinity, which Python's JSON accepts, are out of range too.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LIMIT
