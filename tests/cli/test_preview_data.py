"""The show command: the training's own images, and the priors that make_targets gives an object."""

import io
import sys
from functools import partial

import cv2
import jax
import numpy as np
import pytest
from rich.console import Console

from ssd_jax.cli import data as data_main
from ssd_jax.cli import preview_data as show
from ssd_jax.cli.run import run_main
from ssd_jax.data.formats.synthetic import SHAPES
from ssd_jax.data.pipeline import train_batches
from ssd_jax.data.sources import open_source
from ssd_jax.models.ssd import model_priors
from ssd_jax.ops.matching import make_targets
from tests.data.folders import make_folder, write_xml
from tests.tiny import TINY, change, write_config_file

EMPTY = np.zeros((0, 4), np.float32)
CAFFE = change(TINY, data={"train_split": "train:6"}, train={"seed": 3})


def corners(prior):
    cx, cy, w, h = map(float, prior)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (area - common) if common else 0.0


def slow_owners(iou, threshold, rule):
    """The object of each prior by the rules' own words, one pair after the other."""
    objects, priors = iou.shape
    owner = [-1] * priors
    for p in range(priors):
        for k in range(objects):
            if iou[k, p] >= threshold and (owner[p] < 0 or iou[k, p] > iou[owner[p], p]):
                owner[p] = k
    if rule == "per_object":
        for k in range(objects):
            owner[int(np.argmax(iou[k]))] = k
        return owner
    left = iou.copy()
    for _ in range(objects):
        k, p = np.unravel_index(np.argmax(left), left.shape)
        owner[p] = int(k)
        left[k], left[:, p] = 0, 0
    return owner


