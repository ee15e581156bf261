"""Datasets that went wrong in every way that we could think of, the same ones for a seed.

`VOC` and `COCO` name the mutants; `make_voc` and `make_coco` write all of a format into one folder,
each mutant under a split of its name. Outcome: "refused", a DataError; "fine", it can be trained
on, perhaps without an object; "either", whatever the bytes happen to say.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.data.folders import write_object, write_xml

SEED = 20
WIDTH, HEIGHT = 100, 80
GOOD_XML = write_xml(write_object("cat"), write_object("dog", (1, 1, 100, 80)))


@dataclass(frozen=True)
class Mutant:
    """One file gone wrong."""

    outcome: str
    data: bytes | Callable[[Path], None]
    """Content of the file, or the function that makes it."""
    suffix: str = ".jpg"
    xml: str = GOOD_XML


def encode(suffix: str, image: np.ndarray) -> bytes:
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def photograph() -> np.ndarray:
    """Noise: a JPEG of some length, so that there is something to cut."""
    return np.random.default_rng(SEED).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 8 bytes replaced."""
    out = bytearray(data)
    for place in rng.integers(0, len(out), rng.integers(1, 9)):
        out[place] = rng.integers(256)
    return bytes(out)


def cut(data: bytes, count: int) -> list[bytes]:
    """Truncate the data at positions from the start to just before the end."""
    return [data[: round(k * (len(data) - 1) / (count - 1))] for k in range(count)]


