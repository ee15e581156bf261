"""YOLO datasets made by hand, and real data written in YOLO's layouts by another program."""

import json
import os
import pickle
import re

import numpy as np
import pytest

from ssd_jax.config import ConfigError, DataConfig, UserError
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco import CocoSource, coco_classes
from ssd_jax.data.formats.voc import VocSource, voc_classes
from ssd_jax.data.formats.yolo import YoloSource, yolo_classes
from ssd_jax.data.formats.yolo_yaml import read_data_yaml
from ssd_jax.data.sources import detect_format, find_classes, open_source
from tests.data.folders import (
    CLASSES,
    YOLO_LAYOUTS,
    make_coco,
    make_folder,
    make_yolo,
    read_coco_objects,
    read_voc_objects,
    write_image,
    write_object,
    write_xml,
    write_yolo,
)

LINE = "1 0.30 0.50 0.40 0.50\n"
IMAGE = np.zeros((80, 100, 3), np.uint8)


def open_one(root, text, classes=CLASSES, **more):
    return YoloSource(make_yolo(root, {"a": text}), "train", classes, **more)


def boxes(source, i=0):
    return source.annotation(i).boxes_px.tolist()


class TestLabels:
    def test_boxes_are_fractions_of_the_image(self, tmp_path):
        source = open_one(tmp_path, "1 0.30 0.50 0.40 0.50\n\n0 .5 5e-1 1 1.0")
        annotation = source.annotation(0)
        np.testing.assert_allclose(annotation.boxes_px, [[10, 20, 50, 60], [0, 0, 100, 80]])
        assert annotation.boxes_px.dtype == np.float32
        assert annotation.labels.tolist() == [1, 0]
        assert annotation.labels.dtype == np.int32
        assert annotation.difficult.dtype == annotation.crowd.dtype == bool
        assert (annotation.image_id, annotation.width, annotation.height) == ("a", 100, 80)
        assert source[0].image.shape == (80, 100, 3)
        assert len(source) == 1

    def test_labels_follow_the_order_of_classes(self, tmp_path):
        source = open_one(tmp_path, LINE, ("bird", "dog", "cat"))
        assert source.annotation(0).labels.tolist() == [1]

    @pytest.mark.parametrize("text", [None, "", "\n \n"])
    def test_images_without_objects_are_kept(self, tmp_path, text):
        root = make_yolo(tmp_path, {"a": LINE, "b": text})
        source = YoloSource(root, "train", CLASSES)
        example = source[1]
        assert example.boxes.shape == (0, 4)
        assert example.boxes.dtype == np.float32
        assert example.labels.shape == example.difficult.shape == example.crowd.shape == (0,)

    @pytest.mark.parametrize("extra", ["7", "0.25", "-1", "x"])
    def test_sixth_column_is_ignored(self, tmp_path, extra):
        np.testing.assert_allclose(
            boxes(open_one(tmp_path, LINE.strip() + f" {extra}\n")), [[10, 20, 50, 60]]
        )

    @pytest.mark.parametrize(
        "polygon", [".1 .25 .5 .5 .3 .75", ".3 .25 .5 .5 .3 .75 .1 .5", ".1 .5 .2 .25 .5 .75 .1 .4"]
    )
    def test_polygon_becomes_its_extent(self, tmp_path, polygon):
        source = open_one(tmp_path, f"0 {polygon}\n{LINE}")
        np.testing.assert_allclose(boxes(source), [[10, 20, 50, 60]] * 2)
        assert source.annotation(0).labels.tolist() == [0, 1]

    @pytest.mark.parametrize("keypoints", [".9 .9 2 .1 .1 2", ".9 .9 .1 .1"])
    def test_keypoints_are_ignored(self, tmp_path, keypoints):
        root = make_yolo(tmp_path, {"a": f"{LINE.strip()} {keypoints}\n"}, kpt_shape=[2, 3])
        np.testing.assert_allclose(boxes(YoloSource(root, "train", CLASSES)), [[10, 20, 50, 60]])

    def test_class_may_be_a_decimal(self, tmp_path):
        """Some tools write all columns as floats."""
        assert open_one(tmp_path, "1.0" + LINE[1:]).annotation(0).labels.tolist() == [1]

    @pytest.mark.parametrize("value", ["1.005", "1.01"])
    def test_rounding_errors_are_clipped(self, tmp_path, value):
        findings = []
        source = open_one(tmp_path, f"0 .5 .5 {value} 1\n", on_finding=findings.append)
        assert boxes(source) == [[0, 0, 100, 80]]
        assert findings == []

    def test_boxes_are_clipped_to_the_image(self, tmp_path):
        findings = []
        source = open_one(tmp_path, "0 .1 .5 .4 .5\n", on_finding=findings.append)
        np.testing.assert_allclose(boxes(source), [[0, 20, 30, 60]], rtol=1e-6)
        (finding,) = findings
        assert finding.kind == "outside"
        assert "labels/train/a.txt: line 1 (.1 .5 .4 .5) extends beyond 100x80" in finding.message

    @pytest.mark.parametrize("box", [".5 .5 0 .5", ".5 .5 .5 0.0", ".5 .5 -0.005 .5", "0 .5 0 .5"])
    def test_boxes_without_area_are_skipped(self, tmp_path, box):
        findings = []
        source = open_one(tmp_path, f"0 {box}\n{LINE}", on_finding=findings.append)
        assert source.annotation(0).labels.tolist() == [1]
        assert [finding.kind for finding in findings] == ["no_area"]

    def test_size_is_as_stored(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE})
        for suffix in (".png", ".bmp", ".webp", ".tiff"):
            write_image(root / f"images/train/b{suffix}", np.zeros((40, 30, 3), np.uint8))
            (root / "labels/train/b.txt").write_text("0 .5 .5 1 1\n")
            assert boxes(YoloSource(root, "train", CLASSES), 1) == [[0, 0, 30, 40]]
            (root / f"images/train/b{suffix}").unlink()

    def test_can_be_pickled(self, tmp_path):
        source = open_one(tmp_path, LINE)
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[0].boxes, source[0].boxes)


