"""Pipeline: order, sharding, resuming, padding and clean ends."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data import pipeline
from ssd_jax.data.pipeline import eval_batches, train_batches
from ssd_jax.data.sources import Annotation, DataError, Example, SyntheticSource

pytestmark = pytest.mark.smoke

MEAN = (123.0, 117.0, 104.0)


@dataclass(frozen=True)
class Tiny:
    """Records of 12x10 pixels that say their index; record i has i % 4 objects."""

    count: int
    bad: int = -1
    crowds: bool = False
    classes = ("a", "b")

    def __len__(self):
        return self.count

    def annotation(self, i):
        n = i % 4
        boxes = np.array([[1, 1, 7 + k, 8] for k in range(n)], np.float32).reshape(n, 4)
        difficult = np.arange(n) == 1
        labels = np.full(n, i % 2, np.int32)
        crowd = (np.arange(n) == 2) & self.crowds
        return Annotation(f"tiny-{i}", 12, 10, boxes, labels, difficult | crowd, crowd)

    def image(self, i):
        if i == self.bad:
            raise DataError(f"tiny-{i}.jpg is not an image that can be decoded")
        return np.random.default_rng(i).integers(0, 256, (10, 12, 3), np.uint8)

    def __getitem__(self, i):
        annotation = self.annotation(i)
        boxes = annotation.boxes_px / np.array([12, 10, 12, 10], np.float32)
        return Example(
            annotation.image_id,
            self.image(i),
            boxes,
            annotation.labels,
            annotation.difficult,
            annotation.crowd,
        )


def train(source, data=None, **options):
    kwargs = {"image_size": 16, "mean": MEAN, "batch_size": 4, "seed": 0} | options
    return train_batches(source, data or DataConfig(max_objects=6), **kwargs)


def take(batches, n):
    return [next(batches) for _ in range(n)]


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert one[name].tobytes() == two[name].tobytes(), name


def test_shapes_types_and_padding():
    with train(Tiny(8)) as batches:
        for batch in take(batches, 4):
            assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
                "image": ((4, 16, 16, 3), "uint8"),
                "boxes": ((4, 6, 4), "float32"),
                "labels": ((4, 6), "int32"),
                "mask": ((4, 6), "bool"),
                "index": ((4,), "int64"),
            }
            assert all(type(v) is np.ndarray for v in batch.values())
            mask = batch["mask"]
            assert (batch["boxes"][~mask] == 0).all()
            assert (batch["labels"][~mask] == 0).all()
            assert set(batch["labels"][mask]) == {0, 1}
            assert (np.diff(mask.astype(int)) <= 0).all()  # objects first
            # Between one and all of the objects stay.
            before = batch["index"] % 4
            assert (mask.sum(1) <= before).all()
            assert (mask.sum(1) >= np.minimum(before, 1)).all()
            labels = batch["index"] % 2
            assert (batch["labels"] == labels[:, None] * mask).all()


def test_epoch_has_each_record_once_in_a_new_order():
    with train(Tiny(12)) as batches:
        epochs = [np.concatenate([b["index"] for b in take(batches, 3)]) for _ in range(4)]
    assert all(sorted(e) == list(range(12)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert tuple(range(12)) not in {tuple(e) for e in epochs}


def test_batch_may_span_epochs():
    with train(Tiny(3)) as batches:
        stream = np.concatenate([b["index"] for b in take(batches, 6)])
    for epoch in stream.reshape(8, 3):
        assert sorted(epoch) == [0, 1, 2]


def test_one_record_is_enough():
    with train(Tiny(1)) as batches:
        assert next(batches)["index"].tolist() == [0, 0, 0, 0]


def test_orders_of_seeds_and_epochs_differ():
    def epochs(seed):
        with train(Tiny(12), seed=seed) as batches:
            return [tuple(np.concatenate([b["index"] for b in take(batches, 3)])) for _ in range(3)]

    assert epochs(0) == epochs(0)
    assert not set(epochs(0)) & set(epochs(1))


def test_augmentation_differs_between_epochs_and_seeds():
    seen = set()
    for seed in (0, 1):
        with train(Tiny(4), seed=seed) as batches:
            for batch in take(batches, 3):
                seen.add(batch["image"][batch["index"].tolist().index(2)].tobytes())
    assert len(seen) == 6


def test_without_augmentation_an_image_is_only_resized():
    with train(Tiny(4), DataConfig(augment="none")) as batches:
        batch, again = take(batches, 2)
    (plain,) = eval_batches(Tiny(4), image_size=16, batch_size=4)
    for one in (batch, again):
        np.testing.assert_array_equal(one["image"], plain["image"][one["index"]])
        assert (one["mask"].sum(1) == one["index"]).all()


@pytest.mark.parametrize(("use", "counts"), [(True, [0, 1, 2, 3]), (False, [0, 1, 1, 2])])
def test_difficult_objects(use, counts):
    config = DataConfig(augment="none", use_difficult=use, max_objects=max(counts))
    with train(Tiny(4), config) as batches:
        batch = next(batches)
    assert batch["mask"].sum(1).tolist() == [counts[i] for i in batch["index"]]


@pytest.mark.parametrize(("use", "counts"), [(True, [0, 1, 2, 2]), (False, [0, 1, 1, 1])])
def test_crowds_are_never_trained_on(use, counts):
    config = DataConfig(augment="none", use_difficult=use, max_objects=max(counts))
    with train(Tiny(4, crowds=True), config) as batches:
        batch = next(batches)
    assert batch["mask"].sum(1).tolist() == [counts[i] for i in batch["index"]]
    # The crowd is the third object and the widest.
    widest = {i: Tiny(4)[i].boxes[: counts[i], 2].max(initial=0) for i in range(4)}
    assert [b[:, 2].max() for b in batch["boxes"]] == [widest[i] for i in batch["index"].tolist()]


def test_more_objects_than_the_padding():
    with pytest.raises(DataError, match=r"tiny-3 has 3 objects and data\.max_objects is 2; set"):
        train(Tiny(8), DataConfig(max_objects=2))
    train(Tiny(8), DataConfig(max_objects=2, use_difficult=False))


def test_no_records():
    with pytest.raises(DataError, match="has no image"):
        train(Tiny(0))
    with pytest.raises(DataError, match="has no image with an object"):
        train(Tiny(1), DataConfig(keep_empty=False))


@pytest.mark.parametrize(
    ("data", "used"),
    [
        (DataConfig(keep_empty=False), [1, 2, 3, 5, 6, 7]),
        # The second object of a record is difficult, the third one a crowd.
        (DataConfig(keep_empty=False, use_difficult=False), [1, 2, 3, 5, 6, 7]),
        (DataConfig(), list(range(8))),
    ],
)
def test_keep_empty(data, used):
    with train(Tiny(8, crowds=True), data, batch_size=len(used)) as batches:
        for batch in take(batches, 2):
            assert sorted(batch["index"]) == used
        assert batches.get_state()["records"] == len(used)


def test_image_with_only_unused_objects_is_empty():
    @dataclass(frozen=True)
    class Hard(Tiny):
        def annotation(self, i):
            return dataclasses.replace(super().annotation(i), difficult=np.ones(i % 4, bool))

    with train(Hard(4), DataConfig(keep_empty=False)) as batches:
        assert sorted(set(next(batches)["index"])) == [1, 2, 3]
    with pytest.raises(DataError, match="has no image with an object"):
        train(Hard(4), DataConfig(keep_empty=False, use_difficult=False))


@pytest.mark.parametrize("name", ["caffe", "ssd.pytorch"])
def test_augmentation_follows_the_config(name, monkeypatch):
    def other(*_, **__):
        raise AssertionError("not this one")

    ours = {"caffe": "augment_caffe", "ssd.pytorch": "augment_ssd_pytorch"}
    for key, function in ours.items():
        if key != name:
            monkeypatch.setattr(pipeline, function, other)
    with train(Tiny(4), DataConfig(augment=name)) as batches:
        next(batches)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes):
    """In order: the blocks of all processes, one after another, are the single process's."""
    with train(Tiny(10), batch_size=8) as batches:
        whole = take(batches, 5)
    parts = []
    for index in range(processes):
        options = {"process_index": index, "process_count": processes}
        with train(Tiny(10), batch_size=8 // processes, **options) as batches:
            parts.append(take(batches, 5))
            assert batches.get_state()["position"] == 40
    for step, expected in enumerate(whole):
        joined = {k: np.concatenate([p[step][k] for p in parts]) for k in expected}
        assert_equal(joined, expected)


class TestResume:
    @pytest.mark.parametrize("at", [0, 1, 3, 7])
    def test_next_batch_is_bit_identical(self, at):
        with train(SyntheticSource(10, "train")) as batches:
            take(batches, at)
            state = json.loads(json.dumps(batches.get_state()))
            expected = take(batches, 3)
        with train(SyntheticSource(10, "train")) as again:
            next(again)  # a separate position, which is left
            again.set_state(state)
            assert again.get_state() == state
            for one, two in zip(take(again, 3), expected, strict=True):
                assert_equal(one, two)

    @pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.nightly)])
    def test_next_500_records_with_any_number_of_workers(self, workers):
        with train(Tiny(70)) as batches:
            take(batches, 23)
            state = batches.get_state()
            expected = take(batches, 125)
        with train(Tiny(70), DataConfig(max_objects=6, num_workers=workers)) as batches:
            batches.set_state(state)
            got = take(batches, 125)
            assert batches.get_state()["position"] == 592
        assert all(type(values) is np.ndarray for values in got[0].values())
        for one, two in zip(got, expected, strict=True):
            assert_equal(one, two)
        assert multiprocessing.active_children() == []

    def test_with_another_number_of_processes(self):
        with train(Tiny(10), batch_size=8) as batches:
            take(batches, 2)
            state = batches.get_state()
            expected = next(batches)
        with train(Tiny(10), process_index=1, process_count=2) as batches:
            batches.set_state(state)
            got = next(batches)
        assert_equal(got, {k: v[4:] for k, v in expected.items()})

    @pytest.mark.parametrize(
        ("change", "match"),
        [({"seed": 3}, "has seed 3 and this run has 0"), ({"records": 9}, "has records 9 and")],
    )
    def test_position_of_other_data_is_refused(self, change, match):
        with train(Tiny(10)) as batches, pytest.raises(ConfigError, match=match):
            batches.set_state(batches.get_state() | change)


