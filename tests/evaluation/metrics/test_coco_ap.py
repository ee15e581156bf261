"""COCO's metrics against published ones and pycocotools, and cases without objects."""

import contextlib
import io
import json
import math

import numpy as np
import pytest

from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.metrics.coco_ap import FIGURES, evaluate_coco

pytestmark = pytest.mark.smoke

# Our names -> those of the published file.
PUBLISHED = {
    **{name: name for name in FIGURES},
    **{f"A{k}{s[0]}": f"A{k}{s}" for k in "PR" for s in ("small", "medium", "large")},
}


def oracle(detections, ground_truth, num_classes, area):
    """pycocotools' twelve metrics and the AP of each class; -1 where not defined."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(table, **columns):
        return [
            {
                "id": k + 1,
                "image_id": int(table.image[k]),
                "category_id": int(table.label[k]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                **{name: column[k].item() for name, column in columns.items()},
            }
            for k, (x1, y1, x2, y2) in enumerate(table.boxes.tolist())
        ]

    coco_gt = COCO()
    coco_gt.dataset = {
        "info": {},
        "images": [{"id": k} for k in range(12)],
        "categories": [{"id": k + 1} for k in range(num_classes)],
        "annotations": rows(ground_truth, iscrowd=ground_truth.difficult.astype(int), area=area),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt.createIndex()
        results = rows(detections, score=detections.score)
        # loadRes cannot read an empty list.
        coco_dt = coco_gt.loadRes(results) if results else COCO()
        evaluation = COCOeval(coco_gt, coco_dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [p[p > -1].mean() if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]
    return evaluation.stats, per_class


def random_case(seed):
    """Twelve images, some empty; five classes, some missing; crowds, ties, sizes of all three."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([0, 3, 150, 900], p=[0.04, 0.06, 0.6, 0.3]))
    objects = int(rng.integers(1, 12 if count == 900 else 60))
    images = 2 if count == 900 else 10

    def boxes(n):
        corner = rng.integers(0, 100, (n, 2))
        side = np.exp(rng.uniform(np.log(4), np.log(200), (n, 2))).astype(int)
        return np.concatenate([corner, corner + side], axis=1)

    gt = GroundTruth(
        rng.integers(0, images, objects),
        rng.integers(0, 3, objects),
        boxes(objects),
        rng.random(objects) < 0.2,
    )
    det_boxes, det_image = boxes(count), rng.integers(0, images + 1, count)
    det_label = rng.integers(0, 4, count)
    near = rng.random(count) < 0.7
    which = rng.integers(0, objects, count)
    shift = rng.integers(-6, 7, (count, 4)) * (rng.random((count, 1)) < 0.7)
    shifted = gt.boxes[which] + shift
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    det_boxes[near] = shifted[near]
    det_image[near], det_label[near] = gt.image[which][near], gt.label[which][near]
    if count == 900:  # more than 100 of a class in an image
        det_label[:] = rng.integers(0, 2, count)
    det = DetectionTable(det_image, det_label, rng.integers(0, 20, count) / 20, det_boxes)
    area = np.prod(gt.boxes[:, 2:] - gt.boxes[:, :2], axis=1) * rng.uniform(0.4, 1, objects)
    return det, gt, area


def to_coco(value):
    return -1.0 if math.isnan(value) else value


@pytest.mark.parametrize("seed", range(50))
def test_equals_pycocotools(seed):
    # Label 3 has detections and never objects; label 4 has neither.
    det, gt, area = random_case(seed)
    stats, per_class = oracle(det, gt, 5, area)
    result = evaluate_coco(det, gt, list("abcde"), area=area)
    np.testing.assert_allclose([to_coco(v) for v in result.figures.values()], stats, atol=1e-9)
    np.testing.assert_allclose([to_coco(c.ap) for c in result.classes], per_class, atol=1e-9)
    assert tuple(result.figures) == FIGURES
    assert result.mean_ap is result.figures["AP"]
    for k, c in enumerate(result.classes):
        assert c.num_objects == np.sum((gt.label == k) & ~gt.difficult)
        assert c.num_detections == np.sum(det.label == k)


def test_random_cases_have_crowds_ties_and_many_detections():
    crowds = ties = many = empty = 0
    for seed in range(50):
        det, gt, _ = random_case(seed)
        crowds += gt.difficult.any()
        ties += len(np.unique(det.score)) < len(det.score)
        counts = np.unique(np.stack([det.image, det.label]), axis=1, return_counts=True)[1]
        many += counts.max(initial=0) > 100
        empty += len(det.label) == 0
    assert min(crowds, ties, many) >= 5
    assert empty >= 1


