"""Findings about a dataset, and the exception that carries one."""

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from ssd_jax.config import UserError, printable, shorten

_REPR = reprlib.Repr()
_REPR.maxstring = 80
brief = _REPR.repr
"""Return a short representation of any value, for messages."""

Severity = Literal["error", "warning", "note"]

# Kind -> severity and title.
KINDS: dict[str, tuple[Severity, str]] = {
    # Training stops at these.
    "data_set": ("error", "unreadable parts of the dataset"),
    "annotation": ("error", "invalid annotations"),
    "duplicate": ("error", "duplicate records"),
    "unknown_class": ("error", "objects of an unknown class"),
    "class_case": ("error", "objects of a class that is spelled in another case"),
    "missing_image": ("error", "missing images"),
    "unreadable_image": ("error", "images that cannot be decoded"),
    "truncated_image": ("error", "truncated images"),
    "huge_image": ("error", "images with too many pixels"),
    "image_size": ("error", "images whose size differs from their annotation"),
    "max_objects": ("error", "images with more objects than data.max_objects"),
    "no_objects": ("error", "splits without an object to train on"),
    # Training continues, but ignores or changes something.
    "no_area": ("warning", "boxes without area, skipped in training and evaluation"),
    "outside": ("warning", "boxes that extend beyond their image, clipped"),
    "exif_orientation": ("warning", "images with an EXIF orientation, which is not applied"),
    "damaged_image": ("warning", "images that cause decoder warnings"),
    "similar_classes": ("warning", "classes that differ only in case"),
    "absent_class": ("warning", "classes without an object to train on"),
    "shared_image": ("warning", "evaluation images that are also in the training split"),
    "repeated_image": ("warning", "images that are twice in a split"),
    "no_prior": ("warning", "objects without a prior of IoU train.match_iou_threshold or more"),
    # Good to know.
    "empty": ("note", "images without an object"),
    "tiny": ("note", "objects below 100 square pixels"),
    "grey": ("note", "grey images, decoded to RGB"),
    "cmyk": ("note", "CMYK images, decoded to RGB without their colour profile"),
    "deep": ("note", "images with more than 8 bits, decoded to 8"),
    "alpha": ("note", "images with transparency, which is dropped"),
    "suffix": ("note", "images whose format differs from their suffix"),
}

_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff\\ufdd0-\\ufdef\\ufffe\\uffff]"
)


@dataclass(frozen=True)
class Finding:
    """A problem or peculiarity of a dataset; `str` gives it as one printable line."""

    message: str
    """Description of the problem; names the file."""
    advice: str = ""
    """Advice on the fix."""
    kind: str = "data_set"
    """A key of KINDS."""
    file: Path | None = None
    """The file to change."""
    record: str = ""
    """The image, if `file` is not the image."""
    item: str = ""
    """The object, e.g. object 2 (cat)."""
    count: int = 1
    """Objects of the record that have the problem."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))

    @property
    def severity(self) -> Severity:
        """Severity of the kind."""
        return KINDS[self.kind][0]

    def __str__(self) -> str:
        return printable(f"{self.message}; {self.advice}" if self.advice else self.message)


class DataError(UserError):
    """An error for data that cannot be used.

    Args:
        finding: the problem, or only its message.
    """

    def __init__(self, finding: Finding | str) -> None:
        self.finding = Finding(finding) if isinstance(finding, str) else finding
        super().__init__(str(self.finding))


OnFinding: TypeAlias = Callable[[Finding], None]
"""Receives findings. If it returns from an error, the record or the object is skipped."""


def raise_errors(finding: Finding) -> None:
    """Raise a finding that is an error and ignore any other: the default of all sources."""
    if finding.severity == "error":
        raise DataError(finding)


@contextmanager
def errors_to(on_finding: OnFinding, record: str = "") -> Iterator[None]:
    """Pass a DataError of the block to `on_finding`, with `record` if it names none."""
    try:
        yield
    except DataError as error:
        finding = error.finding
        on_finding(replace(finding, record=finding.record or record))


class Location(NamedTuple):
    """A position in an annotation file, for findings about it."""

    path: Path
    record: str = ""
    """The image."""
    item: str = ""
    """The object or the entry, e.g. object 2 (cat)."""

    def finding(self, problem: str, advice: str, kind: str = "annotation") -> Finding:
        """Return the finding that `problem`, which begins with a verb, is wrong here."""
        subject = f"{self.path}: {self.item}" if self.item else self.path
        return Finding(
            f"{subject} {problem}",
            advice,
            kind=kind,
            file=self.path,
            record=self.record,
            item=self.item,
        )

    def error(self, problem: str, advice: str, kind: str = "annotation") -> DataError:
        """Return the exception for `finding`."""
        return DataError(self.finding(problem, advice, kind))

    def unknown_class(self, name: str, classes: Sequence[str]) -> Finding:
        """Return the finding that an object's class is not in `classes`."""
        alike = [c for c in classes if c.lower() == name.lower()]
        advice = "add it to model.classes or data.class_file, or remove the object"
        if alike:
            advice = f"write it as {alike[0]!r}: names are case-sensitive"
        kind = "class_case" if alike else "unknown_class"
        problem = f"has class {name[:80]!r}, which is not one of {shorten(classes, 30)}"
        finding = self._replace(item="").finding(problem, advice, kind)
        return replace(finding, item=self.item)

    def check_box(
        self,
        box: str,
        size: tuple[int, int],
        on_finding: OnFinding,
        *,
        has_area: bool,
        is_outside: bool = False,
        advice: str = "",
    ) -> bool:
        """Report a box without area, or one that extends beyond its image.

        Args:
            box: the box as the file has it.
            size: width and height of the image (pixels).
            on_finding: receives the finding.
            has_area: whether the box has an area inside the image.
            is_outside: whether a part of the box is outside of the image.
            advice: continues how to fix the box.

        Returns:
            `has_area`: the object is kept.
        """
        pixels = f"{size[0]}x{size[1]} pixels"
        if not has_area:
            change = f"fix the box or remove the object{advice}"
            on_finding(self.finding(f"{box} has no area in {pixels}", change, "no_area"))
        elif is_outside:
            problem = f"{box} extends beyond {pixels}"
            on_finding(self.finding(problem, f"fix the box{advice}", "outside"))
        return bool(has_area)


def escape_controls(text: str) -> str:
    """Escape invisible characters: controls, direction marks and surrogates."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
