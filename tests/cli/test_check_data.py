"""The check of datasets: planted faults, counts by a slow loop, what training does with them."""

import base64
import io
import json
import re
import sys
import zlib

import cv2
import numpy as np
import pytest
from rich.console import Console

from ssd_jax.cli import check_data as check_module
from ssd_jax.cli.check_data import check, make_best_iou
from ssd_jax.cli.data import main
from ssd_jax.cli.run import run_main
from ssd_jax.config import ConfigError, DataConfig, PriorConfig
from ssd_jax.data.errors import KINDS, DataError
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import find_classes, open_source
from ssd_jax.data.validation import capture_stderr
from ssd_jax.models.ssd import model_priors
from tests.data import mutate
from tests.data.folders import CLASSES, make_coco, make_folder, write_image, write_object, write_xml
from tests.tiny import TINY, change, write_config_file

# 16x16 pixels of (200, 40, 60), by Pillow.
CMYK = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAQCwwODAoQDg0OEhEQExgoGhgWFhgxIyUdKDozPTw5Mzg3QEhcTkBEV0U3OFBt"
    "UVdfYmdoZz5NcXlwZHhcZWdj/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAGB//EABQQ"
    "AQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMATQBZAEsAAD8ApEmnWgAAAAP/2Q=="
)
GOOD = write_xml(write_object("cat"), write_object("dog", (1, 1, 100, 80)))


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (80, 100, 3), np.uint8)


def make_voc(root, annotations=(), images=()):
    """Make valid splits train (a, b and the arguments) and test (c), except for the arguments.

    annotations: image id -> XML. images: image id -> content of the file.
    """
    annotations = {"a": GOOD, "b": GOOD, "c": GOOD, **dict(annotations)}
    make_folder(root, annotations)
    for k, image_id in enumerate(annotations):
        write_image(root / f"JPEGImages/{image_id}.jpg", noise(k))
    for image_id, data in dict(images).items():
        (root / f"JPEGImages/{image_id}.jpg").write_bytes(data)
    train = [image_id for image_id in annotations if image_id != "c"]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(train))
    (root / "ImageSets/Main/test.txt").write_text("c\n")
    return root


def configure(root, *, classes=CLASSES, **data):
    fields = {"format": "voc", "root": str(root), "train_split": "train", "eval_split": "test"}
    return change(TINY, model={"classes": classes}, data=fields | data)


def find(config, kind=None):
    """The findings of that kind, or all."""
    report = check(config, Console(quiet=True))
    return [error for _, error in report.findings if kind in (None, error.kind)]


def jpeg_of(*shape):
    return mutate.encode(".jpg", noise(9)[: shape[0], : shape[1]])


