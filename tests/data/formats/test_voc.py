"""VOC folders and devkits made by hand, and real data where it is at hand."""

import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.voc import VocSource, voc_classes
from tests.data.folders import CLASSES, make_folder, write_image, write_object, write_xml


def open_one(root: Path, text: str | bytes, classes=CLASSES, **more) -> VocSource:
    return VocSource(make_folder(root, {"a": text}), "train", classes, **more)


class TestVocFolder:
    def test_boxes_count_from_one_and_hold_their_last_pixel(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object("dog", (1, 21, 100, 60))))
        annotation = source.annotation(0)
        assert annotation.boxes_px.tolist() == [[0, 20, 100, 60]]
        assert annotation.boxes_px.dtype == np.float32
        assert annotation.labels.tolist() == [1]
        assert annotation.labels.dtype == np.int32
        assert annotation.difficult.dtype == bool
        assert (annotation.image_id, annotation.width, annotation.height) == ("a", 100, 80)
        example = source[0]
        assert example.boxes.dtype == np.float32
        np.testing.assert_allclose(example.boxes, [[0, 0.25, 1, 0.75]])
        assert example.image.shape == (80, 100, 3)
        assert len(source) == 1

    def test_images_are_rgb(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())}, ".png")
        red = np.zeros((80, 100, 3), np.uint8)
        red[..., 2] = 200  # OpenCV writes BGR
        write_image(root / "JPEGImages/a.png", red)
        assert VocSource(root, "train", CLASSES).image(0)[0, 0].tolist() == [200, 0, 0]

    def test_grey_images_become_rgb(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())})
        write_image(root / "JPEGImages/a.jpg", np.full((80, 100), 77, np.uint8))
        image = VocSource(root, "train", CLASSES).image(0)
        assert image.shape == (80, 100, 3)
        assert np.unique(image).tolist() == [77]

    def test_exif_orientation_is_not_applied(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())})
        file = root / "JPEGImages/a.jpg"
        jpeg = file.read_bytes()
        # One big-endian TIFF directory whose only entry says: turn by 90 degrees (6).
        tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        exif = b"Exif\0\0" + tiff
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        file.write_bytes(jpeg[:2] + segment + jpeg[2:])
        assert cv2.imread(str(file)).shape == (100, 80, 3)
        assert VocSource(root, "train", CLASSES).image(0).shape == (80, 100, 3)

    @pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".bmp"])
    def test_images_are_found_by_id(self, tmp_path, suffix):
        root = make_folder(tmp_path, {"a.b": write_xml(write_object())}, suffix)
        assert VocSource(root, "train", CLASSES).image(0).shape == (80, 100, 3)

    def test_optional_fields_may_be_absent(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object(extra=""), size=None))
        annotation = source.annotation(0)
        assert (annotation.width, annotation.height) == (100, 80)
        assert annotation.difficult.tolist() == [False]

    def test_size_zero_is_read_from_the_image(self, tmp_path):
        annotation = open_one(tmp_path, write_xml(write_object(), size=(0, 0))).annotation(0)
        assert (annotation.width, annotation.height) == (100, 80)

    def test_difficult_is_kept(self, tmp_path):
        text = write_xml(
            write_object(extra="<difficult> 1 </difficult>"),
            write_object(extra="<difficult>True</difficult>"),
            write_object(),
        )
        source = open_one(tmp_path, text)
        assert source.annotation(0).difficult.tolist() == [True, True, False]
        assert source[0].difficult.tolist() == [True, True, False]

    def test_coordinates_may_be_fractions(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object(box=("1.5", "2.25", "3.5", "9"))))
        assert source.annotation(0).boxes_px.tolist() == [[0.5, 1.25, 3.5, 9]]

    def test_boxes_of_parts_are_not_objects(self, tmp_path):
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        source = open_one(tmp_path, write_xml(write_object(extra=part)))
        assert len(source.annotation(0).labels) == 1

    def test_image_without_objects(self, tmp_path):
        source = open_one(tmp_path, write_xml())
        example = source[0]
        assert example.boxes.shape == (0, 4)
        assert example.boxes.dtype == np.float32
        assert example.labels.shape == example.difficult.shape == (0,)

    def test_boxes_are_clipped_to_the_image(self, tmp_path):
        findings = []
        xml = write_xml(write_object(box=(-5, 0, 120, 90)))
        source = open_one(tmp_path, xml, on_finding=findings.append)
        assert source.annotation(0).boxes_px.tolist() == [[0, 0, 100, 80]]
        assert [finding.kind for finding in findings] == ["outside"]

    @pytest.mark.parametrize(
        "box", [(30, 10, 30, 20), (10, 30, 20, 30), (40, 10, 30, 20), (101, 5, 120, 9)]
    )
    def test_boxes_without_area_are_skipped(self, tmp_path, box):
        findings = []
        xml = write_xml(write_object("dog", box), write_object())
        source = open_one(tmp_path, xml, on_finding=findings.append)
        assert source.annotation(0).labels.tolist() == [0]
        (finding,) = findings
        assert finding.kind == "no_area"
        assert "a.xml: object 1 (dog) (" in finding.message

    def test_splits_are_joined_and_second_columns_ignored(self, tmp_path):
        root = make_folder(tmp_path, {k: write_xml() for k in "abcd"})
        lists = root / "ImageSets/Main"
        (lists / "one.txt").write_text("c  1\na -1\n\n")
        (lists / "two.txt").write_text("\ufeffa\r\nd\r\n", encoding="utf-8")
        source = VocSource(root, "one+two", CLASSES)
        assert [source.annotation(i).image_id for i in range(len(source))] == ["c", "a", "d"]

    def test_can_be_pickled(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object()))
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[0].image, source[0].image)

    def test_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        make_folder(tmp_path / "mine", {"a": write_xml()})
        assert len(VocSource("~/mine", "train", CLASSES)) == 1


