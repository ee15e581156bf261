"""Rows of result files."""

import numpy as np

from ssd_jax.inference.detector import Detections
from ssd_jax.inference.results import coco_rows


def test_rows_have_xywh_boxes_and_category_ids_from_one():
    detections = Detections(
        boxes=np.array([[1, 2, 11.5, 22.125], [0, 0, 3, 4]], np.float32),
        scores=np.array([0.75, 0.123456], np.float32),
        labels=np.array([1, 0], np.int32),
        names=("cat", "dog"),
    )
    rows = coco_rows(detections, image_id=7, file_name="a.jpg")
    assert rows == [
        {
            "image_id": 7,
            "category_id": 2,
            "bbox": [1.0, 2.0, 10.5, 20.12],
            "score": 0.75,
            "file_name": "a.jpg",
            "category_name": "dog",
        },
        {
            "image_id": 7,
            "category_id": 1,
            "bbox": [0.0, 0.0, 3.0, 4.0],
            "score": 0.12346,
            "file_name": "a.jpg",
            "category_name": "cat",
        },
    ]
    framed = coco_rows(detections, image_id=8, file_name="a.mp4", frame=0)
    assert [row["frame"] for row in framed] == [0, 0]
    assert [*framed[0]][-3:] == ["file_name", "frame", "category_name"]