class TestLayouts:
    @pytest.mark.parametrize("layout", YOLO_LAYOUTS)
    def test_label_files_are_found(self, tmp_path, layout):
        root = make_yolo(tmp_path, {"a": LINE}, layout)
        np.testing.assert_allclose(boxes(YoloSource(root, "train", CLASSES)), [[10, 20, 50, 60]])

    def test_last_folder_images_counts(self, tmp_path):
        root = make_yolo(tmp_path / "images/of/images", {"a": LINE})
        np.testing.assert_allclose(boxes(YoloSource(root, "train", CLASSES)), [[10, 20, 50, 60]])

    def test_folders_are_searched_in_depth(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE})
        for part in ("images", "labels"):
            (root / part / "train/deep/er").mkdir(parents=True)
        write_image(root / "images/train/deep/er/a.jpg", IMAGE)
        (root / "labels/train/deep/er/a.txt").write_text("0 .5 .5 1 1\n")
        (root / "images/train/._a.jpg").write_bytes(b"attributes of macOS")
        source = YoloSource(root, "train", CLASSES)
        annotations = [source.annotation(i) for i in range(len(source))]
        ids = ["images-train-a", "images-train-deep-er-a"]
        assert [k.image_id for k in annotations] == ids
        assert [k.labels.tolist() for k in annotations] == [[1], [0]]

    @pytest.mark.parametrize(
        "train",
        [
            "images/train",
            "./images/train/",
            "../images/train",
            "{root}/images/train",
            "/another/machine/images/train",
            "C:\\data\\images\\train",
            ["images/train"],
            ["images/other", "images/train"],
            "images",
        ],
    )
    @pytest.mark.parametrize("path", [None, "", ".", "{root}", "/another/machine", "../datasets/x"])
    def test_paths(self, tmp_path, train, path):
        root = tmp_path / "data"
        train = json.loads(json.dumps(train).replace("{root}", str(root)))
        path = path and path.format(root=root)
        make_yolo(root, {"a": LINE}, train=train, path=path)
        (root / "images/other").mkdir()
        write_image(root / "images/other/b.jpg", IMAGE)
        source = YoloSource(root, "train", CLASSES)
        ids = [source.annotation(i).image_id for i in range(len(source))]
        assert ids == (
            ["b", "a"]
            if isinstance(train, list) and train[1:]
            else ["b", "a"]
            if train == "images"
            else ["a"]
        )
        np.testing.assert_allclose(boxes(source, len(ids) - 1), [[10, 20, 50, 60]])

    def test_path_is_a_folder_elsewhere(self, tmp_path):
        root = make_yolo(tmp_path / "data", {"a": LINE})
        (tmp_path / "x.yaml").write_text("path: data\ntrain: images/train\nnames: [cat, dog]\n")
        (root / "data.yaml").unlink()
        for place in (tmp_path, tmp_path / "x.yaml"):
            source = YoloSource(place, "train", CLASSES)
            np.testing.assert_allclose(boxes(source), [[10, 20, 50, 60]])

    @pytest.mark.parametrize(
        "line",
        [
            "images/train/a.jpg",
            "./images/train/a.jpg",
            "{root}/images/train/a.jpg",
            "/another/machine/images/train/a.jpg",
            "images\\train\\a.jpg",
            "../data/images/train/a.jpg",
        ],
    )
    @pytest.mark.parametrize("folder", ["", "lists/"])
    def test_lists(self, tmp_path, line, folder):
        root = make_yolo(tmp_path / "data", {"a": LINE, "b": ""}, train=f"{folder}train.txt")
        (root / folder).mkdir(exist_ok=True)
        text = line.format(root=root)
        (root / folder / "train.txt").write_text(f"\ufeff{text}\r\n\r\n  {text} \n", "utf-8")
        source = YoloSource(root, "train", CLASSES)
        assert len(source) == 1
        np.testing.assert_allclose(boxes(source), [[10, 20, 50, 60]])

    def test_splits_are_joined_and_images_count_once(self, tmp_path):
        make_yolo(tmp_path, {"a": LINE, "b": ""}, val="val.txt")
        (tmp_path / "val.txt").write_text("images/train/b.jpg\nimages/train/../train/a.jpg\n")
        source = YoloSource(tmp_path, "val + train", CLASSES)
        assert [source.annotation(i).image_id for i in range(len(source))] == ["b", "a"]

    @pytest.mark.parametrize("key", ["val", "valid", "validation"])
    @pytest.mark.parametrize("split", ["val", "valid", "validation"])
    def test_names_of_the_validation_split(self, tmp_path, key, split):
        root = make_yolo(tmp_path, {"a": LINE}, **{key: "images/train"})
        assert len(YoloSource(root, split, CLASSES)) == 1

    @pytest.mark.parametrize("name", ["data.yml", "dataset.yaml", "bccd.yaml", "coco8.yml"])
    def test_names_of_the_yaml_file(self, tmp_path, name):
        root = make_yolo(tmp_path, {"a": LINE})
        (root / "data.yaml").rename(root / name)
        (root / "hyp.yaml").write_text("lr0: 0.01\n")
        (root / "broken.yaml").write_text("lr0: [\n")
        assert yolo_classes(root) == CLASSES
        assert yolo_classes(root / name) == CLASSES