class TestErrors:
    def test_unreadable_image_is_an_error_and_not_skipped(self):
        with train(Tiny(64)) as batches:
            bad = int(next(batches)["index"][1])
        with train(Tiny(64, bad=bad)) as batches:
            for _ in range(2):
                with pytest.raises(DataError, match=rf"tiny-{bad}\.jpg is not an image"):
                    next(batches)
                assert batches.get_state()["position"] == 0

    def test_error_in_a_worker(self):
        config = DataConfig(max_objects=6, num_workers=1)
        with (
            train(Tiny(4, bad=2), config) as batches,
            pytest.raises(DataError, match=r"tiny-2\.jpg is not an image"),
        ):
            next(batches)
        assert multiprocessing.active_children() == []


class TestEvalBatches:
    @pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
    @pytest.mark.parametrize("processes", [1, 2, 4])
    def test_each_record_once(self, count, processes):
        indices, lengths = [], []
        for index in range(processes):
            batches = list(
                eval_batches(
                    Tiny(count),
                    image_size=16,
                    batch_size=2,
                    process_index=index,
                    process_count=processes,
                )
            )
            lengths.append(len(batches))
            for batch in batches:
                assert batch["image"].shape == (2, 16, 16, 3)
                assert batch["image"].dtype == np.uint8
                assert batch["index"].dtype == np.int32
                assert (batch["image"][batch["index"] < 0] == 0).all()
                indices += batch["index"].tolist()
        assert sorted(i for i in indices if i >= 0) == list(range(count))
        assert len(set(lengths)) == 1

    def test_in_order_and_unchanged(self):
        batches = list(eval_batches(Tiny(5), image_size=16, batch_size=2))
        assert [b["index"].tolist() for b in batches] == [[0, 1], [2, 3], [4, -1]]

    def test_empty_source(self):
        assert list(eval_batches(Tiny(0), image_size=16, batch_size=2)) == []

    def test_error_names_the_unreadable_image(self):
        with pytest.raises(DataError, match=r"tiny-2\.jpg"):
            list(eval_batches(Tiny(5, bad=2), image_size=16, batch_size=2))


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jax_is_not_needed():
    """Grain imports JAX if it finds it; the data room does its work where it does not."""
    out = run_python(
        """
        import sys

        sys.modules["jax"] = None  # importing it fails
        from ssd_jax.config import DataConfig
        from ssd_jax.data.pipeline import eval_batches, train_batches
        from ssd_jax.data.sources import SyntheticSource

        source = SyntheticSource(6, "train")
        mean = (0.0, 0.0, 0.0)
        with train_batches(
            source, DataConfig(), image_size=32, mean=mean, batch_size=2, seed=0
        ) as batches:
            print(next(batches)["image"].shape)
        print(len(list(eval_batches(source, image_size=32, batch_size=2))))
        print(sorted(m for m in sys.modules if m.split(".")[0] in ("jax", "flax", "tensorflow")))
        """
    )
    assert out.splitlines() == ["(2, 32, 32, 3)", "3", "['jax']"]


