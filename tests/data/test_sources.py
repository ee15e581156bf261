"""Sources: VOC folders made by hand, generated shapes, and real data where it is at hand."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.shapes import MAX_SHAPES, MIN_VISIBLE, SHAPES, lay_out_scene
from ssd_jax.data.sources import DataError, Shapes, VocFolder, find_classes, open_source

CLASSES = ("cat", "dog")


def write_object(name="cat", box=(11, 21, 50, 60), extra="<difficult>0</difficult>"):
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def write_xml(*objects, size=(100, 80)):
    given = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{given}{''.join(objects)}</annotation>"


def make_folder(root: Path, annotations: dict[str, str | bytes], suffix=".jpg") -> Path:
    """A VOC folder with one image of 100x80 for each annotation, all in split train."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / "Annotations" / f"{image_id}.xml").write_bytes(data)
        write_image(root / "JPEGImages" / f"{image_id}{suffix}", np.full((80, 100, 3), 9, np.uint8))
    (root / "ImageSets/Main/train.txt").write_text("\n".join(annotations) + "\n")
    return root


def write_image(path: Path, image: np.ndarray) -> None:
    ok, data = cv2.imencode(path.suffix.lower(), image)
    assert ok
    path.write_bytes(data.tobytes())


def open_one(root: Path, text: str | bytes, classes=CLASSES) -> VocFolder:
    return VocFolder(make_folder(root, {"a": text}), "train", classes)


def voc_config(root: Path, **fields) -> DataConfig:
    return DataConfig(format="voc", root=str(root), train_split="train", **fields)


class TestVocFolder:
    def test_boxes_count_from_one_and_hold_their_last_pixel(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object("dog", (1, 21, 100, 60))))
        known = source.annotation(0)
        assert known.boxes_px.tolist() == [[0, 20, 100, 60]]
        assert known.boxes_px.dtype == np.float32
        assert known.labels.tolist() == [2]
        assert known.labels.dtype == np.int32
        assert known.difficult.dtype == bool
        assert (known.image_id, known.width, known.height) == ("a", 100, 80)
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
        assert VocFolder(root, "train", CLASSES).image(0)[0, 0].tolist() == [200, 0, 0]

    def test_grey_images_become_rgb(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())})
        write_image(root / "JPEGImages/a.jpg", np.full((80, 100), 77, np.uint8))
        image = VocFolder(root, "train", CLASSES).image(0)
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
        assert VocFolder(root, "train", CLASSES).image(0).shape == (80, 100, 3)

    @pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".bmp"])
    def test_pictures_are_found_by_id(self, tmp_path, suffix):
        root = make_folder(tmp_path, {"a.b": write_xml(write_object())}, suffix)
        assert VocFolder(root, "train", CLASSES).image(0).shape == (80, 100, 3)

    def test_optional_fields_may_be_absent(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object(extra=""), size=None))
        known = source.annotation(0)
        assert (known.width, known.height) == (100, 80)
        assert known.difficult.tolist() == [False]

    def test_size_zero_is_read_from_the_image(self, tmp_path):
        known = open_one(tmp_path, write_xml(write_object(), size=(0, 0))).annotation(0)
        assert (known.width, known.height) == (100, 80)

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

    def test_an_image_without_objects(self, tmp_path):
        source = open_one(tmp_path, write_xml())
        example = source[0]
        assert example.boxes.shape == (0, 4)
        assert example.boxes.dtype == np.float32
        assert example.labels.shape == example.difficult.shape == (0,)

    def test_boxes_are_clipped_to_the_image(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object(box=(-5, 0, 120, 90))))
        assert source.annotation(0).boxes_px.tolist() == [[0, 0, 100, 80]]
        assert source.set_aside == ()

    @pytest.mark.parametrize(
        "box", [(30, 10, 30, 20), (10, 30, 20, 30), (40, 10, 30, 20), (101, 5, 120, 9)]
    )
    def test_boxes_without_area_are_set_aside(self, tmp_path, box):
        source = open_one(tmp_path, write_xml(write_object("dog", box), write_object()))
        assert source.annotation(0).labels.tolist() == [1]
        assert len(source.set_aside) == 1
        assert source.set_aside[0].startswith("a.xml: dog (")

    def test_splits_are_joined_and_second_columns_ignored(self, tmp_path):
        root = make_folder(tmp_path, {k: write_xml() for k in "abcd"})
        lists = root / "ImageSets/Main"
        (lists / "one.txt").write_text("c  1\na -1\n\n")
        (lists / "two.txt").write_text("\ufeffa\r\nd\r\n", encoding="utf-8")
        source = VocFolder(root, "one+two", CLASSES)
        assert [source.annotation(i).image_id for i in range(len(source))] == ["c", "a", "d"]

    def test_can_be_pickled(self, tmp_path):
        source = open_one(tmp_path, write_xml(write_object()))
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[0].image, source[0].image)

    def test_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        make_folder(tmp_path / "mine", {"a": write_xml()})
        assert len(VocFolder("~/mine", "train", CLASSES)) == 1


