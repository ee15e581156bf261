"""Annotations and results files: valid records, or one error line that names the file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.config import UserError
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.evaluation.result_files import read_annotations, read_detections
from tests.adversarial.limits import result_or_error
from tests.adversarial.strategies import HOSTILE, TEXTS, edit_json, edited_bytes
from tests.data.folders import CLASSES, make_coco, make_folder, write_object, write_xml

pytestmark = pytest.mark.adversarial

XML = write_xml(write_object("cat"), write_object("dog", (1, 1, 100, 80)))
RESULTS = [
    {"image_id": 1, "category_id": 7, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5},
    {"image_id": 2, "category_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.25},
]
FEWER = settings(HOSTILE, max_examples=60)


def check_records(source):
    """Check that every box is finite and inside its image, and that every class exists."""
    for i in range(len(source)):
        annotation = source.annotation(i)
        size = np.array([annotation.width, annotation.height] * 2)
        assert np.all(np.isfinite(annotation.boxes_px))
        assert np.all((annotation.boxes_px >= 0) & (annotation.boxes_px <= size))
        assert np.all((annotation.labels >= 1) & (annotation.labels <= len(CLASSES)))
    return source


def open_voc(root, xml):
    make_folder(root, {"a": xml})
    return result_or_error(lambda: check_records(VocSource(root, "train", CLASSES)))


@HOSTILE
@given(edited_bytes(XML.encode()))
def test_damaged_xml(tmp_path_factory, xml):
    open_voc(tmp_path_factory.mktemp("voc"), xml)


NUMBER_TEXTS = st.one_of(TEXTS, st.floats().map(str), st.integers().map(str))


@HOSTILE
@given(st.tuples(NUMBER_TEXTS, NUMBER_TEXTS, NUMBER_TEXTS, NUMBER_TEXTS), NUMBER_TEXTS, TEXTS)
def test_hostile_text_in_xml_fields(tmp_path_factory, box, width, name):
    xml = write_xml(write_object(name, box), size=(width, 80))
    open_voc(tmp_path_factory.mktemp("voc"), xml.encode("utf-8", "replace"))


def test_large_and_deeply_nested_xml(tmp_path):
    entities = ['<!ENTITY b "' + "x" * 1000 + '">']
    for k in range(9):
        inner = f"&b{k - 1};" if k else "&b;"
        entities.append(f'<!ENTITY b{k} "{inner * 10}">')
    bomb = f"<!DOCTYPE a [{''.join(entities)}"
    for k, xml in enumerate(
        [
            "<annotation>" * 500_000,
            "<annotation>" + "<object>" * 300_000,
            bomb + "]><annotation>&b8;</annotation>",
            "<annotation>" + write_object() * 200_000 + "</annotation>",
        ]
    ):
        open_voc(tmp_path / str(k), xml)


@HOSTILE
@given(st.data())
def test_edited_coco(tmp_path_factory, data):
    root = make_coco(
        tmp_path_factory.mktemp("coco"),
        boxes=[(1, 7, (1, 2, 30, 40)), (2, 3, (0, 0, 100, 80), {"iscrowd": 1, "area": 99.5})],
    )
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    path.write_text(edit_json(document, data.draw, data.draw(st.integers(1, 3))))
    result_or_error(lambda: check_records(CocoSource(root, "train", CLASSES)))


@HOSTILE
@given(st.data())
def test_damaged_coco(tmp_path_factory, data):
    root = make_coco(tmp_path_factory.mktemp("coco"), boxes=[(1, 7, (1, 2, 30, 40))])
    path = root / "annotations/instances_train.json"
    path.write_bytes(data.draw(edited_bytes(path.read_bytes())))
    result_or_error(lambda: check_records(CocoSource(root, "train", CLASSES)))


@FEWER
@given(st.data())
def test_edited_coco_results(tmp_path_factory, data):
    root = make_coco(tmp_path_factory.mktemp("coco"), boxes=[(1, 7, (1, 2, 30, 40))])
    file = root / "results.json"
    file.write_text(edit_json(RESULTS, data.draw, data.draw(st.integers(1, 3))))
    annotations = read_annotations(root / "annotations/instances_train.json")
    table = result_or_error(lambda: read_detections(file, annotations))
    if not isinstance(table, UserError):
        assert np.all(np.isfinite(table.boxes))
        assert np.all(np.isfinite(table.score))


@FEWER
@given(edited_bytes(b"a 0.5 1 2 30 40\na 0.25 1 2 30 41\n"))
def test_damaged_voc_results(tmp_path_factory, data):
    root = make_folder(tmp_path_factory.mktemp("voc"), {"a": XML})
    (root / "results").mkdir()
    (root / "results/comp4_det_train_cat.txt").write_bytes(data)
    annotations = read_annotations(root, "train")
    result_or_error(lambda: read_detections(root / "results", annotations))


@FEWER
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(TEXTS).map("\n".join).map(lambda text: text.encode("utf-8", "replace")),
    )
)
def test_hostile_image_list(tmp_path_factory, text):
    root = make_folder(tmp_path_factory.mktemp("voc"), {"a": XML})
    (root / "ImageSets/Main/train.txt").write_bytes(text)
    result_or_error(lambda: check_records(VocSource(root, "train", CLASSES)))
