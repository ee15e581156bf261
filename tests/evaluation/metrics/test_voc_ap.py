import dataclasses
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from ssd_jax.data.tables import DetectionTable, GroundTruth
from ssd_jax.evaluation.metrics.voc_ap import average_precision, evaluate_voc, match_detections

pytestmark = pytest.mark.smoke

# From continuous pixels to the devkit's, which count from 1 and include the last one.
VOC_PIXELS = np.array([1, 1, 0, 0])


def table(rows):
    """Make a table from rows of (image, label, score, xmin, ymin, xmax, ymax) in VOC's pixels."""
    rows = np.array(rows, float).reshape(-1, 7)
    return DetectionTable(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:] - VOC_PIXELS)


def truth(rows):
    """Make a table from rows of (image, label, box, difficult), the box in VOC's pixels."""
    rows = np.array(rows, float).reshape(-1, 7)
    return GroundTruth(rows[:, 0], rows[:, 1], rows[:, 2:6] - VOC_PIXELS, rows[:, 6])


def devkit(detections, ground_truth, label, metric, iou_threshold, box_convention, sizes=None):
    """Run VOCevaldet as a loop over single boxes: AP, and (tp, fp) of each detection.

    `sizes` are the smallest and largest area: objects of other sizes are ignored, and so are false
    positives whose box has another size.
    """
    detections, ground_truth = (
        dataclasses.replace(t, boxes=t.boxes + VOC_PIXELS) for t in (detections, ground_truth)
    )
    last = 1.0 if box_convention == "inclusive" else 0.0
    objects = np.flatnonzero(ground_truth.label == label)

    def fits(box):
        area = (box[2] - box[0] + last) * (box[3] - box[1] + last)
        return sizes is None or sizes[0] <= area <= sizes[1]

    taken = set()
    rows = [i for i in range(len(detections.label)) if detections.label[i] == label]
    rows.sort(key=lambda i: -detections.score[i])
    outcomes = []
    for i in rows:
        best, best_object = -math.inf, None
        for k in objects:
            if ground_truth.image[k] != detections.image[i]:
                continue
            d, g = detections.boxes[i], ground_truth.boxes[k]
            width = min(d[2], g[2]) - max(d[0], g[0]) + last
            height = min(d[3], g[3]) - max(d[1], g[1]) + last
            if width <= 0 or height <= 0:
                continue
            union = (d[2] - d[0] + last) * (d[3] - d[1] + last)
            union += (g[2] - g[0] + last) * (g[3] - g[1] + last)
            iou = width * height / (union - width * height)
            if iou > best:
                best, best_object = iou, k
        if best >= iou_threshold:
            if ground_truth.difficult[best_object] or not fits(ground_truth.boxes[best_object]):
                outcomes.append((0, 0))
            elif best_object in taken:
                outcomes.append((0, int(fits(detections.boxes[i]))))
            else:
                outcomes.append((1, 0))
                taken.add(best_object)
        else:
            outcomes.append((0, int(fits(detections.boxes[i]))))

    positives = sum(not ground_truth.difficult[k] and fits(ground_truth.boxes[k]) for k in objects)
    if positives == 0:
        return math.nan, outcomes
    recall, precision, tp, fp = [], [], 0, 0
    for is_tp, is_fp in outcomes:
        tp, fp = tp + is_tp, fp + is_fp
        recall.append(tp / positives)
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
    if metric == "voc07":
        points = [
            max((p for r, p in zip(recall, precision, strict=True) if r >= t / 10), default=0.0)
            for t in range(11)
        ]
        return sum(points) / 11, outcomes
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    area = sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))
    return area, outcomes


