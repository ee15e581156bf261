"""Exported files, in their own runtimes, agree with the network."""

import json
import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from ssd_jax.checkpoints.reader import write_checkpoint
from ssd_jax.cli import export
from ssd_jax.cli.run import run_main
from ssd_jax.config import ExtraBlock
from ssd_jax.export import layers
from ssd_jax.export.network import Network
from ssd_jax.inference.detector import Detector
from ssd_jax.models.ssd import init_variables, make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change, lively

CONFIG = change(
    TINY,
    model={"classes": ("a", "b", "ü")},
    eval={"topk_candidates": 50, "detections_per_image": 80},
)
FORMS = {
    "stablehlo": ("flatbuffers",),
    "onnx": ("onnx", "onnxruntime"),
    "savedmodel": ("tensorflow",),
    "tflite": ("tensorflow", "ai_edge_litert"),
}


def checkpoint_of(path, config, seed=0, factor=1.0):
    model = make_model(config.model, config.priors)
    variables = init_variables(model, jax.random.key(seed))
    stats = variables.get("batch_stats", {})
    # Batch norm with statistics that differ from the initial ones.
    rng = np.random.default_rng(seed)
    stats = jax.tree.map(lambda x: x + rng.uniform(0, 0.3, x.shape).astype(np.float32), stats)
    variables = {**variables, "batch_stats": stats} if stats else variables
    params = {
        name: jax.tree.map(lambda x: x + rng.uniform(0, 0.3, x.shape).astype(np.float32), layer)
        if name.startswith("affine_")
        else layer
        for name, layer in variables["params"].items()
    }
    variables = {**variables, "params": params}
    write_checkpoint(path, config, lively(variables, factor))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("export") / "run", CONFIG)