def fixture_tables(folder):
    """Tables of the published dataset."""
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    categories = sorted(c["id"] for c in annotations["categories"])

    def columns(rows):
        boxes = np.array([r["bbox"] for r in rows])
        boxes[:, 2:] += boxes[:, :2]
        labels = [categories.index(r["category_id"]) for r in rows]
        return [r["image_id"] for r in rows], labels, boxes

    objects = annotations["annotations"]
    image, label, boxes = columns(objects)
    gt = GroundTruth(image, label, boxes, [a["iscrowd"] for a in objects])
    image, label, boxes = columns(results)
    det = DetectionTable(image, label, [d["score"] for d in results], boxes)
    return det, gt, np.array([a["area"] for a in objects]), len(categories)


def test_published_figures_of_coco(fixtures, capfd):
    folder = fixtures / "coco-val2014-100"
    published = json.loads((folder / "expected.json").read_text())
    (expected,) = (v for k, v in published.items() if k.startswith("published_full"))
    det, gt, area, num_classes = fixture_tables(folder)
    result = evaluate_coco(det, gt, ["x"] * num_classes, area=area)
    for name, value in result.figures.items():
        assert value == pytest.approx(expected[PUBLISHED[name]], abs=1e-6), name
    assert capfd.readouterr() == ("", "")


def tables(detections, objects, difficult=False):
    """Make tables from rows of (image, label, score, box) and of (image, label, box)."""
    detections, objects = np.reshape(detections, (-1, 7)), np.reshape(objects, (-1, 6))
    return (
        DetectionTable(detections[:, 0], detections[:, 1], detections[:, 2], detections[:, 3:]),
        GroundTruth(objects[:, 0], objects[:, 1], objects[:, 2:], [difficult] * len(objects)),
    )


def test_metrics_without_detections_are_0_for_classes_with_objects():
    result = evaluate_coco(*tables([], [[3, 1, 0, 0, 10, 10]]), ["a", "b"])
    assert {k for k, v in result.figures.items() if math.isnan(v)} == {"APm", "APl", "ARm", "ARl"}
    assert {v for v in result.figures.values() if not math.isnan(v)} == {0.0}
    assert math.isnan(result.classes[0].ap)
    assert result.classes[1].ap == 0


@pytest.mark.parametrize("detections", [[], [[0, 0, 0.5, 0, 0, 9, 9]]])
@pytest.mark.parametrize("objects", [[], [[0, 0, 0, 0, 9, 9]]])
def test_metrics_without_objects_are_nan(detections, objects):
    result = evaluate_coco(*tables(detections, objects, difficult=True), ["a"])
    assert all(math.isnan(v) for v in result.figures.values())
    assert math.isnan(result.classes[0].ap)
    assert result.classes[0].num_objects == 0


def test_default_area_is_that_of_the_box():
    det, gt = tables([[0, 0, 0.5, 0, 0, 32, 32]], [[0, 0, 0, 0, 32, 32]])
    box = evaluate_coco(det, gt, ["a"]).figures
    assert (box["APs"], box["APm"]) == pytest.approx((1, 1))  # 32^2 is both
    small = evaluate_coco(det, gt, ["a"], area=[500]).figures
    assert small["APs"] == pytest.approx(1)
    assert math.isnan(small["APm"])


def test_iou_equal_to_a_threshold_suffices_with_decimal_corners():
    # The file has width 5; in doubles 22.01 + 5 - 22.01 is not 5.
    objects = [[0, 0, 22.01, 0, 22.01 + 10, 10]]
    detections = [[0, 0, 0.5, 22.01, 0, 22.01 + 5, 10]]
    got = evaluate_coco(*tables(detections, objects), ["a"])
    assert got.figures["AP"] == pytest.approx(0.1)


def test_invalid_tables_are_errors():
    det, gt = tables([[0, 2, 0.5, 0, 0, 9, 9]], [[0, 0, 0, 0, 9, 9]])
    with pytest.raises(ValueError, match="detections: label 2 is out of range for 2 classes"):
        evaluate_coco(det, gt, ["a", "b"])
    with pytest.raises(ValueError, match=r"area has shape \(2,\) and there are 1 objects"):
        evaluate_coco(det, gt, ["a", "b", "c"], area=[1, 2])