def test_sources_and_augmentation_import_no_jax():
    out = run_python(
        """
        import sys

        import ssd_jax.data.augmentation
        import ssd_jax.data.sources

        print([m for m in ("jax", "grain", "flax", "tensorflow") if m in sys.modules])
        """
    )
    assert out.strip() == "[]"


def test_workers_touch_no_accelerator(tmp_path):
    """In a worker JAX has no backend, OpenCV one thread; and a program that forgets to close
    the iterator still ends."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import numpy as np

            from ssd_jax.config import DataConfig
            from ssd_jax.data.pipeline import train_batches
            from ssd_jax.data.sources import SyntheticSource


            class Spy(SyntheticSource):
                def image(self, i):
                    import sys

                    import cv2

                    bridge = sys.modules.get("jax._src.xla_bridge")
                    backends = len(bridge._backends) if bridge else 0
                    return np.full((8, 8, 3), 100 * backends + cv2.getNumThreads(), np.uint8)

                def __getitem__(self, i):
                    from dataclasses import replace

                    return replace(super().__getitem__(i), image=self.image(i))


            if __name__ == "__main__":
                config = DataConfig(num_workers=1, augment="none")
                batches = train_batches(
                    Spy(4, "train"), config, image_size=8, mean=(0, 0, 0), batch_size=2, seed=0
                )
                print(np.unique(next(batches)["image"]).tolist())
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1]"
