"""TFDS datasets written by hand, and those made of folders against the folders' own sources."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssd_jax.config import ConfigError, DataConfig, TfdsFields
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.sources import find_classes, open_source
from ssd_jax.data.tfds.source import TfdsSource, tfds_classes
from tests.data.folders import make_coco, make_folder, write_image, write_object, write_xml
from tests.data.tfds_sets import (
    CLASSES,
    VOC_CLASSES,
    F,
    build_from_folder,
    jpeg,
    make_tfds,
    plain_features,
    plain_object,
    plain_record,
    voc_object,
    voc_record,
)


def open_one(root: Path, *objects, **more) -> TfdsSource:
    """voc/2007 of one image of 100x80."""
    make_tfds(root, {"train": [voc_record("a", *objects)]})
    return TfdsSource(str(root), "voc/2007:train", VOC_CLASSES, **more)


def open_plain(root: Path, *objects, features=None, fields=None) -> TfdsSource:
    """A dataset that is not VOC, of one image of 100x80."""
    features = features or plain_features()
    make_tfds(root, {"train": [plain_record(*objects)]}, name="mine", features=features)
    return TfdsSource(str(root), "mine:train", CLASSES, fields)


def by_box(annotation) -> list[tuple]:
    columns = (annotation.boxes_px, annotation.labels, annotation.difficult, annotation.crowd)
    return sorted(zip(*(c.tolist() for c in columns), strict=True))


def assert_same(source, other) -> None:
    """Same images, with the same pixels, boxes to the bit, labels and marks."""
    where = {other.annotation(i).image_id: i for i in range(len(other))}
    ids = [source.annotation(i).image_id for i in range(len(source))]
    assert sorted(ids) == sorted(where)
    for i, image_id in enumerate(ids):
        actual, expected = source[i], other[where[image_id]]
        np.testing.assert_array_equal(actual.image, expected.image)
        actual, expected = source.annotation(i), other.annotation(where[image_id])
        assert (actual.width, actual.height) == (expected.width, expected.height)
        assert by_box(actual) == by_box(expected)
        for name in ("boxes_px", "labels", "difficult", "crowd"):
            assert getattr(actual, name).dtype == getattr(expected, name).dtype


class TestBoxes:
    def test_voc_counts_from_one_and_boxes_hold_their_last_pixel(self, tmp_path):
        source = open_one(tmp_path, voc_object("dog", (21 / 80, 0.01, 60 / 80, 1), difficult=True))
        annotation = source.annotation(0)
        assert annotation.boxes_px.tolist() == [[0, 20, 100, 60]]
        assert annotation.labels.tolist() == [VOC_CLASSES.index("dog")]
        assert annotation.difficult.tolist() == [True]
        assert annotation.crowd.tolist() == [False]
        assert (annotation.image_id, annotation.width, annotation.height) == ("a", 100, 80)
        example = source[0]
        np.testing.assert_allclose(example.boxes, [[0, 0.25, 1, 0.75]])
        assert example.boxes.dtype == np.float32
        assert example.image.shape == (80, 100, 3)
        assert len(source) == 1

    def test_others_are_continuous(self, tmp_path):
        source = open_plain(tmp_path, plain_object("dog", (0.25, 0.1, 0.75, 1)))
        annotation = source.annotation(0)
        assert annotation.boxes_px.tolist() == [[10, 20, 100, 60]]
        assert annotation.labels.tolist() == [1]
        assert annotation.difficult.tolist() == annotation.crowd.tolist() == [False]

    def test_left_and_top_border_of_voc_are_clipped(self, tmp_path):
        source = open_one(tmp_path, voc_object(box=(0, 0, 0.5, 0.5)))
        assert source.annotation(0).boxes_px.tolist() == [[0, 0, 50, 40]]

    @pytest.mark.parametrize("box", [(0.5, 0.1, 0.5, 0.3), (0.1, 0.5, 0.3, 0.5), (1, 0.1, 1, 0.3)])
    def test_boxes_without_area_are_skipped(self, tmp_path, box):
        findings = []
        source = open_one(
            tmp_path, voc_object("dog", box), voc_object("cat"), on_finding=findings.append
        )
        assert source.annotation(0).labels.tolist() == [VOC_CLASSES.index("cat")]
        (warning,) = findings
        assert "train[0]: object 1 (dog) (" in warning.message
        assert warning.message.endswith(" has no area in 100x80 pixels")
        assert (warning.kind, warning.record, warning.item) == ("no_area", "a", "object 1 (dog)")

    def test_images_without_objects_are_kept(self, tmp_path):
        example = open_one(tmp_path)[0]
        assert example.boxes.shape == (0, 4)
        assert example.boxes.dtype == np.float32
        assert example.labels.shape == example.difficult.shape == example.crowd.shape == (0,)

    def test_crowd_is_difficult(self, tmp_path):
        features = plain_features(is_crowd=np.bool_, is_difficult=np.bool_)
        marks = [(True, False), (False, True), (False, False)]
        objects = [plain_object(is_crowd=c, is_difficult=d) for c, d in marks]
        annotation = open_plain(tmp_path, *objects, features=features).annotation(0)
        assert annotation.crowd.tolist() == [True, False, False]
        assert annotation.difficult.tolist() == [True, True, False]


class TestAgainstFolders:
    def test_voc(self, tmp_path):
        rng = np.random.default_rng(0)
        objects = [
            write_object("dog", (1, 1, 100, 80)),
            write_object("cat", (11.3, 20.7, 50.123, 60.999), "<difficult>1</difficult>"),
            write_object("person", (99, 79, 100, 80)),
            write_object("cow", (30, 30, 30, 40)),
            write_object("boat", (0, -3, 104, 90)),
        ]
        texts = {
            "a": write_xml(*objects),
            "b": write_xml(),
            "c": write_xml(write_object("sofa", (7, 33, 333, 311)), size=(333, 311)),
        }
        root = make_folder(tmp_path / "VOCdevkit/VOC2007", texts)
        images = root / "JPEGImages"
        write_image(images / "a.jpg", rng.integers(0, 256, (80, 100, 3), np.uint8))
        write_image(images / "b.jpg", rng.integers(0, 256, (80, 100), np.uint8))  # grey
        write_image(images / "c.jpg", rng.integers(0, 256, (311, 333, 3), np.uint8))
        build_from_folder(tmp_path / "tfds", "voc/2007", tmp_path / "VOCdevkit")
        findings = []
        tfds_dir, add = str(tmp_path / "tfds"), findings.append
        source = TfdsSource(tfds_dir, "voc/2007:train", VOC_CLASSES, on_finding=add)
        folder = VocSource(root, "train", VOC_CLASSES, add)
        assert_same(source, folder)
        assert [finding.kind for finding in findings].count("no_area") == 2

    def test_coco(self, tmp_path):
        dog, cat = 7, 3
        boxes = [
            (1, dog, (10.13, 20.07, 40.71, 33.33)),
            (1, cat, (0, 0, 100, 80), {"iscrowd": 1}),
            (1, cat, (95.5, 70, 9, 20)),
            (1, cat, (5, 5, 0, 9)),
            (3, dog, (0.01, 0.02, 0.5, 79.9)),
        ]
        root = make_coco(tmp_path / "coco", "train2017", images=[1, 2, 3], boxes=boxes)
        turned = root / "train2017/2.jpg"
        turned.write_bytes(turn(turned.read_bytes()))
        build_from_folder(tmp_path / "tfds", "coco/2017", root, classes=2)
        split = "coco/2017:train"
        classes = tfds_classes(str(tmp_path / "tfds"), split, TfdsFields())
        findings = []
        names, add = ("bird", "cat", "dog"), findings.append
        source = TfdsSource(str(tmp_path / "tfds"), split, names, on_finding=add)
        folder = CocoSource(root, "train2017", names, add)
        assert classes == ("dog", "cat")  # the order of the file, as TFDS has it
        assert_same(source, folder)
        assert [finding.kind for finding in findings].count("no_area") == 2

    @pytest.mark.parametrize(
        ("name", "splits"),
        [("voc/2007", ("trainval", "test")), ("coco/2017", ("trainval", "test"))],
    )
    def test_real_images(self, tmp_path, shared_data, name, splits):
        root = tmp_path / "folder"
        if name == "voc/2007":
            (root / "ImageSets/Main").mkdir(parents=True)
            for part in ("Annotations", "JPEGImages"):
                (root / part).symlink_to(shared_data / "voc-mini" / part)
            for split, list_ in zip(splits, ("train", "test"), strict=True):
                (root / f"ImageSets/Main/{list_}.txt").symlink_to(
                    shared_data / f"voc-mini/ImageSets/Main/{split}.txt"
                )
            pairs = {"train": "train", "test": "test"}
        else:
            (root / "annotations").mkdir(parents=True)
            (root / "images").symlink_to(shared_data / "coco-mini/JPEGImages")
            for split, list_ in zip(splits, ("train2017", "val2017"), strict=True):
                (root / f"annotations/instances_{list_}.json").symlink_to(
                    shared_data / f"coco-mini/annotations/instances_{split}.json"
                )
            pairs = {"train": "train2017", "validation": "val2017"}
        build_from_folder(tmp_path / "tfds", name, root)
        classes = tfds_classes(str(tmp_path / "tfds"), f"{name}:train", TfdsFields())
        of_folder = VocSource if name == "voc/2007" else CocoSource
        for split, list_ in pairs.items():
            source = TfdsSource(str(tmp_path / "tfds"), f"{name}:{split}", classes)
            assert_same(source, of_folder(root, list_, classes))


def turn(data: bytes) -> bytes:
    """A JPEG that asks to be shown turned by 90 degrees."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


