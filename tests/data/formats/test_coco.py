"""COCO's annotation files made by hand, and real ones where they are at hand."""

import json
import pickle
import re
import time

import numpy as np
import pytest

from ssd_jax.config import DataConfig
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco import CocoSource, coco_classes
from ssd_jax.data.formats.coco_json import read_instances
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.pipeline import train_batches
from tests.data.folders import CLASSES, make_coco, write_image

DOG, CAT = 7, 3
BOX = (10, 20, 40, 40)


class TestCocoJson:
    def test_boxes_are_corners_in_continuous_pixels(self, tmp_path):
        boxes = [(2, DOG, (10.5, 20, 39.25, 40)), (2, CAT, (0, 0, 100, 80))]
        source = CocoSource(make_coco(tmp_path, boxes=boxes), "train", CLASSES)
        annotation = source.annotation(1)
        assert annotation.boxes_px.tolist() == [[10.5, 20, 49.75, 60], [0, 0, 100, 80]]
        assert annotation.boxes_px.dtype == np.float32
        assert annotation.labels.tolist() == [1, 0]  # the order of CLASSES, not of the ids
        assert annotation.labels.dtype == np.int32
        assert annotation.difficult.dtype == annotation.crowd.dtype == bool
        assert (annotation.image_id, annotation.width, annotation.height) == ("2", 100, 80)
        example = source[1]
        np.testing.assert_allclose(example.boxes[0], [0.105, 0.25, 0.4975, 0.75])
        assert example.boxes.dtype == np.float32
        assert example.image.shape == (80, 100, 3)

    def test_images_without_objects_are_kept(self, tmp_path):
        source = CocoSource(make_coco(tmp_path), "train", CLASSES)
        assert len(source) == 2
        example = source[0]
        assert example.boxes.shape == (0, 4)
        assert example.boxes.dtype == np.float32
        assert example.labels.shape == example.difficult.shape == example.crowd.shape == (0,)

    def test_labels_follow_the_order_of_classes(self, tmp_path):
        root = make_coco(tmp_path, boxes=[(1, DOG, BOX), (1, CAT, BOX)])
        source = CocoSource(root, "train", ("bird", "dog", "cat"))
        assert source.annotation(0).labels.tolist() == [1, 2]

    def test_crowd_is_difficult(self, tmp_path):
        boxes = [(1, DOG, BOX, {"iscrowd": k}) for k in (1, 0)] + [(1, DOG, BOX)]
        annotation = CocoSource(make_coco(tmp_path, boxes=boxes), "train", CLASSES).annotation(0)
        assert annotation.crowd.tolist() == annotation.difficult.tolist() == [True, False, False]

    def test_boxes_are_clipped_to_the_image(self, tmp_path):
        findings = []
        root = make_coco(tmp_path, boxes=[(1, DOG, (-5, 70, 120, 20))])
        source = CocoSource(root, "train", CLASSES, findings.append)
        assert source.annotation(0).boxes_px.tolist() == [[0, 70, 100, 80]]
        assert [finding.kind for finding in findings] == ["outside"]

    @pytest.mark.parametrize("box", [(5, 5, 0, 9), (5, 5, 9, -1), (100, 5, 9, 9), (5, -9, 9, 9)])
    def test_boxes_without_area_are_skipped(self, tmp_path, box):
        root = make_coco(tmp_path, boxes=[(1, DOG, box), (1, CAT, BOX)])
        findings = []
        source = CocoSource(root, "train", CLASSES, findings.append)
        assert source.annotation(0).labels.tolist() == [0]
        (finding,) = findings
        assert finding.kind == "no_area"
        assert "instances_train.json: annotation 11 on 1.jpg, dog (" in finding.message

    @pytest.mark.parametrize("folder", ["train", "images/train", "images", "JPEGImages"])
    def test_images_are_found(self, tmp_path, folder):
        for other in ("train", "images/train", "images", "JPEGImages"):
            (tmp_path / other).mkdir(parents=True, exist_ok=True)
        source = CocoSource(make_coco(tmp_path, folder=tmp_path / folder), "train", CLASSES)
        assert source.image(1).shape == (80, 100, 3)

    def test_folder_with_the_most_images_is_taken(self, tmp_path):
        """A folder of the right name that holds something else hides nothing."""
        make_coco(tmp_path, folder=tmp_path / "JPEGImages")
        (tmp_path / "train").mkdir()
        write_image(tmp_path / "train/1.jpg", np.zeros((8, 8, 3), np.uint8))
        assert CocoSource(tmp_path, "train", CLASSES).image(0).shape == (80, 100, 3)

    def test_annotation_files_may_have_a_plain_name(self, tmp_path):
        file = make_coco(tmp_path) / "annotations/instances_train.json"
        assert len(CocoSource(tmp_path, "instances_train", CLASSES)) == 2
        file.rename(file.with_name("train.json"))
        assert len(CocoSource(tmp_path, "train", CLASSES)) == 2

    def test_splits_are_joined_and_ids_stay_distinct(self, tmp_path):
        make_coco(tmp_path, "one", boxes=[(1, DOG, BOX)])
        make_coco(tmp_path, "two", images=[2, 3], boxes=[(2, CAT, BOX)])
        source = CocoSource(tmp_path, "one+two + one", CLASSES)
        annotations = [source.annotation(i) for i in range(len(source))]
        assert [k.image_id for k in annotations] == ["1", "one-2-2", "two-2-2", "3"]
        assert [k.labels.tolist() for k in annotations] == [[1], [], [0], []]

    def test_ids_may_be_text(self, tmp_path):
        size = {"width": 100, "height": 80}
        images = [{"id": "x", "file_name": "1.jpg", **size}]
        root = make_coco(tmp_path, boxes=[("x", DOG, BOX)])
        path = root / "annotations/instances_train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))
        assert CocoSource(root, "train", CLASSES).annotation(0).labels.tolist() == [1]

    def test_can_be_pickled(self, tmp_path):
        source = CocoSource(make_coco(tmp_path, boxes=[(1, DOG, BOX)]), "train", CLASSES)
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[0].boxes, source[0].boxes)

    def test_classes_are_in_the_order_of_their_ids(self, tmp_path):
        make_coco(tmp_path, "one")
        categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}]
        make_coco(tmp_path, "two").joinpath("annotations/instances_two.json").write_text(
            json.dumps({"images": [], "annotations": [], "categories": categories})
        )
        assert coco_classes(tmp_path, "one") == ("cat", "dog")
        assert coco_classes(tmp_path, "one+two") == ("cat", "dog", "ant")


