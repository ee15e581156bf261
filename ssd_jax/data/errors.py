"""What a data set can be wrong in, told in one line that names the file and what to change."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from ssd_jax.config import UserError, printable

Severity = Literal["error", "warning", "note"]

# Kind -> how bad it is, and what many of them are called.
KINDS: dict[str, tuple[Severity, str]] = {
    # Training stops at these, and without an object it learns the background alone.
    "data_set": ("error", "parts of the data set that cannot be read at all"),
    "annotation": ("error", "annotations that cannot be used"),
    "twice": ("error", "records that are there twice"),
    "unknown_class": ("error", "objects of a class that is not known"),
    "class_case": ("error", "objects of a class that is known in another case"),
    "missing_image": ("error", "images that are missing"),
    "unreadable_image": ("error", "images that cannot be decoded"),
    "truncated_image": ("error", "images that were cut off"),
    "huge_image": ("error", "images of too many pixels"),
    "image_size": ("error", "images of another size than their annotation says"),
    "max_objects": ("error", "more objects in an image than the padding has room for"),
    "no_objects": ("error", "splits without an object to train on"),
    # Training goes on with less or with something else, as the finding says.
    "no_area": ("warning", "boxes without area, set aside in training and evaluation"),
    "outside": ("warning", "boxes that reach outside of their image, clipped to it"),
    "exif_turned": ("warning", "images that are to be shown turned; boxes count as stored"),
    "damaged_image": ("warning", "images that a decoder complains about"),
    "similar_classes": ("warning", "classes that differ by case alone"),
    "absent_class": ("warning", "classes without an object to train on"),
    "shared_image": ("warning", "images of the evaluation that are trained on"),
    "repeated_image": ("warning", "images that a split has twice"),
    "no_prior": ("warning", "objects that no prior overlaps by train.match_iou_threshold"),
    # Good to know.
    "empty": ("note", "images without an object"),
    "tiny": ("note", "objects below 100 square pixels"),
    "grey": ("note", "grey images, decoded to RGB"),
    "cmyk": ("note", "CMYK images, decoded to RGB without their colour profile"),
    "deep": ("note", "images of more than 8 bits, decoded to 8"),
    "alpha": ("note", "images with transparency, decoded without it"),
    "suffix": ("note", "images of another format than their suffix says"),
}

_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff\\ufdd0-\\ufdef\\ufffe\\uffff]"
)


class DataError(UserError):
    """Data that cannot be used; the message names the file and what to change.

    Args:
        what: what is wrong, naming the file. Signs that do not print become escapes, so that it
            is one line.
        change: what to change.
        kind: one of KINDS.
        file: that is to be changed.
        record: the image, if it is not the file.
        item: the object: object 2 (cat).
        count: objects of the record that it is about.
    """

    def __init__(
        self,
        what: str,
        change: str = "",
        *,
        kind: str = "data_set",
        file: Path | None = None,
        record: str = "",
        item: str = "",
        count: int = 1,
    ) -> None:
        self.what, self.change = printable(what), printable(change)
        super().__init__(f"{self.what}; {self.change}" if change else self.what)
        self.kind = kind
        self.severity, _ = KINDS[kind]
        self.file = file
        self.record = record
        self.item = item
        self.count = count


OnError: TypeAlias = Callable[[DataError], None]
"""Told what is wrong. If it returns from an error, the record or the object is left out."""


def stop(error: DataError) -> None:
    """Raises an error and lets warnings pass: what sources do unless they are told otherwise."""
    if error.severity == "error":
        raise error


def class_error(
    path: Path, name: str, known: Sequence[str], *, record: str = "", item: str = ""
) -> DataError:
    """The error that the file has an object of a class that is not one of those known."""
    alike = [k for k in known if k.lower() == name.lower()]
    advice = (
        f"write it as {alike[0]!r}: case counts"
        if alike
        else "add it to model.classes or data.class_file, or take the object out"
    )
    return DataError(
        f"{path} has class {name[:80]!r}, which is not one of {shorten(known, 30)}",
        advice,
        kind="class_case" if alike else "unknown_class",
        file=path,
        record=record,
        item=item,
    )


def shorten(names: Sequence[str], most: int) -> str:
    """The names with commas, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def reason(error: Exception) -> str:
    """What the system says of a file, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def escape_controls(text: str) -> str:
    """Escape what no reader sees: control characters, marks of direction, surrogates."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
