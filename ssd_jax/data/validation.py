"""Validation of a dataset: all findings about its annotations and images, not only the first."""

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
from ssd_jax.data.errors import KINDS, DataError, Finding, OnFinding, Severity
from ssd_jax.data.headers import SUFFIXES, Header
from ssd_jax.data.images import is_opaque
from ssd_jax.data.types import DataSource, normalize_boxes

SMALL, LARGE = 32**2, 96**2
"""COCO's borders between small, medium and large areas (square pixels)."""
TINY = 100
"""Area below which an object is reported (square pixels as stored)."""

_THREADS = 6  # each holds at most 600 MB, see images.MAX_PIXELS


class Findings:
    """Distinct findings in the order in which they were added."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}

    def add(self, split: str, finding: Finding) -> None:
        """Add a finding of a split, unless it has been added already.

        A folder of both splits is one finding, of the split that reported it first.
        """
        if finding.kind == "data_set" and any(
            message == finding.message for _, message in self._findings
        ):
            return
        self._findings.setdefault((split, finding.message), finding)

    def to(self, split: str) -> OnFinding:
        """Return a function that adds findings of a split."""
        return partial(self.add, split)

    def __iter__(self) -> Iterator[tuple[str, Finding]]:
        return ((split, finding) for (split, _), finding in self._findings.items())

    def by_kind(self) -> dict[str, list[Finding]]:
        """Return the kinds that have findings, errors first, with their findings."""
        kinds: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        for _, finding in self:
            kinds[finding.kind].append(finding)
        return {kind: findings for kind, findings in kinds.items() if findings}

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for _, finding in self)


@dataclass(frozen=True)
class SplitStatistics:
    """Numbers of objects in a split, for each of C classes."""

    images: int
    """Number of images."""
    columns: dict[str, np.ndarray]
    """int [C] each: objects, images, small, medium, large (areas in the network's input),
    difficult, crowd, no prior (of the objects to train on)."""
    most: int
    """Largest number of objects to train on in an image."""
    fullest: str
    """Id of an image with that number; empty without images."""
    unmatched: np.ndarray
    """float32 [n, 2], width and height of the objects to train on without a prior, as fractions of
    the image."""


def validate_annotations(
    source: DataSource,
    on_finding: OnFinding,
    *,
    data: DataConfig,
    training: bool,
    image_size: int,
    match_iou_threshold: float,
    best_iou: Callable[[np.ndarray], np.ndarray],
) -> SplitStatistics:
    """Check and count the objects of a split without reading an image.

    Args:
        source: the split.
        on_finding: receives the findings.
        data: which objects are trained on, and the largest number in an image.
        training: whether the split is trained on.
        image_size: side of the network's input (pixels).
        match_iou_threshold: IoU from which a prior is positive.
        best_iou: float32 [m, 4], boxes in [0, 1] -> float32 [m], the largest IoU with a prior.
    """
    annotations = [source.annotation(i) for i in range(len(source))]
    record = np.repeat(np.arange(len(annotations)), [len(a.labels) for a in annotations])
    boxes = _join([normalize_boxes(a.boxes_px, a.width, a.height) for a in annotations], (0, 4))
    boxes_px = _join([a.boxes_px for a in annotations], (0, 4))
    labels = _join([a.labels for a in annotations], 0).astype(np.int64)
    difficult = _join([a.difficult for a in annotations], 0).astype(bool)
    crowd = _join([a.crowd for a in annotations], 0).astype(bool)
    used = ~crowd & (~difficult | data.use_difficult)
    unmatched = used & (best_iou(boxes) < match_iou_threshold)
    size = np.digitize(_areas(boxes) * image_size**2, [SMALL, LARGE])
    tiny = _areas(boxes_px) < TINY

    report = partial(_report, source, on_finding)

    def describe(objects: np.ndarray) -> str:
        corners = ", ".join(f"{c:.4g}" for c in boxes_px[objects[0]])
        return f"{source.classes[labels[objects[0]]]} [{corners}]"

    counts = np.bincount(record[used], minlength=len(annotations))
    most = int(counts.max(initial=0))
    fullest = annotations[int(counts.argmax())].image_id if annotations else ""
    empty = counts == 0 if training else np.bincount(record, minlength=len(annotations)) == 0
    for i in np.flatnonzero(empty).tolist():
        advice = "nothing to do if it is background"
        if training and not data.keep_empty:
            advice = "it is skipped, since data.keep_empty is off"
        report(i, "empty", "has no object" + " to train on" * training, advice)
    for i, objects in _by_record(record, tiny):
        problem = f"has {_count(objects)} below {TINY} square pixels: {describe(objects)}"
        report(i, "tiny", problem, "check for stray clicks", len(objects))
    if training:
        advice = (
            "nothing to do if they are few; else fit priors.sizes and priors.aspect_ratios to "
            "them, or raise model.image_size; matching assigns each one a prior, but they are "
            "detected less often"
        )
        for i, objects in _by_record(record, unmatched):
            problem = (
                f"has {_count(objects)} without a prior of IoU {match_iou_threshold:g} or more: "
                f"{describe(objects)}"
            )
            report(i, "no_prior", problem, advice, len(objects))
        _check_training(source.classes, labels[used], fullest, most, data, on_finding)

    def per_class(which: np.ndarray) -> np.ndarray:
        return np.bincount(labels[which], minlength=len(source.classes))

    first = np.unique(record * len(source.classes) + labels, return_index=True)[1]
    return SplitStatistics(
        len(annotations),
        {
            "objects": per_class(np.ones_like(used)),
            "images": per_class(first),
            "small": per_class(size == 0),
            "medium": per_class(size == 1),
            "large": per_class(size == 2),
            "difficult": per_class(difficult & ~crowd),
            "crowd": per_class(crowd),
            "no prior": per_class(unmatched),
        },
        most,
        fullest,
        boxes[unmatched, 2:] - boxes[unmatched, :2],
    )


@dataclass(frozen=True)
class _ImageCheck:
    digest: bytes
    header: Header | None
    decoder_warned: bool  # or a decoder in another thread did


def validate_images(
    source: DataSource,
    on_finding: OnFinding,
    tick: Callable[[], object],
    training_digests: Mapping[bytes, str],
) -> dict[bytes, str]:
    """Decode every image of a split and report problems and duplicates.

    Args:
        source: the split.
        on_finding: receives the findings.
        tick: called after each image.
        training_digests: the return value for the training split, if this is another split.

    Returns:
        Digest of each image's pixels -> the name of the first image with them.
    """
    report = partial(_report, source, on_finding)
    seen: dict[bytes, str] = {}
    suspects: list[int] = []

    def check(i: int) -> _ImageCheck | Finding:
        before = output_size()
        try:
            header, image = source.image_with_header(i)
            if header and header.alpha and is_opaque(cast(Path, source.file(i))):
                header = replace(header, alpha=False)
        except DataError as error:
            return replace(error.finding, record=source.annotation(i).image_id)
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
        digest.update(str(image.shape).encode())
        return _ImageCheck(digest.digest(), header, output_size() != before)

    with (
        capture_stderr() as (output_size, _),
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        # Closed first, so that an interrupt does not wait for the remaining images.
        contextlib.closing(cast(Generator, pool.map(check, range(len(source))))) as results,
    ):
        for i, result in enumerate(results):
            tick()
            if isinstance(result, Finding):
                on_finding(result)
                continue
            if result.decoder_warned:
                suspects.append(i)
            if first := seen.get(result.digest):
                report(i, "repeated_image", f"has the pixels of {first}", "remove one of the two")
            if trained := training_digests.get(result.digest):
                problem = f"has the pixels of {trained}, which is trained on"
                report(i, "shared_image", problem, "remove one of the two: scores are too high")
            seen.setdefault(result.digest, _name(source, i))
            if result.header:
                for kind, problem, advice in _header_findings(result.header, source.file(i)):
                    report(i, kind, problem, advice)
    # Several images were decoded at a time. Decode the suspects again, one by one.
    with capture_stderr() as (output_size, text):
        for i in suspects:
            before = output_size()
            source.image(i)
            lines = [x for x in text(before).splitlines() if x and "libpng warning" not in x]
            if lines:
                problem = f"causes a decoder warning: {lines[0][:200]}"
                advice = "inspect it: a part may be grey or shifted; replace or remove it"
                report(i, "damaged_image", problem, advice)
    return seen


@contextlib.contextmanager
def capture_stderr() -> Iterator[tuple[Callable[[], int], Callable[[int], str]]]:
    """Capture the error stream of the process.

    Image decoders write their warnings to its file descriptor, past sys.stderr.

    Yields:
        A function that returns the number of bytes captured so far, and one that returns the text
        from a position on.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        descriptor, saved = file.fileno(), os.dup(2)

        def size() -> int:
            return os.fstat(descriptor).st_size

        def text(start: int) -> str:
            return os.pread(descriptor, size() - start, start).decode(errors="replace")

        os.dup2(descriptor, 2)
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
    on_finding: OnFinding,
) -> None:
    """Report problems that only the training split can have; `labels` are those trained on."""
    if most == 0:
        problem = f"split {data.train_split!r} has no object to train on"
        on_finding(Finding(problem, "name another in data.train_split", kind="no_objects"))
        return
    if most > data.max_objects:
        problem = f"{fullest} has {most} objects and data.max_objects is {data.max_objects}"
        on_finding(Finding(problem, f"set it to {most} or more", kind="max_objects"))
    absent = np.bincount(labels, minlength=len(classes)) == 0
    for name in np.array(classes, object)[absent]:
        problem = f"class {name!r} has no object to train on in {data.train_split!r}"
        on_finding(Finding(problem, "add some, or remove the class", kind="absent_class"))