class TestNames:
    def read(self, tmp_path, text):
        (tmp_path / "data.yaml").write_text(text)
        return read_data_yaml(tmp_path / "data.yaml").names

    @pytest.mark.parametrize(
        "text",
        [
            "names: [cat, dog]",
            "names: ['cat', \"dog\"]\nnc: 2",
            "names:\n- cat\n- dog\n",
            "nc: 2\nnames:\n  0: cat\n  1: dog\n",
            "names: {1: dog, 0: cat}  # a comment",
            "names: !!python/tuple [cat, dog]",
        ],
    )
    def test_list_or_map(self, tmp_path, text):
        assert self.read(tmp_path, text) == ("cat", "dog")

    def test_words_of_yaml_are_text(self, tmp_path):
        text = "names: [yes, 7, 1.50, null, 2020-01-01, 0x10, on]"
        expected = ("yes", "7", "1.50", "null", "2020-01-01", "0x10", "on")
        assert self.read(tmp_path, text) == expected

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "is not a map of keys"),
            ("cat", "is not a map of keys"),
            ("train: x", "has no names; list the classes there"),
            ("names:", "has no names"),
            ("names: cat", "has no names"),
            ("names: []", "has no names"),
            ("names: {}", "has no names"),
            ("names: [cat, cat]", "has 'cat' twice in names; rename one"),
            ("names: [cat, ' ']", "has ' ' in names; write the name"),
            ("names: [cat, [dog]]", r"has \['dog'\] in names"),
            ("names: {1: cat, 2: dog}", "has 2 names, none with index 0; number"),
            ("names: {0: cat, 2: dog}", "has 2 names, none with index 1"),
            ("names: {0: cat, 00: dog}", "has 2 names, none with index 1"),
            ("names: {0: cat, -1: dog}", "has the index '-1' in names; count from 0"),
            ("names: {0: cat, 1.0: dog}", "has the index '1.0' in names"),
            ("names: {0: cat, 0: dog}", "has '0' twice; remove one"),
            ("names: [cat]\nnames: [dog]", "has 'names' twice; remove one"),
            ("names: [cat]\nnc: 2", "has nc '2' and 1 names; correct one of them"),
            ("names: [cat]\nnc: [1]", r"has nc \['1'\] and 1 names"),
            ("names: [cat]\npath: [a]", r"has path \['a'\]; write the folder"),
            ("names: [cat]\ntrain: {a: b}", "has train {'a': 'b'}; write a folder of images"),
            ("names: [cat]\ntrain: [[a]]", r"has train \['a'\]; write a folder"),
            ("names: [cat]\ntrain: ['']", "has train ''; write a folder"),
            ("names: [cat", "is not usable YAML: line 1: "),
            ("names: [cat]\n\tnc: 1", "is not usable YAML: line 2: "),
            ("names: [cat]\n---\nnc: 1", "is not usable YAML: line 2: "),
            ("names: &a [cat]\ntrain: *a", r"has an alias \(\*NAME\), which is not supported"),
            ("names: *a", "has an alias"),
            ("names: &a [*a]", "has an alias"),
            ("names: " + "[" * 20 + "]" * 20, "nested more than 10 deep; remove them"),
            ("a: " + "[" * 200_000, "nested more than 10 deep"),
            ("[a]: 5", "is not usable YAML: line 1: found unhashable key"),
            ("names: \0", "is not usable YAML: unacceptable character"),
            ("x: " + "a" * (1 << 18), "cannot be read .*above 262,144"),
        ],
    )
    def test_invalid(self, tmp_path, text, match):
        with pytest.raises(DataError, match=match) as caught:
            self.read(tmp_path, text)
        assert str(caught.value).startswith(f"{tmp_path}/data.yaml ")
        assert "\n" not in str(caught.value)

    def test_other_encoding(self, tmp_path):
        (tmp_path / "data.yaml").write_bytes("names: [café]".encode("latin-1"))
        with pytest.raises(DataError, match=r"data\.yaml is not UTF-8; save it as UTF-8"):
            yolo_classes(tmp_path)

    def test_many_names(self, tmp_path):
        text = "names:\n" + "".join(f"  {k}: class {k}\n" for k in range(3000))
        assert len(self.read(tmp_path, text)) == 3000


