"""Sources by their config, generated shapes, and real data where it is at hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.synthetic import MAX_SHAPES, MIN_VISIBLE, SHAPES, lay_out_scene
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.sources import DataError, SyntheticSource, find_classes, open_source
from ssd_jax.data.tfds.source import TfdsSource
from tests.data.folders import CLASSES, make_coco, make_folder, write_object, write_xml
from tests.data.tfds_sets import make_tfds, voc_object, voc_record


def voc_config(root: Path, **fields) -> DataConfig:
    return DataConfig(format="voc", root=str(root), train_split="train", **fields)


class TestFindClasses:
    def test_config_classes_take_precedence(self, tmp_path):
        config = voc_config(tmp_path / "nowhere", class_file="nowhere")
        assert find_classes(config, ("b", "a")) == ("b", "a")

    def test_class_file(self, tmp_path):
        (tmp_path / "names.txt").write_text("\ufeffdog\n\n cat \n", encoding="utf-8")
        config = voc_config(tmp_path, class_file=str(tmp_path / "names.txt"))
        assert find_classes(config, ()) == ("dog", "cat")

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (None, r"data\.class_file .*names\.txt cannot be read \(No such file"),
            ("\n \n", r"data\.class_file .*names\.txt is empty"),
            ("cat\ndog\ncat\n", r"data\.class_file .*names\.txt has cat twice"),
        ],
    )
    def test_class_file_that_cannot_be_used(self, tmp_path, text, match):
        path = tmp_path / "names.txt"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            find_classes(voc_config(tmp_path, class_file=str(path)), ())

    def test_classes_of_the_training_annotations(self, tmp_path):
        objects = [write_xml(write_object(name)) for name in ("dog", "cat", "dog", "bird")]
        root = make_folder(tmp_path, dict(zip("abcd", objects, strict=True)))
        (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
        assert find_classes(voc_config(root), ()) == ("cat", "dog")

    def test_nothing_to_find(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        with pytest.raises(DataError, match=r"has no object in split 'train'; name the classes"):
            find_classes(voc_config(root), ())

    def test_devkit(self, tmp_path):
        make_folder(tmp_path / "VOC2007", {"a": write_xml(write_object("dog"))})
        config = DataConfig(format="voc", root=str(tmp_path), train_split="2007:train")
        assert find_classes(config, ()) == ("dog",)

    def test_categories_of_coco(self, tmp_path):
        config = DataConfig(format="coco", root=str(make_coco(tmp_path)), train_split="train")
        assert find_classes(config, ()) == ("cat", "dog")
        assert find_classes(config, ("dog",)) == ("dog",)

    def test_classes_of_shapes(self):
        assert find_classes(DataConfig(), ()) == SHAPES


class TestOpenSource:
    def test_voc(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())})
        source = open_source(voc_config(root), "train", CLASSES)
        assert isinstance(source, VocSource)
        assert source.classes == CLASSES

    def test_coco(self, tmp_path):
        config = DataConfig(format="coco", root=str(make_coco(tmp_path)), train_split="train")
        source = open_source(config, "train", CLASSES)
        assert isinstance(source, CocoSource)
        assert source.classes == CLASSES

    def test_shapes(self):
        source = open_source(DataConfig(), "test:7", SHAPES)
        assert len(source) == 7
        assert source.annotation(3).image_id == "test-000003"

    def test_tfds(self, tmp_path):
        make_tfds(tmp_path, {"train": [voc_record("a", voc_object("dog"))]})
        config = DataConfig(format="tfds", root=str(tmp_path), train_split="voc/2007:train")
        source = open_source(config, "voc/2007:train", CLASSES)
        assert isinstance(source, TfdsSource)
        assert source.classes == CLASSES
        assert source.annotation(0).labels.tolist() == [1]

    @pytest.mark.parametrize("split", ["train", "train:", ":5", "train:0", "train:-3", "a:b"])
    def test_invalid_split(self, split):
        config = DataConfig(train_split=split)
        with pytest.raises(ConfigError, match=r"data\.train_split is .* need NAME:COUNT"):
            open_source(config, split, SHAPES)
        with pytest.raises(ConfigError, match=r"data\.eval_split is"):
            open_source(DataConfig(eval_split=split), split, SHAPES)

    def test_other_classes_than_the_shapes(self):
        with pytest.raises(ConfigError, match=r"model\.classes is \('cat', 'dog'\); generated"):
            open_source(DataConfig(), "train:5", CLASSES)


class TestShapes:
    def test_scene_depends_on_stream_and_index_only(self):
        few, many, other = (
            SyntheticSource(5, "train"),
            SyntheticSource(50, "train"),
            SyntheticSource(5, "test"),
        )
        for i in (4, 0, 2):
            again = many[i]
            np.testing.assert_array_equal(few[i].image, again.image)
            np.testing.assert_array_equal(few[i].boxes, again.boxes)
            assert not np.array_equal(few[i].image, other[i].image)
        np.testing.assert_array_equal(few.image(1), few[1].image)
        assert not np.array_equal(few.image(1), few.image(2))

    def test_examples_keep_the_contract(self):
        source = SyntheticSource(60, "train")
        seen = set()
        for example in source:  # ends with an IndexError, as sequences do
            assert example.image.shape == (200, 200, 3)
            assert example.image.dtype == np.uint8
            assert example.boxes.dtype == np.float32
            assert example.labels.dtype == np.int32
            assert 1 <= len(example.boxes) == len(example.labels) <= MAX_SHAPES
            assert (example.boxes >= 0).all()
            assert (example.boxes <= 1).all()
            assert (example.boxes[:, 2:] > example.boxes[:, :2]).all()
            seen.update(example.labels.tolist())
        assert seen == set(range(len(SHAPES)))

    def test_boxes_are_tight(self):
        """Against each object drawn alone, at 16 times the resolution."""
        size, fine = 120, 16
        worst, cut = 0.0, 0
        for index in range(60):
            scene = lay_out_scene("train", index, size)
            for outline, box in zip(scene.outlines, scene.boxes_px, strict=True):
                mask = np.zeros((size * fine, size * fine), np.uint8)
                cv2.fillPoly(mask, [np.round(outline * fine).astype(np.int32)], 1)
                x, y, w, h = cv2.boundingRect(mask)
                drawn = np.array([x, y, x + w, y + h]) / fine
                worst = max(worst, np.abs(drawn - box).max())
                cut += (box.min() == 0) or (box.max() == size)
        assert worst <= 3 / fine
        assert cut >= 10  # some are cut by the border: the test has seen them

    def test_image_shows_the_object_where_its_box_is(self):
        """The pixels that the last object changes are those of its box, to a pixel."""
        from ssd_jax.data.formats.synthetic import Scene, draw_scene

        for index in range(20):
            scene = lay_out_scene("train", index, 120)
            n = len(scene.outlines) - 1
            without = Scene(120, scene.outlines[:n], scene.boxes_px[:n], scene.labels[:n], (0, 0))
            alone = Scene(120, scene.outlines, scene.boxes_px, scene.labels, (0, 0))
            # Grain differs after a different number of draws; the object differs by far more.
            change = np.abs(draw_scene(alone).astype(int) - draw_scene(without)).max(2) > 40
            x, y, w, h = cv2.boundingRect(change.astype(np.uint8))
            np.testing.assert_allclose([x, y, x + w, y + h], scene.boxes_px[n], atol=2)

    def test_no_object_is_hidden(self):
        shares = []
        for index in range(100):
            scene = lay_out_scene("test", index, 200)
            owner = np.zeros((200, 200), np.uint8)
            areas = []
            for k, outline in enumerate(scene.outlines):
                cv2.fillPoly(owner, [np.round(outline - 0.5).astype(np.int32)], k + 1)
                areas.append((owner == k + 1).sum())
            shares += [(owner == k + 1).sum() / area for k, area in enumerate(areas)]
        assert min(shares) > MIN_VISIBLE - 0.1  # decided at a quarter of the resolution
        assert min(shares) < 0.8  # and some are covered in part

    def test_index_past_the_end(self):
        with pytest.raises(IndexError):
            SyntheticSource(5, "train").annotation(5)


class TestAutoFormat:
    def open(self, root: Path, split="train"):
        config = DataConfig(format="auto", root=str(root), train_split=split)
        return open_source(config, split, find_classes(config, ()))

    def test_voc(self, tmp_path):
        source = self.open(make_folder(tmp_path, {"a": write_xml(write_object("dog"))}))
        assert isinstance(source, VocSource)
        assert source.classes == ("dog",)

    def test_devkit(self, tmp_path):
        make_folder(tmp_path / "VOC2012", {"a": write_xml(write_object())})
        assert isinstance(self.open(tmp_path, "2012:train"), VocSource)

    # Images in a folder of VOC's name make no VOC of it.
    @pytest.mark.parametrize("images", ["train", "JPEGImages"])
    def test_coco(self, tmp_path, images):
        source = self.open(make_coco(tmp_path, folder=tmp_path / images))
        assert isinstance(source, CocoSource)
        assert source.classes == ("cat", "dog")

    def test_both(self, tmp_path):
        make_coco(make_folder(tmp_path, {"a": write_xml(write_object())}))
        match = (
            f"data.format is auto, and data.root {tmp_path} has VOC's Annotations and COCO's "
            "annotations; set data.format to voc or coco"
        )
        with pytest.raises(ConfigError, match=f"^{match}$"):
            self.open(tmp_path)

    @pytest.mark.parametrize("part", ["JPEGImages", "annotations", "VOC2007", "train"])
    def test_neither(self, tmp_path, part):
        (tmp_path / part).mkdir()
        with pytest.raises(
            DataError, match=rf"data\.root {tmp_path} is neither VOC's .* nor COCO's"
        ):
            self.open(tmp_path)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(DataError, match="is not a folder that can be read"):
            self.open(tmp_path / "nowhere")

    def test_error_names_the_missing_part_of_the_layout(self, tmp_path):
        (tmp_path / "Annotations").mkdir()
        with pytest.raises(DataError, match="JPEGImages is missing"):
            self.open(tmp_path)


class TestRealData:
    @pytest.mark.parametrize(
        ("name", "split", "images", "objects", "skipped"),
        [
            ("bccd", "trainval", 292, 3943 - 2, 2),
            ("bccd", "test", 72, 945, 0),
            ("voc-mini", "trainval", 192, 521 + 51, 0),
            ("voc-mini", "test", 160, 416 + 57, 0),
        ],
    )
    def test_folders(self, shared_data, name, split, images, objects, skipped):
        config = DataConfig(format="voc", root=str(shared_data / name), train_split="trainval")
        classes = find_classes(config, ())
        findings = []
        source = VocSource(config.root, split, classes, findings.append)
        assert len(source) == images
        assert sum(len(source.annotation(i).labels) for i in range(images)) == objects
        assert [finding.kind for finding in findings].count("no_area") == skipped
        assert len(classes) == {"bccd": 3, "voc-mini": 20}[name]
        for i in range(0, images, 20):
            assert source[i].boxes.max() <= 1