class TestVocErrors:
    """Each message is one line that names the file and what to change."""

    def check(self, match: str, root: Path, split="train", classes=CLASSES):
        with pytest.raises(DataError, match=match) as caught:
            VocSource(root, split, classes)
        assert "\n" not in str(caught.value)

    def test_missing_folder(self, tmp_path):
        self.check(r"data\.root .*nowhere is not a folder", tmp_path / "nowhere")

    @pytest.mark.parametrize("part", ["Annotations", "JPEGImages", "ImageSets/Main"])
    def test_not_a_voc_folder(self, tmp_path, part):
        root = make_folder(tmp_path, {})
        for file in (root / part).iterdir():
            file.unlink()
        (root / part).rmdir()
        self.check(f"{part} is missing; data.root must be the folder", root)

    def test_missing_split(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        (root / "ImageSets/Main/val.txt").write_text("a\n")
        self.check(r"test\.txt is missing; the splits .* are train, val", root, "train+test")

    def test_folder_without_splits(self, tmp_path):
        root = make_folder(tmp_path, {})
        (root / "ImageSets/Main/train.txt").unlink()
        self.check(r"train\.txt is missing.*write one image id per line", root)

    def test_empty_split(self, tmp_path):
        self.check("split 'train' lists no images", make_folder(tmp_path, {}))

    def test_missing_annotation(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        (root / "Annotations/a.xml").unlink()
        self.check(r"a\.xml is missing; add it or remove a from the list", root)

    def test_missing_image(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(), "b": write_xml()})
        (root / "JPEGImages/b.jpg").unlink()
        self.check(r"b\.jpg is missing \(1 of 2 images", root)

    def test_unknown_class(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object("bird"))})
        self.check(r"a\.xml has class 'bird', .* one of cat, dog; add it to model\.classes", root)

    def test_class_of_other_case(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object("Cat"))})
        self.check(r"class 'Cat'.*write it as 'cat': names are case-sensitive", root)

    def test_many_classes_are_not_all_listed(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object("bird"))})
        self.check("c29 and 10 more;", root, classes=tuple(f"c{k}" for k in range(40)))

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("<annotation><object>", r"a\.xml is not a usable annotation: no element found"),
            ("", r"a\.xml is not a usable annotation"),
            ('<?xml version="1.0" encoding="nonsense"?><a/>', r"a\.xml is not a usable"),
            (write_xml(write_object("")), r"a\.xml: object 1 \(no name\) has no <name>"),
            (
                write_xml(write_object(), "<object><name>dog</name></object>"),
                r"a\.xml: object 2 \(dog\) has no <bndbox> with <xmin>",
            ),
            (
                write_xml(write_object(box=(1, 2, "wide", 4))),
                r"a\.xml: object 1 \(cat\) has <xmax> 'wide'; write a number of pixels",
            ),
            *(
                (write_xml(write_object(box=(1, 2, text, 40))), rf"has <xmax> '{text}'; write a")
                for text in ("nan", "inf", "1_0", "\u0661\u0660", "0x10", "1e", "1e9", "")
            ),
            (
                write_xml(write_object(extra="<difficult>maybe</difficult>")),
                r"has <difficult> 'maybe'; write 0 or 1",
            ),
            (write_xml(size=("big", 3)), r"a\.xml: <size> has 'big'; write a number"),
        ],
    )
    def test_invalid_annotation(self, tmp_path, text, match):
        self.check(match, make_folder(tmp_path, {"a": text}))

    @pytest.mark.parametrize("text", ["10", " 10.0 ", "+1e1", "10."])
    def test_accepted_number_formats(self, tmp_path, text):
        root = make_folder(tmp_path, {"a": write_xml(write_object(box=(1, 2, text, 40)))})
        assert VocSource(root, "train", CLASSES).annotation(0).boxes_px.tolist() == [[0, 1, 10, 40]]

    @pytest.mark.parametrize("tags", ["<a>" * 600_000, "<a/>" * 600_000])
    def test_too_many_tags(self, tmp_path, tags):
        root = make_folder(tmp_path, {"a": f"<annotation>{tags}"})
        started = time.perf_counter()
        self.check(r"a\.xml is not a usable annotation: has 600,001 tags; at most 500,000", root)
        assert time.perf_counter() - started < 1

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_entities_are_refused_in_any_encoding(self, tmp_path, encoding):
        text = '<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy">]><annotation>&x;&x;</annotation>'
        root = make_folder(tmp_path, {"a": text.encode(encoding)})
        self.check(r"a\.xml is not a usable annotation: has a DOCTYPE", root)

    @pytest.mark.parametrize("data", [b"", b"no image"])
    def test_invalid_image(self, tmp_path, data):
        source = open_one(tmp_path, write_xml())
        (tmp_path / "JPEGImages/a.jpg").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.jpg is not an image that can be decoded"):
            source.image(0)

    def test_image_deleted_after_opening(self, tmp_path):
        source = open_one(tmp_path, write_xml())
        (tmp_path / "JPEGImages/a.jpg").unlink()
        with pytest.raises(DataError, match=r"a\.jpg cannot be read \(No such file"):
            source.image(0)

    def test_image_size_differs_from_the_annotation(self, tmp_path):
        source = open_one(tmp_path, write_xml(size=(80, 100)))
        with pytest.raises(DataError, match=r"a\.jpg has 100x80 .* annotation says 80x100; fix"):
            source[0]