class TestErrors:
    """Each message is one line that names the file and what to change."""

    def check(self, match, root, split="train"):
        with pytest.raises(DataError, match=match) as caught:
            YoloSource(root, split, CLASSES)
        assert "\n" not in str(caught.value)
        return caught.value.finding

    @pytest.mark.parametrize(
        ("line", "match", "kind"),
        [
            (
                "2 .5 .5 .5 .5",
                "has class 2; data.yaml has 2 names, counted from 0",
                "unknown_class",
            ),
            ("-1 .5 .5 .5 .5", "has class -1; data.yaml has 2 names", "unknown_class"),
            ("1e300 .5 .5 .5 .5", "has class 1e300; data.yaml has", "unknown_class"),
            ("1e999 .5 .5 .5 .5", "has class '1e999'; write the index", "annotation"),
            ("0.5 .5 .5 .5 .5", "has class '0.5'; write the index", "annotation"),
            ("cat .5 .5 .5 .5", "has class 'cat'; write the index of a class", "annotation"),
            ("0", "has 1 columns; write class, x, y, width, height", "annotation"),
            ("0 .5 .5 .5", "has 4 columns", "annotation"),
            ("0 .5 .5 .5 .5 .5 .5 .5", "has 8 columns", "annotation"),
            ("0,.5,.5,.5,.5", "has 1 columns", "annotation"),
            ("0 .5 .5 .5 x", "has 'x'; write a number", "annotation"),
            ("0 .5 .5 .5 nan", "has 'nan'; write a number", "annotation"),
            ("0 .5 inf .5 .5", "has 'inf'; write a number", "annotation"),
            ("0 .5 1_0 .5 .5", "has '1_0'; write a number", "annotation"),
            ("0 .5 ١ .5 .5", "has '١'; write a number", "annotation"),
            ("0 .5 1e999 .5 .5", "has 1e999; write a fraction", "annotation"),
            ("0 50 40 20 20", "has 50; write a fraction of the image, 0 to 1", "annotation"),
            ("0 1.011 .5 .5 .5", r"has 1\.011; write a fraction", "annotation"),
            ("0 .5 .5 .5 -.5", r"has -\.5; write a fraction", "annotation"),
            ("0 .1 .1 .2 .2 .1 1.2", r"has 1\.2; write a fraction", "annotation"),
        ],
    )
    def test_invalid_line(self, tmp_path, line, match, kind):
        root = make_yolo(tmp_path, {"a": f"{LINE}\n{line}\n{LINE}"})
        finding = self.check(rf"^{root}/labels/train/a\.txt: line 3 {match}", root)
        assert (finding.kind, finding.record, finding.item) == (kind, "a", "line 3")
        findings = []
        source = YoloSource(root, "train", CLASSES, findings.append)
        assert findings == [finding]
        assert source.annotation(0).labels.tolist() == [1, 1]

    def test_class_that_the_config_does_not_have(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE})
        match = r"a\.txt has class 'dog', which is not one of cat; add it to model\.classes"
        with pytest.raises(DataError, match=match):
            YoloSource(root, "train", ("cat",))

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda path: path.mkdir(), "it is a folder"),
            (os.mkfifo, "it is a pipe or a device"),
            (lambda path: path.symlink_to("/dev/zero"), "it is a pipe or a device"),
            (lambda path: path.symlink_to("nowhere"), "No such file"),
        ],
    )
    def test_labels_that_are_no_file(self, tmp_path, make, match):
        root = make_yolo(tmp_path, {"a": LINE, "b": None})
        make(root / "labels/train/b.txt")
        self.check(rf"b\.txt cannot be read \({match}", root)
        assert len(YoloSource(root, "train", CLASSES, lambda _: None)) == 1

    def test_too_many_lines(self, tmp_path):
        root = make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5\n" * 100_001})
        self.check(r"a\.txt has 100,001 lines; at most 100,000", root)

    def test_image_that_cannot_be_read(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE, "b": LINE})
        (root / "images/train/b.jpg").write_bytes(b"no image")
        self.check(r"b\.jpg is not an image that can be decoded", root)
        assert len(YoloSource(root, "train", CLASSES, lambda _: None)) == 1

    @pytest.mark.parametrize(
        "split", ["trainval", "Train", "names", "", "train+2012", "2007:train"]
    )
    def test_unknown_split(self, tmp_path, split):
        root = make_yolo(tmp_path, {"a": LINE}, val="images/train", test=None)
        name = split.split("+")[-1]
        match = (
            f"{root}/data.yaml has no split '{name}'; its splits are train, val; name them in "
            "data.train_split and data.eval_split, e.g. --data.train-split train "
            "--data.eval-split val"
        )
        self.check(f"^{re.escape(match)}$", root, split)

    def test_no_split(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train=None, test="")
        self.check(r"data\.yaml has no split; write the paths of train and val", root)

    def test_missing_path(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train="images/val")
        self.check(r"data\.yaml: train 'images/val' is missing; write a folder or a list", root)

    @pytest.mark.parametrize("path", ["/", "..", "../..", "/another/.."])
    def test_path_that_holds_the_dataset(self, tmp_path, path):
        root = make_yolo(tmp_path / "data", {"a": LINE}, train=path)
        self.check(r"data\.yaml: train .*(which holds the whole dataset|is missing); ", root)

    def test_path_that_is_another_file(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train="images/train/a.jpg")
        self.check(r"a\.jpg, which is neither a folder nor a \.txt file; write", root)

    def test_folder_without_images(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train=["images/train", "labels/train"])
        self.check(r"labels/train has no image; it is train of .*put images there: \.jpg,", root)
        assert len(YoloSource(root, "train", CLASSES, lambda _: None)) == 1

    def test_split_without_images(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train="labels/train")
        with pytest.raises(DataError, match=r"split 'train' has no image; name another"):
            YoloSource(root, "train", CLASSES, lambda _: None)

    def test_images_missing_from_a_list(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE}, train="train.txt")
        (root / "train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\nimages/train\n")
        finding = self.check(
            r"train\.txt lists 'images/train/b\.jpg', which is missing \(2 of 3 images are\); ",
            root,
        )
        assert (finding.kind, finding.record) == ("missing_image", "b")
        findings = []
        assert len(YoloSource(root, "train", CLASSES, findings.append)) == 1
        assert len(findings) == 2

    def test_two_images_of_one_label_file(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE})
        write_image(root / "images/train/a.png", IMAGE)
        finding = self.check(r"a\.png and .*a\.jpg have the same file of labels, .*a\.txt; ", root)
        assert finding.kind == "duplicate"
        assert len(YoloSource(root, "train", CLASSES, lambda _: None)) == 1

    def test_no_labels_at_all(self, tmp_path):
        root = make_yolo(tmp_path, {"a": None, "b": None})
        self.check(
            r"none of the 2 images of split 'train' has a file of labels; the first one would be "
            r".*labels/train/a\.txt",
            root,
        )

    def test_missing_yaml(self, tmp_path):
        self.check(r"has no data\.yaml; write one with names and with the paths", tmp_path)
        self.check(r"none is not a folder", tmp_path / "none")

    def test_several_yaml_files(self, tmp_path):
        root = make_yolo(tmp_path, {"a": LINE})
        text = (root / "data.yaml").read_text()
        (root / "data.yaml").unlink()
        for name in ("b.yaml", "a.yaml"):
            (root / name).write_text(text)
        self.check(r"has a\.yaml, b\.yaml; set data\.root to one of these files", root)
        assert yolo_classes(root / "b.yaml") == CLASSES


