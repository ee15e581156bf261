"""Results files: published figures through the command line, round trips, and wrong entries."""

import json
import os
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

import evaluate as evaluate_main
from ssd_jax.cli.run import run_main
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.tables import DetectionTable
from ssd_jax.evaluation import result_files
from ssd_jax.evaluation.ground_truth import load_ground_truth
from ssd_jax.evaluation.metrics.evaluation import score_detections
from ssd_jax.evaluation.result_files import (
    ResultsError,
    json_array,
    read_annotations,
    read_detections,
    reader,
    write_coco_results,
    write_results,
    write_voc_results,
)
from tests.data.folders import make_folder, write_object, write_xml
from tests.evaluation.metrics.test_coco_ap import PUBLISHED

ROOT = Path(__file__).parents[2]
CATS = "padilla-toy-cats"
COCO = "coco-val2014-100"
ANNOTATIONS, DETECTIONS = "instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"


@pytest.fixture
def cats(fixtures, tmp_path):
    """The published example as a VOC folder and VOC's results: (annotations, detections)."""
    annotations, detections = tmp_path / "voc", tmp_path / "results"
    (annotations / "Annotations").mkdir(parents=True)
    detections.mkdir()
    for path in (fixtures / CATS / "gts_vocpascal_format").glob("*.xml"):
        (annotations / "Annotations" / path.name).write_bytes(path.read_bytes())
    lines = [
        f"{path.stem} {line.split(maxsplit=1)[1]}\n"
        for path in sorted((fixtures / CATS / "dets_classname_abs_xyx2y2").glob("*.txt"))
        for line in path.read_text().splitlines()
    ]
    (detections / "comp4_det_test_cat.txt").write_text("".join(lines))
    return annotations, detections


def evaluate(detections, annotations, out, *more):
    arguments = ["--detections", detections, "--annotations", annotations, "--out", out, *more]
    evaluate_main.main(list(map(str, arguments)))
    return json.loads((out / "metrics.json").read_text())


