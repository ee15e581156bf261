import io
import json
import math

import cv2
import numpy as np
import pytest
from rich.console import Console

from ssd_jax.evaluation.metrics.voc_ap import ClassResult, VocResult
from ssd_jax.evaluation.report import Sample, print_table, write_pictures, write_report


@pytest.fixture
def result():
    none = np.zeros(0)
    return VocResult(
        "voc07",
        0.5,
        "inclusive",
        (
            ClassResult("cat", 2 / 3, 12, 3456, none, none, none, (0.25, math.nan, 0.75)),
            ClassResult("[b]dog[/b]", math.nan, 0, 7, none, none, none),
        ),
    )


def test_metrics_json_keeps_every_digit_and_has_null_for_nan(result, tmp_path):
    out = tmp_path / "eval" / "100"
    write_report([result], out, {"num_images": 4, "loss": float("nan")})
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


def test_the_metric_names_the_mean(result, tmp_path):
    write_report([VocResult("voc", 0.5, "exclusive", result.classes)], tmp_path, {})
    assert "voc/mAP" in json.loads((tmp_path / "metrics.json").read_text())


def test_extra_cannot_replace_a_figure(result, tmp_path):
    with pytest.raises(ValueError, match="extra has box_convention, which the result has too"):
        write_report([result], tmp_path, {"box_convention": "mine"})
    assert not list(tmp_path.iterdir())


def test_table_states_rules_figures_and_mean(result):
    console = Console(record=True, width=100, file=io.StringIO())
    print_table([result], console)
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    title = " ".join(lines[0])
    assert "11 points" in title
    assert "IoU 0.5" in title
    assert "inclusive pixels" in title
    assert ["cat", "0.6667", "12", "3,456"] in lines
    assert ["[b]dog[/b]", "-", "0", "7"] in lines
    assert " ".join(lines[-2]) == "mean of 1 with objects, of 2 0.6667 12 3,463"
    assert " ".join(lines[-1]) == "voc07 by size of objects: small 0.2500, medium -, large 0.7500"


def picture(name, size, *, objects):
    height, width = size
    box = np.array([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]] * objects)
    return Sample(
        name=name,
        image=np.full((height, width, 3), 128, np.uint8),
        boxes=box.reshape(-1, 4),
        labels=np.ones(objects, int),
        scores=np.linspace(0.9, 0.1, objects) if objects else np.zeros(0),
        gt_boxes=box.reshape(-1, 4),
        gt_labels=np.full(objects, 2),
    )


def test_pictures_and_their_sheet(tmp_path):
    pictures = [
        picture("tall", (200, 100), objects=1),
        picture("wide", (100, 150), objects=2),
        picture("empty", (64, 64), objects=0),
    ]
    write_pictures(pictures, ["cat", "dog"], tmp_path)
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["empty.jpg", "tall.jpg", "wide.jpg"]
    sheet = cv2.imread(str(tmp_path / "pictures.jpg"))
    # Two columns of two panels of 480 pixels, two rows.
    assert sheet.shape[0] > 2 * 480
    assert sheet.shape[1] > 4 * 480
    # A frame drawn on the enlarged image lies where the box was, on both sides.
    wide = cv2.imread(str(tmp_path / "pictures" / "wide.jpg")).astype(int)
    x, y = round(0.2 * 480), wide.shape[0] - 320 + 160
    for left in (0, wide.shape[1] - 480):
        assert np.ptp(wide[y, left + x]) > 60
        assert np.ptp(wide[y, left + 240]) < 20


def test_detections_of_low_score_are_not_drawn(tmp_path):
    low = picture("low", (100, 100), objects=1)
    for name, min_score in (("shown", 0.9), ("hidden", 0.95)):
        write_pictures([low], ["cat", "dog"], tmp_path / name, min_score=min_score)
    shown, hidden = (
        cv2.imread(str(tmp_path / name / "pictures/low.jpg")).astype(int)
        for name in ("shown", "hidden")
    )
    changed = np.abs(shown - hidden).max(-1) > 60
    assert changed[60:, :480].any()
    assert not changed[:, 490:].any()


def test_no_pictures_no_files(tmp_path):
    write_pictures([], ["cat"], tmp_path)
    assert not list(tmp_path.iterdir())