def padded(boxes, room=8):
    """The boxes, and after them padding that no one may look at, with its mask."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    out = np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (room, 1))
    out[: len(boxes)] = boxes
    return out, np.arange(room) < len(boxes)


def random_boxes(rng, n):
    low = rng.uniform(0, 0.7, (n, 2))
    return np.concatenate([low, low + rng.uniform(0.08, 0.3, (n, 2))], 1)


TWINS = [[0.2, 0.2, 0.5, 0.5], [0.21, 0.2, 0.5, 0.5], [0.2, 0.21, 0.5, 0.5]]


@pytest.mark.parametrize("rule", ["bipartite", "per_object"])
@pytest.mark.parametrize(
    "boxes", [EMPTY, TWINS, *(random_boxes(np.random.default_rng(k), 6) for k in range(4))]
)
def test_priors_of_an_object_are_those_of_a_double_loop(rule, boxes):
    config = change(TINY, train={"matching": rule, "match_iou_threshold": 0.45})
    # Of random priors no two tie; a grid's do, up to rounding, wherever they enclose an object.
    rng = np.random.default_rng(9)
    priors = rng.uniform([0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.4, 0.4], (300, 4)).astype(np.float32)
    boxes, mask = padded(boxes)
    n = mask.sum()
    matches = show.match_objects(priors, boxes, mask, config)

    iou = np.array([[slow_iou(b, corners(p)) for p in priors] for b in boxes[:n].astype(float)])
    owner = np.array(slow_owners(iou.reshape(n, len(priors)), 0.45, rule))
    np.testing.assert_array_equal(matches.object_index, owner)
    assert matches.num_priors.tolist() == [(owner == k).sum() for k in range(n)]
    expected = [iou[k, p] if k >= 0 else 0 for p, k in enumerate(owner)]
    np.testing.assert_allclose(matches.iou, expected, atol=1e-6)
    best = [max(iou[k, owner == k], default=0) for k in range(n)]
    np.testing.assert_allclose(matches.best_iou, best, atol=1e-6)


def test_samples_are_the_first_images_of_the_training():
    source = open_source(CAFFE.data, CAFFE.data.train_split, SHAPES)
    with train_batches(
        source, CAFFE.data, image_size=64, mean=CAFFE.model.image_mean, batch_size=4, seed=3
    ) as batches:
        pairs = [next(batches), next(batches)]
    samples = show.take_samples(CAFFE, SHAPES, 7)
    assert len(samples) == 7
    for k, sample in enumerate(samples):
        for name in ("image", "boxes", "labels", "mask"):
            np.testing.assert_array_equal(getattr(sample, name), pairs[k // 4][name][k % 4])
        record = source[int(pairs[k // 4]["index"][k % 4])]
        assert sample.record.image_id == record.image_id
    # More images than records: the second epoch has other augmentations.
    assert len({s.record.image_id for s in samples}) == 6


def test_table_adds_up():
    owners = [[-1, 0, 0, 1, -1], [-1, -1, -1, 0, 0], [-1] * 5]
    matches = [
        show.PriorMatches(np.array(owners[0]), None, np.array([2, 1, 0]), np.array([0.8, 0.4, 0])),
        show.PriorMatches(np.array(owners[1]), None, np.array([2]), np.array([0.5])),
        show.PriorMatches(np.array(owners[2]), None, np.array([], int), np.array([])),
    ]
    console = Console(file=io.StringIO(), record=True, width=100)
    show.print_table(matches, TINY, [2, 3], console)
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["conv4_3", "16", "2", "1", "20.0", "%"] in lines
    assert ["conv7", "32", "3", "4", "80.0", "%"] in lines
    assert ["all", "5", "5", "100.0", "%"] in lines
    assert " ".join(lines[0]) == "Positive priors of 3 images, bipartite, IoU 0.5"
    assert " ".join(lines[-1]) == (
        "4 objects, 1.2 positive priors each; 2 (50.0 %) without one of IoU 0.5 or more, "
        "1 without any"
    )


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `ssd-jax data show`; status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssd-jax data", "show", *map(str, arguments)])
        return run_main(data_main.main), *capfd.readouterr()

    return run


def drawn_matches(monkeypatch):
    """The arguments of every call of draw_matches from now on."""
    calls = []
    draw = show.draw_matches

    def record(*arguments):
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(show, "draw_matches", record)
    return calls


@pytest.mark.parametrize(
    ("count", "workers", "rule"), [(1, 1, "bipartite"), (8, 0, "bipartite"), (8, 0, "per_object")]
)
def test_drawn_and_counted_matches_equal_make_targets(
    run, monkeypatch, tmp_path, count, workers, rule
):
    config = change(CAFFE, data={"num_workers": workers}, train={"matching": rule})
    path = write_config_file(tmp_path / "tiny.py", config)
    calls = drawn_matches(monkeypatch)
    status, out, err = run("--config", path, "--out", tmp_path / "a/b", "--count", count)
    assert (status, err) == (0, "")
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["matches.jpg", "samples.jpg"]
    for name in ("samples.jpg", "matches.jpg"):
        assert f"wrote {tmp_path / 'a/b' / name}\n" in out
        height, width, _ = cv2.imread(str(tmp_path / "a/b" / name)).shape
        assert 900 < width <= 2000
        assert height > 400

    priors = model_priors(config.model, config.priors)
    targets_of = jax.jit(
        partial(make_targets, threshold=0.5, rule=rule, variances=config.priors.variances)
    )
    # 8x8 and 4x4 cells with 4 priors each.
    finest, total, objects, weak = 0, 0, 0, 0
    samples = show.take_samples(config, SHAPES, count)
    for call, sample in zip(calls, samples, strict=True):
        image, boxes, texts, broken, priors_px, owners = call
        side = len(image)
        targets = targets_of(priors, sample.boxes, sample.labels + 1, sample.mask)
        label = np.asarray(targets.label)
        expected = np.array([corners(p) for p in priors[label > 0]]) * side
        np.testing.assert_allclose(priors_px, expected, atol=1e-3)
        np.testing.assert_array_equal(sample.labels[owners] + 1, label[label > 0])
        np.testing.assert_allclose(boxes, sample.boxes[sample.mask] * side)
        for k, (box, text, gaps) in enumerate(zip(boxes, texts, broken, strict=True)):
            iou = [slow_iou(box, p) for p in priors_px[owners == k]]
            assert gaps == (max(iou, default=0) < 0.5)
            if iou and gaps:
                assert text.startswith("forced: 0.")
            else:
                assert text.startswith(f"{len(iou)}: 0." if iou else "none")
            if iou:
                assert 0 <= max(iou) - float(text.split()[-1]) < 0.0101
        finest, total = finest + (label[: 8 * 8 * 4] > 0).sum(), total + len(owners)
        objects, weak = objects + len(boxes), weak + sum(broken)
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")]
    by_source = {row[0]: int(row[-3]) for row in rows if row and row[-1] == "%"}
    assert by_source == {"conv4_3": finest, "conv7": total - finest, "all": total}
    assert total > 0
    assert f"{objects} object" in out
    assert f"; {weak} (" in out


def test_image_without_objects(run, monkeypatch, tmp_path):
    root = make_folder(tmp_path / "data", {"1": write_xml()})
    data = {"format": "voc", "root": str(root), "train_split": "train", "eval_split": "train"}
    config = change(TINY, model={"classes": ("cat",)}, data=data)
    path = write_config_file(tmp_path / "voc.py", config)
    calls = drawn_matches(monkeypatch)
    status, out, err = run("--config", path, "--out", tmp_path / "out", "--count", "2")
    assert (status, err) == (0, "")
    assert "0 objects, 0.0 positive priors each; 0 (-) without one" in out
    assert [len(c[4]) for c in calls] == [0, 0]


def test_record_is_drawn_beside_the_sample(monkeypatch):
    """The original keeps its shape, in the middle; difficult objects and crowds are counted."""
    drawn, captions = [], []
    monkeypatch.setattr(
        show, "draw_boxes", lambda image, boxes, *_: drawn.append((image, boxes)) or image
    )
    join = show.side_by_side
    monkeypatch.setattr(show, "side_by_side", lambda *a: captions.extend(a[2]) or join(*a))
    record = show.Example(
        image_id="name",
        image=np.full((100, 200, 3), 7, np.uint8),
        boxes=np.array([[0.5, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 1]], np.float32),
        labels=np.array([0, 0, 0]),
        difficult=np.array([False, True, True]),
        crowd=np.array([False, False, True]),
    )
    boxes, mask = padded([[0, 0, 0.5, 0.5]])
    sample = show.Sample(np.zeros((64, 64, 3), np.uint8), boxes, np.zeros(8, int), mask, record)
    show._sample_panel(sample, ("cat",), 400)
    (before, before_boxes), (after, after_boxes) = drawn
    assert before.shape == after.shape == (400, 400, 3)
    assert (before[100:300] == 7).all()
    assert (before[:100] != 7).all()
    np.testing.assert_array_equal(before_boxes[0], [200, 100, 400, 300])
    np.testing.assert_array_equal(after_boxes, [[0, 0, 200, 200]])
    assert captions == [
        "name: 200 x 100, 3 objects, 1 crowd, 1 difficult",
        "augmented: 1 object",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count is 0; use a number from 1 to 128"),
        (["--count", "129"], "--count is 129"),
        (["--count", "many"], "--count: invalid literal for int() with base 10: 'many'"),
        (["--count"], "--count needs a value"),
        (["--data.augmnt", "none"], "perhaps you meant --data.augment"),
        (["--data.max-objects", "1"], "objects and data.max_objects is 1"),
        (
            ["--model.feature-layers", "conv4_3", "conv5_3", "--model.image-size", "31"],
            "image_size is 31",
        ),
        (["--data.train-split", "many"], "data.train_split is 'many'"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(run, tmp_path, arguments, message):
    path = write_config_file(tmp_path / "tiny.py", CAFFE)
    status, out, err = run("--config", path, "--out", tmp_path / "out", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_without_a_config(run):
    status, _, err = run("--count", "3")
    assert status == 2
    assert "--config is missing" in err


def test_folder_that_cannot_be_written(run, tmp_path):
    path = write_config_file(tmp_path / "tiny.py", CAFFE)
    status, out, err = run("--config", path, "--out", path, "--count", "1")
    assert (status, out) == (2, "")
    assert f"--out: {path} cannot be written (File exists)" in " ".join(err.split())


def test_folder_has_the_configs_name(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(show, "show", lambda config, out, count: calls.append((out, count)))
    path = write_config_file(tmp_path / "tiny.py", CAFFE)
    data_main.show_data(["--config", str(path)])
    assert [(str(out), count) for out, count in calls] == [("runs/show/tiny", 16)]


def test_help_lists_the_options_and_every_field(capsys):
    with pytest.raises(SystemExit) as exit_:
        data_main.show_data(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for text in (
        "--out DIR",
        "runs/show/",
        "--count INT",
        "--data.augment",
        "--train.match-iou-threshold",
    ):
        assert text in out
