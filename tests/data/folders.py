"""Datasets made by hand, in the layouts of VOC, COCO and YOLO."""

import json
import xml.etree.ElementTree as ET
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


YOLO_LAYOUTS = {
    "images/SPLIT": ("images/{}", "labels/{}"),
    "SPLIT/images": ("{}/images", "{}/labels"),
    "beside": ("{}", "{}"),
}


def make_yolo(root: Path, labels: dict[str, str | None], layout="images/SPLIT", **changes) -> Path:
    """A YOLO folder with an image of 100x80 for each label file; None: the file is missing.

    All images are in split train. `changes` are keys of data.yaml, which is written as JSON.
    """
    images_folder, labels_folder = (root / part.format("train") for part in YOLO_LAYOUTS[layout])
    for k, (name, text) in enumerate(labels.items()):
        for folder in (images_folder, labels_folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_image(images_folder / f"{name}.jpg", np.full((80, 100, 3), 9 + k, np.uint8))
        if text is not None:
            (labels_folder / f"{name}.txt").write_text(text)
    content = {"train": str(images_folder.relative_to(root)), "names": list(CLASSES)} | changes
    (root / "data.yaml").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root


def read_voc_objects(root: Path, image_id: str) -> tuple[tuple[int, int], list]:
    """Size of an image, and (class, xyxy in continuous pixels) of each object with an area."""
    tree = ET.parse(root / "Annotations" / f"{image_id}.xml").getroot()
    objects = []
    for node in tree.iter("object"):
        x1, y1, x2, y2 = (
            float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if x1 < x2 and y1 < y2:
            objects.append((node.findtext("name"), (x1 - 1, y1 - 1, x2, y2)))
    return (int(tree.findtext("size/width")), int(tree.findtext("size/height"))), objects


def read_coco_objects(root: Path, split: str) -> dict[str, tuple[tuple[int, int], list]]:
    """File name -> as for `read_voc_objects`; crowds are left out, YOLO has none."""
    content = json.loads((root / f"annotations/instances_{split}.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    images = {i["id"]: (i["file_name"], (i["width"], i["height"]), []) for i in content["images"]}
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        if not record.get("iscrowd"):
            box = (x, y, x + w, y + h)
            images[record["image_id"]][2].append((names[record["category_id"]], box))
    return {name: (size, objects) for name, size, objects in images.values()}


def write_yolo(root: Path, layout: str, splits: dict[str, dict], classes) -> Path:
    """Write a YOLO dataset with six digits a number, as common tools do.

    Args:
        root: the folder to make.
        layout: a key of YOLO_LAYOUTS, or lists: a text file of images a split.
        splits: split -> image file -> ((width, height), [(class, xyxy in pixels)]).
        classes: names in the order of their indices.
    """
    lines = ["path: .", f"nc: {len(classes)}", "names:"]
    lines += [f"  {k}: {name}" for k, name in enumerate(classes)]
    for split, images in splits.items():
        parts = YOLO_LAYOUTS["images/SPLIT" if layout == "lists" else layout]
        images_folder, labels_folder = (root / part.format(split) for part in parts)
        for folder in (images_folder, labels_folder):
            folder.mkdir(parents=True, exist_ok=True)
        for file, ((width, height), objects) in images.items():
            (images_folder / file.name).symlink_to(file)
            rows = [
                f"{classes.index(name)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
                f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
                for name, (x1, y1, x2, y2) in objects
            ]
            if rows:
                (labels_folder / file.name).with_suffix(".txt").write_text("".join(rows))
        path = images_folder.relative_to(root)
        if layout == "lists":
            names = [f"./{path}/{file.name}\n" for file in images]
            (root / f"{split}.txt").write_text("".join(names))
            path = f"{split}.txt"
        lines.append(f"{split}: {path}")
    (root / "data.yaml").write_text("\n".join(lines) + "\n")
    return root
