"""Prepared TFDS datasets: finding one, its features and the records of a split.

Only ArrayRecord files are read, with random access and without TensorFlow. A record includes its
image, so reading all annotations of a split means reading all images: it is done once, and the
annotations are cached in a file beside the records.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from ssd_jax.config import ConfigError, TfdsFields, shorten
from ssd_jax.data.errors import DataError
from ssd_jax.data.headers import read_header
from ssd_jax.data.images import decode_image
from ssd_jax.io import MAX_CONFIG, is_file, read_text, reason

ARRAY_RECORD = "array_record"

_CACHE_VERSION = 1  # a new number invalidates older cache files
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FEATURES = "tensorflow_datasets.core.features."
# protobuf's two spellings of the field, and the key of TFDS's first format.
_CLASS_KEYS = {"pythonClassName", "python_class_name", "type"}
_ADVICE = "; remove its folder and prepare the dataset again"


@dataclass(frozen=True)
class SplitAnnotations:
    """The n records of a split in order, and their m objects."""

    ids: np.ndarray
    """str [n]: the file's name if TFDS has kept it, else the split's and a number."""
    sizes: np.ndarray
    """int64 [n, 2], width and height of the image as stored (pixels)."""
    counts: np.ndarray
    """int64 [n], objects of each record."""
    boxes: np.ndarray
    """float32 [m, 4], yxyx in [0, 1]."""
    labels: np.ndarray
    """int64 [m], index in the dataset's classes."""
    difficult: np.ndarray
    """bool [m]."""
    crowd: np.ndarray
    """bool [m]."""