def test_published_figures_of_the_cats(cats, fixtures, tmp_path, capsys):
    """Images with detections but without annotation are added without objects."""
    annotations, detections = cats
    names = {p.stem for p in (annotations / "Annotations").iterdir()}
    for line in (detections / "comp4_det_test_cat.txt").read_text().splitlines():
        if (name := line.split()[0]) not in names:
            (annotations / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    metrics = evaluate(detections, annotations, tmp_path / "out")
    (expected,) = json.loads((fixtures / CATS / "expected.json").read_text()).values()
    assert round(100 * metrics["voc07/mAP"], 2) == expected["IoU 0.5"]["11-point"]
    assert round(100 * metrics["voc/mAP"], 2) == expected["IoU 0.5"]["all-point"]
    assert metrics["per_class"]["cat"]["voc/AP"] == metrics["voc/mAP"]
    assert 0.3 < metrics["coco/AP75"] < metrics["coco/AP"] < metrics["coco/AP50"] < 1
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["analysis.json", "metrics.json", "plots", "report.html"]
    out = capsys.readouterr().out
    assert "voc07" in out
    assert "cat" in out
    assert f"AP50 {metrics['coco/AP50']:.4f}" in out


def test_published_figures_of_coco(fixtures, tmp_path):
    folder = fixtures / COCO
    published = json.loads((folder / "expected.json").read_text())
    (expected,) = (v for k, v in published.items() if k.startswith("published_full"))
    metrics = evaluate(
        folder / DETECTIONS, folder / ANNOTATIONS, tmp_path / "out", "--metrics", "coco"
    )
    for ours, theirs in PUBLISHED.items():
        assert metrics[f"coco/{ours}"] == pytest.approx(expected[theirs], abs=1e-6), ours
    assert len(metrics["per_class"]) == 80
    assert "voc/mAP" not in metrics


def test_comparison_of_two_results_files(cats, tmp_path, capsys):
    annotations, detections = cats
    worse = tmp_path / "worse"
    worse.mkdir()
    lines = (detections / "comp4_det_test_cat.txt").read_text().splitlines(keepends=True)
    (worse / "comp4_det_test_cat.txt").write_text("".join(lines[:5]))
    out = tmp_path / "out"
    arguments = [
        "--detections",
        detections,
        "--compare",
        worse,
        "--annotations",
        annotations,
        "--out",
        out,
    ]
    evaluate_main.main(list(map(str, arguments)))
    figures = json.loads((out / "comparison.json").read_text())["figures"]
    alone = evaluate(worse, annotations, tmp_path / "alone")
    assert figures["voc/mAP"]["b"] == alone["voc/mAP"] < figures["voc/mAP"]["a"]
    assert "A: results\nB: worse\n" in capsys.readouterr().out


def test_report_shows_images_if_available(cats, tmp_path, monkeypatch, capfd):
    annotations, detections = cats
    evaluate(detections, annotations, tmp_path / "without")
    assert "image/jpeg" not in (tmp_path / "without/report.html").read_text()
    pictures = annotations / "JPEGImages"
    pictures.mkdir()
    for path in (annotations / "Annotations").iterdir():
        cv2.imwrite(str(pictures / f"{path.stem}.png"), np.zeros((500, 500, 3), np.uint8))
    evaluate(detections, annotations, tmp_path / "with")
    report = (tmp_path / "with/report.html").read_text()
    assert report.count("image/jpeg") > 5
    pictures.rename(tmp_path / "elsewhere")
    # An unreadable image has a caption only.
    broken = min((tmp_path / "elsewhere").iterdir())
    broken.write_bytes(broken.read_bytes()[:50])
    evaluate(detections, annotations, tmp_path / "given", "--images", tmp_path / "elsewhere")
    again = (tmp_path / "given/report.html").read_text()
    assert again.count("image/jpeg") in (
        report.count("image/jpeg") - 1,
        report.count("image/jpeg") - 2,
    )
    arguments = ["--detections", detections, "--annotations", annotations, "--out", tmp_path / "no"]
    arguments += ["--images", tmp_path / "none"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    assert run_main(evaluate_main.main) == 2
    err = capfd.readouterr().err
    assert err.endswith(f"evaluate.py: --images: folder not found: {tmp_path}/none\n")
    assert not (tmp_path / "no").exists()


def test_evaluating_files_does_not_import_jax(cats, tmp_path):
    annotations, detections = cats
    code = (
        "import sys, evaluate\n"
        "evaluate.main(sys.argv[1:])\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)\n"
    )
    files = ["--detections", detections, "--annotations", annotations, "--out", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_split_restricts_the_images(cats, tmp_path):
    annotations, detections = cats
    name = min(p.stem for p in (annotations / "Annotations").iterdir())
    lists = annotations / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "one.txt").write_text(f"{name}\n")
    path = detections / "comp4_det_test_cat.txt"
    path.write_text(
        "".join(r for r in path.read_text().splitlines(keepends=True) if r.startswith(name))
    )
    metrics = evaluate(detections, annotations, tmp_path / "out", "--split", "one")
    objects = ET.parse(annotations / "Annotations" / f"{name}.xml").getroot().findall("object")
    assert metrics["num_images"] == 1
    assert metrics["per_class"]["cat"]["objects"] == len(objects)


def score(detections, annotations):
    scored = score_detections(
        detections,
        annotations.objects,
        annotations.classes,
        metrics=("voc07", "voc", "coco"),
        area=annotations.area,
    )
    return [r.mean_ap for r in scored]


def test_coco_and_voc_results_round_trip(fixtures, tmp_path):
    annotations = read_annotations(fixtures / COCO / ANNOTATIONS)
    detections = read_detections(fixtures / COCO / DETECTIONS, annotations)
    path = tmp_path / "again.json"
    write_coco_results(path, detections, annotations.image_ids, annotations.category_ids)
    again = read_detections(path, annotations)
    for a, b in ((detections.image, again.image), (detections.label, again.label)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(detections.boxes, again.boxes, atol=1e-6)
    assert score(again, annotations) == score(detections, annotations)
    # VOC's files identify an image by its name or its id.
    stems = [Path(name).stem for name in annotations.image_files]
    for names in (annotations.image_ids, annotations.image_files, stems):
        folder = tmp_path / str(names[0])
        write_voc_results(folder, detections, names, annotations.classes)
        again = read_detections(folder, annotations)
        assert len(again.label) == len(detections.label)
        assert score(again, annotations) == pytest.approx(score(detections, annotations), abs=1e-9)


def test_without_detections(cats, tmp_path):
    annotations, detections = cats
    (detections / "comp4_det_test_cat.txt").write_text("\n")
    metrics = evaluate(detections, annotations, tmp_path / "out")
    assert (metrics["voc/mAP"], metrics["coco/AP"]) == (0, 0)
    assert metrics["per_class"]["cat"]["detections"] == 0


def test_metrics_without_objects_are_null(fixtures, tmp_path):
    annotations = tmp_path / "a.json"
    annotations.write_text(
        json.dumps(
            {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
        )
    )
    (tmp_path / "d.json").write_text("[]")
    metrics = evaluate(tmp_path / "d.json", annotations, tmp_path / "out")
    assert [v for k, v in metrics.items() if "/" in k] == [None] * 20
    assert metrics["num_images"] == 1


GOOD = {"image_id": 42, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 43}, "entry 1 has image_id 43, which is not in "),
        ({"image_id": [1]}, "entry 1 has image_id [1], which "),
        ({"category_id": 12}, "entry 1 has category_id 12, which "),
        ({"category_id": True}, "entry 1 has category_id True, which "),
        ({"bbox": [1, 2, 3]}, "entry 1 has bbox [1, 2, 3]; write [x, y, width, height]"),
        ({"bbox": [1, 2, -3, 4]}, "entry 1 has bbox [1, 2, -3, 4], of negative size"),
        ({"bbox": [1, 2, float("nan"), 4]}, "entry 1 has bbox [1, 2, nan, 4]; write"),
        ({"score": "high"}, "entry 1 has score 'high'; write a number"),
        ({"score": None}, "entry 1 has score None; write a number"),
        (None, "entry 1 is None; write an object"),
        ("bbox", "entry 1 has no bbox; add it"),
    ],
)
def test_invalid_coco_entries_are_reported(fixtures, tmp_path, monkeypatch, capfd, entry, message):
    wrong = {**GOOD, **entry} if isinstance(entry, dict) else entry
    if entry == "bbox":
        wrong = {k: v for k, v in GOOD.items() if k != "bbox"}
    path = tmp_path / "d.json"
    path.write_text(json.dumps([GOOD, wrong]))
    arguments = ["--detections", path, "--annotations", fixtures / COCO / ANNOTATIONS]
    arguments += ["--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    assert run_main(evaluate_main.main) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"evaluate.py: {path}: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2007_000549 0.5 1 2 3", "line 2 is '2007_000549 0.5 1 2 3'; write image_id score"),
        ("2007_000549 high 1 2 3 4", "line 2 is '2007_000549 high 1 2 3 4'; write image_id"),
        ("2007_000549 nan 1 2 3 4", "line 2 is '2007_000549 nan 1 2 3 4'; write image_id"),
        ("2007_000549 0.5 9 2 3 4", "line 2 has a box of negative size"),
        ("1999_000001 0.5 1 2 3 4", "line 2 has image '1999_000001', which is not in "),
    ],
)
def test_invalid_voc_lines_are_reported(cats, line, message):
    annotations, detections = cats
    path = detections / "comp4_det_test_cat.txt"
    path.write_text(f"2007_000549 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(ResultsError) as error:
        read_detections(detections, read_annotations(annotations))
    assert str(error.value).startswith(f"{path}: {message}")


def test_invalid_files_are_reported(cats, tmp_path):
    annotations, detections = cats
    truth = read_annotations(annotations)
    with pytest.raises(ResultsError, match=r"is neither a COCO annotation file nor"):
        read_annotations(tmp_path / "none")
    with pytest.raises(ResultsError, match=r"must be a folder of comp4_det_test_CLASS\.txt"):
        read_detections(tmp_path / "d.json", truth)
    with pytest.raises(ResultsError, match=r"x must be a folder of comp4_det_test_CLASS\.txt"):
        read_detections(tmp_path / ("x" * 300), truth)
    with pytest.raises(ResultsError, match=r"--images: folder not found: .*x"):
        truth.to_evaluation_data(tmp_path / ("x" * 300))
    with pytest.raises(ResultsError, match=r"contains no comp4_det_test_CLASS\.txt"):
        read_detections(annotations, truth)
    (detections / "det_val_cat.txt").write_text("")
    with pytest.raises(ResultsError, match=r"both of class 'cat'; keep one"):
        read_detections(detections, truth)


def test_file_of_a_class_without_objects_is_ignored(cats, tmp_path, capsys):
    annotations, detections = cats
    metrics = evaluate(detections, annotations, tmp_path / "without")
    other = detections / "comp4_det_test_dining_table.txt"
    other.write_text("2007_000549 0.5 1 2 3 4\n")
    assert evaluate(detections, annotations, tmp_path / "with") == metrics
    note = f"{other} is ignored: {annotations} has no objects of class 'dining_table'; its classes"
    assert f"{note} are cat\n" in capsys.readouterr().out
    (detections / "comp4_det_test_cat.txt").rename(detections / "comp4_det_test_Cat.txt")
    with pytest.raises(ResultsError, match=r"has files of Cat, dining_table, and .* of cat; ren"):
        read_detections(detections, read_annotations(annotations))


def corner_boxes(tmp_path):
    """Small boxes by their corners: (VOC folder, VOC results, COCO annotations, COCO results).

    COCO's have xmax - xmin as their width, as many converters write it.
    """
    rng = np.random.default_rng(0)
    low = rng.integers(1, 60, (60, 2))
    truth = np.concatenate([low, low + rng.integers(2, 9, (60, 2))], axis=1)
    detections = truth + rng.integers(-2, 3, (60, 4))
    detections[:, 2:] = np.maximum(detections[:, 2:], detections[:, :2] + 1)
    image, score = np.arange(60) // 6, np.round(rng.permutation(60) / 60, 3)
    root = make_folder(
        tmp_path / "voc",
        {
            f"i{k}": write_xml(*(write_object("cat", box) for box in truth[image == k]))
            for k in range(10)
        },
    )
    (tmp_path / "found").mkdir()
    lines = [
        f"i{i} {s} {' '.join(map(str, b))}\n"
        for i, s, b in zip(image, score, detections, strict=True)
    ]
    (tmp_path / "found/comp4_det_test_cat.txt").write_text("".join(lines))

    def xywh(boxes):
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()

    rows = [
        {"image_id": int(i), "category_id": 1, "bbox": box}
        for i, box in zip(image, xywh(truth), strict=True)
    ]
    content = {
        "images": [{"id": k, "file_name": f"i{k}.jpg"} for k in range(10)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": k} | row for k, row in enumerate(rows)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    rows = [
        row | {"bbox": box, "score": s}
        for row, box, s in zip(rows, xywh(detections), score.tolist(), strict=True)
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    return root, tmp_path / "found", tmp_path / "truth.json", tmp_path / "found.json"


def test_one_box_convention_gives_equal_metrics_for_both_formats(tmp_path, capsys):
    voc, voc_found, coco, coco_found = corner_boxes(tmp_path)
    scores = {}
    for pixels in ("inclusive", "exclusive"):
        of_both = []
        for number, (detections, truth) in enumerate([(voc_found, voc), (coco_found, coco)]):
            more = ("--box-convention", pixels, "--iou-threshold", "0.6")
            metrics = evaluate(detections, truth, tmp_path / f"{pixels}{number}", *more)
            assert (metrics["box_convention"], metrics["iou_threshold"]) == (pixels, 0.6)
            assert f"IoU 0.6, {pixels} pixels" in capsys.readouterr().out
            report = (tmp_path / f"{pixels}{number}/report.html").read_text()
            assert f"IoU 0.6, {pixels} pixels" in report
            of_both.append({k: v for k, v in metrics.items() if k in ("voc/mAP", "coco/AP")})
        assert of_both[0] == of_both[1]
        scores[pixels] = of_both[0]
    assert scores["inclusive"]["voc/mAP"] != scores["exclusive"]["voc/mAP"]
    # Each format has a default convention, which is reported.
    for detections, truth, pixels in [
        (voc_found, voc, "inclusive"),
        (coco_found, coco, "exclusive"),
    ]:
        metrics = evaluate(detections, truth, tmp_path / "own", "--iou-threshold", "0.6")
        assert metrics["box_convention"] == pixels
        assert {k: metrics[k] for k in scores[pixels]} == scores[pixels]


def test_baseline_is_reported(tmp_path, capsys):
    """One object per image at similar positions, where a constant box scores well."""
    rng = np.random.default_rng(0)
    boxes = np.array([11, 21, 50, 60]) + rng.integers(-3, 4, (10, 4))
    root = make_folder(
        tmp_path / "voc",
        {f"i{k}": write_xml(write_object("cat", box.tolist())) for k, box in enumerate(boxes)},
    )
    detections = tmp_path / "found"
    detections.mkdir()
    (detections / "comp4_det_test_cat.txt").write_text("i0 1 11 21 50 60\n")
    metrics = evaluate(detections, root, tmp_path / "out")
    mean = boxes.mean(axis=0)
    lines = [f"i{k} 1 {' '.join(f'{side:.6f}' for side in mean)}\n" for k in range(10)]
    (detections / "comp4_det_test_cat.txt").write_text("".join(lines))
    of_mean = evaluate(detections, root, tmp_path / "mean")
    baseline = metrics["baseline"]
    assert metrics["voc/mAP"] < baseline["voc/mAP"] == of_mean["voc/mAP"] == 1
    assert baseline["coco/AP"] == pytest.approx(of_mean["coco/AP"], abs=1e-9)
    assert baseline["coco/AP"] < 1
    line = "Baseline, the mean ground-truth box of each class on every image: mAP voc07 1.0000"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out/report.html").read_text()


def test_report_distinguishes_11_point_and_area_ap(cats, tmp_path):
    annotations, detections = cats
    evaluate(detections, annotations, tmp_path / "out", "--metrics", "voc07")
    report = (tmp_path / "out/report.html").read_text()
    assert "voc07/mAP, 11 points (VOC 2007)<b>" in report
    assert "the area under its curve, its AP by voc. The 11-point AP (voc07) in" in report
    assert "cat  area 0." in (tmp_path / "out/plots/curves.svg").read_text().replace("\xa0", " ")


class TestUnwritableOutputs:
    def failing(self, monkeypatch, capfd, *arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        assert run_main(evaluate_main.main) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        return err

    @pytest.mark.parametrize("compare", [False, True])
    @pytest.mark.parametrize("old", [False, True])
    def test_full_disk(self, cats, tmp_path, monkeypatch, capfd, old, compare):
        """After metrics.json, as the report exceeds the file size limit."""
        annotations, detections = cats
        out = tmp_path / "deep" / "out"
        if old:
            evaluate(detections, annotations, out, "--metrics", "voc")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        arguments = ["--detections", detections, "--annotations", annotations, "--out", out]
        arguments += ["--compare", detections] if compare else []
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            err = self.failing(monkeypatch, capfd, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert f"evaluate.py: cannot write the results to {out} (File too large); free" in err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        assert out.parent.exists() == old
        assert not list(tmp_path.rglob("*.part"))

    @pytest.mark.parametrize("place", ["/proc/none/out", "file/out", "file"])
    def test_folder_that_cannot_be_created(self, cats, tmp_path, monkeypatch, capfd, place):
        """Reported before anything is read."""
        _, detections = cats
        (tmp_path / "file").write_text("")
        out = tmp_path / place
        arguments = [
            "--detections",
            detections,
            "--annotations",
            fixture_of_one(tmp_path),
            "--out",
            out,
        ]
        monkeypatch.setattr(result_files, "read_detections", pytest.fail)
        err = self.failing(monkeypatch, capfd, *arguments)
        assert f"cannot write the results to {out} (" in err
        assert (tmp_path / "file").read_text() == ""

    def test_other_files_in_the_folder_stay(self, cats, tmp_path):
        annotations, detections = cats
        out = tmp_path / "out"
        (out / "plots").mkdir(parents=True)
        (out / "plots/other.svg").write_text("other")
        (out / "metrics.json").write_text("old")
        evaluate(detections, annotations, out)
        names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        assert names == {
            *("metrics.json", "report.html", "analysis.json", "plots/other.svg"),
            *(f"plots/{name}.svg" for name in ("curves", "errors", "confusion")),
        }


def fixture_of_one(tmp_path):
    path = tmp_path / "one.json"
    content = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps(content))
    return path


class TestLongFiles:
    """Files longer than the pieces that are read at once."""

    @pytest.fixture(autouse=True)
    def short_pieces(self, monkeypatch):
        monkeypatch.setattr(json_array, "_PIECE", 50)
        monkeypatch.setattr(reader, "_PIECE", 50)

    def test_lines(self, cats):
        annotations, detections = cats
        path = detections / "comp4_det_test_cat.txt"
        line = "2007_000549 0.5 1 2 3 4"
        for text in (f"{line}\n" * 20, f"{line}{' ' * 20}\n" * 19 + line):
            path.write_text(text)
            assert len(read_detections(detections, read_annotations(annotations)).score) == 20
        for text in (f"{line}{' ' * 100}{line}", f"{line}\n{' ' * 150}\n"):
            path.write_text(text)
            with pytest.raises(ResultsError, match=r"cat\.txt has a line of more than 50 bytes"):
                read_detections(detections, read_annotations(annotations))

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            [{}],
            [{"a": k, "b": [1.5, 2]} for k in range(100)],
            [{"a": {"b": "}, {"}, "c": "猫" * k} for k in range(100)],
            [1, "x", None, [[], {}], 12345678901234567890, "y" * 5000, True],
            [{"long": ["z"] * 1000}, {"long": 2}],
        ],
    )
    @pytest.mark.parametrize("separators", [(",", ":"), (" ,\n ", ": ")])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_arrays(self, tmp_path, rows, separators, encoding):
        path = tmp_path / "a.json"
        text = f" {json.dumps(rows, separators=separators, ensure_ascii=False)} \n"
        path.write_bytes(text.encode(encoding))
        pieces = list(json_array.read_array(path, 1 << 20))
        assert [row for piece in pieces for row in piece] == rows
        assert len(pieces) > 1 or len(rows) < 100

    def test_damage(self, tmp_path):
        path = tmp_path / "a.json"
        rows = json.dumps([{"a": k, "b": [1.5, 2]} for k in range(60)])
        for at in [*range(0, len(rows), 7), len(rows) - 1]:
            for text in (rows[:at], rows[:at] + "}" + rows[at + 1 :], rows[:at] + rows[at + 1 :]):
                path.write_text(text)
                try:
                    expected = json.loads(text)
                except ValueError:
                    with pytest.raises((ValueError, TypeError)):
                        list(json_array.read_array(path, 1 << 20))
                else:
                    pieces = json_array.read_array(path, 1 << 20)
                    assert [row for piece in pieces for row in piece] == expected
        for text in (rows + "]", rows[:-1] + ",]", rows[:-1] + ", ", rows[:-1]):
            path.write_text(text)
            with pytest.raises(ValueError, match="character"):
                list(json_array.read_array(path, 1 << 20))
        path.write_text('{"a": 1}' * 50)
        with pytest.raises(TypeError):
            list(json_array.read_array(path, 1 << 20))

    def test_entry_numbers_continue_across_pieces(self, fixtures, tmp_path):
        annotations = read_annotations(fixtures / COCO / ANNOTATIONS)
        path = tmp_path / "d.json"
        path.write_text(json.dumps([*[GOOD] * 40, GOOD | {"score": True}]))
        with pytest.raises(ResultsError, match="entry 40 has score True"):
            read_detections(path, annotations)
        path.write_text(json.dumps([GOOD] * 40))
        assert len(read_detections(path, annotations).label) == 40

    def test_line_numbers_continue_across_pieces(self, cats, monkeypatch):
        annotations, detections = cats
        monkeypatch.setattr(reader, "_PIECE", 50)
        path = detections / "comp4_det_test_cat.txt"
        rows = path.read_text().splitlines()
        path.write_text("\n\r\n".join(rows))
        table = read_detections(detections, read_annotations(annotations))
        assert table.score.tolist() == [float(row.split()[1]) for row in rows]
        for number in ("1_0", "\u0661", "nan", "0x1"):
            path.write_text("\n".join([*rows, f"2007_000549 0.5 1 2 {number} 40"]))
            match = f"line {len(rows) + 1} is '2007_000549 0.5 1 2 {number} 40'; write image_id"
            with pytest.raises(ResultsError, match=match):
                read_detections(detections, read_annotations(annotations))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--annotations", "a", "--out", "o", "--iou-threshold", "1.5"], "--iou-threshold is 1.5;"),
        (["--annotations", "a", "--out", "o", "--iou-threshold", "nan"], "--iou-threshold is nan;"),
        (
            ["--annotations", "a", "--out", "o", "--box-convention", "half"],
            "--box-convention is 'half'; use one of",
        ),
        (["--annotations", "a", "--out", "o", "--metrics", "voc12"], "--metrics is voc12; name"),
        (["--annotations", "a", "--out", "o", "--metrics", "voc,voc"], "--metrics is voc,voc"),
        (["--annotations", "a"], "--out is missing"),
        (["--out", "o"], "--annotations is missing"),
        (
            ["--annotations", "a", "--out", "o", "--eval.nms-iou-threshold", "1"],
            "unknown argument --eval.nms-iou-threshold",
        ),
        (["--checkpoint", "c"], "--checkpoint cannot be combined with --detections"),
    ],
)
def test_invalid_command_lines_are_reported(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_main.main(["--detections", "d", *arguments])
    with pytest.raises(ValueError, match="--metrics belongs to --detections"):
        evaluate_main.main(["--checkpoint", "c", "--metrics", "voc"])


def some_detections(source):
    """The objects of the source, shifted slightly."""
    truth = load_ground_truth(source).objects
    boxes = truth.boxes + np.array([0.25, 0, 1, 0.5])
    scores = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    return DetectionTable(truth.image, truth.label, scores, boxes)


def test_coco_results_have_the_ids_of_the_annotations(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for name in ("b", "a"):
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.zeros((50, 60, 3), np.uint8))
    size = {"width": 60, "height": 50}
    objects = [
        {"id": 1, "image_id": 900, "category_id": 5, "bbox": [1.5, 2, 30, 20], "area": 123.5},
        {"id": 2, "image_id": 17, "category_id": 3, "bbox": [4, 4, 10, 10]},
        {"id": 3, "image_id": 17, "category_id": 3, "bbox": [0, 0, 40, 40], "iscrowd": 1},
    ]
    content = {
        "images": [
            {"id": 900, "file_name": "b.png"} | size,
            {"id": 17, "file_name": "a.png"} | size,
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": objects,
    }
    annotations = root / "annotations" / "instances_val.json"
    annotations.write_text(json.dumps(content))
    source = CocoSource(root, "val", ("cat", "dog"))
    data = load_ground_truth(source)
    np.testing.assert_array_equal(data.area, [123.5, 100, 1600])
    detections = some_detections(source)
    assert write_results(tmp_path, detections, source, "val") == tmp_path / "detections.json"
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in rows] == [(900, 5), (17, 3), (17, 3)]
    assert rows[0]["bbox"] == [1.75, 2, 30.75, 20.5]
    assert np.float32(rows[1]["score"]) == np.float32(detections.score[1])
    # Files and source give the same metrics.
    ours = score_detections(
        detections, data.objects, source.classes, metrics=("coco",), area=data.area
    )
    metrics = evaluate(tmp_path / "detections.json", annotations, tmp_path / "out")
    assert metrics["coco/AP"] == pytest.approx(ours[0].mean_ap, abs=1e-12)
    assert metrics["per_class"]["dog"]["objects"] == 1

    source.image_numbers = (17, 17)
    with pytest.raises(
        ResultsError, match=r"two images of data\.eval_split 'val\+more' have the same id"
    ):
        write_results(tmp_path, detections, source, "val+more")


def test_voc_results_have_the_pixels_of_the_devkit(cats, tmp_path):
    annotations, _ = cats
    names = sorted(p.stem for p in (annotations / "Annotations").iterdir())
    (annotations / "JPEGImages").mkdir()
    for name in names:
        (annotations / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    (annotations / "ImageSets" / "Main").mkdir(parents=True)
    (annotations / "ImageSets/Main/all_of.txt").write_text("\n".join(names))
    source = VocSource(annotations, "all_of", ("cat",))
    detections = some_detections(source)
    folder = write_results(tmp_path / "eval", detections, source, "all_of")
    assert [p.name for p in folder.iterdir()] == ["comp4_det_all-of_cat.txt"]
    first = (folder / "comp4_det_all-of_cat.txt").read_text().split()
    assert first[0] == names[0]
    # VOC counts pixels from 1.
    assert first[2:6] == [f"{side:.6f}" for side in detections.boxes[0] + [1, 1, 0, 0]]
    assert float(first[2]) == source.annotation(0).boxes_px[0, 0] + 1 + 0.25
    again = read_detections(folder, read_annotations(annotations, "all_of"))
    np.testing.assert_array_equal(again.image, detections.image)
    np.testing.assert_allclose(again.boxes, detections.boxes, atol=1e-6)
    with pytest.raises(ResultsError, match="class 'a/b' cannot be part of a file name"):
        write_voc_results(tmp_path, detections, names, ("a/b",))