class TestClasses:
    def test_labels_follow_names(self, tmp_path):
        make_tfds(tmp_path, {"train": [voc_record("a", voc_object("dog"), voc_object("cat"))]})
        source = TfdsSource(str(tmp_path), "voc/2007:train", ("dog", "bird", "cat"))
        assert source.classes == ("dog", "bird", "cat")
        assert source.annotation(0).labels.tolist() == [0, 2]

    def test_unknown_class(self, tmp_path):
        objects = voc_object("dog"), voc_object("cat"), voc_object("dog")
        make_tfds(tmp_path, {"train": [voc_record("a"), voc_record("b", *objects)]})
        split = "voc/2007:train"
        with pytest.raises(DataError, match=r"train\[1\] has class 'dog', which is not one of cat"):
            TfdsSource(str(tmp_path), split, ("cat",))
        errors = []
        source = TfdsSource(str(tmp_path), split, ("cat",), on_finding=errors.append)
        assert source.annotation(1).labels.tolist() == [0]
        assert [e.item for e in errors] == ["object 1 (dog)", "object 3 (dog)"]

    def test_class_without_objects_needs_no_label(self, tmp_path):
        make_tfds(tmp_path, {"train": [voc_record("a", voc_object("dog"))]})
        assert len(TfdsSource(str(tmp_path), "voc/2007:train", ("dog",))) == 1

    def test_classes_of_the_dataset(self, tmp_path):
        make_tfds(tmp_path, {"train": [voc_record("a")]})
        make_tfds(tmp_path, {"train": [plain_record()]}, name="mine", features=plain_features())
        config = DataConfig(
            format="tfds", root=str(tmp_path), train_split="mine:train+voc/2007:train"
        )
        others = tuple(c for c in VOC_CLASSES if c not in CLASSES)
        assert find_classes(config, ()) == CLASSES + others


