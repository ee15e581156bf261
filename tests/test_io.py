"""Untrusted files, through every reader, and atomic writes."""

import os
import signal

import numpy as np
import pytest

from ssd_jax.cli.weights import main as weights_main
from ssd_jax.config import DataConfig, UserError
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.sources import find_classes
from ssd_jax.evaluation.result_files import read_annotations, read_detections
from ssd_jax.io import atomic_write, is_file, read_bytes, read_pieces, read_text, reason, staged
from tests.data.folders import CLASSES, make_coco, make_folder, write_xml
from train import main as train_main


@pytest.fixture(autouse=True)
def no_hang():
    """Fail a test that blocks, as a reader that opens a pipe would."""

    class HangError(BaseException):
        pass

    def fail(*_):
        raise HangError

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class TestReading:
    def test_reads_the_whole_content(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"\xef\xbb\xbfab\n")
        assert is_file(path)
        assert read_bytes(path, 6) == b"\xef\xbb\xbfab\n"
        assert read_text(path, 6) == "ab\n"
        assert list(read_pieces(path, 6, size=4)) == [b"\xef\xbb\xbfa", b"b\n"]
        path.write_bytes(b"")
        assert read_bytes(path, 0) == b""

    def test_larger_file_is_refused(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"x" * 11)
        with pytest.raises(OSError, match=r"it has 11 bytes, above 10"):
            read_bytes(path, 10)

    def test_growing_file_is_refused(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"x" * 10)
        pieces = read_pieces(path, 15, size=10)
        assert next(pieces) == b"x" * 10
        with path.open("ab") as file:
            file.write(b"x" * 10)
        with pytest.raises(OSError, match="it has more than 15"):
            list(pieces)


class TestStaged:
    def test_file_appears_when_complete(self, tmp_path):
        target = tmp_path / "new" / "clip.mp4"
        with staged(target) as part:
            part.parent.mkdir()
            part.write_bytes(b"x")
            assert part.suffix == ".mp4"
            assert not target.exists()
        assert target.read_bytes() == b"x"
        assert list(target.parent.iterdir()) == [target]

    def test_files_join_an_existing_folder(self, tmp_path):
        target = tmp_path / "out"
        for text in ("old", "new"):
            with staged(target) as part:
                (part / "sub").mkdir(parents=True)
                (part / "sub" / text).write_text(text)
                (part / "a").write_text(text)
        files = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if is_file(p)}
        assert files == {"a": "new", "sub/old": "old", "sub/new": "new"}
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize("existing", [True, False])
    def test_error_leaves_nothing(self, tmp_path, existing):
        target = tmp_path / "new" / "out"
        if existing:
            target.mkdir(parents=True)

        def fail():
            with staged(target) as part:
                part.mkdir(parents=True)
                (part / "a").write_text("a")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert list(tmp_path.rglob("*")) == ([target.parent, target] if existing else [])

    def test_file_does_not_replace_a_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(OSError, match="Is a directory"):
            atomic_write(tmp_path / "out", b"")
        assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b"), "No such file or directory"),
        (ValueError("writing a:\nNo space left on device\nsource: x"), "No space left on device"),
        (ValueError("a\x00b\nc"), "a?b"),
        (KeyError(), "KeyError"),
    ],
)
def test_reason_is_one_line(error, expected):
    assert reason(error) == expected


def pipe(path):
    os.mkfifo(path)


def zero(path):
    path.symlink_to("/dev/zero")


def endless(path):
    """Make a sparse file of 1 TB."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def class_file(path, tmp_path):
    find_classes(DataConfig(class_file=str(path)), ())


def weight_classes(path, tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(1))
    out = tmp_path / "out"
    weights_main(["import", str(tmp_path / "w.npz"), "--out", str(out), "--classes", str(path)])


def voc_list(path, tmp_path):
    root = make_folder(tmp_path / "voc", {"a": write_xml()})
    path.rename(root / "ImageSets/Main/odd.txt")
    VocSource(root, "odd", CLASSES)


def voc_annotation(path, tmp_path):
    root = make_folder(tmp_path / "voc", {"a": write_xml()})
    path.rename(root / "Annotations/a.xml")
    VocSource(root, "train", CLASSES)


def coco_annotations(path, tmp_path):
    root = make_coco(tmp_path / "coco")
    path.rename(root / "annotations/odd.json")
    CocoSource(root, "odd", CLASSES)


def truth(path, tmp_path):
    read_annotations(path)


def results(path, tmp_path):
    annotations = read_annotations(
        make_coco(tmp_path / "coco") / "annotations/instances_train.json"
    )
    read_detections(path, annotations)


def voc_results(path, tmp_path):
    annotations = read_annotations(
        make_coco(tmp_path / "coco") / "annotations/instances_train.json"
    )
    (tmp_path / "results").mkdir()
    path.rename(tmp_path / "results/comp4_det_test_cat.txt")
    read_detections(tmp_path / "results", annotations)


def run_config(path, tmp_path):
    (tmp_path / "run").mkdir()
    path.rename(tmp_path / "run/config.json")
    train_main(["--workdir", str(tmp_path / "run"), "--resume"])


def replay(path, tmp_path):
    train_main(["--replay", str(path)])


READERS = [
    *(class_file, voc_list, voc_annotation, coco_annotations, truth, results, voc_results),
    *(weight_classes, run_config, replay),
]


@pytest.mark.parametrize("make", [pipe, zero, endless])
@pytest.mark.parametrize("reader", READERS)
def test_unreadable_file_is_one_error_line(tmp_path, make, reader):
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(UserError) as error:
        reader(path, tmp_path)
    assert "\n" not in str(error.value)
    assert any(name in str(error.value) for name in ("odd", "a.xml", "cat.txt", "run"))