def png(width: int, height: int, bits: int = 1, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size, of few bytes: a decompression bomb."""
    line = b"\0" * (1 + -(-width * bits // 8))
    stream = zlib.compress(line * (height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resize_header(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def exif(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF orientation."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation]) + b"\0" * 6
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    return jpeg[:2] + segment + jpeg[2:]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def nothing(path: Path) -> None:
    """The file is missing."""


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def link_in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def link_outside(data: bytes) -> Callable[[Path], None]:
    """A link to a file beside the dataset."""

    def make(path: Path) -> None:
        outside = path.parent.parent.with_name(f"outside-{path.name}")
        outside.write_bytes(data)
        path.symlink_to(outside)

    return make


SPECIAL_FILES = {
    "missing": nothing,
    "folder": Path.mkdir,
    "pipe": pipe,
    "link_to_nowhere": link_to_nowhere,
    "link_in_a_circle": link_in_a_circle,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def mutate_images(seed: int) -> dict[str, Mutant]:
    """Mutated images, for use with a valid annotation."""
    rng = np.random.default_rng(seed)
    image = photograph()
    jpeg, whole_png, bmp = (encode(s, image) for s in (".jpg", ".png", ".bmp"))
    out: dict[str, Mutant] = {}
    for k, data in enumerate(cut(jpeg, 30)):
        out[f"jpeg_cut_{k:02}"] = Mutant("refused", data)
    for k, data in enumerate(cut(whole_png, 10)):
        out[f"png_cut_{k}"] = Mutant("refused", data, ".png")
    for k in range(40):
        out[f"jpeg_flip_{k:02}"] = Mutant("either", flip(jpeg, rng))
    for k in range(15):
        out[f"png_flip_{k:02}"] = Mutant("either", flip(whole_png, rng), ".png")
        out[f"bmp_flip_{k:02}"] = Mutant("either", flip(bmp[:60], rng) + bmp[60:], ".bmp")
    for kind, make in SPECIAL_FILES.items():
        out[f"image_{kind}"] = Mutant("refused", make)
    size_one = write_xml(write_object("cat", (1, 1, 1, 1)), size=(1, 1))
    tiff = encode(".tiff", image)
    huge = (20000, 20000)
    out |= {
        "text_as_jpg": Mutant("refused", b"this is no image\n" * 9),
        "html_as_jpg": Mutant("refused", b"<html>404</html>"),
        "zeros": Mutant("refused", b"\0" * 5000),
        "noise": Mutant("refused", rng.bytes(5000)),
        "start_of_image_alone": Mutant("refused", b"\xff\xd8\xff"),
        "start_and_end": Mutant("refused", b"\xff\xd8\xff\xd9"),
        "no_end_of_image": Mutant("refused", jpeg[:-2]),
        "fill_bytes_only": Mutant("refused", b"\xff\xd8" + b"\xff" * 5000),
        "gif_as_jpg": Mutant("refused", b"GIF89a" + struct.pack("<HH", 20000, 20000) + b"\0" * 20),
        "png_as_jpg": Mutant("fine", whole_png),
        "bmp_as_jpg": Mutant("fine", bmp),
        "webp_as_jpg": Mutant("fine", encode(".webp", image)),
        "tiff_as_jpg": Mutant("fine", tiff),
        "jpeg_as_png": Mutant("fine", jpeg, ".png"),
        "jpeg_and_garbage": Mutant("fine", jpeg + rng.bytes(500)),
        "two_jpegs": Mutant("fine", jpeg + jpeg),
        "grey": Mutant("fine", encode(".jpg", image[..., 0])),
        "sixteen_bits": Mutant("fine", encode(".png", image.astype(np.uint16) * 257), ".png"),
        "alpha": Mutant("fine", encode(".png", np.dstack([image, image[..., 0]])), ".png"),
        "exif_6": Mutant("fine", exif(jpeg, 6)),
        "exif_99": Mutant("fine", exif(jpeg, 99)),
        "exif_broken": Mutant("fine", exif(jpeg, 6).replace(b"MM\0*\0", b"MM\0*\xff")),
        "one_pixel": Mutant("refused", encode(".png", image[:1, :1]), ".png"),
        "one_pixel_told": Mutant("fine", encode(".png", image[:1, :1]), ".png", size_one),
        "other_size": Mutant("refused", encode(".jpg", image[:, :50])),
        "turned_size": Mutant("refused", encode(".jpg", np.rot90(image))),
        "link_outside": Mutant("fine", link_outside(jpeg)),
        "png_bomb": Mutant("refused", png(*huge), ".png", write_xml(size=huge)),
        "png_bomb_untold": Mutant("refused", png(*huge), ".png", write_xml(size=None)),
        "png_bomb_rgba16": Mutant("refused", png(*huge, 16, 6, rows=10), ".png"),
        "png_no_pixels": Mutant("refused", png(0, 0), ".png", write_xml(size=None)),
        "png_largest": Mutant("refused", png(2**31 - 1, 2**31 - 1, rows=0), ".png"),
        "jpeg_bomb": Mutant("refused", resize_header(jpeg, *huge), xml=write_xml(size=huge)),
        "jpeg_largest": Mutant("refused", resize_header(jpeg, 65535, 65535)),
        "jpeg_no_pixels": Mutant("refused", resize_header(jpeg, 0, 0), xml=write_xml(size=None)),
        "bmp_bomb": Mutant("refused", bmp[:18] + struct.pack("<ii", *huge) + bmp[26:], ".bmp"),
        "bmp_upside_down": Mutant(
            "fine", bmp[:18] + struct.pack("<ii", WIDTH, -HEIGHT) + bmp[26:], ".bmp"
        ),
        "tiff_cut": Mutant("refused", tiff[: len(tiff) // 2]),
        "webp_cut": Mutant("refused", encode(".webp", image)[:40]),
    }  # fmt: skip
    return out


def mutate_xml(seed: int) -> dict[str, Mutant]:
    """Mutated annotations, for use with a valid image."""
    rng = np.random.default_rng(seed + 1)
    good = GOOD_XML.encode()
    out: dict[str, Mutant] = {}

    def add(name: str, outcome: str, data: str | bytes | Callable[[Path], None]) -> None:
        assert name not in out
        out[name] = Mutant(outcome, data.encode() if isinstance(data, str) else data)

    for k, data in enumerate(cut(good, 15)):
        add(f"xml_cut_{k:02}", "refused", data)
    for k in range(40):
        add(f"xml_flip_{k:02}", "either", flip(good, rng))
    for kind, make in SPECIAL_FILES.items():
        add(f"xml_{kind}", "refused", make)
    declared = '<?xml version="1.0" encoding="{}"?>'
    laughs = "".join(
        f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' if k else '<!ENTITY l0 "ha">' for k in range(10)
    )
    for side in ("xmin", "ymin", "xmax", "ymax"):
        add(f"no_{side}", "refused", GOOD_XML.replace(f"{side}>", "side>"))
    for name, value in {
        "nan": "nan",
        "infinity": "inf",
        "minus_infinity": "-inf",
        "overflow": "1e400",
        "very_far": "1e300",
        "far": "1e10",
        "text": "wide",
        "nothing": "",
        "hexadecimal": "0x10",
        "two_numbers": "1 2",
    }.items():
        add(f"xmax_{name}", "refused", write_xml(write_object(box=(1, 2, value, 40))))
        add(f"width_{name}", "refused", write_xml(write_object(), size=(value, 80)))
    for name, box in {
        "swapped_x": (50, 21, 11, 60),
        "swapped_y": (11, 60, 50, 21),
        "no_area": (30, 30, 30, 30),
        "negative": (-20, -30, 40, 50),
        "all_negative": (-20, -30, -4, -5),
        "beyond": (50, 40, 99999999, 99999999),
        "far_outside": (5000, 5000, 6000, 6000),
        "from_zero": (0, 0, 99, 79),
    }.items():
        add(f"box_{name}", "fine", write_xml(write_object(box=box)))
    add("empty", "refused", b"")
    add("blank", "refused", " \n ")
    add("binary", "refused", rng.bytes(500))
    add("utf16_as_utf8", "either", (declared.format("utf-8") + GOOD_XML).encode("utf-16"))
    add("utf16", "fine", (declared.format("utf-16") + GOOD_XML).encode("utf-16"))
    add("latin1_as_utf8", "refused", GOOD_XML.replace("cat", "café").encode("latin-1"))
    latin = GOOD_XML.replace("<object>", "<!-- café --><object>")
    add("latin1", "fine", (declared.format("latin-1") + latin).encode("latin-1"))
    add("utf8_mark", "fine", b"\xef\xbb\xbf" + good)
    add("unknown_encoding", "refused", declared.format("klingon") + GOOD_XML)
    add("utf7", "refused", declared.format("utf-7") + GOOD_XML)
    add("zero_byte", "refused", GOOD_XML.replace("cat", "c\0at"))
    add("billion_laughs", "refused", f"<!DOCTYPE a [{laughs}]><annotation>&l9;</annotation>")
    external = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    add("external_entity", "refused", f"{external}<annotation>&x;</annotation>")
    add("unknown_entity", "refused", GOOD_XML.replace("cat", "&cat;"))
    add("html", "refused", "<html><body>404</body></html>")
    add("other_namespace", "refused", GOOD_XML.replace("<annotation>", '<annotation xmlns="x">'))
    add("two_roots", "refused", GOOD_XML * 2)
    add("deep", "fine", f"<annotation>{'<a>' * 20000}{'</a>' * 20000}</annotation>")
    add("deep_and_open", "refused", "<annotation>" + "<a>" * 20000)
    add("many_objects", "fine", write_xml(*[write_object()] * 2000))
    add("no_object", "fine", write_xml())
    add("no_name", "refused", write_xml(write_object("")))
    add("long_name", "refused", write_xml(write_object("x" * 100_000)))
    add("name_of_two_lines", "refused", write_xml(write_object("big\ncat")))
    add("name_of_other_case", "refused", write_xml(write_object("Cat")))
    add("name_unknown", "refused", write_xml(write_object("bird")))
    add("no_bndbox", "refused", write_xml("<object><name>cat</name></object>"))
    second = "</bndbox><bndbox><xmin>1</xmin></bndbox>"
    add("two_boxes", "fine", GOOD_XML.replace("</bndbox>", second))
    add("difficult_text", "refused", write_xml(write_object(extra="<difficult>very</difficult>")))
    add("difficult_number", "refused", write_xml(write_object(extra="<difficult>7</difficult>")))
    add("size_absent", "fine", write_xml(write_object(), size=None))
    add("size_zero", "fine", write_xml(write_object(), size=(0, 0)))
    add("size_negative", "fine", write_xml(write_object(), size=(-100, -80)))
    add("size_large", "refused", write_xml(write_object(), size=(10**8, 10**8)))
    add("size_turned", "refused", write_xml(write_object(), size=(80, 100)))
    return out


GOOD_IMAGE: dict[str, Any] = {"id": 1, "file_name": "good.jpg", "width": WIDTH, "height": HEIGHT}
GOOD_OBJECT: dict[str, Any] = {
    "id": 11,
    "image_id": 1,
    "category_id": 7,
    "bbox": [10, 20, 40, 40],
    "iscrowd": 0,
}
GOOD_CATEGORY: dict[str, Any] = {"id": 7, "name": "cat"}
GOOD_JSON: dict[str, list[Any]] = {
    "images": [GOOD_IMAGE],
    "annotations": [GOOD_OBJECT],
    "categories": [GOOD_CATEGORY, {"id": 8, "name": "dog"}],
}
WRONG = {
    "null": None,
    "true": True,
    "text": "7x",
    "empty_text": "",
    "list": [],
    "object": {"a": [1]},
    "minus": -3,
    "fraction": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "enormous": 10**30,
}
# What happens to be right: an annotation's id may be any whole number or text.
IDS = ("text", "empty_text", "minus", "enormous")
RIGHT = {("iscrowd", "true"), ("name", "text"), *(("id", name) for name in IDS)}


def mutate_json(seed: int) -> dict[str, Mutant]:
    """Mutated annotation files, for a folder of images that contains good.jpg."""
    rng = np.random.default_rng(seed + 2)
    good = json.dumps(GOOD_JSON).encode()
    out: dict[str, Mutant] = {}

    def add(name: str, outcome: str, data: Any) -> None:
        assert name not in out
        data = data if isinstance(data, bytes) or callable(data) else json.dumps(data).encode()
        out[name] = Mutant(outcome, data)

    def change(part: str, record: dict[str, Any], **fields: Any) -> dict[str, Any]:
        others = GOOD_JSON[part][1:]
        return GOOD_JSON | {part: [record | fields, *others]}

    for k, data in enumerate(cut(good, 12)):
        add(f"json_cut_{k:02}", "refused", data)
    for k in range(40):
        add(f"json_flip_{k:02}", "either", flip(good, rng))
    for kind, make in SPECIAL_FILES.items():
        add(f"json_{kind}", "refused", make)
    for part, record in (
        ("images", GOOD_IMAGE),
        ("annotations", GOOD_OBJECT),
        ("categories", GOOD_CATEGORY),
    ):
        add(f"no_{part}", "refused", {k: v for k, v in GOOD_JSON.items() if k != part})
        add(f"{part}_twice", "refused", GOOD_JSON | {part: [record, record, *GOOD_JSON[part][1:]]})
        for name, wrong in WRONG.items():
            add(f"{part}_{name}", "refused" if wrong != [] else "either", GOOD_JSON | {part: wrong})
            add(f"{part}_with_{name}", "refused", GOOD_JSON | {part: [wrong]})
        for key in record:
            less = {k: v for k, v in record.items() if k != key}
            outcome = "fine" if key == "iscrowd" else "refused"
            add(f"{part}_no_{key}", outcome, change(part, less))
            for name, wrong in WRONG.items():
                fine = (part, key) == ("annotations", "id") and name in IDS
                outcome = "fine" if fine else "either" if (key, name) in RIGHT else "refused"
                add(f"{part}_{key}_{name}", outcome, change(part, record, **{key: wrong}))
    for name, file in {
        "parent": "../good.jpg",
        "through_parent": "a/../../good.jpg",
        "absolute": "/etc/passwd",
        "here": ".",
        "folder_itself": "folder.jpg",
        "zero_byte": "good\0.jpg",
        "too_long": "x" * 5000,
        "two_lines": "good\n.jpg",
        "escape": "\x1b[31mgood.jpg",
        "surrogate": "good\ud800.jpg",
        "pipe": "pipe.jpg",
        "link_to_nowhere": "nowhere.jpg",
        "text": "text.jpg",
        "of_no_bytes": "empty.jpg",
        "cut_off": "cut.jpg",
        "not_there": "elsewhere/good.jpg",
    }.items():
        add(f"file_name_{name}", "refused", change("images", GOOD_IMAGE, file_name=file))
    for name, file in {
        "unicode": "wörld ☃ 猫.jpg",
        "dot": "./good.jpg",
        "newline": "a\nb.jpg",
    }.items():
        add(f"file_name_{name}", "fine", change("images", GOOD_IMAGE, file_name=file))
    for name, box in {
        "short": [1, 2, 3],
        "long": [1, 2, 3, 4, 5],
        "of_text": ["1", "2", "3", "4"],
        "of_null": [None] * 4,
        "of_lists": [[1], [2], [3], [4]],
        "nan": [float("nan")] * 4,
        "infinite": [0, 0, float("inf"), float("inf")],
        "very_far": [1e300, 0, 1e300, 5],
        "endless": list(range(100_000)),
    }.items():
        add(f"bbox_{name}", "refused", change("annotations", GOOD_OBJECT, bbox=box))
    for name, box in {
        "negative_size": [50, 40, -20, -20],
        "no_area": [50, 40, 0, 0],
        "negative_place": [-20, -20, 50, 50],
        "outside": [5000, 5000, 10, 10],
        "beyond": [50, 40, 99999999, 99999999],
        "fractions": [1.25, 2.5, 3.125, 4.0625],
    }.items():
        add(f"bbox_{name}", "fine", change("annotations", GOOD_OBJECT, bbox=box))
    nested: Any = []
    for _ in range(300):
        nested = [nested]
    add("nested_value", "refused", change("annotations", GOOD_OBJECT, bbox=nested))
    add("deep", "refused", b'{"images": ' + b"[" * 100_000)
    add("deep_and_closed", "refused", b"[" * 100_000 + b"]" * 100_000)
    add("empty", "refused", b"")
    add("utf16", "fine", good.decode().encode("utf-16"))
    add("utf8_mark", "fine", b"\xef\xbb\xbf" + good)
    add("latin1", "refused", good.replace(b"cat", b"caf\xe9"))
    add("long_number", "refused", good.replace(b'"width": 100', b'"width": 1' + b"0" * 5000))
    add("text_after", "refused", good + b"{}")
    add("comment", "refused", b"// COCO\n" + good)
    add("key_twice", "fine", good[:-1] + b', "images": ' + json.dumps([GOOD_IMAGE]).encode() + b"}")
    add("other_case", "refused", change("categories", GOOD_CATEGORY, name="Cat"))
    add("unknown_class", "refused", change("categories", GOOD_CATEGORY, name="bird"))
    add("other_size", "refused", change("images", GOOD_IMAGE, width=99))
    add("one_file_twice", "refused", GOOD_JSON | {"images": [GOOD_IMAGE, GOOD_IMAGE | {"id": 2}]})
    return out


def everything_at_once(images: Path) -> dict[str, list[Any]]:
    """One annotation file with the records of all those that have records.

    Valid parts of a mutant get a separate id and file, so that only its faults are reported.
    """
    good = (images / "good.jpg").read_bytes()
    out: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    out["categories"] += GOOD_JSON["categories"]
    for k, mutant in enumerate(mutate_json(SEED).values()):
        try:
            content = json.loads(mutant.data)  # type: ignore[arg-type]
            parts = {name: content[name] for name in out}
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        new_ids = {
            "images": {"id": (1, 1000 + k), "file_name": ("good.jpg", f"good_{k}.jpg")},
            "annotations": {"id": (11, 1000 + k), "image_id": (1, 1000 + k)},
            "categories": {"id": (7, 1000 + k), "name": ("cat", f"cat {k}")},
        }
        (images / f"good_{k}.jpg").write_bytes(good)
        for name, records in parts.items():
            for record in records if isinstance(records, list) else []:
                if isinstance(record, dict):
                    record |= {
                        key: new
                        for key, (old, new) in new_ids[name].items()
                        if record.get(key) == old and type(record[key]) is type(old)
                    }
                if record not in GOOD_JSON["categories"]:
                    out[name].append(record)
    return out


def make_voc(root: Path) -> dict[str, Mutant]:
    """A VOC folder with a record for each mutant, and a split for each and for "train": all."""
    mutants = mutate_images(SEED)
    annotations = mutate_xml(SEED)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    jpeg = encode(".jpg", photograph())
    good = {"good_1": Mutant("fine", jpeg), "good_2": Mutant("fine", jpeg)}
    for name, mutant in {**mutants, **good}.items():
        put(root / f"JPEGImages/{name}{mutant.suffix}", mutant.data)
        put(root / f"Annotations/{name}.xml", mutant.xml.encode())
    for name, mutant in annotations.items():
        put(root / f"JPEGImages/{name}.jpg", jpeg)
        put(root / f"Annotations/{name}.xml", mutant.data)
    everything = {**good, **mutants, **annotations}
    assert len(everything) == len(good) + len(mutants) + len(annotations)
    for name in everything:
        (root / f"ImageSets/Main/{name}.txt").write_text(f"{name}\n")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(everything))
    (root / "ImageSets/Main/images.txt").write_text("\n".join(mutants))
    return everything


def make_coco(root: Path) -> dict[str, Mutant]:
    """A COCO folder with a split for each mutant, and "everything" of them in one file."""
    mutants = mutate_json(SEED)
    for part in ("annotations", "JPEGImages"):
        (root / part).mkdir(parents=True)
    images = root / "JPEGImages"
    jpeg = encode(".jpg", photograph())
    for name in ("good.jpg", "wörld ☃ 猫.jpg", "a\nb.jpg"):
        (images / name).write_bytes(jpeg)
    (images / "text.jpg").write_text("no image")
    (images / "empty.jpg").write_bytes(b"")
    (images / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (images / "folder.jpg").mkdir()
    pipe(images / "pipe.jpg")
    link_to_nowhere(images / "nowhere.jpg")
    (root / "good.jpg").write_bytes(jpeg)  # what ../good.jpg leads to
    for name, mutant in mutants.items():
        put(root / f"annotations/instances_{name}.json", mutant.data)
    everything = json.dumps(everything_at_once(images))
    (root / "annotations/instances_everything.json").write_text(everything)
    (root / "annotations/instances_good.json").write_text(json.dumps(GOOD_JSON))
    return mutants


def put(path: Path, data: bytes | Callable[[Path], None]) -> None:
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        data(path)


VOC = {**mutate_images(SEED), **mutate_xml(SEED)}
COCO = mutate_json(SEED)