@pytest.fixture(params=list(FORMS))
def form(request):
    for name in FORMS[request.param]:
        pytest.importorskip(name)
    return request.param


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command; return its status and its lines on stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        status = run_main(export.main)
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def photograph(path, seed=3):
    """Write a smooth random image that is not square."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 13, 3), np.uint8)
    write_image(path, cv2.resize(small, (130, 90), interpolation=cv2.INTER_CUBIC))
    return path


def test_affine_feature_norm_is_exported(form, run, tmp_path):
    config = change(CONFIG, model={"feature_norm": "affine"})
    checkpoint = checkpoint_of(tmp_path / "run", config)
    arguments = ["--checkpoint", checkpoint, "--to", form, "--out", tmp_path / "out" / f"my.{form}"]
    status, lines, _ = run(*arguments, "--check", photograph(tmp_path / "p.png"))
    assert status == 0
    assert lines[-2].startswith("checked in its own runtime on 1 images: ")
    assert int(lines[-2].split(": ")[1].split()[0]) > 0


@pytest.mark.parametrize("batch", ["free", "2"])
def test_exported_file_works_without_this_project(form, batch, checkpoint, run, tmp_path):
    out = tmp_path / "out" / f"my.{form}"
    picture = photograph(tmp_path / "p.png")
    pictures = [picture, photograph(tmp_path / "q.png", 4), picture]
    arguments = ["--checkpoint", checkpoint, "--to", form, "--out", out, "--batch", batch]
    status, lines, _ = run(*arguments, "--check", *pictures)
    assert status == 0
    assert lines[-2].startswith("checked in its own runtime on 3 images: ")
    assert int(lines[-2].split(": ")[1].split()[0]) > 20
    stem = f"my_{form}"
    assert names(out.parent) == sorted([out.name, f"{stem}.json", f"{stem}.py"])
    about = json.loads((out.parent / f"{stem}.json").read_text())
    assert about["classes"] == ["a", "b", "ü"]
    assert about["input"]["shape"] == [None if batch == "free" else 2, 64, 64, 3]
    assert about["suppressed"] == (form != "tflite")

    # Run the module next to the file in a process that cannot import this project, nor JAX
    # except for StableHLO.
    blocked = ["ssd_jax", "flax"] + (["jax"] if form != "stablehlo" else [])
    code = (
        f"import sys, json; sys.modules.update(dict.fromkeys({blocked}))\n"
        f"from {stem} import Model, read_image\n"
        f"print('detections', json.dumps(Model()(read_image({str(picture)!r}), threshold=0.2)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=out.parent,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("detections "))
    detections = json.loads(line.removeprefix("detections "))
    expected = Detector.from_checkpoint(checkpoint, threshold=0.2)(picture)
    assert [name for name, _, _ in detections] == [expected.names[k] for k in expected.labels]
    assert len(detections) > 5
    np.testing.assert_allclose([score for _, score, _ in detections], expected.scores, atol=1e-3)
    np.testing.assert_allclose([box for _, _, box in detections], expected.boxes, atol=0.5)


# A StableHLO file is the network's own program.
@pytest.mark.slow
@pytest.mark.parametrize("form", [name for name in FORMS if name != "stablehlo"], indirect=True)
@pytest.mark.parametrize(
    "change_",
    [
        {"model": {"batch_norm": False, "feature_layers": ("conv4_3", "conv7", "conv8_2")}},
        {"eval": {"clip_boxes": True, "max_box_scale": 1.5, "nms_iou_threshold": 0.2}},
        {"eval": {"topk_candidates": 100_000, "detections_per_image": 300}},
        {"model": {"image_size": 87, "image_mean": (1.0, 50.0, 200.0)}, "priors": {"clip": True}},
    ],
    ids=["extras", "limits", "all candidates", "odd size"],
)
def test_export_of_network_variants(form, change_, run, tmp_path):
    changes = {"eval": {}, "model": {}, "priors": {}} | change_
    if "feature_layers" in changes["model"]:
        changes["model"] |= {"extras": (ExtraBlock(64, 64, stride=2, padding=1),) * 2}
        changes["priors"] = {"sizes": (16, 24, 32, 64), "aspect_ratios": ((2,), (2, 3), (2,))}
    config = change(CONFIG, **changes)
    path = checkpoint_of(tmp_path / "run", config, 1, 1.0 if config.model.batch_norm else 8.0)
    status, lines, err = run("--checkpoint", path, "--to", form, "--out", tmp_path / "f.x")
    assert status == 0, err
    assert int(lines[-2].split(": ")[1].split()[0]) > 40


@pytest.mark.slow
def test_different_detections_leave_no_files(form, checkpoint, run, tmp_path, monkeypatch):
    if form == "stablehlo":
        # It is the network's own program: change the weights.
        detect_ = Network.detect

        def detect(self, variables, images):
            return detect_(self, jax.tree.map(lambda x: 1.01 * x, variables), images)

        monkeypatch.setattr(Network, "detect", detect)
    else:
        monkeypatch.setattr(layers, "_BN_EPSILON", 0.2)
    out = tmp_path / "f.x"
    status, lines, err = run("--checkpoint", checkpoint, "--to", form, "--out", out)
    assert status == 2
    assert "generated scene 0: the file's detections differ from the network's" in err[-1]
    assert names(tmp_path) == []
    assert not any("checked" in line for line in lines)


def test_invalid_arguments_are_one_error_line(checkpoint, run, tmp_path):
    pytest.importorskip("flatbuffers")
    good = {"--checkpoint": checkpoint, "--to": "stablehlo", "--out": tmp_path / "f.x"}
    (tmp_path / "there").write_text("")
    (tmp_path / "text.jpg").write_text("no image")

    def says(text, **changes):
        line = good | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        arguments = [part for name, value in line.items() if value is not None
                     for part in (name, value)]  # fmt: skip
        status, _, err = run(*arguments)
        assert status == 2
        assert len(err) == 1
        assert text in err[0]

    says(
        "--checkpoint is missing (Run, e.g. runs/quickstart, checkpoint, file of weights",
        checkpoint=None,
    )
    says("--to is missing", to=None)
    says("--out is missing", out=None)
    says("--to is 'coreml'; use one of stablehlo, onnx", to="coreml")
    says("--checkpoint: no checkpoint found in", checkpoint=tmp_path / "none")
    says("there exists; name a new file", out=tmp_path / "there")
    says("--batch is 0; use free or a number of at least 1", batch="0")
    says("--batch is two; use", batch="two")
    says("--score-threshold is 1.0; use a number from 0 up to", score_threshold="1")
    says("text.jpg is not an image that can be decoded", check=tmp_path / "text.jpg")
    says("there/f cannot be written: ", out=tmp_path / "there" / "f")
    assert names(tmp_path) == ["text.jpg", "there"]


def test_missing_extra_is_named(checkpoint, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, err = run("--checkpoint", checkpoint, "--to", "onnx", "--out", tmp_path / "f.onnx")
    assert status == 2
    assert err == ["export: --to onnx needs onnx; pip install 'ssd_jax[export]'"]


@pytest.mark.nightly
@pytest.mark.parametrize("size", [300, 512])
def test_export_of_full_size_networks(form, size, run, tmp_path):
    sys.path.insert(0, "configs")
    try:
        module = __import__(f"ssd{size}_voc0712")
    finally:
        sys.path.pop(0)
    config = change(module.get_config(), model={"init_from": ""})
    path = tmp_path / "run"
    model = make_model(config.model, config.priors)
    variables = init_variables(model, jax.random.key(0))
    write_checkpoint(path, config, lively(variables, 3.0))
    status, lines, err = run("--checkpoint", path, "--to", form, "--out", tmp_path / "f.x")
    assert status == 0, err
    print(lines[-2])