class TestVocErrors:
    """Each message is one line that names the file and what to change."""

    def check(self, match: str, root: Path, split="train", classes=CLASSES):
        with pytest.raises(DataError, match=match) as caught:
            VocFolder(root, split, classes)
        assert "\n" not in str(caught.value)

    def test_no_folder(self, tmp_path):
        self.check(r"data\.root .*nowhere is not a folder", tmp_path / "nowhere")

    @pytest.mark.parametrize("part", ["Annotations", "JPEGImages", "ImageSets/Main"])
    def test_not_a_voc_folder(self, tmp_path, part):
        root = make_folder(tmp_path, {})
        for file in (root / part).iterdir():
            file.unlink()
        (root / part).rmdir()
        self.check(f"{part} is missing; data.root must be the folder", root)

    def test_no_such_split(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        (root / "ImageSets/Main/val.txt").write_text("a\n")
        self.check(r"test\.txt is missing; the splits .* are train, val", root, "train+test")

    def test_no_splits_at_all(self, tmp_path):
        root = make_folder(tmp_path, {})
        (root / "ImageSets/Main/train.txt").unlink()
        self.check(r"train\.txt is missing.*write one image id a line", root)

    def test_empty_split(self, tmp_path):
        self.check("split 'train' names no image", make_folder(tmp_path, {}))

    def test_no_annotation(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        (root / "Annotations/a.xml").unlink()
        self.check(r"a\.xml is missing; add it or take a off the list", root)

    def test_no_image(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(), "b": write_xml()})
        (root / "JPEGImages/b.jpg").unlink()
        self.check(r"b\.jpg is missing \(1 of 2 images", root)

    def test_unknown_class(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object("bird"))})
        self.check(r"a\.xml has class 'bird', .* one of cat, dog; add it to model\.classes", root)

    def test_class_of_other_case(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object("Cat"))})
        self.check(r"class 'Cat'.*write it as 'cat': case counts", root)

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
            (write_xml(write_object(box=(1, 2, "nan", 4))), r"has <xmax> 'nan'; write a number"),
            (
                write_xml(write_object(extra="<difficult>maybe</difficult>")),
                r"has <difficult> 'maybe'; write 0 or 1",
            ),
            (write_xml(size=("big", 3)), r"a\.xml: <size> has 'big'; write a number"),
        ],
    )
    def test_annotation_that_cannot_be_used(self, tmp_path, text, match):
        self.check(match, make_folder(tmp_path, {"a": text}))

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_entities_are_refused_in_any_encoding(self, tmp_path, encoding):
        text = '<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy">]><annotation>&x;&x;</annotation>'
        root = make_folder(tmp_path, {"a": text.encode(encoding)})
        self.check(r"a\.xml is not a usable annotation: has a DOCTYPE", root)

    @pytest.mark.parametrize("data", [b"", b"no image"])
    def test_file_that_is_no_image(self, tmp_path, data):
        source = open_one(tmp_path, write_xml())
        (tmp_path / "JPEGImages/a.jpg").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.jpg is not an image that can be decoded"):
            source.image(0)

    def test_image_that_is_gone(self, tmp_path):
        source = open_one(tmp_path, write_xml())
        (tmp_path / "JPEGImages/a.jpg").unlink()
        with pytest.raises(DataError, match=r"a\.jpg cannot be read \(No such file"):
            source.image(0)

    def test_image_of_another_size(self, tmp_path):
        source = open_one(tmp_path, write_xml(size=(80, 100)))
        with pytest.raises(DataError, match=r"a\.jpg has 100x80 .* annotation says 80x100; mend"):
            source[0]