class TestFormat:
    def config(self, root, format_="auto"):
        return DataConfig(format=format_, root=str(root), train_split="train")

    @pytest.mark.parametrize("format_", ["auto", "yolo"])
    @pytest.mark.parametrize("file", ["", "data.yaml"])
    def test_yolo(self, tmp_path, format_, file):
        config = self.config(make_yolo(tmp_path, {"a": LINE}) / file, format_)
        source = open_source(config, "train", find_classes(config, ()))
        assert isinstance(source, YoloSource)
        assert source.classes == CLASSES

    def test_several_layouts(self, tmp_path):
        make_yolo(tmp_path, {"a": LINE})
        make_folder(tmp_path, {"a": write_xml(write_object())})
        match = "VOC's Annotations and YOLO's data.yaml; set data.format to voc or yolo"
        with pytest.raises(ConfigError, match=match):
            detect_format(self.config(tmp_path))
        make_coco(tmp_path)
        match = (
            "VOC's Annotations and COCO's annotations and YOLO's data.yaml; "
            "set data.format to voc or coco or yolo"
        )
        with pytest.raises(ConfigError, match=match):
            detect_format(self.config(tmp_path))
        for name in ("voc", "coco", "yolo"):
            assert detect_format(self.config(tmp_path, name)) == name

    @pytest.mark.parametrize("text", ["lr: 0.1", "names: [cat]", "names: ["])
    def test_other_yaml_files_beside_voc_are_ignored(self, tmp_path, text):
        make_folder(tmp_path, {"a": write_xml(write_object())})
        (tmp_path / "data.yaml").write_text(text)
        assert detect_format(self.config(tmp_path)) == "voc"

    def test_error_names_the_invalid_yaml(self, tmp_path):
        (tmp_path / "data.yaml").write_text("names: [")
        with pytest.raises(DataError, match=r"data\.yaml is not usable YAML"):
            find_classes(self.config(tmp_path), ())

    def test_missing_folder(self, tmp_path):
        with pytest.raises(UserError, match="is not a folder"):
            detect_format(self.config(tmp_path / "none.yaml", "yolo"))