IMAGE = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 80}
OBJECT = {"id": 11, "image_id": 1, "category_id": DOG, "bbox": list(BOX)}
CATEGORY = {"id": DOG, "name": "dog"}


def less(record, key):
    return {k: v for k, v in record.items() if k != key}


class TestErrors:
    """Each message is one line that names the file, the record and what to change."""

    def check(self, match, root, split="train"):
        with pytest.raises(DataError, match=match) as caught:
            CocoSource(root, split, CLASSES)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            *(
                ({"images": [less(IMAGE, key)]}, rf"image 1 has no {key}; add it")
                for key in ("file_name", "width", "height")
            ),
            *(
                ({"annotations": [less(OBJECT, key)]}, rf"annotation 11 has no {key}; add it")
                for key in ("image_id", "category_id", "bbox")
            ),
            ({"images": [less(IMAGE, "id")]}, r"images\[0\] has no id"),
            ({"images": ["1.jpg"]}, r"images\[0\] is '1\.jpg'; write an object"),
            ({"annotations": [less(OBJECT, "id")]}, r"annotations\[0\] has no id"),
            ({"annotations": [OBJECT | {"id": None}]}, r"annotations\[0\] has id None; write"),
            ({"categories": [less(CATEGORY, "name")]}, r"category 7 has no name; add it"),
            ({"categories": [CATEGORY | {"name": " "}]}, r"category 7 has the name ' '; write"),
            ({"categories": [CATEGORY | {"id": "d"}]}, r"category 'd' has an id that is not a wh"),
            ({"categories": [CATEGORY, CATEGORY]}, r"has the id of another category, 7"),
            ({"categories": [CATEGORY, CATEGORY | {"id": 8}]}, r"category 8 has the name of an"),
            ({"categories": []}, r"has no category; list"),
            ({"images": [IMAGE, IMAGE]}, r"has the id of another image, 1; remove one"),
            (
                {"images": [IMAGE, IMAGE | {"id": 2}]},
                r"image 2 is .*1\.jpg, which is image train-1",
            ),
            ({"images": []}, r"split 'train' has no image; name another"),
            ({"images": [IMAGE | {"width": 0}]}, r"image 1 has 0x80 pixels; write whole"),
            ({"images": [IMAGE | {"height": 8.5}]}, r"image 1 has 100x8\.5 pixels; write whole"),
            ({"images": [IMAGE | {"width": "100"}]}, r"image 1 has width '100'; write a number"),
            (
                {"images": [IMAGE | {"file_name": "../1.jpg"}]},
                r"image 1 has file_name '\.\./1\.jpg'",
            ),
            ({"images": [IMAGE | {"file_name": "/1.jpg"}]}, r"image 1 has file_name '/1\.jpg'; wr"),
            ({"images": [IMAGE | {"file_name": 5}]}, r"image 1 has file_name 5; write it"),
            (
                {"images": [IMAGE | {"file_name": "9.jpg"}]},
                r"9\.jpg is missing, image 1 of .*\(1 of 1",
            ),
            ({"annotations": [OBJECT, OBJECT]}, r"has the id of another annotation, 11; remove"),
            (
                {"annotations": [OBJECT | {"image_id": 9}]},
                r"annotation 11 has image_id 9, which no",
            ),
            ({"annotations": [OBJECT | {"image_id": []}]}, r"11 has image_id \[\], which no"),
            ({"annotations": [OBJECT | {"category_id": 1}]}, r"11 has category_id 1, which no cat"),
            ({"annotations": [OBJECT | {"iscrowd": 2}]}, r"11 has iscrowd 2; write 0 or 1"),
            ({"annotations": [OBJECT | {"bbox": [1, 2, 3]}]}, r"11 has bbox \[1, 2, 3\]; write \["),
            *(
                ({"annotations": [OBJECT | {"bbox": [1, value, 3, 4]}]}, rf"in its bbox {text}; wr")
                for value, text in [
                    (float("nan"), "nan"),
                    (float("inf"), "inf"),
                    ("2", "'2'"),
                    (None, "None"),
                    (True, "True"),
                ]
            ),
            (
                {"categories": [CATEGORY | {"name": "Dog"}], "annotations": [OBJECT]},
                r"has class 'Dog'.*write it as 'dog': names are case-sensitive",
            ),
        ],
    )
    def test_invalid_record(self, tmp_path, changes, match):
        root = make_coco(tmp_path)
        path = root / "annotations/instances_train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        self.check(match, root)

    @pytest.mark.parametrize("area", [float("nan"), float("inf"), -1, "1", [1], True, 10**20])
    def test_invalid_area(self, tmp_path, area):
        """The evaluation of files refuses it by the same rule."""
        root = make_coco(tmp_path, boxes=[(1, 7, (10, 20, 30, 40), {"area": area})])
        match = rf"annotation 11 has area {re.escape(repr(area))}; write a number of square pixels"
        self.check(match, root)
        with pytest.raises(DataError, match=match.replace("annotation 11", r"annotations\[0\]")):
            read_instances(root / "annotations/instances_train.json")

    @pytest.mark.parametrize("area", [{}, {"area": None}, {"area": 0}, {"area": 0.0}])
    def test_missing_area_is_that_of_the_box(self, tmp_path, area):
        """The box's area counts."""
        root = make_coco(tmp_path, boxes=[(1, 7, (10, 20, 30, 40), area)])
        assert CocoSource(root, "train", CLASSES).annotation(0).area.tolist() == [1200]
        instances = read_instances(root / "annotations/instances_train.json")
        assert instances.annotations[0][3] == 1200

    def test_many_categories(self, tmp_path):
        categories = [{"id": k, "name": f"kind {k}"} for k in range(40_000)]
        root = make_coco(tmp_path, categories=categories, boxes=[(1, 7, (10, 20, 40, 40))])
        started = time.perf_counter()
        assert len(coco_classes(root, "train")) == 40_000
        assert time.perf_counter() - started < 5

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("{", r"instances_train\.json is not usable JSON: "),
            ("\xff", r"instances_train\.json is not usable JSON: "),
            ("[]", r"instances_train\.json has no list of images; it must have"),
            ('{"images": [], "annotations": {}}', r"has no list of annotations; it must"),
        ],
    )
    def test_invalid_file(self, tmp_path, text, match):
        root = make_coco(tmp_path)
        (root / "annotations/instances_train.json").write_text(text, encoding="latin-1")
        self.check(match, root)

    def test_missing_folder(self, tmp_path):
        self.check(r"data\.root .*nowhere is not a folder", tmp_path / "nowhere")
        self.check(r"annotations is missing; data\.root must be", tmp_path)

    def test_missing_split(self, tmp_path):
        root = make_coco(tmp_path)
        (root / "annotations/captions_train.json").write_text("{}")
        self.check(r"instances_val\.json is missing; the splits .* are train$", root, "train+val")

    def test_missing_images(self, tmp_path):
        root = make_coco(tmp_path)
        (root / "train").rename(root / "pictures")
        self.check(r"no folder of images .* put them in train, images/train, images, JPEG", root)

    def test_image_size_differs_from_the_annotation(self, tmp_path):
        root = make_coco(tmp_path)
        write_image(root / "train/1.jpg", np.zeros((100, 80, 3), np.uint8))
        source = CocoSource(root, "train", CLASSES)
        with pytest.raises(DataError, match=r"1\.jpg has 80x100 .* annotation says 100x80; fix"):
            source.image(0)


class TestCocoMini:
    """158 real images, whose VOC form was derived from the JSON by rounding outwards."""

    @pytest.mark.parametrize(
        ("split", "images", "boxes", "crowds", "present"),
        [("trainval", 92, 829, 9, 67), ("test", 66, 560, 8, 62)],
    )
    def test_voc_and_coco_versions_agree(self, shared_data, split, images, boxes, crowds, present):
        root = shared_data / "coco-mini"
        classes = coco_classes(root, "trainval")
        assert len(classes) == 80
        assert (classes[0], classes[11], classes[79]) == ("person", "stop sign", "toothbrush")
        findings = []
        coco = CocoSource(root, split, classes, findings.append)
        voc = VocSource(root, split, classes)
        assert len(coco) == len(voc) == images
        assert "no_area" not in [finding.kind for finding in findings]
        annotations = {a.image_id: a for a in map(voc.annotation, range(images))}
        assert len(annotations) == images
        labels, crowd = [], 0
        for i in range(images):
            one = coco.annotation(i)
            two = annotations[one.image_id]
            assert (one.width, one.height) == (two.width, two.height)
            np.testing.assert_array_equal(one.labels, two.labels)
            np.testing.assert_array_equal(one.crowd, two.difficult)
            np.testing.assert_array_equal(one.difficult, two.difficult)
            # Floor and ceil, after a float32: the VOC box holds the other one.
            outside = (two.boxes_px - one.boxes_px) * np.array([-1, -1, 1, 1], np.float32)
            assert ((outside > -1e-3) & (outside < 1)).all()
            labels += one.labels.tolist()
            crowd += int(one.crowd.sum())
        assert (len(labels), crowd, len(set(labels))) == (boxes, crowds, present)
        for i in range(0, images, 20):
            assert coco[i].boxes.max(initial=0) <= 1

    def test_training_has_all_objects_but_the_crowds(self, shared_data):
        root = str(shared_data / "coco-mini")
        source = CocoSource(root, "trainval", coco_classes(root, "trainval"))
        data = DataConfig(format="coco", root=root, augment="none", max_objects=100)
        with train_batches(
            source, data, image_size=32, mean=(0, 0, 0), batch_size=46, seed=0
        ) as batches:
            assert sum(int(next(batches)["mask"].sum()) for _ in range(2)) == 829 - 9
