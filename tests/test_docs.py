"""The commands of README and docs, run in a folder that has the files they name."""

import dataclasses
import re
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssd_jax.cli.main import main
from ssd_jax.cli.run import run_main
from ssd_jax.config_file import find_configs, load_config
from ssd_jax.weights.registry import ENTRIES
from tests.data.folders import make_coco, make_folder, write_image, write_object, write_xml
from tests.runs import write_run
from tests.tiny import TINY, change

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))]
CLASSES = ("cat", "dog")

NOT_RUN = {
    "ssd-jax data prepare": "downloads a dataset, or needs TensorFlow: tests/data/tfds",
    "ssd-jax demo": "serves until interrupted: tests/test_demo_page.py",
    "ssd-jax estimate": "needs a compiler of an accelerator: tests/estimate",
    "ssd-jax predict --checkpoint runs/bccd 0": "needs a camera: tests/cli/test_predict.py",
    "--coordinator": "needs two hosts: tests/training/test_processes.py",
    "--data.format tfds": "needs a TFDS dataset: tests/data/tfds",
    "ssd-jax weights download": "downloads weights: tests/weights/test_download.py",
    "--to torchvision": "needs a network of torchvision: tests/cli/test_weights.py",
    "USER/REPO": "needs the Hugging Face Hub: tests/weights/test_trained.py",
    "ssd-jax weights import": "needs weights of other projects: tests/cli/test_weights.py",
    "runs/ssd300": "needs weights of other projects: tests/cli/test_weights.py",
    "--replay": "needs a step that was not finite: tests/training/test_nonfinite.py",
}
"""Parts of commands that this test does not run, with the reason and the test that does."""


def commands(page):
    """Return the commands of the fenced blocks of a page, without comments and continuations."""
    found = []
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", (ROOT / page).read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            # A line of output begins with the name of a command and a colon.
            if words[:1] == ["ssd-jax"] and not words[1].endswith(":"):
                found.append(" ".join(words))
    return found


def matching_files(word):
    """Return the files that a pattern matches; a word without a match is kept, as by a shell."""
    return (sorted(map(str, Path().glob(word))) if "*" in word else []) or [word]


def reason_not_run(command):
    return next((reason for part, reason in NOT_RUN.items() if part in command), None)


def test_every_reason_is_of_a_command():
    text = "\n".join(line for page in PAGES for line in commands(page))
    assert text.count("\n") > 30
    assert [part for part in NOT_RUN if part not in text] == []


def voc_folder(root):
    names = [f"{k:06}" for k in range(8)]
    make_folder(
        root, {name: write_xml(write_object(CLASSES[k % 2])) for k, name in enumerate(names)}
    )
    for split in ("trainval", "val", "test"):
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def network():
    return change(TINY, model={"classes": CLASSES})


def publish_run(run, mirror, monkeypatch):
    """Give the published weights of the pages the content of a small run."""
    mirror.mkdir()
    main(["weights", "export", str(run), "--to", "safetensors", "--out", f"{mirror}/a.safetensors"])
    entry = dataclasses.replace(
        ENTRIES["ssd300-vgg16-coco"], file="a.safetensors", size=None, sha256=None
    )
    monkeypatch.setitem(ENTRIES, entry.name, entry)
    monkeypatch.setenv("SSD_JAX_WEIGHTS_MIRROR", str(mirror))


@pytest.fixture
def workspace(tmp_path, monkeypatch, network):
    """A home folder with what the pages name: data, runs, photographs, videos and results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    voc_folder(tmp_path / "mydata")
    voc_folder(tmp_path / "DIR")
    voc_folder(tmp_path / "VOCdevkit/VOC2007")
    voc_folder(tmp_path / ".../BCCD")
    data = dataclasses.replace(
        network.data, format="voc", root=str(tmp_path / "mydata"),
        train_split="trainval", eval_split="test",
    )  # fmt: skip
    trained = dataclasses.replace(network, data=data)
    for run in ("mydata", "bccd", "NAME", "a", "b"):
        write_run(tmp_path / "runs" / run, trained)
    publish_run(tmp_path / "runs/mydata", tmp_path / "mirror", monkeypatch)
    write_run(tmp_path / "runs/mydata/checkpoints/best", trained)
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for folder in ("photos", "more/deep"):
        (tmp_path / folder).mkdir(parents=True)
        write_image(tmp_path / folder / f"{Path(folder).name}.png", photo)
    write_image(tmp_path / "photos/photo.jpg", photo)
    write_image(tmp_path / "photo.jpg", photo)
    for name in ("film.mp4", "clip.mp4"):
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), 12, (80, 60))
        writer.write(photo)
        writer.release()
    make_coco(tmp_path / "coco", "val2017", boxes=[(1, 7, [10, 10, 30, 30], {})])
    annotations = tmp_path / "coco/annotations/instances_val2017.json"
    (tmp_path / "annotations").mkdir()
    for folder in ("annotations", "."):
        shutil.copy(annotations, tmp_path / folder)
    row = '[{"image_id": 1, "category_id": 7, "bbox": [10, 10, 30, 30], "score": 0.9}]'
    for name in ("results.json", "a.json", "b.json"):
        Path(name).write_text(row)
    Path("results").mkdir()
    for name in CLASSES:
        Path(f"results/comp4_det_test_{name}.txt").write_text("000000 0.9 11 21 50 60\n")
    return tmp_path


def small(name_or_path, *, field="name_or_path", network):
    """Load a config, with a network that compiles in seconds and two steps of training."""
    config = load_config(name_or_path, field=field)
    data = dataclasses.replace(config.data, num_workers=0)
    if str(name_or_path) == "quickstart":
        data = dataclasses.replace(TINY.data, train_split="train:8")
    model = dataclasses.replace(network.model, classes=config.model.classes)
    train = change(network, train={"steps": 2, "eval_every": 0}).train
    return dataclasses.replace(
        network, model=model, data=data, train=train,
        optim=dataclasses.replace(network.optim, warmup_steps=0),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_of_a_page(page, workspace, network, monkeypatch, capfd):
    for module in ("train", "data"):
        monkeypatch.setattr(
            f"ssd_jax.cli.{module}.load_config",
            lambda name, *, field="--config": small(name, field=field, network=network),
        )
    for command in commands(page):
        if reason_not_run(command):
            continue
        # [ARGUMENT] is optional; the shell expands the home folder and unquoted patterns.
        words = shlex.split(re.sub(r"\[[^]]*\]", "", command))
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in words]
        words = [file for word in words for file in matching_files(word)]
        if "--config" in words:
            assert words[words.index("--config") + 1] in find_configs()
        if "--workdir" in words:
            workdir = Path(words[words.index("--workdir") + 1])
            if "--resume" not in words:
                shutil.rmtree(workdir, ignore_errors=True)
            elif not (workdir / "metrics.jsonl").exists():  # the page does not train it first
                shutil.rmtree(workdir)
                train = ["train", "--config", "voc_folder", "--data.root", "mydata"]
                monkeypatch.setattr(sys, "argv", ["ssd-jax", *train, "--workdir", str(workdir)])
                assert run_main(main) == 0
        monkeypatch.setattr(sys, "argv", words)
        status = run_main(main)
        assert status == 0, (command, capfd.readouterr().err)