class TestRealData:
    """The same boxes and classes as the original, to the six digits that are written."""

    def compare(self, original, source, classes):
        assert len(source) == len(original) > 50
        expected = {original.annotation(i).image_id: i for i in range(len(original))}
        count = 0
        for i in range(len(source)):
            annotation = source.annotation(i)
            other = original.annotation(expected[annotation.image_id])
            assert (annotation.width, annotation.height) == (other.width, other.height)
            kept = ~other.crowd
            np.testing.assert_array_equal(annotation.labels, other.labels[kept])
            atol = 1e-6 * max(other.width, other.height)
            np.testing.assert_allclose(
                annotation.boxes_px, other.boxes_px[kept], rtol=1e-6, atol=atol
            )
            count += len(annotation.labels)
        assert count > 300
        assert source.classes == classes

    @pytest.mark.parametrize("layout", [*YOLO_LAYOUTS, "lists"])
    def test_bccd(self, shared_data, tmp_path, layout):
        original = shared_data / "bccd"
        classes = voc_classes(original, "train")
        splits = {
            split: {
                original / f"JPEGImages/{name}.jpg": read_voc_objects(original, name)
                for name in (original / f"ImageSets/Main/{split}.txt").read_text().split()
            }
            for split in ("train", "val", "test")
        }
        root = write_yolo(tmp_path, layout, splits, classes)
        config = DataConfig(format="auto", root=str(root), train_split="train")
        assert find_classes(config, ()) == classes
        for split in ("train", "test", "train+val"):
            name = "trainval" if "+" in split else split
            source = open_source(config, split, classes)
            self.compare(VocSource(original, name, classes), source, classes)

    @pytest.mark.parametrize("layout", [*YOLO_LAYOUTS, "lists"])
    def test_coco_mini(self, shared_data, tmp_path, layout):
        original = shared_data / "coco-mini"
        classes = coco_classes(original, "trainval")
        splits = {
            split: {
                original / "JPEGImages" / name: value
                for name, value in read_coco_objects(original, coco).items()
            }
            for split, coco in (("train", "trainval"), ("val", "test"))
        }
        root = write_yolo(tmp_path, layout, splits, classes)
        config = DataConfig(format="auto", root=str(root), train_split="train")
        assert find_classes(config, ()) == classes
        for split, coco in (("train", "trainval"), ("val", "test")):
            source = open_source(config, split, classes)
            self.compare(CocoSource(original, coco, classes), source, classes)
