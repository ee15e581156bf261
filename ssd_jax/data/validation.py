"""What is in a split and what is wrong with it: all of it, where training stops at the first."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from ssd_jax.config import DataConfig
from ssd_jax.data.errors import KINDS, DataError, OnError, Severity
from ssd_jax.data.headers import SUFFIXES, Header
from ssd_jax.data.images import ImageFileSource, is_opaque
from ssd_jax.data.types import DataSource, normalize_boxes

SMALL, LARGE = 32**2, 96**2
"""COCO's borders between small, medium and large areas (square pixels)."""
TINY = 100
"""Area below which an object is looked at twice (square pixels as stored)."""

_THREADS = 6  # each holds 600 MB at most, at pictures.MAX_PIXELS


class Findings:
    """All that is wrong, each line once, in the order in which it was found."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], DataError] = {}

    def add(self, split: str, error: DataError) -> None:
        """Add a finding of a split unless it has been added already.

        A folder that both splits lie in is one finding, of the split that it was found in first.
        """
        if error.kind == "data_set" and any(what == error.what for _, what in self._found):
            return
        self._found.setdefault((split, error.what), error)

    def to(self, split: str) -> OnError:
        """What adds findings of a split."""
        return partial(self.add, split)

    def __iter__(self) -> Iterator[tuple[str, DataError]]:
        return ((split, error) for (split, _), error in self._found.items())

    def by_kind(self) -> dict[str, list[DataError]]:
        """The kinds that were found, errors first, with their findings."""
        kinds: dict[str, list[DataError]] = {kind: [] for kind in KINDS}
        for _, error in self:
            kinds[error.kind].append(error)
        return {kind: found for kind, found in kinds.items() if found}

    def count(self, severity: Severity) -> int:
        """Findings of that severity."""
        return sum(error.severity == severity for _, error in self)


@dataclass(frozen=True)
class Objects:
    """The objects of n images, counted for each of C classes."""

    images: int
    """n."""
    columns: dict[str, np.ndarray]
    """int [C] each: objects, images, small, medium, large (areas in the network's input),
    difficult, crowd, no prior (of those to train on)."""
    most: int
    """Largest number of objects to train on in an image."""
    fullest: str
    """An image that has so many; empty without images."""
    unmatched: np.ndarray
    """float32 [n, 2], width and height of the objects to train on without a prior, as fractions of
    the image."""


def survey_objects(
    source: DataSource,
    on_error: OnError,
    *,
    data: DataConfig,
    training: bool,
    image_size: int,
    match_iou_threshold: float,
    best_iou: Callable[[np.ndarray], np.ndarray],
) -> Objects:
    """The objects of a split, without reading an image.

    Args:
        source: the split.
        on_error: told of what is wrong.
        data: what is trained on, and the room that there is.
        training: whether the split is trained on.
        image_size: side of the network's input (pixels).
        match_iou_threshold: IoU from which a prior is positive.
        best_iou: float32 [m, 4], boxes in [0, 1] -> float32 [m], the largest IoU with a prior.
    """
    known = [source.annotation(i) for i in range(len(source))]
    record = np.repeat(np.arange(len(known)), [len(a.labels) for a in known])
    boxes = _join([normalize_boxes(a.boxes_px, a.width, a.height) for a in known], (0, 4))
    boxes_px = _join([a.boxes_px for a in known], (0, 4))
    labels = _join([a.labels for a in known], 0).astype(np.int64)
    difficult = _join([a.difficult for a in known], 0).astype(bool)
    crowd = _join([a.crowd for a in known], 0).astype(bool)
    used = ~crowd & (~difficult | data.use_difficult)
    lonely = used & (best_iou(boxes) < match_iou_threshold)
    areas = _areas(boxes) * image_size**2
    size = np.digitize(areas, [SMALL, LARGE])
    tiny = _areas(boxes_px) < TINY

    tell = partial(_tell, source, on_error)

    def describe(k: int) -> str:
        corners = ", ".join(f"{c:.4g}" for c in boxes_px[k])
        return f"{source.classes[labels[k] - 1]} [{corners}]"

    counts = np.bincount(record[used], minlength=len(known))
    fullest = known[int(counts.argmax())].image_id if known else ""
    empty = counts == 0 if training else np.bincount(record, minlength=len(known)) == 0
    for i in np.flatnonzero(empty).tolist():
        change = "nothing, if there is nothing to detect: it is background"
        if training and not data.keep_empty:
            change = "data.keep_empty is off, so that it is left out"
        tell(i, "empty", "has no object" + " to train on" * training, change)
    for i, mine in _by_record(record, tiny):
        what = f"has {_count(mine)} below {TINY} square pixels: {describe(mine[0])}"
        tell(i, "tiny", what, "look whether they are slips of the mouse", len(mine))
    if training:
        change = (
            "nothing, if few; else fit priors.sizes and priors.aspect_ratios to them, or raise "
            "model.image_size; matching secures each one, but it is found less often"
        )
        for i, mine in _by_record(record, lonely):
            what = f"has {_count(mine)} that no prior overlaps by {match_iou_threshold:g}"
            tell(i, "no_prior", f"{what}: {describe(mine[0])}", change, len(mine))
        most = int(counts.max(initial=0))
        _check_training(source.classes, labels[used], fullest, most, data, on_error)

    def per_class(which: np.ndarray) -> np.ndarray:
        return np.bincount(labels[which] - 1, minlength=len(source.classes))

    first = np.unique(record * (len(source.classes) + 1) + labels, return_index=True)[1]
    return Objects(
        len(known),
        {
            "objects": per_class(labels > 0),
            "images": per_class(first),
            "small": per_class(size == 0),
            "medium": per_class(size == 1),
            "large": per_class(size == 2),
            "difficult": per_class(difficult & ~crowd),
            "crowd": per_class(crowd),
            "no prior": per_class(lonely),
        },
        int(counts.max(initial=0)),
        fullest,
        boxes[lonely, 2:] - boxes[lonely, :2],
    )


def survey_images(
    source: DataSource,
    on_error: OnError,
    tick: Callable[[], object],
    trained_on: Mapping[bytes, str],
) -> dict[bytes, str]:
    """Every image of a split, decoded.

    Args:
        source: the split.
        on_error: told of what is wrong.
        tick: called after each image.
        trained_on: what this function gave for the split to train on, where this is another.

    Returns:
        A digest of each image's pixels -> its name; the first of several.
    """
    tell = partial(_tell, source, on_error)
    seen: dict[bytes, str] = {}
    suspects: list[int] = []

    def look(i: int) -> tuple[bytes, Header | None, bool] | DataError:
        before = heard()
        try:
            header, image = _picture(source, i)
            if header and header.alpha and is_opaque(cast(ImageFileSource, source).file(i)):
                header = replace(header, alpha=False)
        except DataError as error:
            return error
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
        digest.update(str(image.shape).encode())
        return digest.digest(), header, heard() != before

    with (
        listening() as (heard, _),
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        # Closed first: an interrupt is not to wait for the images that are left.
        contextlib.closing(cast(Generator, pool.map(look, range(len(source))))) as looks,
    ):
        for i, found in enumerate(looks):
            tick()
            if isinstance(found, DataError):
                found.record = source.annotation(i).image_id
                on_error(found)
                continue
            digest, header, noisy = found
            if noisy:
                suspects.append(i)
            if digest in seen:
                what = f"has the pixels of {seen[digest]}"
                tell(i, "repeated_image", what, "take one of the two out")
            if digest in trained_on:
                what = f"has the pixels of {trained_on[digest]}, which is trained on"
                tell(i, "shared_image", what, "take one of the two out: the score says too much")
            seen.setdefault(digest, _name(source, i))
            file = source.file(i) if isinstance(source, ImageFileSource) else Path()
            for kind, what, change in _peculiarities(header, file) if header else ():
                tell(i, kind, what, change)
    # Several images were decoded at a time; who complained of which is found out one by one.
    with listening() as (heard, text):
        for i in suspects:
            before = heard()
            _picture(source, i)
            lines = [x for x in text(before).splitlines() if x and "libpng warning" not in x]
            if lines:
                what = f"makes its decoder say: {lines[0][:200]}"
                change = "look at it: a part may be grey or shifted; replace or remove it"
                tell(i, "damaged_image", what, change)
    return seen


@contextlib.contextmanager
def listening() -> Iterator[tuple[Callable[[], int], Callable[[int], str]]]:
    """Keeps what is written to the process's error stream meanwhile.

    Decoders tell of damage there alone, past Python's sys.stderr.

    Yields:
        A function that gives the number of bytes so far, and one that gives the text from there
        on.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        place, saved = file.fileno(), os.dup(2)

        def size() -> int:
            return os.fstat(place).st_size

        def text(start: int) -> str:
            return os.pread(place, size() - start, start).decode(errors="replace")

        os.dup2(place, 2)
        try:
            yield size, text
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _check_training(
    classes: Sequence[str],
    labels: np.ndarray,
    fullest: str,
    most: int,
    data: DataConfig,
    on_error: OnError,
) -> None:
    """What only a split to train on can be wrong in; the labels are those trained on."""
    if most == 0:
        what = f"split {data.train_split!r} has no object to train on"
        on_error(DataError(what, "name another in data.train_split", kind="no_objects"))
        return
    if most > data.max_objects:
        on_error(
            DataError(
                f"{fullest} has {most} objects and data.max_objects is {data.max_objects}",
                f"set data.max_objects to {most} or more",
                kind="max_objects",
            )
        )
    there = np.bincount(labels, minlength=len(classes) + 1)
    for k, name in enumerate(classes):
        if there[k + 1] == 0:
            what = f"class {name!r} has no object to train on in {data.train_split!r}"
            on_error(DataError(what, "add some, or take the class out", kind="absent_class"))


def _peculiarities(header: Header, file: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, what, change."""
    if 1 < header.orientation <= 8:
        what = f"has EXIF orientation {header.orientation}, which is not applied"
        change = "make sure that its boxes are for the pixels as stored, or save it turned"
        yield "exif_turned", what, change
    if header.colour == "grey":
        yield "grey", "is grey", "nothing: its three channels are equal"
    if header.colour == "cmyk":
        yield "cmyk", "is CMYK", "look at its colours, or save it as RGB"
    if header.bits > 8:
        what = f"has {header.bits} bits"
        yield "deep", what, "nothing, if 8 bits hold its contrast; else save it stretched"
    if header.alpha:
        yield "alpha", "has transparency", "look at what it hides, or save it without"
    named = SUFFIXES.get(file.suffix.lower(), header.format)
    if header.format != named:
        change = "rename it; it is read by its content here, but other programs go by the name"
        yield "suffix", f"is a {header.format} file", change


def _picture(source: DataSource, i: int) -> tuple[Header | None, np.ndarray]:
    return source.picture(i) if isinstance(source, ImageFileSource) else (None, source.image(i))


def _tell(
    source: DataSource, on_error: OnError, i: int, kind: str, what: str, change: str, count: int = 1
) -> None:
    """Hands on what is wrong with record i; `what` begins with a verb."""
    file: Path | None = source.file(i) if isinstance(source, ImageFileSource) else None
    record = source.annotation(i).image_id
    what = f"{_name(source, i)} {what}"
    on_error(DataError(what, change, kind=kind, file=file, record=record, count=count))


def _name(source: DataSource, i: int) -> str:
    if isinstance(source, ImageFileSource):
        return str(source.file(i))
    return source.annotation(i).image_id


def _join(parts: list[np.ndarray], shape: int | tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.zeros(shape, np.float32), *parts])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(1)


def _count(objects: np.ndarray) -> str:
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def _by_record(record: np.ndarray, which: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each record that has such objects, with their places."""
    places = np.flatnonzero(which)
    records, starts = np.unique(record[places], return_index=True)
    for k, i in enumerate(records.tolist()):
        yield i, places[starts[k] : starts[k + 1] if k + 1 < len(starts) else None]
