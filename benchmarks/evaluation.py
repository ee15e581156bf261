"""VOC's average precision against ssd.pytorch's loop, COCO's figures against pycocotools."""

import contextlib
import io
from typing import Any

import numpy as np

from benchmarks.reference_voc_ap import voc_ap
from benchmarks.report import print_comparison
from benchmarks.runner import compare_in_process
from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.metrics.coco_ap import evaluate_coco
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc


def run(rounds: int) -> dict[str, Any]:
    """Print the tables and return the figures; all programs run in this process."""
    voc, coco = make_tables(4952, 200, 20, 2.4), make_tables(1500, 25, 80, 7.3)
    programs = {
        "VOC, 4,952 images x 200 detections x 20 classes": {
            "reference, Python loop": lambda: voc_ap(*voc, 20),
            "ssd_jax": lambda: evaluate_voc(*voc, tuple(map(str, range(20)))),
        },
        "COCO, 1,500 images x 25 detections x 80 classes": {
            "pycocotools": lambda: evaluate_pycocotools(*coco, 80),
            "ssd_jax": lambda: evaluate_coco(*coco, tuple(map(str, range(80)))),
        },
    }
    figures = {}
    for name, peers in programs.items():
        figures[name] = compare_in_process(peers, rounds=rounds)
        print_comparison(name, figures[name], base=next(iter(peers)))
    return figures


def make_tables(
    images: int, detections_per_image: int, classes: int, objects_per_image: float
) -> tuple[DetectionTable, GroundTruth]:
    """Make random objects and detections, a tenth of which lie near an object."""
    rng = np.random.default_rng(0)

    def random_boxes(n: int) -> np.ndarray:
        corner = rng.uniform(1, 400, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 200, (n, 2))], 1)

    num_objects, num_detections = int(images * objects_per_image), images * detections_per_image
    ground_truth = GroundTruth(
        np.sort(rng.integers(0, images, num_objects)),
        rng.integers(0, classes, num_objects),
        random_boxes(num_objects),
        rng.random(num_objects) < 0.1,
    )
    image = np.repeat(np.arange(images), detections_per_image)
    label, boxes = rng.integers(0, classes, num_detections), random_boxes(num_detections)
    near = rng.choice(num_detections, num_detections // 10, replace=False)
    target = rng.integers(0, num_objects, len(near))
    image[near], label[near] = ground_truth.image[target], ground_truth.label[target]
    boxes[near] = ground_truth.boxes[target] + rng.normal(0, 3, (len(near), 4))
    return DetectionTable(image, label, rng.random(num_detections) ** 4, boxes), ground_truth


def evaluate_pycocotools(
    detections: DetectionTable, ground_truth: GroundTruth, classes: int
) -> dict[str, Any]:
    """Evaluate by pycocotools and return COCOeval.eval."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": int(k)} for k in np.unique(detections.image)],
            "categories": [{"id": k + 1} for k in range(classes)],
            "annotations": [
                {
                    "id": k + 1,
                    "image_id": int(ground_truth.image[k]),
                    "category_id": int(ground_truth.label[k]) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(ground_truth.difficult[k]),
                }
                for k, box in enumerate(xywh(ground_truth.boxes).tolist())
            ],
        }
        coco.createIndex()
        results = coco.loadRes(
            np.column_stack(
                [
                    detections.image,
                    xywh(detections.boxes),
                    detections.score,
                    detections.label + 1,
                ]
            )
        )
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval
