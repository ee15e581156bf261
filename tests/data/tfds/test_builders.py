"""Records that TFDS's builders get from folders."""

from pathlib import Path

import pytest

from ssd_jax.config import ConfigError
from ssd_jax.data.errors import DataError
from ssd_jax.data.tfds.builders import coco_examples, find_splits, voc_examples
from tests.data.folders import make_coco, make_folder, write_object, write_xml
from tests.data.tfds_sets import F, coco_features, make_builder, voc_features

DOG, CAT = 7, 3


def read_voc(root: Path, text: str, name="voc/2007", list_="train") -> dict:
    """The one record of a devkit whose only annotation is `text`."""
    folder = make_folder(root / f"VOC{name[-4:]}", {"a": text})
    (folder / "ImageSets/Main/train.txt").rename(folder / f"ImageSets/Main/{list_}.txt")
    (split,) = find_splits(name, root)
    builder = make_builder(root / "tfds", name, "5.0.0", voc_features())
    ((key, record),) = voc_examples(builder, split)
    assert key == "a"
    return record


def read_coco(root: Path, **content) -> list[dict]:
    make_coco(root, "train2017", **content)
    (split,) = find_splits("coco/2017", root)
    builder = make_builder(root / "tfds", "coco/2017", "1.1.0", coco_features(2))
    return [record for _, record in coco_examples(builder, split)]


class TestFindSplits:
    @pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit/VOC2007", "."])
    def test_voc(self, tmp_path, place):
        folder = make_folder(tmp_path / place, {"a": write_xml()})
        (folder / "ImageSets/Main/val.txt").write_text("a\n")
        (folder / "ImageSets/Main/trainval.txt").write_text("a\n")
        splits = {s.name: s for s in find_splits("voc/2007", tmp_path)}
        assert list(splits) == ["train", "validation"]
        assert splits["validation"].index == folder / "ImageSets/Main/val.txt"
        assert splits["validation"].images == folder / "JPEGImages"

    @pytest.mark.parametrize("place", ["val2017", "images/val2017", "images", "JPEGImages"])
    def test_coco(self, tmp_path, place):
        make_coco(tmp_path, "val2017", folder=tmp_path / place)
        # Its annotations come in one archive with val's, its images in another one.
        (tmp_path / "annotations/instances_train2017.json").write_text("{}")
        splits = {s.name: s for s in find_splits("coco/2017", tmp_path)}
        assert splits["validation"].images == tmp_path / place
        assert ("train" in splits) == (place in ("images", "JPEGImages"))

    def test_image_info_files_of_test_splits(self, tmp_path):
        make_coco(tmp_path, "test2017")
        annotations = tmp_path / "annotations"
        (annotations / "instances_test2017.json").rename(annotations / "image_info_test2017.json")
        assert [s.name for s in find_splits("coco/2017", tmp_path)] == ["test"]

    @pytest.mark.parametrize("name", ["voc/2007", "coco/2017"])
    def test_missing_dataset(self, tmp_path, name):
        (tmp_path / "train2017").mkdir()
        with pytest.raises(DataError, match=rf"--from {tmp_path} has no .*name the folder that "):
            find_splits(name, tmp_path)

    @pytest.mark.parametrize("name", ["voc", "voc/2008", "coco/2017_panoptic", "wider_face"])
    def test_unsupported_datasets(self, tmp_path, name):
        with pytest.raises(ConfigError, match=rf"--from builds voc/2007, .* {name} has to be down"):
            find_splits(name, tmp_path)


class TestVoc:
    def test_record(self, tmp_path):
        marks = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult>"
        text = write_xml(write_object("Dog", (11, 21, 50, 60), marks), write_object("cat"))
        record = read_voc(tmp_path, text)
        assert record["image"] == str(tmp_path / "VOC2007/JPEGImages/a.jpg")
        assert record["image/filename"] == "a.jpg"
        dog, cat = record["objects"]
        assert dog == {
            "label": "dog",
            "pose": "left",
            # As VOC writes them: the source turns them.
            "bbox": F.BBox(21 / 80, 11 / 100, 60 / 80, 50 / 100),
            "is_truncated": True,
            "is_difficult": True,
        }
        assert (cat["pose"], cat["is_truncated"], cat["is_difficult"]) == (
            *("unspecified", False, False),
        )
        assert record["labels"] == ["cat", "dog"]
        assert record["labels_no_difficult"] == ["cat"]

    def test_boxes_are_clipped(self, tmp_path):
        boxes = [(-5, -9, 120, 81), (60, 50, 40, 30)]
        outside, turned = read_voc(tmp_path, write_xml(*(write_object("dog", b) for b in boxes)))[
            "objects"
        ]
        assert outside["bbox"] == F.BBox(0.0, 0.0, 1.0, 1.0)
        assert turned["bbox"] == F.BBox(50 / 80, 60 / 100, 50 / 80, 60 / 100)

    @pytest.mark.parametrize("size", [None, (0, 0)])
    def test_missing_size_is_read_from_the_image(self, tmp_path, size):
        (record,) = read_voc(tmp_path, write_xml(write_object(box=(1, 2, 50, 60)), size=size))[
            "objects"
        ]
        assert record["bbox"] == F.BBox(2 / 80, 1 / 100, 60 / 80, 50 / 100)

    def test_voc2012_test_has_no_annotations(self, tmp_path):
        text = write_xml(write_object())
        assert read_voc(tmp_path / "new", text, "voc/2012", "test")["objects"] == []
        assert len(read_voc(tmp_path / "train", text, "voc/2012")["objects"]) == 1
        assert len(read_voc(tmp_path / "old", text, "voc/2007", "test")["objects"]) == 1

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("<annotation>", "no element found"),
            (write_xml(write_object("unicorn")), "class 'unicorn', which is not one of aeroplane"),
            (write_xml(write_object(box=("x", 1, 2, 3))), "not a number: 'x'"),
            (write_xml(write_object(), size=("x", 2)), "not a number: 'x'"),
        ],
    )
    def test_invalid_annotation(self, tmp_path, text, match):
        with pytest.raises(DataError, match=rf"a\.xml cannot be used: {match}"):
            read_voc(tmp_path, text)

    @pytest.mark.parametrize("file", ["JPEGImages/a.jpg", "Annotations/a.xml"])
    def test_missing_file(self, tmp_path, file):
        folder = make_folder(tmp_path / "VOC2007", {"a": write_xml()})
        (folder / file).unlink()
        (split,) = find_splits("voc/2007", tmp_path)
        builder = make_builder(tmp_path / "tfds", "voc/2007", "5.0.0", voc_features())
        with pytest.raises(DataError, match=rf"{file} (is missing|cannot be used: No such file)"):
            list(voc_examples(builder, split))

    def test_lists(self, tmp_path):
        folder = make_folder(tmp_path, {"a": write_xml(), "b": write_xml()})
        (folder / "ImageSets/Main/train.txt").write_text("\ufeffb  1\n\na -1\n", encoding="utf-8")
        (split,) = find_splits("voc/2007", tmp_path)
        builder = make_builder(tmp_path / "tfds", "voc/2007", "5.0.0", voc_features())
        assert [key for key, _ in voc_examples(builder, split)] == ["b", "a"]


class TestCoco:
    def test_records(self, tmp_path):
        boxes = [
            (2, DOG, (10, 20, 40, 40), {"area": 99.5, "iscrowd": 1, "id": 5}),
            (2, CAT, (-1, 60, 200, 30), {"id": 4}),
        ]
        first, second = read_coco(tmp_path, images=[2, 1], boxes=boxes)
        assert first == {
            "image": str(tmp_path / "train2017/1.jpg"),
            "image/filename": "1.jpg",
            "image/id": 1,
            "objects": [],
        }
        cat, dog = second["objects"]
        assert cat == {
            "id": 4,
            "area": 6000,
            "bbox": F.BBox(60 / 80, 0.0, 1.0, 1.0),
            "label": "cat",
            "is_crowd": False,
        }
        assert (dog["area"], dog["is_crowd"], dog["label"]) == (99.5, True, "dog")

    def test_categories_must_be_those_of_coco(self, tmp_path):
        with pytest.raises(DataError, match=r"has 1 categories and TFDS's coco 2; read your"):
            read_coco(tmp_path, categories=[{"id": 1, "name": "cell"}])

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ({"annotations": [{"image_id": 1}]}, "train2017.json cannot be used: it has no 'id'"),
            ({"categories": 3}, "train2017.json cannot be used: 'int' object is not iterable"),
            ({"boxes": [(1, 99, (1, 2, 3, 4))]}, "image 1 cannot be used: it has no 99"),
            ({"boxes": [(1, DOG, (1, 2, 3))]}, "image 1 cannot be used: not enough values"),
        ],
    )
    def test_invalid_annotations(self, tmp_path, content, match):
        with pytest.raises(DataError, match=match):
            read_coco(tmp_path, **content)

    def test_invalid_json(self, tmp_path):
        make_coco(tmp_path, "train2017")
        (tmp_path / "annotations/instances_train2017.json").write_text("{")
        (split,) = find_splits("coco/2017", tmp_path)
        builder = make_builder(tmp_path / "tfds", "coco/2017", "1.1.0", coco_features(2))
        with pytest.raises(DataError, match=r"train2017\.json cannot be used: Expecting"):
            list(coco_examples(builder, split))

    def test_missing_image(self, tmp_path):
        make_coco(tmp_path, "train2017")
        (tmp_path / "train2017/2.jpg").unlink()
        (split,) = find_splits("coco/2017", tmp_path)
        builder = make_builder(tmp_path / "tfds", "coco/2017", "1.1.0", coco_features(2))
        with pytest.raises(DataError, match=r"train2017/2\.jpg is missing"):
            list(coco_examples(builder, split))