class PreparedSplit:
    """One split of a prepared dataset; can be pickled.

    Args:
        builder: builder of the dataset, from `open_prepared`.
        name: name of the split, without a slice.
        fields: names of the features of a record.

    Attributes:
        title: name of the dataset, without version: voc/2007.
        classes: names of the dataset's classes, in its order.
        is_voc: whether the boxes are in VOC's inclusive pixels.

    Raises:
        ConfigError: the dataset has no such feature.
    """

    def __init__(self, builder: Any, name: str, fields: TfdsFields) -> None:
        self.folder = Path(builder.data_dir)
        self.title = str(builder.info.full_name).rpartition("/")[0]
        self.name = name
        self.is_voc = builder.name == "voc"
        self._fields, self.classes = _find_features(builder, fields)
        # TFDS decodes a record ten times slower than protobuf.
        self._records = builder.as_data_source(name, file_format=ARRAY_RECORD).data_source
        self._shards = [Path(path) for path in builder.info.splits[name].filepaths]

    def where(self, row: int) -> Path:
        """Return the name of a record for messages."""
        return self.folder / f"{self.name}[{row}]"

    def image(self, row: int) -> np.ndarray:
        """Return the image of a record as stored: uint8 [H, W, 3], RGB.

        Raises:
            DataError: the record cannot be read, or its image cannot be decoded.
        """
        return decode_image(self._encoded_image(row, self._record(row)), self.where(row))[1]

    def annotations(self) -> SplitAnnotations:
        """Return all annotations, from the cache file if it is valid, else from the records.

        Raises:
            DataError: a record cannot be read.
        """
        try:
            # Files of whole blocks often have equal sizes, so their times count too.
            shards = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self._shards]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({reason(error)}){_ADVICE}") from None
        key = json.dumps([_CACHE_VERSION, self._fields, shards])
        file = self.folder / f"ssd_jax-{self.name}.npz"
        annotations = _load(file, key, len(self._records))
        if annotations is None:
            annotations = self._read_annotations()
            _save(file, key, annotations)
        return annotations

    def _read_annotations(self) -> SplitAnnotations:
        ids, sizes, counts = [], [], []
        columns: dict[str, list[Any]] = {"boxes": [], "labels": [], "difficult": [], "crowd": []}
        for row in range(len(self._records)):
            record = self._record(row)
            try:
                header = read_header(self._encoded_image(row, record))
            except ValueError as error:
                raise self._damaged(row, f"its image cannot be decoded, {error}") from None
            sizes.append((header.width, header.height))
            ids.append(self._id(row, record))
            boxes = record[self._fields["boxes"]].float_list.value
            count, rest = divmod(len(boxes), 4)
            counts.append(count)
            columns["boxes"] += boxes
            for field in ("labels", "difficult", "crowd"):
                values = (
                    record[self._fields[field]].int64_list.value
                    if field in self._fields
                    else [0] * count
                )
                if rest or len(values) != count:
                    raise self._damaged(row, f"{count} boxes, {len(values)} {field}")
                columns[field] += values
        objects = SplitAnnotations(
            ids=np.array(ids, str),
            sizes=np.array(sizes, np.int64).reshape(-1, 2),
            counts=np.array(counts, np.int64),
            boxes=np.array(columns["boxes"], np.float32).reshape(-1, 4),
            labels=np.array(columns["labels"], np.int64),
            difficult=np.array(columns["difficult"], bool),
            crowd=np.array(columns["crowd"], bool),
        )
        inside = ((objects.boxes >= 0) & (objects.boxes <= 1)).all(1)
        named = (objects.labels >= 0) & (objects.labels < len(self.classes))
        for k in np.flatnonzero(~(inside & named))[:1]:
            row = int(np.searchsorted(objects.counts.cumsum(), k, "right"))
            raise self._damaged(row, "a box outside of [0, 1], or a class without a name")
        return objects

    def _record(self, row: int) -> Mapping[str, Any]:
        """Return feature -> values of a record."""
        try:
            return tf_example_pb2.Example.FromString(self._records[row]).features.feature
        except (RuntimeError, DecodeError) as error:
            raise self._damaged(row, first_line(error)) from None

    def _encoded_image(self, row: int, record: Mapping[str, Any]) -> bytes:
        values = record[self._fields["image"]].bytes_list.value
        if len(values) != 1:  # records of a truncated file are empty
            raise self._damaged(row, "it has no image")
        return values[0]

    def _id(self, row: int, record: Mapping[str, Any]) -> str:
        names = record[f"{self._fields['image']}/filename"].bytes_list.value
        return PurePosixPath(names[0].decode()).stem if names else f"{self.name}-{row:06d}"

    def _damaged(self, row: int, why: str) -> DataError:
        return DataError(f"{self.where(row)} cannot be read ({why}){_ADVICE}")


