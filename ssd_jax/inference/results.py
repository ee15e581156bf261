"""Detections in the file formats of COCO and VOC."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ssd_jax.inference.detector import Detections
from ssd_jax.inference.drawing import Image


def coco_rows(
    detections: Detections, image_id: int, file_name: str, frame: int | None = None
) -> list[dict[str, Any]]:
    """Return detections as entries of COCO's results, with the names of file and class.

    Args:
        detections: those of one image.
        image_id: index of the image, from 1.
        file_name: file of the image or video.
        frame: index of the frame in a video, from 0.
    """
    video = {} if frame is None else {"frame": frame}
    return [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 5),
            "file_name": file_name,
            **video,
            "category_name": detections.names[label],
        }
        for (x0, y0, x1, y1), score, label in zip(
            detections.boxes.tolist(),
            detections.scores.tolist(),
            detections.labels.tolist(),
            strict=True,
        )
    ]


def voc_xml(detections: Detections, file_name: str, image: Image) -> bytes:
    """Return detections as a VOC annotation: whole pixels from 1, with inclusive maxima."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = Path(file_name).name
    _add_fields(root, "size", dict(zip(("height", "width", "depth"), image.shape, strict=True)))
    height, width = image.shape[:2]
    corners = detections.boxes.round().astype(int).tolist()
    for (x0, y0, x1, y1), label, score in zip(
        corners, detections.labels, detections.scores, strict=True
    ):
        name = detections.names[label]
        node = _add_fields(
            root, "object", {"name": name, "confidence": f"{score:.5f}", "difficult": 0}
        )
        # Boxes thinner than a pixel get one.
        left, top = min(x0 + 1, width), min(y0 + 1, height)
        sides = {"xmin": left, "ymin": top, "xmax": max(x1, left), "ymax": max(y1, top)}
        _add_fields(node, "bndbox", sides)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _add_fields(
    parent: ElementTree.Element, name: str, fields: dict[str, Any]
) -> ElementTree.Element:
    node = ElementTree.SubElement(parent, name)
    for key, value in fields.items():
        ElementTree.SubElement(node, key).text = str(value)
    return node
