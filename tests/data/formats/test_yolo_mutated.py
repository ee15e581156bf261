"""Mutated YOLO datasets: valid records, or one error line that names the file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.config import DataConfig, UserError
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.yolo import YoloSource
from ssd_jax.data.sources import find_classes, open_source
from tests.adversarial.limits import assert_one_line, result_or_error
from tests.adversarial.strategies import HOSTILE, TEXTS, VALUES, edit_json, edited_bytes
from tests.data.folders import CLASSES, make_yolo

FEW, MANY = settings(HOSTILE, max_examples=60), settings(HOSTILE, max_examples=1000)
YAML = b"path: .\ntrain: images/train\nval: val.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
LABELS = b"1 0.30 0.50 0.40 0.50\n0 0.1 0.2 0.3 0.4 0.5 0.6\n0 0.5 0.5 1 1 0.25\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One folder for all cases: only the mutated file is written again."""
    root = make_yolo(tmp_path_factory.mktemp("yolo"), {"a": LABELS.decode(), "b": ""})
    (root / "val.txt").write_text("images/train/a.jpg\n")
    return root


def open_all(root, **files):
    """Write files, open both splits within the limits, and restore the files."""
    paths = {"yaml": root / "data.yaml", "list": root / "val.txt"}
    paths["labels"] = root / "labels/train/a.txt"
    valid = {"yaml": YAML, "list": b"images/train/a.jpg\n", "labels": LABELS}
    for name, path in paths.items():
        path.write_bytes(files.get(name, valid[name]))
    outcomes = []
    for split in ("train", "val"):
        for format_ in ("yolo", "auto"):
            config = DataConfig(format=format_, root=str(root), train_split=split)
            outcomes.append(result_or_error(lambda c=config: open_one(c)))
        findings = []

        def collect(split=split, findings=findings):
            return YoloSource(root, split, CLASSES, findings.append)

        source = result_or_error(collect)
        for finding in findings:
            assert_one_line(str(finding))
            assert str(root) in finding.message
        # Training stops at the first error that `data check` lists.
        opened = outcomes[-2]
        if not isinstance(opened, UserError) and opened.classes == CLASSES:
            assert not isinstance(source, DataError)
            assert all(finding.severity != "error" for finding in findings)
    return outcomes


def open_one(config):
    source = open_source(config, config.train_split, find_classes(config, ()))
    for i in range(len(source)):
        annotation = source.annotation(i)
        size = np.array([annotation.width, annotation.height] * 2)
        assert np.all((annotation.boxes_px >= 0) & (annotation.boxes_px <= size))
        assert np.all(annotation.boxes_px[:, :2] < annotation.boxes_px[:, 2:])
        assert np.all((annotation.labels >= 0) & (annotation.labels < len(source.classes)))
    return source


def edited_yaml(data):
    """JSON is YAML, and edits of its nodes keep it parsable."""
    content = {
        "path": ".",
        "train": ["images/train"],
        "val": "val.txt",
        "nc": 2,
        "names": {"0": "cat", "1": "dog"},
    }
    return edit_json(content, data.draw, data.draw(st.integers(1, 3))).encode()


COLUMNS = st.lists(st.one_of(TEXTS, st.floats().map(str), st.sampled_from(["0", "0.5", "1"])))
LINES = st.lists(COLUMNS.map(" ".join), max_size=4).map("\n".join)
PATHS = st.lists(
    st.one_of(TEXTS, st.sampled_from(["/", "..", ".", "images/train/a.jpg", "../x", "a/" * 3000])),
    max_size=4,
).map("\n".join)


def encode(texts):
    return texts.map(lambda text: text.encode("utf-8", "replace"))


def check_yaml_bytes(root, data):
    open_all(root, yaml=data.draw(edited_bytes(YAML)))


def check_yaml_nodes(root, data):
    open_all(root, yaml=edited_yaml(data))


def check_yaml_values(root, data):
    key = data.draw(st.sampled_from(["path", "train", "val", "nc", "names"]))
    content = {"train": "images/train", "val": "val.txt", "names": list(CLASSES)}
    open_all(root, yaml=json.dumps(content | {key: data.draw(VALUES)}).encode())


def check_label_bytes(root, data):
    open_all(root, labels=data.draw(edited_bytes(LABELS)))


def check_label_lines(root, data):
    open_all(root, labels=data.draw(encode(LINES)))


def check_lists(root, data):
    open_all(root, list=data.draw(encode(PATHS)))


CHECKS = [
    *(check_yaml_bytes, check_yaml_nodes, check_yaml_values),
    *(check_label_bytes, check_label_lines, check_lists),
]


@pytest.mark.parametrize("check", CHECKS)
@FEW
@given(st.data())
def test_mutants(root, check, data):
    check(root, data)


@pytest.mark.adversarial
@pytest.mark.parametrize("check", CHECKS)
@MANY
@given(st.data())
def test_many_mutants(root, check, data):
    check(root, data)


@pytest.mark.parametrize(
    "text",
    [
        "&a " * 50_000,
        "names: &a [cat]\n" + "".join(f"b{k}: &b{k} [*a, *a]\n" for k in range(100)),
        "- " * 100_000,
        "? " * 100_000,
        "{a: " * 100_000,
        "a:\n" * 3000,
        "'" * 10_001,
        "names: [" + "a, " * 3000 + "]",
        "names: !!python/object/apply:os.system ['exit 3']",
        "names: !!binary gA==",
        "names: [cat, dog]\ntrain: [" + "images/none, " * 500 + "]",
        "names: [cat, dog]\ntrain: /" + "a/" * 50_000,
        "names: [cat, dog]\ntrain: " + "../" * 1000,
        'names: [cat, dog]\ntrain: "images/\\0train"',
        'names: [cat, dog]\ntrain: "\\uD800"',
        "names: [cat, dog]\ntrain: /dev/zero",
        "names: [cat, dog]\ntrain: /dev/null",
        "names: [cat, dog]\npath: [images]\ntrain: images",
        "names: [cat, dog]\npath: /dev/zero\ntrain: images/none",
    ],
)
def test_hostile_yaml(root, text):
    for outcome in open_all(root, yaml=text.encode()):
        assert isinstance(outcome, DataError)
        assert str(root) in str(outcome)


def test_hostile_lists(root):
    text = "\n".join(f"/another/machine/of/many/parts/{k}.jpg" for k in range(2000))
    outcome = open_all(root, list=text.encode())[-1]
    assert "(2000 of 2000 images are)" in str(outcome)
    outcome = open_all(root, list=b"/" + b"a/" * 1_000_000)[-1]
    assert "which is missing" in str(outcome)


def test_links_in_a_circle_end(tmp_path):
    root = make_yolo(tmp_path, {"a": LABELS.decode()})
    (root / "images/train/up").symlink_to("..")
    (root / "images/train/b.jpg").symlink_to("b.jpg")
    outcome = result_or_error(lambda: YoloSource(root, "train", CLASSES))
    assert "b.jpg cannot be read" in str(outcome)
    (root / "images/train/b.jpg").unlink()
    assert len(YoloSource(root, "train", CLASSES)) == 1