class TestSplits:
    @pytest.fixture
    def root(self, tmp_path) -> str:
        train = [voc_record(f"{k:02d}", voc_object("dog")) for k in range(10)]
        test = [voc_record(f"{k:02d}", voc_object("cat")) for k in (8, 9, 10)]
        make_tfds(tmp_path, {"train": train, "test": test}, per_shard=4)
        splits = {"train": [plain_record(plain_object())]}
        make_tfds(tmp_path, splits, name="mine", features=plain_features())
        return str(tmp_path)

    @pytest.mark.parametrize(
        ("split", "ids"),
        [
            ("voc/2007:test", ["08", "09", "10"]),
            ("voc/2007:train[:20%]", ["00", "01"]),
            ("voc/2007:train[-2:]+voc/2007:train[:1]", ["08", "09", "00"]),
            ("voc/2007:train[:3] + voc/2007:train[1:5]", ["00", "01", "02", "03", "04"]),
            ("voc/2007:5.0.0:train[3:4]", ["03"]),
            ("voc/2007:train[6:6]+mine:train", ["train-000000"]),
        ],
    )
    def test_records(self, root, split, ids):
        source = TfdsSource(root, split, VOC_CLASSES)
        assert [source.annotation(i).image_id for i in range(len(source))] == ids

    def test_names_that_two_records_have(self, root):
        source = TfdsSource(root, "voc/2007:test+voc/2007:train[8:]", VOC_CLASSES)
        ids = [source.annotation(i).image_id for i in range(len(source))]
        assert ids == [
            *("voc-2007-test-0-08", "voc-2007-test-1-09", "10"),
            *("voc-2007-train-8-08", "voc-2007-train-9-09"),
        ]

    def test_each_record_keeps_its_own_objects_and_image(self, tmp_path):
        images = [jpeg(np.full((80, 100 + k, 3), 10 * k, np.uint8)) for k in range(5)]
        labels = ["cat", "dog", "cow", "bus", "car"]
        records = [
            voc_record(str(k), *[voc_object(labels[k])] * k, image=images[k]) for k in range(5)
        ]
        make_tfds(tmp_path, {"train": records}, per_shard=2)
        source = TfdsSource(
            str(tmp_path), "voc/2007:train[3:]+voc/2007:train[1:2]+voc/2007:train", VOC_CLASSES
        )
        assert [source.annotation(i).image_id for i in range(5)] == list("34102")
        for i in range(5):
            k = int(source.annotation(i).image_id)
            assert source.annotation(i).labels.tolist() == [VOC_CLASSES.index(labels[k])] * k
            assert source.annotation(i).width == 100 + k
            assert source.image(i).shape == (80, 100 + k, 3)
            assert abs(int(source.image(i).mean()) - 10 * k) <= 1

    @pytest.mark.parametrize(
        ("split", "match"),
        [
            ("train", r"has 'train'; TFDS's datasets need NAME:SPLIT, e\.g\. voc/2007:train"),
            ("voc/2007:train+test", "has 'test'; TFDS's datasets need"),
            ("voc/2007:", "has 'voc/2007:'; TFDS's datasets need"),
            ("", "has ''; TFDS's datasets need"),
            ("voc/2007:val", r"Unknown split 'val'.*; the splits of voc/2007 are train, test"),
            ("voc/2007:train[:99]", "has 'voc/2007:train\\[:99\\]': Requested slice .* 10 ex"),
            ("voc/2007:train[:", "Error parsing split"),
        ],
    )
    def test_invalid_split(self, root, split, match):
        with pytest.raises(ConfigError, match=match) as error:
            TfdsSource(root, split, VOC_CLASSES)
        assert "\n" not in str(error.value)

    def test_empty_split(self, root):
        with pytest.raises(DataError, match=r"split 'voc/2007:train\[4:4\]' has no record"):
            TfdsSource(root, "voc/2007:train[4:4]", VOC_CLASSES)

    def test_sequence_protocol(self, root):
        source = TfdsSource(root, "voc/2007:test", VOC_CLASSES)
        assert [e.image_id for e in source] == ["08", "09", "10"]  # ends with an IndexError
        with pytest.raises(IndexError):
            source.image(3)

    def test_missing_dataset(self, root, monkeypatch):
        with pytest.raises(DataError) as error:
            TfdsSource(root, "voc/2012:train", VOC_CLASSES)
        assert str(error.value) == (
            f"voc/2012 is not prepared in {root}; run ssd-jax data prepare voc/2012 --root {root}"
        )
        monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
        with pytest.raises(DataError) as error:
            TfdsSource("", "coco/2017:train", VOC_CLASSES)
        assert str(error.value) == (
            "coco/2017 is not prepared in /nowhere; run ssd-jax data prepare coco/2017"
        )


