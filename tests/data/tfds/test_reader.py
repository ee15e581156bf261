"""Prepared datasets: which one is read, damaged ones, and the file that keeps the objects."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssd_jax.config import TfdsFields
from ssd_jax.data.errors import DataError
from ssd_jax.data.tfds import reader
from ssd_jax.data.tfds.reader import PreparedSplit, data_dir, find_prepared, open_prepared
from ssd_jax.data.tfds.source import TfdsSource
from tests.data.tfds_sets import VOC_CLASSES, jpeg, make_tfds, voc_object, voc_record

SPLIT = "voc/2007:train"
KEPT = "ssd_jax-train.npz"


def open_source(root: Path, **fields) -> TfdsSource:
    return TfdsSource(str(root), SPLIT, VOC_CLASSES, TfdsFields(**fields))


def labels(source: TfdsSource) -> list[list[str]]:
    return [
        [VOC_CLASSES[k] for k in source.annotation(i).labels.tolist()] for i in range(len(source))
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    records = [voc_record("a", voc_object("dog"), voc_object("cat")), voc_record("b")]
    return make_tfds(tmp_path, {"train": records})


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """One entry for each time that all records of a split are read."""
    seen = []
    original = PreparedSplit._read_annotations

    def read_objects(self):
        seen.append(self.name)
        return original(self)

    monkeypatch.setattr(PreparedSplit, "_read_annotations", read_objects)
    return seen


class TestAnnotationCache:
    def test_records_are_read_once(self, tmp_path, folder, reads):
        before = {path.name for path in folder.iterdir()}
        first = open_source(tmp_path)
        assert {path.name for path in folder.iterdir()} - before == {KEPT}
        second = open_source(tmp_path)
        assert reads == ["train"]
        assert labels(second) == labels(first) == [["dog", "cat"], []]
        for i in range(2):
            actual, expected = second.annotation(i), first.annotation(i)
            assert (actual.image_id, actual.width, actual.height) == (expected.image_id, 100, 80)
            np.testing.assert_array_equal(actual.boxes_px, expected.boxes_px)
            assert actual.boxes_px.dtype == np.float32

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[: len(data) // 2],
            lambda data: b"nonsense" * 100,
            lambda data: data[:300] + bytes([data[300] ^ 255]) + data[301:],
        ],
        ids=["empty", "cut", "nonsense", "one byte"],
    )
    def test_damaged_file_is_rebuilt(self, tmp_path, folder, reads, damage):
        expected = labels(open_source(tmp_path))
        good = (folder / KEPT).read_bytes()
        (folder / KEPT).write_bytes(damage(good))
        assert labels(open_source(tmp_path)) == expected
        assert len(reads) == 2
        assert labels(open_source(tmp_path)) == expected
        assert len(reads) == 2

    @pytest.mark.parametrize("name", ["ids", "counts", "boxes", "labels", "crowd"])
    def test_stale_cache_is_rebuilt(self, tmp_path, folder, reads, name):
        expected = labels(open_source(tmp_path))
        with np.load(folder / KEPT) as columns:
            columns = dict(columns)
        np.savez(folder / KEPT, **columns | {name: columns[name][:-1]})
        assert labels(open_source(tmp_path)) == expected
        assert len(reads) == 2

    def test_pickled_objects_are_not_loaded(self, tmp_path, folder, reads):
        class Harmful:
            def __reduce__(self):
                return (Path.write_text, (tmp_path / "harm", "done"))

        open_source(tmp_path)
        with np.load(folder / KEPT) as columns:
            columns = dict(columns)
        np.savez(folder / KEPT, **columns | {"ids": np.array([Harmful(), Harmful()])})
        open_source(tmp_path)
        assert len(reads) == 2
        assert not (tmp_path / "harm").exists()

    def test_other_records_in_files_of_the_same_size(self, tmp_path, folder, reads):
        open_source(tmp_path)
        (shard,) = folder.glob("*.array_record*")
        size = shard.stat().st_size
        kept = (folder / KEPT).read_bytes()
        shutil.rmtree(folder)
        make_tfds(tmp_path, {"train": [voc_record("a", voc_object("cow")), voc_record("b")]})
        (folder / KEPT).write_bytes(kept)
        assert shard.stat().st_size == size
        assert labels(open_source(tmp_path)) == [["cow"], []]

    def test_other_fields(self, tmp_path, folder, reads):
        make = {"difficult": "objects/is_truncated"}
        open_source(tmp_path)
        open_source(tmp_path, **make)
        open_source(tmp_path, **make)
        assert reads == ["train", "train"]

    @pytest.mark.parametrize("call", ["open", "replace"])
    def test_unwritable_folder(self, tmp_path, folder, monkeypatch, reads, call):
        before = sorted(folder.iterdir())
        original = getattr(Path, call)

        def refuse(self, *arguments, **keywords):
            if self.name.startswith("ssd_jax-"):
                raise OSError(30, "Read-only file system")
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(Path, call, refuse)
        for _ in range(2):
            assert labels(open_source(tmp_path)) == [["dog", "cat"], []]
        assert len(reads) == 2
        assert sorted(folder.iterdir()) == before

    def test_incomplete_write_leaves_no_file(self, tmp_path, folder, monkeypatch):
        open_source(tmp_path)
        kept = (folder / KEPT).read_bytes()
        before = sorted(folder.iterdir())

        def fill_disk(stream, **columns):
            stream.write(kept[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(reader.np, "savez", fill_disk)
        source = open_source(tmp_path, difficult="objects/is_truncated")
        assert labels(source) == [["dog", "cat"], []]
        assert (folder / KEPT).read_bytes() == kept
        assert sorted(folder.iterdir()) == before


class TestDamagedRecords:
    def test_image_that_cannot_be_decoded(self, tmp_path):
        make_tfds(tmp_path, {"train": [voc_record("a"), voc_record("b", image=b"no image")]})
        with pytest.raises(DataError, match=r"train\[1\] cannot be read \(its image cannot be dec"):
            open_source(tmp_path)

    def test_image_that_was_cut_off(self, tmp_path):
        image = jpeg(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8))
        make_tfds(tmp_path, {"train": [voc_record("a", image=image[:-900])]})
        source = open_source(tmp_path)
        with pytest.raises(DataError, match=r"train\[0\] ends before its image does"):
            source.image(0)

    @pytest.mark.parametrize(
        ("damage", "match"),
        [
            (lambda shard: os.truncate(shard, 65536), r"train\[0\] cannot be read \("),
            (lambda shard: shard.write_bytes(b"x" * shard.stat().st_size), r"train\[0\] cannot be"),
            (Path.unlink, r"\.array_record.* cannot be read \(No such file"),
        ],
        ids=["cut", "nonsense", "missing"],
    )
    def test_shards(self, tmp_path, folder, damage, match):
        (shard,) = folder.glob("*.array_record*")
        damage(shard)
        with pytest.raises(DataError, match=match) as error:
            open_source(tmp_path)
        assert str(error.value).endswith("remove its folder and prepare the dataset again")
        assert "\n" not in str(error.value)
        assert not (folder / KEPT).exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 3}'])
    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    def test_descriptions(self, tmp_path, folder, name, text):
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=r"5\.0\.0 (cannot be read|is prepared as)") as error:
            open_source(tmp_path)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
    def test_feature_of_another_module_is_not_imported(self, tmp_path, folder, monkeypatch, key):
        (tmp_path / "planted.py").write_text("raise SystemExit('it was imported')")
        monkeypatch.syspath_prepend(tmp_path)
        path = folder / "features.json"
        text = path.read_text()
        name = "tensorflow_datasets.core.features.image_feature.Image"
        assert name in text
        path.write_text(text.replace(name, "planted.Image").replace("pythonClassName", key))
        if key == "type":
            path.write_text('{"type": "planted.Image", "content": {}}')
        with pytest.raises(DataError, match=r"names the class 'planted\.Image', which is not"):
            open_source(tmp_path)

    def test_another_file_format(self, tmp_path, folder):
        path = folder / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
        with pytest.raises(DataError, match=r"is prepared as tfrecord, which has no random"):
            open_prepared(str(tmp_path), "voc/2007")


class TestFindPrepared:
    def test_newest_complete_version_is_used(self, tmp_path):
        for name in ("9.0.0", "10.0.0", "11.0.0", "incomplete.ABC_12.0.0", "10.x.0"):
            (tmp_path / "voc/2007" / name).mkdir(parents=True)
            if name != "11.0.0":
                (tmp_path / "voc/2007" / name / "features.json").write_text("{}")
        assert find_prepared(str(tmp_path), "voc/2007") == tmp_path / "voc/2007/10.0.0"
        assert find_prepared(str(tmp_path), "voc/2007:9.0.0") == tmp_path / "voc/2007/9.0.0"
        assert find_prepared(str(tmp_path), "voc/2007:11.0.0") is None
        assert find_prepared(str(tmp_path), "voc") is None

    def test_folder_of_all_datasets(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        assert data_dir("") == tmp_path / "tensorflow_datasets"
        assert data_dir("~/sets") == tmp_path / "sets"
        monkeypatch.setenv("TFDS_DATA_DIR", "~/others")
        assert data_dir("") == tmp_path / "others"

    def test_command_is_quoted(self):
        with pytest.raises(DataError, match=r"prepare voc/2007 --root '/no where'$"):
            reader.open_prepared("/no where", "voc/2007")