class TestFindClasses:
    def test_given_classes_come_first(self, tmp_path):
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
            ("cat\ndog\ncat\n", r"data\.class_file .*names\.txt names cat twice"),
        ],
    )
    def test_class_file_that_cannot_be_used(self, tmp_path, text, match):
        path = tmp_path / "names.txt"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            find_classes(voc_config(tmp_path, class_file=str(path)), ())

    def test_found_in_the_annotations_of_the_training_split(self, tmp_path):
        objects = [write_xml(write_object(name)) for name in ("dog", "cat", "dog", "bird")]
        root = make_folder(tmp_path, dict(zip("abcd", objects, strict=True)))
        (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
        assert find_classes(voc_config(root), ()) == ("cat", "dog")

    def test_nothing_to_find(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml()})
        with pytest.raises(DataError, match=r"has no object in split 'train'; name the classes"):
            find_classes(voc_config(root), ())

    def test_shapes_have_their_own(self):
        assert find_classes(DataConfig(), ()) == SHAPES


class TestOpenSource:
    def test_voc(self, tmp_path):
        root = make_folder(tmp_path, {"a": write_xml(write_object())})
        source = open_source(voc_config(root), "train", CLASSES)
        assert isinstance(source, VocFolder)
        assert source.classes == CLASSES

    def test_shapes(self):
        source = open_source(DataConfig(), "test:7", SHAPES)
        assert len(source) == 7
        assert source.annotation(3).image_id == "test-000003"

    @pytest.mark.parametrize("split", ["train", "train:", ":5", "train:0", "train:-3", "a:b"])
    def test_split_that_is_none(self, split):
        config = DataConfig(train_split=split)
        with pytest.raises(ConfigError, match=r"data\.train_split is .* need NAME:COUNT"):
            open_source(config, split, SHAPES)
        with pytest.raises(ConfigError, match=r"data\.eval_split is"):
            open_source(DataConfig(eval_split=split), split, SHAPES)

    def test_other_classes_than_the_shapes(self):
        with pytest.raises(ConfigError, match=r"model\.classes is \('cat', 'dog'\); generated"):
            open_source(DataConfig(), "train:5", CLASSES)


class TestShapes:
    def test_a_scene_depends_on_stream_and_index_only(self):
        few, many, other = Shapes(5, "train"), Shapes(50, "train"), Shapes(5, "test")
        for i in (4, 0, 2):
            again = many[i]
            np.testing.assert_array_equal(few[i].image, again.image)
            np.testing.assert_array_equal(few[i].boxes, again.boxes)
            assert not np.array_equal(few[i].image, other[i].image)
        np.testing.assert_array_equal(few.image(1), few[1].image)
        assert not np.array_equal(few.image(1), few.image(2))

    def test_examples_keep_the_contract(self):
        source = Shapes(60, "train")
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
        assert seen == set(range(1, len(SHAPES) + 1))

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

    def test_the_image_shows_the_object_where_its_box_is(self):
        """The pixels that the last object changes are those of its box, to a pixel."""
        from ssd_jax.data.shapes import Scene, draw_scene

        for index in range(20):
            scene = lay_out_scene("train", index, 120)
            n = len(scene.outlines) - 1
            without = Scene(120, scene.outlines[:n], scene.boxes_px[:n], scene.labels[:n], (0, 0))
            alone = Scene(120, scene.outlines, scene.boxes_px, scene.labels, (0, 0))
            # Grain differs after another number of draws; the object differs by far more.
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
            Shapes(5, "train").annotation(5)


class TestRealData:
    @pytest.mark.parametrize(
        ("name", "split", "images", "objects", "set_aside"),
        [
            ("bccd", "trainval", 292, 3943 - 2, 2),
            ("bccd", "test", 72, 945, 0),
            ("voc-mini", "trainval", 192, 521 + 51, 0),
            ("voc-mini", "test", 160, 416 + 57, 0),
        ],
    )
    def test_folders(self, shared_data, name, split, images, objects, set_aside):
        config = DataConfig(format="voc", root=str(shared_data / name), train_split="trainval")
        classes = find_classes(config, ())
        source = VocFolder(config.root, split, classes)
        assert len(source) == images
        assert sum(len(source.annotation(i).labels) for i in range(images)) == objects
        assert len(source.set_aside) == set_aside
        assert len(classes) == {"bccd": 3, "voc-mini": 20}[name]
        for i in range(0, images, 20):
            assert source[i].boxes.max() <= 1
