"""VOC's average precision against the reference's loop, COCO's figures against pycocotools."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import literal
from benchmarks.report import print_race
from ssd_jax.evaluation.metrics.coco_ap import evaluate_coco
from ssd_jax.evaluation.metrics.voc_ap import evaluate_voc
from ssd_jax.evaluation.tables import DetectionTable, GroundTruth


def run(rounds: int) -> dict[str, Any]:
    """Print the tables and return the figures; all in one process, one after another."""
    voc, coco = _tables(4952, 200, 20, 2.4), _tables(1500, 25, 80, 7.3)
    names = tuple(f"class {k}" for k in range(20))
    figures = {
        "VOC, 4,952 images x 200 detections x 20 classes": _times(
            {
                "reference's loop": lambda: literal.voc_ap(*voc, 20),
                "ours": lambda: evaluate_voc(*voc, names),
            },
            rounds,
        ),
        "COCO, 1,500 images x 25 detections x 80 classes": _times(
            {
                "pycocotools": lambda: _pycocotools(*coco, 80),
                "ours": lambda: evaluate_coco(*coco, tuple(map(str, range(80)))),
            },
            rounds,
        ),
    }
    for name, found in figures.items():
        print_race(name, found, base=next(iter(found)))
    return figures


def _tables(
    images: int, each: int, classes: int, objects: float
) -> tuple[DetectionTable, GroundTruth]:
    """Random objects, and detections of which a tenth lie near one."""
    rng = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        corner = rng.uniform(1, 400, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 200, (n, 2))], 1)

    count, found = int(images * objects), images * each
    known = GroundTruth(
        np.sort(rng.integers(0, images, count)),
        rng.integers(0, classes, count),
        boxes(count),
        rng.random(count) < 0.1,
    )
    image = np.repeat(np.arange(images), each)
    label, places = rng.integers(0, classes, found), boxes(found)
    near, k = rng.choice(found, found // 10, replace=False), rng.integers(0, count, found // 10)
    image[near], label[near] = known.image[k], known.label[k]
    places[near] = known.boxes[k] + rng.normal(0, 3, (found // 10, 4))
    return DetectionTable(image, label, rng.random(found) ** 4, places), known


def _pycocotools(detections: DetectionTable, ground_truth: GroundTruth, classes: int) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        boxes = xywh(ground_truth.boxes).tolist()
        known.dataset = {
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
                for k, box in enumerate(boxes)
            ],
        }
        known.createIndex()
        rows = np.column_stack(
            [
                detections.image,
                xywh(detections.boxes),
                detections.score,
                detections.label + 1,
            ]
        )
        found = known.loadRes(rows)
        evaluation = COCOeval(known, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _times(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            # What takes tens of seconds is timed once.
            if times[name] and times[name][0] > 10:
                continue
            begun = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - begun)
    return {
        name: {"s": float(np.median(t)), "s_min": min(t), "s_max": max(t)}
        for name, t in times.items()
    }
