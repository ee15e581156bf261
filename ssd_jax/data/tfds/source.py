"""TFDS datasets: voc/2007, coco/2017 and others whose features a config names.

TFDS's boxes are [ymin, xmin, ymax, xmax] as fractions of the image. Those of its voc are VOC's
inclusive pixels (see `formats.voc.to_continuous`), those of coco and of others are continuous.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssd_jax.config import ConfigError, TfdsFields
from ssd_jax.data.errors import DataError, Location, OnFinding, raise_errors
from ssd_jax.data.formats.voc import to_continuous
from ssd_jax.data.tfds.reader import PreparedSplit, SplitAnnotations, first_line, open_prepared
from ssd_jax.data.types import Annotation, DataSource, distinct_ids


class TfdsSource(DataSource):
    """Records of TFDS datasets prepared as ArrayRecord files.

    Annotations are read when the source is created, images on access. Objects whose box has no
    area inside the image are skipped.

    Args:
        root: folder of all datasets; empty: TFDS's own, see `reader.data_dir`.
        split: NAME:SPLIT, e.g. voc/2007:train or coco/2017:train[:10%]; several are joined by +,
            and a record that is in two of them counts once.
        classes: names of the classes, without background.
        fields: names of the features of a record; default: those of voc and coco.
        on_finding: receives each error and warning. If it returns from an error about an object,
            the object is skipped.

    Raises:
        ConfigError: the split or a field is invalid.
        DataError: a dataset is not prepared or is damaged, or, unless `on_finding` returns, an
            object has an unknown class.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: tuple[str, ...],
        fields: TfdsFields | None = None,
        on_finding: OnFinding = raise_errors,
    ) -> None:
        chosen = _choose_records(root, split, fields or TfdsFields())
        if not any(rows for _, _, rows in chosen):
            raise DataError(f"split {split!r} has no record; name another")
        self.classes = tuple(classes)
        self._rows = [(part, row) for part, _, rows in chosen for row in rows]
        ids = distinct_ids(
            [str(objects.ids[row]) for _, objects, rows in chosen for row in rows],
            [f"{part.title.replace('/', '-')}-{part.name}-{row}" for part, row in self._rows],
        )
        self._annotations: list[Annotation] = []
        for part, objects, rows in chosen:
            part_ids, ids = ids[: len(rows)], ids[len(rows) :]
            self._annotations += _annotate(part, objects, rows, part_ids, classes, on_finding)

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Return the objects of record i without reading it."""
        return self._annotations[i]

    def image(self, i: int) -> np.ndarray:
        """Return the image of record i as stored: uint8 [H, W, 3], RGB.

        Raises:
            DataError: the record cannot be read, or its image cannot be decoded.
        """
        part, row = self._rows[i]
        return part.image(row)


def tfds_classes(root: str, split: str, fields: TfdsFields) -> tuple[str, ...]:
    """Return the classes of a split's datasets in their order, used or not.

    Classes that occur only in a later one of several joined datasets come last.

    Raises:
        ConfigError, DataError: as for `TfdsSource`.
    """
    names: dict[str, None] = {}
    for builder, name, _ in _split_items(root, split):
        names.update(dict.fromkeys(PreparedSplit(builder, name, fields).classes))
    return tuple(names)


def _choose_records(
    root: str, split: str, fields: TfdsFields
) -> list[tuple[PreparedSplit, SplitAnnotations, list[int]]]:
    """Return the records of each item of a split that are in no earlier item."""
    opened: dict[tuple[str, str], tuple[PreparedSplit, SplitAnnotations, set[int]]] = {}
    chosen = []
    for builder, name, span in _split_items(root, split):
        key = (str(builder.data_dir), name)
        if key not in opened:
            part = PreparedSplit(builder, name, fields)
            opened[key] = (part, part.annotations(), set())
        part, objects, used = opened[key]
        rows = [row for row in span if row not in used]
        used.update(rows)
        chosen.append((part, objects, rows))
    return chosen


def _split_items(root: str, split: str) -> Iterator[tuple[Any, str, range]]:
    """Yield (builder, split without slice, records) of each item of NAME:SPLIT+NAME:SPLIT."""
    for item in split.split("+"):
        head, bracket, slice_ = item.strip().partition("[")
        # Split at the last colon before a slice: NAME may have a version, voc/2007:5.0.0.
        title, _, part = (text.strip() for text in head.rpartition(":"))
        if not (title and part):
            raise ConfigError(
                f"split {split!r} has {item.strip()!r}; TFDS's datasets need NAME:SPLIT, "
                "e.g. voc/2007:train"
            )
        builder = open_prepared(root, title)
        splits = builder.info.splits
        try:
            spec = tfds.core.ReadInstruction.from_spec(f"{part}{bracket}{slice_}")
            spans = spec.to_absolute(splits)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"split {split!r} has {item.strip()!r}: {first_line(error)}; the splits of "
                f"{title} are {', '.join(splits)}, each whole or with a slice such as [:10%]"
            ) from None
        for span in spans:
            name, count = span.splitname, splits[span.splitname].num_examples
            yield builder, name, range(count)[span.from_ : span.to]


def _annotate(
    part: PreparedSplit,
    objects: SplitAnnotations,
    rows: Sequence[int],
    ids: Sequence[str],
    classes: Sequence[str],
    on_finding: OnFinding,
) -> Iterator[Annotation]:
    """Yield the annotations of some records, with boxes in pixels and labels of `classes`."""
    # Rounding to a thousandth of a pixel undoes the rounding of the fractions to float32.
    scale = np.repeat(objects.sizes, objects.counts, 0)[:, [0, 1, 0, 1]]
    written = np.round(objects.boxes[:, [1, 0, 3, 2]] * scale.astype(np.float64), 3)
    clipped = to_continuous(written, scale) if part.is_voc else np.clip(written, 0, scale)
    boxes = clipped.astype(np.float32)
    # With inclusive pixels xmin = xmax is one pixel wide, but it is not an object; see voc.py.
    has_area = ((written[:, :2] < written[:, 2:]) & (boxes[:, :2] < boxes[:, 2:])).all(1)
    indices = {name: k for k, name in enumerate(classes)}
    labels = np.array([indices.get(name, -1) for name in part.classes], np.int32)[objects.labels]
    kept = has_area & (labels >= 0)
    ends = np.cumsum(objects.counts)
    for row, image_id in zip(rows, ids, strict=True):
        width, height = objects.sizes[row].tolist()
        slots = np.arange(ends[row] - objects.counts[row], ends[row])
        for k in slots[~kept[slots]]:
            name = part.classes[objects.labels[k]]
            item = f"object {k - slots[0] + 1} ({name})"
            location = Location(part.where(row), image_id, item)
            if labels[k] < 0:
                on_finding(location.unknown_class(name, classes))
                continue
            location.check_box(
                f"({', '.join(f'{c:g}' for c in written[k])})",
                (width, height),
                on_finding,
                has_area=False,
                advice=", and prepare the dataset again",
            )
        slots = slots[kept[slots]]
        yield Annotation(
            image_id=image_id,
            width=width,
            height=height,
            boxes_px=boxes[slots],
            labels=labels[slots],
            difficult=objects.difficult[slots] | objects.crowd[slots],
            crowd=objects.crowd[slots],
        )
