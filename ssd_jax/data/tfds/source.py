"""TFDS data sets: voc/2007, coco/2017 and others whose features a config names.

Coordinates are turned once, here. TFDS's boxes are [ymin, xmin, ymax, xmax] as fractions of the
image. Those of its voc are VOC's own, counted from 1 and with their last pixel, so that xmin..xmax
becomes [xmin - 1, xmax] as in voc.py; those of coco and of others are continuous already.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssd_jax.config import ConfigError, TfdsFields
from ssd_jax.data.errors import DataError, OnError, class_error, stop
from ssd_jax.data.tfds.reader import Objects, PreparedSplit, first_line, open_prepared
from ssd_jax.data.types import Annotation, Example, distinct_ids, to_example


class TfdsSource:
    """Records of TFDS data sets that were prepared in ArrayRecord form.

    All annotations are known when the source is made; images are read when they are asked for.

    Args:
        root: folder of all data sets; empty: TFDS's own, see `prepared.data_dir`.
        split: NAME:SPLIT, e.g. voc/2007:train or coco/2017:train[:10%]; several are joined by +,
            and a record that is in two of them counts once.
        classes: names of the classes, without background; labels follow their order.
        fields: where a record has what; default: as in voc and coco.
        on_error: told of each error and warning. If it returns from an error of an object, the
            object is left out.

    Attributes:
        classes: as given.
        set_aside: one line for each object that is left out of training and of evaluation,
            because its box has no area inside the image.

    Raises:
        ConfigError: the split or a field cannot be used.
        DataError: a data set is not prepared or damaged, or, unless `on_error` keeps it, an object
            has another class.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: tuple[str, ...],
        fields: TfdsFields | None = None,
        on_error: OnError = stop,
    ) -> None:
        chosen = _choose_records(root, split, fields or TfdsFields())
        if not any(rows for _, _, rows in chosen):
            raise DataError(f"split {split!r} has no record", "name another")
        self.classes = tuple(classes)
        self._places = [(part, row) for part, _, rows in chosen for row in rows]
        ids = distinct_ids(
            [str(objects.ids[row]) for _, objects, rows in chosen for row in rows],
            [f"{part.title.replace('/', '-')}-{part.name}-{row}" for part, row in self._places],
        )
        set_aside: list[str] = []
        self._annotations: list[Annotation] = []
        for part, objects, rows in chosen:
            mine, ids = ids[: len(rows)], ids[len(rows) :]
            self._annotations += _annotate(part, objects, rows, mine, classes, set_aside, on_error)
        self.set_aside = tuple(set_aside)

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading it."""
        return self._annotations[i]

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB, as it is stored; see `ImageFileSource.image`.

        Raises:
            DataError: the record cannot be read, or its image not be decoded.
        """
        part, row = self._places[i]
        return part.image(row)

    def __getitem__(self, i: int) -> Example:
        return to_example(self._annotations[i], self.image(i))


def tfds_classes(root: str, split: str, fields: TfdsFields) -> tuple[str, ...]:
    """Names of the classes of a split's data sets in their order, whether they have objects or not.

    Classes that only a later one of several joined data sets has come last.

    Raises:
        ConfigError, DataError: as for `TfdsSource`.
    """
    names: dict[str, None] = {}
    for builder, name, _ in _split_items(root, split):
        names.update(dict.fromkeys(PreparedSplit(builder, name, fields).classes))
    return tuple(names)


def _choose_records(
    root: str, split: str, fields: TfdsFields
) -> list[tuple[PreparedSplit, Objects, list[int]]]:
    """The records of each item of a split that are in none before it."""
    opened: dict[tuple[str, str], tuple[PreparedSplit, Objects, set[int]]] = {}
    chosen = []
    for builder, name, span in _split_items(root, split):
        key = (str(builder.data_dir), name)
        if key not in opened:
            part = PreparedSplit(builder, name, fields)
            opened[key] = (part, part.objects(), set())
        part, objects, used = opened[key]
        rows = [row for row in span if row not in used]
        used.update(rows)
        chosen.append((part, objects, rows))
    return chosen


def _split_items(root: str, split: str) -> Iterator[tuple[Any, str, range]]:
    """(builder, split without slice, records) of each item of NAME:SPLIT+NAME:SPLIT."""
    for item in split.split("+"):
        head, bracket, slice_ = item.strip().partition("[")
        # The last colon before a slice: a NAME may hold one of a version, voc/2007:5.0.0.
        title, _, part = (text.strip() for text in head.rpartition(":"))
        if not (title and part):
            raise ConfigError(
                f"split {split!r} has {item.strip()!r}; TFDS's data sets need NAME:SPLIT, "
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
    objects: Objects,
    rows: Sequence[int],
    ids: Sequence[str],
    classes: Sequence[str],
    set_aside: list[str],
    on_error: OnError,
) -> Iterator[Annotation]:
    """Some records' objects in pixels, labelled by `classes`."""
    # A thousandth of a pixel is coarser than float32's fractions of an image and finer than
    # people's coordinates: they come out as they were written.
    scale = np.repeat(objects.sizes, objects.counts, 0)[:, [0, 1, 0, 1]]
    written = np.round(objects.boxes[:, [1, 0, 3, 2]] * scale.astype(np.float64), 3)
    first = [1, 1, 0, 0] if part.counts_from_one else [0, 0, 0, 0]
    boxes = np.clip(written - first, 0, scale).astype(np.float32)
    # By inclusive pixels xmin = xmax is one pixel wide, but it is no object; see voc.py.
    has_area = ((written[:, :2] < written[:, 2:]) & (boxes[:, :2] < boxes[:, 2:])).all(1)
    numbers = {name: k + 1 for k, name in enumerate(classes)}
    labels = np.array([numbers.get(name, 0) for name in part.classes], np.int32)[objects.labels]
    kept = has_area & (labels > 0)
    ends = np.cumsum(objects.counts)
    for row, image_id in zip(rows, ids, strict=True):
        width, height = objects.sizes[row].tolist()
        mine = np.arange(ends[row] - objects.counts[row], ends[row])
        for k in mine[~kept[mine]]:
            name = part.classes[objects.labels[k]]
            item = f"object {k - mine[0] + 1} ({name})"
            if not labels[k]:
                path = part.where(row)
                on_error(class_error(path, name, classes, record=image_id, item=item))
                continue
            corners = ", ".join(f"{c:g}" for c in written[k])
            no_area = f"({corners}) has no area in {width}x{height} pixels"
            set_aside.append(f"{part.title} {part.name}, {image_id}: {name} {no_area}")
            on_error(
                DataError(
                    f"{part.where(row)}: {item} {no_area}",
                    "mend the box or take the object out, and prepare the data set again",
                    kind="no_area",
                    file=part.where(row),
                    record=image_id,
                    item=item,
                )
            )
        mine = mine[kept[mine]]
        yield Annotation(
            image_id=image_id,
            width=width,
            height=height,
            boxes_px=boxes[mine],
            labels=labels[mine],
            difficult=objects.difficult[mine] | objects.crowd[mine],
            crowd=objects.crowd[mine],
        )