def damage(jpeg):
    """A JPEG whose compressed data are wrong in the middle: it decodes, with a complaint."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(jpeg)
        for place in rng.integers(len(data) // 2, len(data) - 100, 3):
            data[place] = rng.integers(256)
        with capture_stderr() as (size, text):
            image = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)
            complaint = text(0) if size() else ""
        if image is not None and "Corrupt JPEG" in complaint:
            return bytes(data)
    raise AssertionError("no damage that OpenCV notices and lives with")


def object_of(name="cat", box=(11, 21, 50, 60), **more):
    return write_xml(write_object(name, box, **more))


# Kind -> arguments of make_voc, and a pattern of the finding.
PLANTED = {
    "annotation": ({"annotations": {"x": "<annotation>"}}, r"x\.xml is not a usable annotation"),
    "unknown_class": ({"annotations": {"x": object_of("bird")}}, r"x\.xml has class 'bird'"),
    "class_case": ({"annotations": {"x": object_of("Cat")}}, r"x\.xml has class 'Cat'"),
    "unreadable_image": ({"images": {"b": b"no image"}}, r"b\.jpg is not an image"),
    "truncated_image": ({"images": {"b": jpeg_of(80, 100)[:-300]}}, r"b\.jpg ends before its"),
    "huge_image": (
        {"images": {"b": mutate.png(20000, 20000)}},
        r"b\.jpg has 20000x20000 pixels; at most 64,000,000 are supported",
    ),
    "image_size": (
        {"images": {"b": jpeg_of(80, 60)}},
        r"b\.jpg has 60x80 pixels .* its annotation says 100x80",
    ),
    "no_area": (
        {"annotations": {"x": object_of(box=(9, 9, 9, 40))}},
        r"x\.xml: object 1 \(cat\) \(9, 9, 9, 40\) has no area in 100x80",
    ),
    "outside": (
        {"annotations": {"x": object_of(box=(0, 1, 60, 60))}},
        r"x\.xml: object 1 \(cat\) \(0, 1, 60, 60\) extends beyond 100x80",
    ),
    "exif_orientation": (
        {"images": {"b": mutate.exif(jpeg_of(80, 100), 6)}},
        r"b\.jpg has EXIF orientation 6",
    ),
    "damaged_image": (
        {"images": {"b": damage(jpeg_of(80, 100))}},
        r"b\.jpg causes .* Corrupt JPEG",
    ),
    "shared_image": (
        # Another file of the same pixels: it has an EXIF segment.
        {"images": {"b": jpeg_of(80, 100), "c": mutate.exif(jpeg_of(80, 100), 1)}},
        r"c\.jpg has the pixels of .*b\.jpg, which is trained on",
    ),
    "repeated_image": (
        {"images": {"a": jpeg_of(80, 100), "b": jpeg_of(80, 100)}},
        r"b\.jpg has the pixels of .*a\.jpg",
    ),
    "no_prior": (
        {"annotations": {"x": object_of(box=(1, 1, 100, 3))}},
        r"x\.jpg has 1 object without a prior of IoU 0\.5 or more: cat \[0, 0, 100, 3\]",
    ),
    "empty": ({"annotations": {"x": write_xml()}}, r"x\.jpg has no object to train on"),
    "tiny": (
        {"annotations": {"x": object_of(box=(1, 1, 9, 9))}},
        r"x\.jpg has 1 object below 100 square pixels: cat \[0, 0, 9, 9\]",
    ),
    "grey": ({"images": {"b": mutate.encode(".jpg", noise(1)[..., 0])}}, r"b\.jpg is grey"),
    "cmyk": (
        {"annotations": {"x": write_xml(write_object(box=(1, 1, 16, 16)), size=(16, 16))},
         "images": {"x": CMYK}},
        r"x\.jpg is CMYK",
    ),
    "deep": (
        {"images": {"b": mutate.encode(".png", noise(1).astype(np.uint16))}},
        r"b\.jpg has 16 bits",
    ),
    "alpha": (
        {"images": {"b": mutate.encode(".png", np.dstack([noise(1), noise(2)[..., :1]]))}},
        r"b\.jpg has transparency",
    ),
    "suffix": ({"images": {"b": mutate.encode(".webp", noise(1))}}, r"b\.jpg is a WebP file"),
}  # fmt: skip
OTHERS = {
    *("data_set", "duplicate", "missing_image", "max_objects", "no_objects"),
    *("similar_classes", "absent_class"),
}


class TestKinds:
    def test_every_kind_is_tested(self):
        assert {*PLANTED, *OTHERS} == set(KINDS)
        assert not {*PLANTED} & OTHERS

    def test_valid_data_has_no_findings(self, tmp_path):
        assert find(configure(make_voc(tmp_path))) == []

    @pytest.mark.parametrize("kind", PLANTED)
    def test_planted(self, tmp_path, kind):
        planted, line = PLANTED[kind]
        config = configure(make_voc(tmp_path, **planted))
        (error,) = find(config, kind)
        assert error.severity == KINDS[kind][0]
        assert error.file is not None
        assert error.record in "abcx"
        assert error.message.isprintable()
        assert re.search(line, str(error))

    def test_decoder_warnings_about_metadata_are_not_findings(self, tmp_path, capfd):
        png = mutate.encode(".png", noise(1))
        gamma = b"\0\0\0\x02gAMA\0\0" + zlib.crc32(b"gAMA\0\0").to_bytes(4, "big")  # too short
        root = make_voc(tmp_path, images={"b": png[:33] + gamma + png[33:]})
        assert [error.kind for error in find(configure(root))] == ["suffix"]
        assert capfd.readouterr().err == ""

    def test_missing_images(self, tmp_path):
        root = make_voc(tmp_path)
        for image_id in "ab":
            (root / f"JPEGImages/{image_id}.jpg").unlink()
        (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
        findings = find(configure(root), "missing_image")
        assert [error.record for error in findings] == ["a", "b"]
        assert "b.jpg is missing (2 of 3 images of split 'train' are)" in str(findings[1])

    def test_missing_split(self, tmp_path):
        """The other split is checked all the same."""
        root = make_voc(tmp_path, {}, {"c": b"no image"})
        (root / "ImageSets/Main/train.txt").unlink()
        kinds = [error.kind for error in find(configure(root))]
        assert kinds == ["data_set", "unreadable_image"]
        # The classes are found in it then, too.
        kinds = [error.kind for error in find(configure(root, classes=()))]
        assert kinds == ["data_set", "unreadable_image"]

    @pytest.mark.parametrize("format_", ["auto", "voc", "coco"])
    def test_missing_folder(self, tmp_path, format_):
        config = change(configure(tmp_path / "none", classes=()), data={"format": format_})
        with pytest.raises(ConfigError, match="none is not a folder"):
            find(config)

    def test_folder_in_no_layout(self, tmp_path):
        with pytest.raises(ConfigError, match=r"is neither VOC's .* nor COCO's"):
            find(change(configure(tmp_path), data={"format": "auto"}))

    def test_opaque_alpha_channel_is_accepted(self, tmp_path):
        for kind in (np.uint8, np.uint16):
            opaque = np.full((80, 100, 1), np.iinfo(kind).max, kind)
            png = mutate.encode(".png", np.dstack([noise(1).astype(kind), opaque]))
            root = make_voc(tmp_path, images={"b": png})
            assert find(configure(root), "alpha") == []

    @pytest.mark.parametrize(("use_difficult", "most"), [(True, 5), (False, 3)])
    def test_max_objects(self, tmp_path, use_difficult, most):
        easy, hard = write_object(), write_object(extra="<difficult>1</difficult>")
        root = make_voc(tmp_path, {"x": write_xml(*[easy] * 3, hard, hard)})
        config = configure(root, max_objects=most, use_difficult=use_difficult)
        assert find(config, "max_objects") == []
        assert check(config, Console(quiet=True)).splits["training"].most == most
        (error,) = find(change(config, data={"max_objects": most - 1}), "max_objects")
        assert f"x has {most} objects and data.max_objects is {most - 1}; set it to" in str(error)

    def test_nothing_to_train_on(self, tmp_path):
        hard = write_xml(write_object(extra="<difficult>1</difficult>"))
        root = make_voc(tmp_path, {"a": hard, "b": write_xml()})
        assert find(configure(root), "no_objects") == []
        (error,) = find(configure(root, use_difficult=False), "no_objects")
        assert "split 'train' has no object to train on" in str(error)

    def test_classes(self, tmp_path):
        root = make_voc(tmp_path, {"x": object_of("Cat")})
        (error,) = find(configure(root, classes=()), "similar_classes")
        assert "classes 'Cat' and 'cat' differ only in case" in str(error)
        (error,) = find(configure(make_voc(tmp_path), classes=("cat", "dog", "ox")), "absent_class")
        assert "class 'ox' has no object to train on in 'train'" in str(error)

    def test_same_split_for_training_and_evaluation(self, tmp_path):
        (error,) = find(configure(make_voc(tmp_path), eval_split="train"))
        assert "data.eval_split is 'train', which is trained on" in str(error)

    def test_every_object_of_an_annotation(self, tmp_path):
        """An invalid object does not affect the others of its image."""
        objects = [("bird",), ("",), ("cat",), ("Dog",), ("cat", (1, "x", 9, 9)), ("dog",)]
        root = make_voc(tmp_path, {"x": write_xml(*(write_object(*o) for o in objects))})
        report = check(configure(root), Console(quiet=True))
        assert {e.item: e.kind for _, e in report.findings} == {
            "object 1 (bird)": "unknown_class",
            "object 2 (no name)": "annotation",
            "object 4 (Dog)": "class_case",
            "object 5 (cat)": "annotation",
        }
        assert report.splits["training"].columns["objects"].tolist() == [3, 3]

    def test_records_of_coco(self, tmp_path):
        boxes = [
            (1, 7, (10, 20, 40, 40)),
            (1, 7, (10, 20, "wide", 40)),
            (9, 7, (10, 20, 40, 40)),
            (2, 7, (-30, 20, 60, 40)),
            (2, 3, (10, 20, 0, 40)),
            (2, 3, (10, 20, 40, 40), {"id": 11}),
        ]
        root = make_coco(tmp_path, boxes=boxes)
        (root / "train/2.jpg").write_bytes(jpeg_of(80, 100))
        config = configure(root, format="coco", eval_split="train")
        report = check(config, Console(quiet=True))
        assert [(e.kind, e.item) for _, e in report.findings] == [
            ("shared_image", ""),
            ("annotation", "annotation 12"),
            ("annotation", "annotation 13"),
            ("outside", "annotation 14"),
            ("no_area", "annotation 15"),
            ("duplicate", "annotations[5]"),
            ("absent_class", ""),
        ]
        assert report.splits["training"].columns["objects"].tolist() == [0, 2]

    def test_objects_of_an_invalid_image_or_category_are_not_reported(self, tmp_path):
        """They are not reported: fixing the image or category fixes them."""
        boxes = [(1, 7, (10, 20, 40, 40)), (2, 8, (10, 20, 40, 40)), (2, 7, (10, 20, 40, 40))]
        images = [
            {"id": k, "file_name": f"{k}.jpg", "width": width, "height": 80}
            for k, width in ((1, -100), (2, 100))
        ]
        categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": ""}, {"id": 9, "name": "cat"}]
        root = make_coco(tmp_path, boxes=boxes, categories=categories)
        path = root / "annotations/instances_train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))
        report = check(configure(root, format="coco", eval_split="train"), Console(quiet=True))
        errors = [e.item for _, e in report.findings if e.severity == "error"]
        assert errors == ["image 1", "category 8"]
        assert report.splits["training"].columns["objects"].tolist() == [0, 1]


class TestTrainingHasTheSameRules:
    """Errors of the check, and no other findings, stop a run with the same line."""

    def run(self, config):
        classes = find_classes(config.data, config.model.classes)
        source = open_source(config.data, config.data.train_split, classes)
        data = DataConfig(max_objects=config.data.max_objects, augment="none")
        with train_batches(
            source, data, image_size=32, mean=(0, 0, 0), batch_size=len(source), seed=0
        ) as batches:
            next(batches)
        eval_source = open_source(config.data, config.data.eval_split, classes)
        for i in range(len(eval_source)):
            eval_source.image(i)

    @pytest.mark.parametrize("kind", PLANTED)
    def test_planted(self, tmp_path, kind):
        config = configure(make_voc(tmp_path, **PLANTED[kind][0]))
        (finding,) = find(config, kind)
        if KINDS[kind][0] == "error":
            with pytest.raises(DataError) as caught:
                self.run(config)
            assert str(caught.value) == str(finding)
        else:
            self.run(config)


class TestCounts:
    def test_counts_equal_a_python_loop(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = []  # class, box, crowd
        boxes = []
        for k in range(60):
            x, y = rng.integers(0, 60, 2).tolist()
            w, h = rng.integers(3, 40, 2).tolist()
            image, category, crowd = 1 + k % 4, (7, 3)[k % 3 % 2], int(k % 7 == 0)
            boxes.append((image, category, (x, y, w, h), {"iscrowd": crowd}))
            rows.append((image, category == 7, (x, y, w, h), crowd))
        root = make_coco(tmp_path, images=[1, 2, 3, 4, 5], boxes=boxes)
        config = configure(root, format="coco", eval_split="train", max_objects=20)
        config = change(config, model={"image_size": 320})
        priors = PriorConfig(sizes=(32, 64, 128), steps=(), aspect_ratios=((2,), (2,)))
        config = change(config, priors=vars(priors), train={"match_iou_threshold": 0.6})
        corners = model_priors(config.model, config.priors).astype(float)
        corners = np.concatenate(
            [corners[:, :2] - corners[:, 2:] / 2, corners[:, :2] + corners[:, 2:] / 2], 1
        )
        names = ("objects", "small", "medium", "large", "difficult", "crowd", "no prior")
        expected = {name: [0, 0] for name in names}
        images = [set(), set()]
        for image, label, (x, y, w, h), crowd in rows:
            y2, x2 = min(y + h, 80), min(x + w, 100)
            box = np.array([x / 100, y / 80, x2 / 100, y2 / 80])
            area = (box[2] - box[0]) * (box[3] - box[1]) * 320**2
            expected["objects"][label] += 1
            images[label].add(image)
            size = "small" if area < 32**2 else "medium" if area < 96**2 else "large"
            expected[size][label] += 1
            expected["crowd"][label] += crowd
            if not crowd:
                low = np.maximum(corners[:, :2], box[:2])
                high = np.minimum(corners[:, 2:], box[2:])
                common = (high - low).clip(0).prod(1)
                areas = (corners[:, 2:] - corners[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
                expected["no prior"][label] += (common / (areas - common)).max() < 0.6
        report = check(config, Console(quiet=True))
        columns = {k: v.tolist() for k, v in report.splits["training"].columns.items()}
        assert columns.pop("images") == [len(images[0]), len(images[1])]
        assert columns == expected
        assert min(expected["small"] + expected["large"] + expected["no prior"]) > 0
        objects = [sum(r[0] == k and not r[3] for r in rows) for k in (1, 2, 3, 4)]
        assert report.splits["training"].most == max(objects)
        findings = [e for _, e in report.findings if e.kind == "no_prior"]
        assert sum(e.count for e in findings) == sum(expected["no prior"])

    @pytest.mark.parametrize("count", [0, 1, 255, 256, 257])
    def test_chunks_of_objects(self, count):
        boxes = np.tile(np.array([[0.25, 0.25, 0.75, 0.75]], np.float32), (count, 1))
        best = make_best_iou(TINY)(boxes)
        assert best.shape == (count,)
        assert (best > 0.5).all()


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch, capfd, tmp_path):
        """Runs the command on a config: exit status, output, error stream."""

        def run(config, *arguments):
            path = write_config_file(tmp_path / "config.py", config)
            arguments = ["data", "check", "--config", path, *arguments]
            monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
            try:
                status = run_main(main)
            except SystemExit as exit_:
                status = exit_.code
            return status, *capfd.readouterr()

        return run

    def test_valid_data_exits_with_0(self, run, tmp_path):
        status, out, err = run(configure(make_voc(tmp_path / "voc")))
        assert (status, err) == (0, "")
        assert "training: train, 2 images, 4 objects" in out
        assert "evaluation: test, 1 images, 2 objects" in out
        assert "most objects to train on in an image: 2 (a); data.max_objects is 8" in out
        assert "0 errors, 0 warnings, 0 notes: training can start" in out
        assert all(len(line) <= 90 for line in out.splitlines())

    def test_warnings_do_not_fail(self, run, tmp_path):
        root = make_voc(tmp_path / "voc", **PLANTED["no_area"][0])
        status, out, _ = run(configure(root))
        assert status == 0
        assert "warning: boxes without area, skipped in training and evaluation (1)" in out
        assert "training can start" in out

    def test_errors_exit_with_1_and_are_abbreviated(self, run, tmp_path):
        wrong = {f"x{k}": "<annotation>" for k in range(7)}
        status, out, err = run(configure(make_voc(tmp_path / "voc", wrong)))
        assert status == 1
        assert "error: invalid annotations (7)" in out
        assert "x2.xml" in out
        assert "x3.xml" not in out
        assert "  and 4 more" in out
        assert "training would stop" in out
        assert err == ""

    def test_findings_come_before_the_tables(self, run, tmp_path):
        _, out, _ = run(configure(make_voc(tmp_path / "voc", **PLANTED["tiny"][0])))
        parts = ("note: objects below", "training: train, 3 images", "0 errors, 1 warnings")
        places = [out.index(part) for part in parts]
        assert places == sorted(places)

    def test_table_of_many_classes_is_abbreviated(self, run, tmp_path):
        """Those with the most and the fewest objects and those without a prior are shown."""
        boxes = [
            *[(1, 5, (10, 20, 40, 40))] * 9,
            (1, 6, (10, 20, 40, 40)),
            *[(1, 900, (0, 0, 100, 3))] * 2,
        ]
        categories = [{"id": k, "name": f"kind {k}"} for k in range(5000)]
        root = make_coco(tmp_path / "coco", categories=categories, boxes=boxes)
        fields = {"classes": (), "format": "coco", "max_objects": 20, "eval_split": "train"}
        _, out, _ = run(configure(root, **fields), "--fix-report", tmp_path / "out.json")
        rows = [re.sub(" +", " ", line) for line in out.splitlines()]
        table = rows[rows.index("training: train, 2 images, 12 objects") :]
        assert [row.rsplit(" ", 8)[0] for row in table if "kind" in row] == [
            *("kind 5", "kind 6", "kind 900"),
        ]
        assert "4997 other classes 0 0 0 0 0 0 0" in [row.strip() for row in table]
        report = json.loads((tmp_path / "out.json").read_text())
        assert len(report["splits"]["training"]["classes"]) == 5000

    def test_prior_size_is_proposed(self, run, tmp_path):
        # 12x12 and 7x7 pixels of 100x80 are 7.7x9.6 and 4.5x5.6 in the input of 64x64.
        small = [write_object("cat", (x, 1, x + 11, 12)) for x in (1, 21, 41)]
        root = make_voc(
            tmp_path / "voc", {"x": write_xml(*small, write_object("cat", (1, 1, 7, 7)))}
        )
        _, out, _ = run(configure(root))
        assert "their sides in the 64x64 input, 5/25/50/75/95 % quantiles: width " in out
        (size, share, smallest) = re.search(
            r"a prior of ([\d.]+) pixels would match (\d+)% of them, and ([\d.]+) is the "
            r"smallest size that\s+would match any \(priors.sizes starts at 16\)",
            out,
        ).groups()
        # Matched from an IoU of 0.5, with aspect ratios from 1/2 to 2.
        assert 0.98 * np.sqrt(0.5 * 7.7 * 9.6) < float(size) < 1.02 * np.sqrt(2 * 4.48 * 5.6)
        assert share == "100"
        assert 3.4 < float(smallest) < 3.8
        flat = object_of(box=(1, 1, 100, 3))
        _, out, _ = run(configure(make_voc(tmp_path / "flat", {"x": flat})))
        assert "no prior size matches them with IoU 0.5 and aspect ratios 1, 2: add larger" in out

    def test_unprintable_names_are_escaped(self, run, tmp_path):
        categories = [{"id": 7, "name": "[red]d\x1b[31m\ud800og"}, {"id": 3, "name": "cat"}]
        root = make_coco(tmp_path / "coco", categories=categories, boxes=[(1, 7, (10, 20, 40, 40))])
        status, out, _ = run(configure(root, classes=(), format="coco", eval_split="train"))
        assert status == 0
        assert "[red]d\\x1b[31m\\ud8" in out

    def test_decoder_output_is_suppressed(self, run, tmp_path):
        root = make_voc(tmp_path / "voc", **PLANTED["damaged_image"][0])
        status, out, err = run(configure(root))
        assert (status, err) == (0, "")
        assert out.count("Corrupt JPEG") == 1

    def test_report(self, run, tmp_path):
        wrong = {"x": object_of(box=(9, 9, 9, 40)), "y": object_of("bird")}
        root, path = make_voc(tmp_path / "voc", wrong), tmp_path / "out.json"
        path.write_text("an older one")
        status, out, _ = run(configure(root), "--fix-report", path)
        assert status == 1
        assert f"all findings are in {path}" in out
        report = json.loads(path.read_text())
        # Both are without an object now, for their own reasons.
        assert [f["kind"] for f in report["findings"]] == [
            "no_area",
            "unknown_class",
            "empty",
            "empty",
        ]
        assert report["findings"][0] == {
            "severity": "warning",
            "kind": "no_area",
            "split": "train",
            "file": str(root / "Annotations/x.xml"),
            "record": "x",
            "object": "object 1 (cat)",
            "count": 1,
            "message": f"{root}/Annotations/x.xml: object 1 (cat) (9, 9, 9, 40) has no area in "
            "100x80 pixels",
            "advice": "fix the box or remove the object; VOC counts pixels from 1",
        }
        assert report["splits"]["training"]["images"] == 4
        assert report["splits"]["training"]["classes"]["dog"]["objects"] == 2
        assert sorted(p.name for p in tmp_path.iterdir() if "__" not in p.name) == [
            *("config.py", "out.json", "voc"),
        ]

    def test_invalid_arguments(self, run, tmp_path):
        config = configure(make_voc(tmp_path / "voc"))
        for arguments, line in [
            (["--fix-report", tmp_path / "none/out.json"], "none; create it first"),
            (["--fix-report"], "--fix-report"),
            (["--data.rot", "x"], "--data.rot"),
            (["--data.format", "shapes"], "generated shapes have circle"),
        ]:
            status, out, err = run(config, *arguments)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert line in err

    def test_missing_config(self, monkeypatch, capfd):
        monkeypatch.setattr(sys, "argv", ["data", "check"])
        assert run_main(main) == 2
        assert "--config is missing" in capfd.readouterr().err

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(["check", "--help"])
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert "--fix-report" in out
        assert "--data.max-objects" in out

    def test_generated_shapes(self, run):
        status, out, _ = run(TINY)
        assert status == 0
        assert "training: train:32, 32 images" in out

    def test_progress_bar_on_a_terminal(self, monkeypatch, tmp_path):
        monkeypatch.setattr(check_module.sys.stdout, "isatty", lambda: True, raising=False)
        out = io.StringIO()
        check(configure(make_voc(tmp_path)), Console(file=out, force_terminal=True, width=80))
        assert "3/3" in out.getvalue()

    def test_config_errors_stop_at_once(self, tmp_path):
        config = change(configure(make_voc(tmp_path)), data={"format": "shapes"})
        with pytest.raises(ConfigError, match="generated shapes"):
            check(config, Console(quiet=True))


class TestRealData:
    """The defects that the folders' own README files name."""

    def test_bccd(self, shared_data):
        fields = {"train_split": "trainval", "max_objects": 30, "classes": ()}
        report = check(configure(shared_data / "bccd", **fields), Console(quiet=True))
        assert report.classes == ("Platelets", "RBC", "WBC")
        training, evaluation = report.splits["training"], report.splits["evaluation"]
        assert (training.images, evaluation.images) == (292, 72)
        assert training.columns["objects"].tolist() == [292, 3350 - 2, 301]
        assert evaluation.columns["objects"].tolist() == [69, 805, 71]
        assert training.most == 30
        degenerate = [e.message for _, e in report.findings if e.kind == "no_area"]
        assert ["00338.xml: object 13 (RBC) (504, 337" in line for line in degenerate] == [1, 0]
        assert ["00343.xml: object 4 (RBC) (181, 329" in line for line in degenerate] == [0, 1]
        assert {e.kind for _, e in report.findings} <= {"no_area", "no_prior", "tiny"}

    def test_coco_mini(self, shared_data):
        fields = {"format": "coco", "train_split": "trainval", "max_objects": 64, "classes": ()}
        report = check(configure(shared_data / "coco-mini", **fields), Console(quiet=True))
        training, evaluation = report.splits["training"], report.splits["evaluation"]
        assert training.columns["objects"].sum() == 829
        assert evaluation.columns["objects"].sum() == 560
        assert (training.columns["objects"] > 0).sum() == 67
        assert (evaluation.columns["objects"] > 0).sum() == 62
        assert training.columns["crowd"].sum() == 9
        assert evaluation.columns["crowd"].sum() == 8
        findings = {kind: [e for _, e in report.findings if e.kind == kind] for kind in KINDS}
        assert [e.record for e in findings["empty"]] == [
            "000000000508",
            "000000058636",
            "000000226111",
        ]
        assert len(findings["grey"]) == 1
        # The README counts 73 by the rounded boxes of the XML.
        assert sum(e.count for e in findings["tiny"]) == 74
        assert len(findings["absent_class"]) == 13
        assert report.findings.count("error") == 0
