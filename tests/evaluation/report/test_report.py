import io
import json
import math

import cv2
import numpy as np
import pytest
from rich.console import Console

from ssd_jax.evaluation.metrics.voc_ap import ClassResult, VocResult
from ssd_jax.evaluation.report.console import print_metrics
from ssd_jax.evaluation.report.images import Sample, write_images
from ssd_jax.evaluation.report.metrics_json import write_metrics


@pytest.fixture
def result():
    none = np.zeros(0)
    return VocResult(
        "voc07",
        0.5,
        "inclusive",
        (
            ClassResult("cat", 2 / 3, 12, 3456, (0.25, math.nan, 0.75), none, none, none),
            ClassResult("[b]dog[/b]", math.nan, 0, 7, (math.nan,) * 3, none, none, none),
        ),
    )


def test_metrics_json_keeps_every_digit_and_has_null_for_nan(result, tmp_path):
    out = tmp_path / "eval" / "100"
    write_metrics([result], out, {"num_images": 4, "loss": float("nan")})
    assert [p.name for p in out.iterdir()] == ["metrics.json"]
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics == {
        "voc07/mAP": 2 / 3,
        "voc07/APs": 0.25,
        "voc07/APm": None,
        "voc07/APl": 0.75,
        "iou_threshold": 0.5,
        "box_convention": "inclusive",
        "num_images": 4,
        "loss": None,
        "per_class": {
            "cat": {
                "voc07/AP": 2 / 3,
                "voc07/APs": 0.25,
                "voc07/APm": None,
                "voc07/APl": 0.75,
                "objects": 12,
                "detections": 3456,
            },
            "[b]dog[/b]": {
                "voc07/AP": None,
                "voc07/APs": None,
                "voc07/APm": None,
                "voc07/APl": None,
                "objects": 0,
                "detections": 7,
            },
        },
    }


def test_mean_is_named_after_the_metric(result, tmp_path):
    write_metrics([VocResult("voc", 0.5, "exclusive", result.classes)], tmp_path, {})
    assert "voc/mAP" in json.loads((tmp_path / "metrics.json").read_text())


def test_extra_cannot_replace_a_figure(result, tmp_path):
    with pytest.raises(ValueError, match="extra contains box_convention of the results"):
        write_metrics([result], tmp_path, {"box_convention": "other"})
    assert not list(tmp_path.iterdir())


def test_table_shows_settings_metrics_and_mean(result):
    console = Console(record=True, width=100, file=io.StringIO())
    print_metrics([result], console)
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    title = " ".join(lines[0])
    assert "11 points" in title
    assert "IoU 0.5" in title
    assert "inclusive pixels" in title
    assert ["cat", "0.6667", "12", "3,456"] in lines
    assert ["[b]dog[/b]", "-", "0", "7"] in lines
    assert " ".join(lines[-2]) == "mean of 1 with objects, of 2 0.6667 12 3,463"
    assert " ".join(lines[-1]) == "voc07 by size of objects: small 0.2500, medium -, large 0.7500"


def sample(name, size, *, objects):
    height, width = size
    box = np.array([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]] * objects)
    return Sample(
        name=name,
        image=np.full((height, width, 3), 128, np.uint8),
        boxes=box.reshape(-1, 4),
        labels=np.zeros(objects, int),
        scores=np.linspace(0.9, 0.1, objects) if objects else np.zeros(0),
        gt_boxes=box.reshape(-1, 4),
        gt_labels=np.ones(objects, int),
    )


def test_images_and_contact_sheet(tmp_path):
    samples = [
        sample("tall", (200, 100), objects=1),
        sample("wide", (100, 150), objects=2),
        sample("empty", (64, 64), objects=0),
    ]
    write_images(samples, ["cat", "dog"], tmp_path)
    names = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert names == ["empty.jpg", "tall.jpg", "wide.jpg"]
    sheet = cv2.imread(str(tmp_path / "images.jpg"))
    # Two columns of two panels of 480 pixels, two rows.
    assert sheet.shape[0] > 2 * 480
    assert sheet.shape[1] > 4 * 480
    # A frame drawn on the enlarged image is at the position of its box, on both sides.
    wide = cv2.imread(str(tmp_path / "images" / "wide.jpg")).astype(int)
    x, y = round(0.2 * 480), wide.shape[0] - 320 + 160
    for left in (0, wide.shape[1] - 480):
        assert np.ptp(wide[y, left + x]) > 60
        assert np.ptp(wide[y, left + 240]) < 20


def test_detections_of_low_score_are_not_drawn(tmp_path):
    low = sample("low", (100, 100), objects=1)
    for name, threshold in (("shown", 0.9), ("hidden", 0.95)):
        write_images([low], ["cat", "dog"], tmp_path / name, score_threshold=threshold)
    shown, hidden = (
        cv2.imread(str(tmp_path / name / "images/low.jpg")).astype(int)
        for name in ("shown", "hidden")
    )
    changed = np.abs(shown - hidden).max(-1) > 60
    assert changed[60:, :480].any()
    assert not changed[:, 490:].any()


def test_no_files_without_samples(tmp_path):
    write_images([], ["cat"], tmp_path)
    assert not list(tmp_path.iterdir())