def random_case(seed):
    """Few images, positions and scores, so that ties, duplicates and empty images are common."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(1, 20, (n, 2))
        return np.concatenate([corner, corner + rng.integers(0, 15, (n, 2))], axis=1) - VOC_PIXELS

    objects, num_detections = rng.integers(0, 30), rng.integers(0, 80)
    gt = GroundTruth(
        rng.integers(0, 8, objects),
        rng.integers(0, 3, objects),
        boxes(objects),
        rng.random(objects) < 0.3,
    )
    det_boxes, image, label = (
        boxes(num_detections),
        rng.integers(0, 12, num_detections),
        rng.integers(0, 4, num_detections),
    )
    if objects:
        near, of = rng.random(num_detections) < 0.7, rng.integers(0, objects, num_detections)
        shift = rng.integers(-2, 3, (num_detections, 4)) * (rng.random((num_detections, 1)) < 0.6)
        det_boxes[near] = (gt.boxes[of] + shift)[near]
        # Most are of the object's image and class too, so that several find the same one.
        same = near & (rng.random(num_detections) < 0.7)
        image[same], label[same] = gt.image[of][same], gt.label[of][same]
    scores = rng.integers(0, 6, num_detections) / 5
    return DetectionTable(image, label, scores, det_boxes), gt


@pytest.mark.parametrize("seed", range(50))
def test_equals_the_devkit_loop(seed):
    det, gt = random_case(seed)
    metric = ("voc", "voc07")[seed % 2]
    box_convention = ("inclusive", "exclusive")[seed // 2 % 2]
    threshold = (0.3, 0.5, 0.75, 0.0)[seed // 4 % 4]
    # Label 3 has detections and never objects; label 4 has neither.
    names = ["a", "b", "c", "d", "e"]
    result = evaluate_voc(
        det, gt, names, metric=metric, iou_threshold=threshold, box_convention=box_convention
    )
    aps = []
    for label, got in enumerate(result.classes):
        ap, outcomes = devkit(det, gt, label, metric, threshold, box_convention)
        np.testing.assert_allclose(got.ap, ap, rtol=0, atol=1e-12)
        counted = np.array([o for o in outcomes if o != (0, 0)], int).reshape(-1, 2)
        tp, fp = np.cumsum(counted, axis=0).T
        np.testing.assert_array_equal(got.precision, tp / (tp + fp))
        if got.num_objects:
            np.testing.assert_array_equal(got.recall, tp / got.num_objects)
        assert got.num_detections == len(outcomes)
        assert len(got.scores) == len(counted)
        assert (np.diff(got.scores) <= 0).all()
        aps += [] if math.isnan(ap) else [ap]
    if aps:
        assert result.mean_ap == pytest.approx(sum(aps) / len(aps), abs=1e-12)
    else:
        assert math.isnan(result.mean_ap)


@pytest.mark.parametrize("apart", [3, 10**15])
@pytest.mark.parametrize("seed", range(30))
def test_images_have_any_numbers(seed, apart):
    def aps(tables):
        return [c.ap for c in evaluate_voc(*tables, ["a", "b", "c", "d"]).classes]

    tables = random_case(seed)
    others = [dataclasses.replace(t, image=(t.image - 4) * apart) for t in tables]
    np.testing.assert_array_equal(aps(others), aps(tables))


@pytest.mark.parametrize("seed", range(30))
def test_sizes_equal_the_devkit_loop(seed, monkeypatch):
    # The boxes of the random cases are small, so the size limits are too; one is often met.
    sizes = {"s": (0, 49.0), "m": (49.0, 144.0), "l": (144.0, math.inf)}
    monkeypatch.setattr("ssd_jax.evaluation.metrics.voc_ap.SIZES", sizes)
    det, gt = random_case(seed)
    box_convention = ("inclusive", "exclusive")[seed % 2]
    result = evaluate_voc(
        det, gt, ["a", "b", "c", "d"], metric="voc07", box_convention=box_convention
    )
    want = [
        [devkit(det, gt, label, "voc07", 0.5, box_convention, size)[0] for size in sizes.values()]
        for label in range(4)
    ]
    np.testing.assert_allclose([c.ap_by_size for c in result.classes], want, rtol=0, atol=1e-12)
    means = [np.nanmean(c) if not np.isnan(c).all() else math.nan for c in np.transpose(want)]
    np.testing.assert_allclose(result.mean_by_size, means, rtol=0, atol=1e-12)


def test_sizes_use_the_annotated_area():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.9, 1, 1, 10, 10]])
    (small,) = evaluate_voc(det, gt, ["a"]).classes
    (large,) = evaluate_voc(det, gt, ["a"], area=np.array([1e5])).classes
    np.testing.assert_array_equal(small.ap_by_size, [1, math.nan, math.nan])
    np.testing.assert_array_equal(large.ap_by_size, [math.nan, math.nan, 1])
    with pytest.raises(ValueError, match=r"area has shape \(2,\) and there are 1 objects"):
        evaluate_voc(det, gt, ["a"], area=np.zeros(2))


def test_random_cases_reach_every_outcome():
    seen = set()
    for seed in range(50):
        det, gt = random_case(seed)
        seen |= {o for k in range(3) for o in devkit(det, gt, k, "voc", 0.5, "inclusive")[1]}
    assert seen == {(0, 0), (0, 1), (1, 0)}


@pytest.fixture(scope="module")
def caffe(fixtures):
    return json.loads((fixtures / "ssd-caffe-numbers/values.json").read_text())


def test_average_precision_of_caffe(caffe):
    values = caffe["average precision (TestComputeAP, tol 1e-5)"]
    tp = np.cumsum(values["is_tp"])
    recall, precision = tp / values["positives"], tp / np.arange(1, len(tp) + 1)
    np.testing.assert_allclose(precision, values["precision"], atol=1e-6)
    np.testing.assert_allclose(recall, values["recall"], atol=1e-6)
    first = values["first 7 detections only"]
    for n, want in ((None, values["MaxIntegral (VOC2010+ area)"]), (7, first["MaxIntegral"])):
        assert average_precision(recall[:n], precision[:n], metric="voc") == pytest.approx(
            want, abs=1e-5
        )
    for n, want in ((None, values["11point (VOC2007)"]), (7, first["11point"])):
        assert average_precision(recall[:n], precision[:n], metric="voc07") == pytest.approx(
            want, abs=1e-5
        )


@pytest.mark.parametrize("difficult", ["counted", "skipped"])
def test_matches_of_caffe(caffe, difficult):
    (values,) = (v for k, v in caffe.items() if k.startswith("evaluate"))
    gt_rows = np.array([r.split() for r in values["gt: image label _ x1 y1 x2 y2 difficult"]])
    gt_rows = np.delete(gt_rows.astype(float), 2, axis=1)
    if difficult == "counted":
        gt_rows[:, -1] = 0
    det_rows = np.array([r.split() for r in values["det: image label score x1 y1 x2 y2"]], float)
    # Labels from 1; boxes from 0 to 1, whose width is xmax - xmin.
    det = DetectionTable(det_rows[:, 0], det_rows[:, 1] - 1, det_rows[:, 2], det_rows[:, 3:])
    gt = GroundTruth(gt_rows[:, 0], gt_rows[:, 1] - 1, gt_rows[:, 2:6], gt_rows[:, 6])
    (want,) = (v for k, v in values.items() if k.startswith(f"difficult {difficult}"))
    want = np.array([r.split() for r in want], float)

    result = evaluate_voc(det, gt, ["a", "b", "c"], iou_threshold=0.3)
    positives = {int(r[1]): int(r[2]) for r in want if r[0] == -1}
    assert [c.num_objects for c in result.classes] == [positives.get(k, 0) for k in (1, 2, 3)]

    got = []
    for label in range(3):
        rows = np.flatnonzero(det.label == label)
        rows = rows[np.argsort(-det.score[rows], kind="stable")]
        objects = gt.label == label
        matches = match_detections(
            det.image[rows],
            det.boxes[rows],
            gt.image[objects],
            gt.boxes[objects],
            gt.difficult[objects],
            iou_threshold=0.3,
        )
        columns = (det.image[rows], det.label[rows] + 1, det.score[rows], *matches[:2])
        got += np.stack(columns, axis=1).tolist()
    # Caffe lists by image, then label, then descending score.
    got.sort(key=lambda r: (r[0], r[1], -r[2]))
    np.testing.assert_array_equal(got, want[want[:, 0] >= 0])


@pytest.mark.parametrize(("metric", "published"), [("voc07", "11-point"), ("voc", "all-point")])
@pytest.mark.parametrize("iou_threshold", [0.5, 0.75])
def test_published_figures_of_the_cats(fixtures, metric, published, iou_threshold):
    folder = fixtures / "padilla-toy-cats"
    (want,) = json.loads((folder / "expected.json").read_text()).values()
    objects, rows = [], []
    annotations = {p.stem: p for p in (folder / "gts_vocpascal_format").glob("*.xml")}
    detections = {p.stem: p for p in (folder / "dets_classname_abs_xyx2y2").glob("*.txt")}
    for image, name in enumerate(sorted(annotations | detections)):
        if name in annotations:
            for o in ET.parse(annotations[name]).getroot().iter("object"):
                box = [float(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
                objects.append([image, 0, *box, int(o.findtext("difficult", "0"))])
        if name in detections:
            for line in detections[name].read_text().splitlines():
                rows.append([image, 0, *map(float, line.split()[1:])])
    result = evaluate_voc(
        table(rows), truth(objects), ["cat"], metric=metric, iou_threshold=iou_threshold
    )
    assert round(100 * result.mean_ap, 2) == want[f"IoU {iou_threshold}"][published]


def test_iou_of_exactly_the_threshold_is_enough():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.9, 1, 1, 10, 5]])
    assert evaluate_voc(det, gt, ["a"]).mean_ap == 1
    # 9 x 4 of 9 x 9 box_convention when a box ends before its last one.
    assert evaluate_voc(det, gt, ["a"], box_convention="exclusive").mean_ap == 0


def test_boxes_that_do_not_overlap_never_match():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    det = table([[0, 0, 0.9, 11, 1, 20, 10], [0, 0, 0.8, 1, 1, 10, 10]])
    (result,) = evaluate_voc(det, gt, ["a"], iou_threshold=0.0).classes
    np.testing.assert_array_equal(result.recall, [0, 1])


def test_detection_is_compared_with_its_best_object_even_if_matched():
    gt = truth([[0, 0, 1, 1, 10, 10, 0], [0, 0, 1, 3, 10, 12, 0]])
    det = table([[0, 0, 0.9, 1, 1, 10, 10], [0, 0, 0.8, 1, 1, 10, 10]])
    (result,) = evaluate_voc(det, gt, ["a"]).classes
    np.testing.assert_array_equal(result.recall, [0.5, 0.5])
    np.testing.assert_array_equal(result.precision, [1, 0.5])


@pytest.mark.parametrize("first_is_difficult", [True, False])
def test_looks_at_the_first_of_equal_objects(first_is_difficult):
    objects = [[0, 0, 1, 1, 10, 10, 1], [0, 0, 1, 1, 10, 10, 0]]
    gt = truth(objects if first_is_difficult else objects[::-1])
    result = evaluate_voc(table([[0, 0, 0.9, 1, 1, 10, 10]]), gt, ["a"])
    assert result.mean_ap == (0 if first_is_difficult else 1)


def test_equal_scores_keep_the_order_of_the_table():
    gt = truth([[0, 0, 1, 1, 10, 10, 0]])
    hit, miss = [0, 0, 0.5, 1, 1, 10, 10], [0, 0, 0.5, 50, 50, 60, 60]
    assert evaluate_voc(table([hit, miss]), gt, ["a"]).mean_ap == 1
    assert evaluate_voc(table([miss, hit]), gt, ["a"]).mean_ap == 0.5


def test_recall_of_three_in_ten_reaches_the_point_at_0_3():
    recall = np.arange(1, 4) / 10
    assert average_precision(recall, np.ones(3), metric="voc07") == pytest.approx(4 / 11)


def test_class_without_objects_stays_out_of_the_mean():
    gt = truth([[0, 0, 1, 1, 10, 10, 0], [0, 1, 1, 1, 10, 10, 1]])
    det = table([[0, k, 0.9, 1, 1, 10, 10] for k in range(3)])
    first, difficult, absent = evaluate_voc(det, gt, ["a", "b", "c"]).classes
    assert (first.ap, first.num_objects) == (1, 1)
    assert math.isnan(difficult.ap)
    assert (difficult.num_objects, difficult.num_detections) == (0, 1)
    assert len(difficult.scores) == 0
    assert math.isnan(absent.ap)
    assert np.isnan(absent.recall).all()
    assert evaluate_voc(det, gt, ["a", "b", "c"]).mean_ap == 1


def test_nothing_at_all():
    gt = truth([[3, 1, 1, 1, 10, 10, 0]])
    result = evaluate_voc(table([]), gt, ["a", "b"])
    assert math.isnan(result.classes[0].ap)
    assert result.mean_ap == result.classes[1].ap == 0
    assert math.isnan(evaluate_voc(table([]), truth([]), ["a"]).mean_ap)
    assert average_precision(np.zeros(0), np.zeros(0), metric="voc07") == 0


def test_invalid_tables_are_errors():
    gt, det = truth([[0, 0, 1, 1, 9, 9, 0]]), table([[0, 2, 0.5, 1, 1, 9, 9]])
    with pytest.raises(
        ValueError, match="detections: label 2 is out of range for 2 classes; use 0 to 1"
    ):
        evaluate_voc(det, gt, ["a", "b"])
    with pytest.raises(ValueError, match="ground truth: label -1 is out of range"):
        evaluate_voc(table([]), truth([[0, -1, 1, 1, 9, 9, 0]]), ["a"])
    with pytest.raises(ValueError, match="metric is 'coco'; use voc or voc07"):
        evaluate_voc(table([]), gt, ["a"], metric="coco")
    with pytest.raises(ValueError, match="box_convention is 'half'"):
        evaluate_voc(table([]), truth([]), ["a"], box_convention="half")
    with pytest.raises(ValueError, match="score of row 1 is not finite: nan"):
        table([[0, 0, 0.5, 1, 1, 9, 9], [0, 0, math.nan, 1, 1, 9, 9]])
    with pytest.raises(ValueError, match="boxes of row 0 is not finite"):
        truth([[0, 0, 1, 1, math.inf, 9, 0]])
    with pytest.raises(ValueError, match=r"image has shape \(2,\) and there are 1 boxes"):
        GroundTruth(np.zeros(2), np.ones(1), np.ones((1, 4)), np.zeros(1))
    with pytest.raises(ValueError, match=r"boxes has shape \(2, 3\)"):
        GroundTruth(np.zeros(2), np.ones(2), np.ones((2, 3)), np.zeros(2))