class TestDevkit:
    def make(self, root: Path) -> Path:
        make_folder(root / "VOC2007", {"a": write_xml(write_object("dog")), "b": write_xml()})
        make_folder(root / "VOC2012", {"b": write_xml(write_object("cat")), "c": write_xml()})
        (root / "VOC2012/ImageSets/Main/val.txt").write_text("c\n")
        return root

    def test_years_are_joined_in_order(self, tmp_path):
        source = VocSource(self.make(tmp_path), "2012:val + 2007:train+2012:train", CLASSES)
        annotations = [source.annotation(i) for i in range(len(source))]
        # One id in two years is two images, and their names say so.
        assert [k.image_id for k in annotations] == ["c", "a", "VOC2007-b", "VOC2012-b"]
        assert [k.labels.tolist() for k in annotations] == [[], [1], [], [0]]

    def test_images_come_from_the_same_year(self, tmp_path):
        root = self.make(tmp_path)
        for year, grey in (("2007", 50), ("2012", 200)):
            image = np.full((80, 100, 3), grey, np.uint8)
            write_image(root / f"VOC{year}/JPEGImages/b.jpg", image)
        source = VocSource(root, "2007:train+2012:train", CLASSES)
        assert [int(source.image(i)[0, 0, 0]) for i in range(4)] == [9, 50, 200, 9]

    def test_classes_of_the_years_named(self, tmp_path):
        root = self.make(tmp_path)
        assert voc_classes(root, "2007:train+2012:train") == ("cat", "dog")
        assert voc_classes(root, "2007:train") == ("dog",)
        assert voc_classes(root, "2012:val") == ()

    @pytest.mark.parametrize(
        ("split", "match"),
        [
            ("2007:train+2008:train", r"VOC2008 is missing; the years .* are 2007, 2012$"),
            ("2007:test", r"VOC2007.*test\.txt is missing; the splits .* are train$"),
            ("train", r"Annotations is missing; data\.root .*name a year: 2007:trainval$"),
            ("2009:train", r"VOC2009.*Annotations is missing; VOC2009 must be the folder"),
        ],
    )
    def test_errors(self, tmp_path, split, match):
        root = self.make(tmp_path)
        if split.startswith("2009"):
            (root / "VOC2009").mkdir()
        with pytest.raises(DataError, match=match) as caught:
            VocSource(root, split, CLASSES)
        assert "\n" not in str(caught.value)

    def test_year_requires_a_devkit(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        with pytest.raises(
            DataError, match=r"VOC2007 is missing; data\.root must be the VOCdevkit"
        ):
            VocSource(root, "2007:train", CLASSES)

    def test_real_images(self, shared_data, tmp_path):
        for year in ("2007", "2012"):
            (tmp_path / f"VOC{year}").mkdir()
            for part in ("Annotations", "JPEGImages"):
                (tmp_path / f"VOC{year}" / part).symlink_to(shared_data / "voc-mini" / part)
            (tmp_path / f"VOC{year}/ImageSets/Main").mkdir(parents=True)
        for year, split in (("2007", "test"), ("2012", "trainval")):
            name = f"ImageSets/Main/{split}.txt"
            (tmp_path / f"VOC{year}" / name).symlink_to(shared_data / "voc-mini" / name)
        split = "2007:test+2012:trainval"
        classes = voc_classes(tmp_path, split)
        devkit = VocSource(tmp_path, split, classes)
        plain = VocSource(shared_data / "voc-mini", "test+trainval", classes)
        assert len(classes) == 20
        assert len(devkit) == len(plain) == 160 + 192
        for i in range(len(plain)):
            one, two = devkit.annotation(i), plain.annotation(i)
            assert one.image_id == two.image_id
            np.testing.assert_array_equal(one.boxes_px, two.boxes_px)
            np.testing.assert_array_equal(one.labels, two.labels)