def _header_findings(header: Header, file: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, problem, advice)."""
    if 1 < header.orientation <= 8:
        problem = f"has EXIF orientation {header.orientation}, which is not applied"
        advice = "make sure that its boxes refer to the pixels as stored, or save it rotated"
        yield "exif_orientation", problem, advice
    if header.color == "grey":
        yield "grey", "is grey", "nothing to do: its three channels become equal"
    if header.color == "cmyk":
        yield "cmyk", "is CMYK", "check its colors, or save it as RGB"
    if header.bits > 8:
        advice = "nothing to do if 8 bits hold its contrast; else save it with stretched contrast"
        yield "deep", f"has {header.bits} bits", advice
    if header.alpha:
        yield "alpha", "has transparency", "check what it hides, or save it without"
    expected = SUFFIXES.get(file.suffix.lower(), header.format) if file else header.format
    if header.format != expected:
        advice = "rename it: its content is read correctly here, but maybe not by other programs"
        yield "suffix", f"is a {header.format} file", advice


def _report(
    source: DataSource,
    on_finding: OnFinding,
    i: int,
    kind: str,
    problem: str,
    advice: str,
    count: int = 1,
) -> None:
    """Report a problem of record i; `problem` begins with a verb."""
    on_finding(
        Finding(
            f"{_name(source, i)} {problem}",
            advice,
            kind=kind,
            file=source.file(i),
            record=source.annotation(i).image_id,
            count=count,
        )
    )


def _name(source: DataSource, i: int) -> str:
    return str(source.file(i) or source.annotation(i).image_id)


def _join(parts: list[np.ndarray], shape: int | tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.zeros(shape, np.float32), *parts])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(1)


def _count(objects: np.ndarray) -> str:
    return f"{len(objects)} object{'s' * (len(objects) != 1)}"


def _by_record(record: np.ndarray, which: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each record that has such objects, with their indices."""
    indices = np.flatnonzero(which)
    records, starts = np.unique(record[indices], return_index=True)
    yield from zip(records.tolist(), np.split(indices, starts[1:]), strict=False)
