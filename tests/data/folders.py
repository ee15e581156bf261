"""Datasets made by hand, in the layouts of VOC and COCO."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("cat", "dog")


def write_object(name="cat", box=(11, 21, 50, 60), extra="<difficult>0</difficult>"):
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def write_xml(*objects, size=(100, 80)):
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{size_xml}{''.join(objects)}</annotation>"


def make_folder(root: Path, annotations: dict[str, str | bytes], suffix=".jpg") -> Path:
    """A VOC folder with one image of 100x80 for each annotation, all in split train."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / "Annotations" / f"{image_id}.xml").write_bytes(data)
        write_image(root / "JPEGImages" / f"{image_id}{suffix}", np.full((80, 100, 3), 9, np.uint8))
    (root / "ImageSets/Main/train.txt").write_text("\n".join(annotations) + "\n")
    return root


def write_image(path: Path, image: np.ndarray) -> None:
    ok, data = cv2.imencode(path.suffix.lower(), image)
    assert ok
    path.write_bytes(data.tobytes())


def make_coco(root: Path, split="train", *, folder=None, images=None, boxes=(), **changes) -> Path:
    """A COCO folder with images of 100x80 called 1.jpg, 2.jpg ...; `changes` replace whole lists.

    Categories are 7: dog and 3: cat. `boxes`: (image_id, category_id, bbox, further keys) each.
    """
    images = [1, 2] if images is None else images
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 80} for k in images],
        "annotations": [
            {"id": 11 + k, "image_id": image, "category_id": category, "bbox": list(bbox)} | more
            for k, (image, category, bbox, *rest) in enumerate(boxes)
            for more in (rest or [{}])
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    } | changes
    folder = root / (split if folder is None else folder)
    for part in (root / "annotations", folder):
        part.mkdir(parents=True, exist_ok=True)
    for k in images:
        write_image(folder / f"{k}.jpg", np.full((80, 100, 3), 9, np.uint8))
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root