def data_dir(root: str) -> Path:
    """Return the folder of all datasets: `root`, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(root: str, name: str) -> Path | None:
    """Find the folder of the newest version of a prepared dataset; None if there is none.

    Args:
        root: see `data_dir`.
        name: NAME or NAME:VERSION, e.g. voc/2007 or voc/2007:5.0.0.
    """
    path, _, version = name.partition(":")
    folders = [
        file.parent
        for file in (data_dir(root) / path).glob("*/features.json")
        if _VERSION.fullmatch(file.parent.name) and version in ("", file.parent.name)
    ]
    return max(folders, key=lambda f: [int(n) for n in f.name.split(".")], default=None)


def open_prepared(root: str, name: str) -> Any:
    """Return TFDS's builder of a prepared dataset; see `find_prepared` for the arguments.

    Raises:
        DataError: the dataset is not prepared, not in ArrayRecord files, or damaged.
    """
    folder = find_prepared(root, name)
    if folder is None:
        command = f"ssd-jax data prepare {shlex.quote(name)}"
        if root:
            command += f" --root {shlex.quote(root)}"
        raise DataError(f"{name} is not prepared in {data_dir(root)}; run {command}")
    try:
        _check_features(folder / "features.json")
        builder = tfds.builder_from_directory(folder)
        formats = sorted(f.value for f in builder.info.available_file_formats())
    except Exception as error:  # TFDS and protobuf raise many types for a damaged file
        raise DataError(f"{folder} cannot be read ({first_line(error)}){_ADVICE}") from None
    if ARRAY_RECORD not in formats:
        raise DataError(
            f"{folder} is prepared as {', '.join(formats)}, which has no random access; "
            "prepare it in another data.root, or remove the folder and prepare it again",
        )
    return builder


def _check_features(file: Path) -> None:
    """Raise ValueError if a feature has a class that is not TFDS's own.

    TFDS would import any module that the file names.
    """
    parts = [json.loads(read_text(file, MAX_CONFIG))]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += part.values()
            for key in _CLASS_KEYS & set(part):
                # "type" may also be the name of a feature or of a class of objects.
                name = part[key]
                if isinstance(name, str) and "." in name and not name.startswith(_FEATURES):
                    raise ValueError(
                        f"features.json names the class {name!r}, which is not TFDS's own"
                    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_features(builder: Any, fields: TfdsFields) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return field -> feature, without absent optional ones, and the names of the classes."""
    features = dict(_flatten(builder.info.features, ""))
    chosen = {}
    for field, kind, plural in (
        ("image", tfds.features.Image, "images"),
        ("boxes", tfds.features.BBoxFeature, "sequences of boxes"),
        ("labels", tfds.features.ClassLabel, "sequences of classes"),
        ("difficult", tfds.features.Tensor, "sequences"),
        ("crowd", tfds.features.Tensor, "sequences"),
    ):
        name = getattr(fields, field)
        # A dataset may lack the optional features under their default names.
        default = "" if field in ("image", "boxes", "labels") else getattr(TfdsFields(), field)
        if name in ("", default) and name not in features:
            continue
        fitting = [
            key
            for key, (feature, sequences) in features.items()
            if isinstance(feature, kind) and sequences == (field != "image")
        ]
        if name not in fitting:
            raise ConfigError(
                f"data.tfds.{field} is {name!r}; the {plural} of {builder.info.full_name} are "
                f"{shorten(sorted(fitting), 20) or '(none)'}: name one"
            )
        chosen[field] = name
    boxes, _ = features[chosen["boxes"]]
    # Older versions of TFDS knew one format only, and did not record it.
    if boxes.bbox_format not in (None, tfds.features.BBoxFeature().bbox_format):
        raise ConfigError(
            f"data.tfds.boxes is {chosen['boxes']!r}, whose boxes are {boxes.bbox_format.value}; "
            "only TFDS's usual REL_YXYX, [ymin, xmin, ymax, xmax] in [0, 1], can be read"
        )
    return chosen, tuple(features[chosen["labels"]][0].names)


def _flatten(feature: Any, name: str, sequences: int = 0) -> Iterator[tuple[str, tuple[Any, int]]]:
    """Yield (name in a record, (feature, number of enclosing sequences)) of each feature."""
    if isinstance(feature, tfds.features.Sequence):
        yield from _flatten(feature.feature, name, sequences + 1)
    elif isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _flatten(inner, f"{name}/{key}" if name else key, sequences)
    else:
        yield name, (feature, sequences)


def _load(file: Path, key: str, count: int) -> SplitAnnotations | None:
    """Load the cache; None if it is missing, invalid or has another key."""
    if not is_file(file):  # a pipe would wait for a writer
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as columns:
            if columns["key"].item() != key:
                return None
            objects = SplitAnnotations(**{name: columns[name] for name in _COLUMNS})
    except Exception:  # a damaged file can fail anywhere; read the records instead
        return None
    total = int(objects.counts.sum())
    shapes = [(count,), (count, 2), (count,), (total, 4), (total,), (total,), (total,)]
    return objects if [getattr(objects, name).shape for name in _COLUMNS] == shapes else None


def _save(file: Path, key: str, objects: SplitAnnotations) -> None:
    """Write the cache atomically; do nothing if the folder is not writable."""
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as stream:
            np.savez(stream, key=key, **{name: getattr(objects, name) for name in _COLUMNS})
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


_COLUMNS = [field.name for field in dataclasses.fields(SplitAnnotations)]
