"""COCO's figures: the published ones, pycocotools' own, and the cases that have none."""

import contextlib
import io
import json
import math

import numpy as np
import pytest

from ssd_jax.evaluation.metrics.coco_ap import FIGURES, evaluate_coco
from ssd_jax.evaluation.metrics.voc_ap import VOC_PIXELS, DetectionTable, GroundTruth

# Our names -> those of the published file.
PUBLISHED = {
    **{name: name for name in FIGURES},
    **{f"A{k}{s[0]}": f"A{k}{s}" for k in "PR" for s in ("small", "medium", "large")},
}


def oracle(detections, ground_truth, num_classes, area):
    """pycocotools' twelve figures and AP of each class; -1 where there is none."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(table, **columns):
        return [
            {
                "id": k + 1,
                "image_id": int(table.image[k]),
                "category_id": int(table.label[k]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                **{name: column[k].item() for name, column in columns.items()},
            }
            for k, (x1, y1, x2, y2) in enumerate(table.boxes.tolist())
        ]

    known = COCO()
    known.dataset = {
        "info": {},
        "images": [{"id": k} for k in range(12)],
        "categories": [{"id": k + 1} for k in range(num_classes)],
        "annotations": rows(ground_truth, iscrowd=ground_truth.difficult.astype(int), area=area),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        found = rows(detections, score=detections.score)
        # loadRes cannot read an empty list.
        theirs = known.loadRes(found) if found else COCO()
        evaluation = COCOeval(known, theirs, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [p[p > -1].mean() if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]
    return evaluation.stats, per_class


def random_case(seed):
    """Twelve images, some empty; five classes, some missing; crowds, ties, sizes of all three."""
    rng = np.random.default_rng(seed)
    found = int(rng.choice([0, 3, 150, 900], p=[0.04, 0.06, 0.6, 0.3]))
    objects = int(rng.integers(1, 12 if found == 900 else 60))
    images = 2 if found == 900 else 10

    def boxes(n):
        corner = rng.integers(0, 100, (n, 2))
        side = np.exp(rng.uniform(np.log(4), np.log(200), (n, 2))).astype(int)
        return np.concatenate([corner, corner + side], axis=1)

    gt = GroundTruth(
        rng.integers(0, images, objects),
        rng.integers(1, 4, objects),
        boxes(objects),
        rng.random(objects) < 0.2,
    )
    det_boxes, det_image = boxes(found), rng.integers(0, images + 1, found)
    det_label = rng.integers(1, 5, found)
    near = rng.random(found) < 0.7
    which = rng.integers(0, objects, found)
    shift = rng.integers(-6, 7, (found, 4)) * (rng.random((found, 1)) < 0.7)
    shifted = gt.boxes[which] + shift
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    det_boxes[near] = shifted[near]
    det_image[near], det_label[near] = gt.image[which][near], gt.label[which][near]
    if found == 900:  # more than 100 of a class in an image
        det_label[:] = rng.integers(1, 3, found)
    det = DetectionTable(det_image, det_label, rng.integers(0, 20, found) / 20, det_boxes)
    area = np.prod(gt.boxes[:, 2:] - gt.boxes[:, :2], axis=1) * rng.uniform(0.4, 1, objects)
    return det, gt, area


def to_coco(value):
    return -1.0 if math.isnan(value) else value


@pytest.mark.parametrize("seed", range(50))
def test_equals_pycocotools(seed):
    # Label 4 has detections and never objects; label 5 has neither.
    det, gt, area = random_case(seed)
    stats, per_class = oracle(det, gt, 5, area)
    result = evaluate_coco(det, gt, list("abcde"), area=area, box_convention="exclusive")
    np.testing.assert_allclose([to_coco(v) for v in result.figures.values()], stats, atol=1e-9)
    np.testing.assert_allclose([to_coco(c.ap) for c in result.classes], per_class, atol=1e-9)
    assert tuple(result.figures) == FIGURES
    assert result.mean_ap is result.figures["AP"]
    for k, found in enumerate(result.classes, start=1):
        assert found.num_objects == np.sum((gt.label == k) & ~gt.difficult)
        assert found.num_detections == np.sum(det.label == k)


def test_the_random_cases_reach_what_they_should():
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
    """The published set, boxes as COCO has them."""
    known = json.loads((folder / "instances_val2014_100.json").read_text())
    found = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    categories = sorted(c["id"] for c in known["categories"])

    def columns(rows):
        boxes = np.array([r["bbox"] for r in rows])
        boxes[:, 2:] += boxes[:, :2]
        labels = [categories.index(r["category_id"]) + 1 for r in rows]
        return [r["image_id"] for r in rows], labels, boxes

    image, label, boxes = columns(known["annotations"])
    gt = GroundTruth(image, label, boxes, [a["iscrowd"] for a in known["annotations"]])
    image, label, boxes = columns(found)
    det = DetectionTable(image, label, [d["score"] for d in found], boxes)
    return det, gt, np.array([a["area"] for a in known["annotations"]]), len(categories)


@pytest.mark.parametrize("box_convention", ["exclusive", "inclusive"])
def test_published_figures_of_coco(fixtures, box_convention, capfd):
    folder = fixtures / "coco-val2014-100"
    published = json.loads((folder / "expected.json").read_text())
    (want,) = (v for k, v in published.items() if k.startswith("published_full"))
    det, gt, area, num_classes = fixture_tables(folder)
    if box_convention == "inclusive":
        det = DetectionTable(det.image, det.label, det.score, det.boxes + VOC_PIXELS)
        gt = GroundTruth(gt.image, gt.label, gt.boxes + VOC_PIXELS, gt.difficult)
    result = evaluate_coco(det, gt, ["x"] * num_classes, area=area, box_convention=box_convention)
    for name, value in result.figures.items():
        assert value == pytest.approx(want[PUBLISHED[name]], abs=1e-6), name
    assert capfd.readouterr() == ("", "")


def tables(found, known, difficult=False):
    """Rows of (image, label, score, box) and of (image, label, box)."""
    found, known = np.reshape(found, (-1, 7)), np.reshape(known, (-1, 6))
    return (
        DetectionTable(found[:, 0], found[:, 1], found[:, 2], found[:, 3:]),
        GroundTruth(known[:, 0], known[:, 1], known[:, 2:], [difficult] * len(known)),
    )


def test_without_detections_everything_that_has_objects_is_0():
    result = evaluate_coco(
        *tables([], [[3, 2, 0, 0, 10, 10]]), ["a", "b"], box_convention="exclusive"
    )
    assert {k for k, v in result.figures.items() if math.isnan(v)} == {"APm", "APl", "ARm", "ARl"}
    assert {v for v in result.figures.values() if not math.isnan(v)} == {0.0}
    assert math.isnan(result.classes[0].ap)
    assert result.classes[1].ap == 0


@pytest.mark.parametrize("found", [[], [[0, 1, 0.5, 0, 0, 9, 9]]])
@pytest.mark.parametrize("known", [[], [[0, 1, 0, 0, 9, 9]]])
def test_without_objects_there_is_no_figure(found, known):
    result = evaluate_coco(*tables(found, known, difficult=True), ["a"])
    assert all(math.isnan(v) for v in result.figures.values())
    assert math.isnan(result.classes[0].ap)
    assert result.classes[0].num_objects == 0


def test_the_box_is_the_area_where_none_is_given():
    found, known = tables([[0, 1, 0.5, 1, 1, 32, 32]], [[0, 1, 1, 1, 32, 32]])
    box = evaluate_coco(found, known, ["a"]).figures
    assert (box["APs"], box["APm"]) == pytest.approx((1, 1))  # 32^2 is both
    small = evaluate_coco(found, known, ["a"], area=[500]).figures
    assert small["APs"] == pytest.approx(1)
    assert math.isnan(small["APm"])


def test_an_iou_of_exactly_a_threshold_is_enough_with_any_corner():
    # The file says width 5; in doubles 22.01 + 5 - 22.01 is not.
    known = [[0, 1, 22.01, 0, 22.01 + 10, 10]]
    found = [[0, 1, 0.5, 22.01, 0, 22.01 + 5, 10]]
    got = evaluate_coco(*tables(found, known), ["a"], box_convention="exclusive")
    assert got.figures["AP"] == pytest.approx(0.1)


def test_errors_say_what_is_wrong():
    found, known = tables([[0, 3, 0.5, 0, 0, 9, 9]], [[0, 1, 0, 0, 9, 9]])
    with pytest.raises(ValueError, match="detections have label 3 and there are 2 classes"):
        evaluate_coco(found, known, ["a", "b"])
    with pytest.raises(ValueError, match=r"area has shape \(2,\) and there are 1 objects"):
        evaluate_coco(found, known, ["a", "b", "c"], area=[1, 2])
    with pytest.raises(ValueError, match="box_convention is 'half'"):
        evaluate_coco(found, known, ["a", "b", "c"], box_convention="half")