class TestFields:
    FIELDS = TfdsFields(
        image="photo/pixels",
        boxes="boxes",
        labels="faces/kind",
        difficult="faces/hard",
        crowd="faces/is_group_of",
    )

    def features(self) -> dict:
        faces = {"kind": F.ClassLabel(names=CLASSES), "hard": np.bool_, "is_group_of": np.int64}
        return {
            "photo": {"pixels": F.Image(), "author": F.Text()},
            "boxes": F.Sequence(F.BBoxFeature()),
            "faces": F.Sequence(faces),
            "fixed": F.BBoxFeature(),
            "absolute": F.Sequence(F.BBoxFeature(bbox_format="REL_XYXY")),
        }

    def make(self, root: Path) -> None:
        box = F.BBox(0.25, 0.1, 0.75, 1.0)
        record = {
            "photo": {"pixels": jpeg(), "author": "me"},
            "boxes": [box, box],
            "faces": [
                {"kind": "dog", "hard": True, "is_group_of": 0},
                {"kind": "cat", "hard": False, "is_group_of": 1},
            ],
            "fixed": box,
            "absolute": [box],
        }
        make_tfds(root, {"train": [record]}, name="mine/big", features=self.features())

    def test_data_set_with_other_feature_names(self, tmp_path):
        self.make(tmp_path)
        config = DataConfig(
            format="tfds", root=str(tmp_path), train_split="mine/big:train", tfds=self.FIELDS
        )
        source = open_source(config, config.train_split, find_classes(config, ()))
        annotation = source.annotation(0)
        assert annotation.boxes_px.tolist() == [[10, 20, 100, 60]] * 2
        assert annotation.labels.tolist() == [1, 0]
        assert annotation.difficult.tolist() == [True, True]
        assert annotation.crowd.tolist() == [False, True]
        assert source.image(0).shape == (80, 100, 3)

    def test_marks_may_be_absent(self, tmp_path):
        self.make(tmp_path)
        names = {"image": "photo/pixels", "boxes": "boxes", "labels": "faces/kind"}
        for fields in (TfdsFields(**names), TfdsFields(**names, difficult="", crowd="")):
            annotation = TfdsSource(str(tmp_path), "mine/big:train", CLASSES, fields).annotation(0)
            assert annotation.difficult.tolist() == annotation.crowd.tolist() == [False, False]

    @pytest.mark.parametrize(
        ("field", "name", "match"),
        [
            ("image", "image", "the images of mine/big/5.0.0 are photo/pixels: name one"),
            ("image", "photo", "the images of mine/big/5.0.0 are photo/pixels"),
            ("boxes", "fixed", "the sequences of boxes of .* are absolute, boxes: name one"),
            ("labels", "faces/hard", "the sequences of classes of .* are faces/kind: name one"),
            ("difficult", "faces/soft", "are absolute, boxes, faces/hard, faces/is_group_of, "),
            ("crowd", "photo/author", "the sequences of mine/big/5.0.0 are"),
            ("boxes", "absolute", "boxes are REL_XYXY; only TFDS's usual REL_YXYX"),
        ],
    )
    def test_invalid_feature_name(self, tmp_path, field, name, match):
        self.make(tmp_path)
        names = {f: getattr(self.FIELDS, f) for f in ("image", "boxes", "labels")} | {field: name}
        for read in (
            lambda fields: TfdsSource(str(tmp_path), "mine/big:train", CLASSES, fields),
            lambda fields: tfds_classes(str(tmp_path), "mine/big:train", fields),
        ):
            with pytest.raises(ConfigError, match=match) as error:
                read(TfdsFields(**names))
            assert str(error.value).startswith(f"data.tfds.{field} is {name!r}")

    def test_boxes_of_an_unknown_format_must_be_fractions(self, tmp_path):
        features = plain_features()
        features["objects"] = F.Sequence(
            {"bbox": F.BBoxFeature(bbox_format=None), "label": F.ClassLabel(names=CLASSES)}
        )
        make_tfds(
            tmp_path,
            {
                "train": [plain_record(plain_object())],
                "test": [
                    plain_record(plain_object()),
                    plain_record(plain_object(box=(1, 2, 30, 40)), plain_object()),
                ],
            },
            name="mine",
            features=features,
        )
        assert len(TfdsSource(str(tmp_path), "mine:train", CLASSES)) == 1
        with pytest.raises(
            DataError, match=r"test\[1\] cannot be read \(a box outside of \[0, 1\]"
        ):
            TfdsSource(str(tmp_path), "mine:test", CLASSES)

    def test_boxes_and_labels_of_different_number(self, tmp_path):
        features = {
            "image": F.Image(),
            "boxes": F.Sequence(F.BBoxFeature()),
            "labels": F.Sequence(F.ClassLabel(names=CLASSES)),
        }
        record = {"image": jpeg(), "boxes": [F.BBox(0.0, 0.0, 1.0, 1.0)], "labels": [0, 1]}
        make_tfds(tmp_path, {"train": [record]}, name="mine", features=features)
        fields = TfdsFields(boxes="boxes", labels="labels")
        with pytest.raises(DataError, match=r"train\[0\] cannot be read \(1 boxes, 2 labels\)"):
            TfdsSource(str(tmp_path), "mine:train", CLASSES, fields)


class TestProcesses:
    def test_pickled(self, tmp_path):
        source = open_one(tmp_path, voc_object())
        source.image(0)  # with an open reader
        copy = pickle.loads(pickle.dumps(source))
        assert copy.classes == source.classes
        assert_same(copy, source)

    def test_neither_tensorflow_nor_jax_is_imported(self, tmp_path):
        open_one(tmp_path, voc_object())
        program = (
            "import sys\n"
            "from ssd_jax.config import DataConfig\n"
            "from ssd_jax.data.sources import find_classes, open_source\n"
            "assert 'tensorflow_datasets' not in sys.modules\n"
            "data = DataConfig(format='tfds', root=sys.argv[1], train_split='voc/2007:train')\n"
            "source = open_source(data, data.train_split, find_classes(data, ()))\n"
            "print(source[0].image.shape, *(m in sys.modules for m in ('tensorflow', 'jax')))\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert done.stdout == "(80, 100, 3) False False\n", done.stderr
        assert done.stderr == ""
