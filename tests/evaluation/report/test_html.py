import base64
import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.evaluation import evaluate_detections
from ssd_jax.evaluation.metrics.matching import box_areas
from ssd_jax.evaluation.report import plots
from ssd_jax.evaluation.report.output_dir import write_comparison, write_evaluation
from tests.evaluation.metrics.test_tide import errors_case

NAMES = ("<script>alert(1)</script>", "$a_b$", "猫", "dog")


def evaluation_data(gt, *, classes=NAMES, read_image=None):
    def image(i):
        return np.full((40, 60, 3), 10 * i, np.uint8)

    return EvaluationData(
        classes,
        gt,
        box_areas(gt.boxes, "inclusive"),
        [f"image <{i}>" for i in range(12)],
        read_image or image,
    )


def case(seed, **kwargs):
    det, gt = errors_case(seed)
    data = evaluation_data(gt, **kwargs)
    return evaluate_detections(f"run <{seed}>", det, data, metrics=("voc", "coco")), data


class Reader(HTMLParser):
    """The addresses, the text and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.text, self.open = [], "", []
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def decode(address, kind):
    head, content = address.split(",", 1)
    assert head == f"data:{kind};base64"
    return base64.b64decode(content)


def test_report_is_self_contained(tmp_path):
    evaluation, data = case(1)
    write_evaluation(tmp_path, evaluation, data, extra={"num_images": 12}, facts=["step 7"])
    page = Reader((tmp_path / "report.html").read_text())
    assert {a[:5] for a in page.addresses if not a.startswith("#")} == {"data:"}
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in (tmp_path / "report.html").read_text()
    for shown in (*NAMES, "run <1>", "step 7", "12 images", f"{evaluation.results[0].mean_ap:.4f}"):
        assert shown in page.text, shown
    svgs = [a for a in page.addresses if a.startswith("data:image/svg")]
    written = {p.stem: p.read_bytes() for p in (tmp_path / "plots").iterdir()}
    assert sorted(written) == ["confusion", "curves", "errors"]
    assert {decode(a, "image/svg+xml") for a in svgs} == set(written.values())
    jpegs = [decode(a, "image/jpeg") for a in page.addresses if a.startswith("data:image/jpeg")]
    images = evaluation.analysis.images
    assert len(jpegs) == len(images.worst(8)) + len(images.best(8)) > 4
    # Predictions and ground truth, 480 pixels each.
    shapes = {cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR).shape for j in jpegs}
    assert shapes == {(320 + 2 * 8, 2 * 480 + 3 * 8, 3)}
    first = images.worst(1)[0]
    caption = (
        f"image <{first}>: {images.tp[first]} TP, {images.fp[first]} FP, {images.fn[first]} FN"
    )
    worst, best = page.text.split("Images with errors, ")[1].split("Images with true positives, ")
    assert caption in worst
    last = images.best(8)[-1]
    assert f"image <{last}>: {images.tp[last]} TP" in best
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


def test_control_characters_are_escaped(tmp_path):
    """Names of classes, images and runs are data; tab, escape, direction marks, surrogates."""
    odd = "\t\x00\x1b[31m\x7f\x9b\u202e\u2028\ufffe\ud800"
    det, gt = errors_case(1)
    data = evaluation_data(gt, classes=(f"a{odd}", "b&<", "c", "d"))
    names = [f"image {odd}{i}" for i in range(12)]
    data = dataclasses.replace(data, image_names=names)
    a, b = (evaluate_detections(f"{n}{odd}", det, data, metrics=("voc",)) for n in "xy")
    write_evaluation(tmp_path, a, data, extra={"note": odd}, facts=[f"fact{odd}"])
    write_comparison(tmp_path, a, b, data)
    shown = r"\t\x00\x1b[31m\x7f\x9b\u202e\u2028\ufffe\ud800"
    for name in ("report.html", "comparison.html"):
        text = (tmp_path / name).read_text()
        page = Reader(text)
        assert not set(text) & set(odd.replace("[31m", ""))
        for start in ("x", "a", *(("fact", "image ") if name == "report.html" else ())):
            assert f"{start}{shown}" in page.text, start
        assert "b&<" in page.text
        for address in page.addresses:
            if "svg" in address[:20]:
                ET.fromstring(decode(address, "image/svg+xml"))
    # JSON contains them unchanged.
    for name in ("metrics.json", "analysis.json", "comparison.json"):
        json.loads((tmp_path / name).read_text())
    assert json.loads((tmp_path / "metrics.json").read_text())["note"] == odd


def test_same_evaluation_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, *case(2), extra={})
    for path in ("report.html", "analysis.json", "metrics.json", "plots/curves.svg"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_analysis_json(tmp_path):
    evaluation, data = case(1)
    write_evaluation(tmp_path, evaluation, data, extra={})
    tree = json.loads((tmp_path / "analysis.json").read_text())
    analysis = evaluation.analysis
    assert tree["score_threshold"] == 0.3
    assert {k: v["count"] for k, v in tree["errors"].items()} == analysis.counts
    assert {k: v["delta_ap"] for k, v in tree["errors"].items()} == analysis.delta_ap
    assert tree["confusion"] == {"names": [*NAMES, None], "counts": analysis.confusion.tolist()}
    assert tree["images"]["image <3>"] == {
        "tp": int(analysis.images.tp[3]),
        "fp": int(analysis.images.fp[3]),
        "fn": int(analysis.images.fn[3]),
    }


def test_without_images_and_without_html(tmp_path):
    evaluation, data = case(1, read_image=lambda i: None)
    write_evaluation(tmp_path / "none", evaluation, data, extra={})
    page = Reader((tmp_path / "none/report.html").read_text())
    assert not [a for a in page.addresses if a.startswith("data:image/jpeg")]
    assert "image <" in page.text
    write_evaluation(tmp_path / "off", evaluation, data, extra={}, html=False)
    assert [p.name for p in (tmp_path / "off").iterdir()] == ["metrics.json"]


def test_without_objects_and_detections(tmp_path):
    det, gt = errors_case(1)
    none = np.zeros(0, int)
    data = evaluation_data(type(gt)(none, none, none, none), classes=("cat",))
    evaluation = evaluate_detections("x", det.select(none), data, metrics=("voc07",))
    write_evaluation(tmp_path, evaluation, data, extra={})
    write_comparison(tmp_path, evaluation, evaluation, data)
    for name in ("report.html", "comparison.html"):
        assert "None." in Reader((tmp_path / name).read_text()).text


def texts(svg):
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("}text")]


def test_names_in_plots_are_plain_text():
    evaluation, _ = case(1)
    curves = texts(plots.to_svg(plots.plot_curves({"x": evaluation.analysis.curves})))
    for name, ap in zip(NAMES, [c.ap for c in evaluation.results[0].classes], strict=True):
        if not np.isnan(ap):
            shown = name if len(name) < 19 else f"{name[:17]}…"
            assert f"{shown}  area {ap:.3f}" in [re.sub(r"\xa0", " ", t) for t in curves]
    confusion = texts(plots.to_svg(plots.plot_confusion(evaluation.analysis.confusion, NAMES)))
    assert {"(background)", "$a_b$", "猫"} <= set(confusion)
    assert str(evaluation.analysis.confusion.max()) in confusion


def test_many_classes_give_the_curves_of_those_with_most_objects():
    det, gt = errors_case(4)
    gt.label[:] = np.random.default_rng(0).integers(1, 8, len(gt.label)) - 1
    names = tuple(f"c{k}" for k in range(7))
    most = np.bincount(gt.label[~gt.difficult], minlength=7).argmax()
    result = evaluate_detections("x", det, evaluation_data(gt, classes=names), metrics=("voc",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "MAX_CURVES", 1)
        shown = texts(plots.to_svg(plots.plot_curves({"x": result.analysis.curves})))
    titles = [t for t in shown if t.startswith("c")]
    assert [t.split()[0] for t in titles] == [f"c{most}"]


def test_long_curves_are_thinned_out():
    recall = np.linspace(0, 0.9, 50_000)
    x, y = plots._thin_out(recall, 1 - recall / 2)
    assert len(x) == len(y) < 500
    assert (x[0], x[1], x[-1]) == (0, 0, 0.9)
    assert y[-1] == 0.55
    np.testing.assert_array_equal(plots._thin_out(np.zeros(0), np.zeros(0)), [[0], [0]])


def test_two_evaluations_side_by_side(tmp_path):
    det, gt = errors_case(1)
    data = evaluation_data(gt)
    a = evaluate_detections("run <a>", det, data, metrics=("voc", "coco"))
    # B lacks the detections of the image where A has the most true positives.
    lost = np.flatnonzero(det.image == int(np.argmax(a.analysis.images.tp)))
    kept = np.setdiff1d(np.arange(len(det.label)), lost)
    b = evaluate_detections("run <b>", det.select(kept), data, metrics=("voc", "coco"))
    write_comparison(tmp_path, a, b, data)
    tree = json.loads((tmp_path / "comparison.json").read_text())
    assert (tree["a"], tree["b"]) == ("run <a>", "run <b>")
    means = [run.results[0].mean_ap for run in (a, b)]
    assert tree["figures"]["voc/mAP"] == {
        "a": means[0],
        "b": means[1],
        "difference": means[1] - means[0],
    }
    assert means[1] < means[0]
    dog = tree["per_class"]["dog"]
    assert dog["coco/AP"]["a"] is None or dog["coco/AP"]["a"] >= 0
    page = Reader((tmp_path / "comparison.html").read_text())
    assert {x[:5] for x in page.addresses} == {"data:"}
    assert f"{means[1] - means[0]:+.4f}" in page.text
    better = page.text.split("Images on which A is better")[1].split("Images on which B is better")
    assert f"image <{int(np.argmax(a.analysis.images.tp))}>: A" in better[0]
    # A, B and the ground truth.
    jpeg = decode(next(x for x in page.addresses if "jpeg" in x), "image/jpeg")
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape[1] == 3 * 480 + 4 * 8


def test_detections_below_the_reports_score_are_not_drawn(tmp_path):
    det, gt = errors_case(1)
    data = evaluation_data(gt)
    pages = []
    for name, table in (("all", det), ("high", det.select(det.score >= 0.3))):
        evaluation = evaluate_detections(name, table, data, metrics=("voc",))
        write_evaluation(tmp_path / name, evaluation, data, extra={})
        page = Reader((tmp_path / name / "report.html").read_text())
        pages.append([a for a in page.addresses if a.startswith("data:image/jpeg")])
    assert pages[0] == pages[1]
    assert (det.score < 0.3).any()
