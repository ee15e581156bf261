"""Trained networks by run, checkpoint, file, registry name and address of the Hub."""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ssd_jax import Detector, evaluate
from ssd_jax.checkpoints.reader import read_config
from ssd_jax.checkpoints.trust import with_local_fields
from ssd_jax.cli import weights as weights_command
from ssd_jax.config import ConfigError, to_json
from ssd_jax.config_file import load_config
from ssd_jax.data.formats.synthetic import SHAPES
from ssd_jax.demo.detection import find_detectors
from ssd_jax.export.network import Network
from ssd_jax.weights import hub, registry
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.exporters import export_arrays
from ssd_jax.weights.files import write_arrays
from ssd_jax.weights.importers import CONFIG_KEY
from ssd_jax.weights.trained import find_trained, read_trained_config, restore_trained
from tests.runs import write_run
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": SHAPES}, eval={"report": False})
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained") / "run", CONFIG)


@pytest.fixture(scope="module")
def detector(run):
    return Detector.from_checkpoint(run, batch_size=1)


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    """The detector in one file."""
    path = tmp_path_factory.mktemp("saved") / "shapes.safetensors"
    detector.save(path)
    return path


def detect(detector):
    detections = detector(IMAGE, threshold=0.0)
    return detections.boxes, detections.scores, detections.labels


def assert_same_detections(detector, expected):
    for actual, wanted in zip(detect(detector), detect(expected), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_saved_detector_gives_the_same_detections(detector, saved):
    assert_same_detections(Detector.from_checkpoint(saved, batch_size=1), detector)
    assert len(detector(IMAGE, threshold=0.0)) > 10


def test_saved_file_holds_config_classes_and_priors(saved):
    with safe_open(saved, framework="numpy") as file:
        config = json.loads(file.metadata()[CONFIG_KEY])
    assert config == json.loads(to_json(with_local_fields(CONFIG)))
    assert config["model"]["classes"] == list(SHAPES)


def test_saved_detector_can_be_saved_again_bit_for_bit(saved, tmp_path):
    Detector.from_checkpoint(saved).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [("detector.pth", "must end in .safetensors"), ("there.safetensors", "exists")],
)
def test_save_refuses_other_names(detector, tmp_path, name, message):
    (tmp_path / "there.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=rf"^path: .*{name} {message}"):
        detector.save(tmp_path / name)
    assert (tmp_path / "there.safetensors").read_bytes() == b""


@pytest.mark.slow
def test_file_is_evaluated_as_its_run(run, saved, tmp_path):
    of_run = evaluate(run, out_dir=tmp_path / "a")
    of_file = evaluate(saved, out_dir=tmp_path / "b")
    assert of_run.results[0].mean_ap == of_file.results[0].mean_ap
    metrics = [json.loads((tmp_path / part / "metrics.json").read_text()) for part in "ab"]
    assert metrics[0].pop("step") == 0
    assert metrics[0] == metrics[1]


def test_evaluation_of_a_file_is_written_to_its_name(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(saved)
    assert Path("eval/shapes/metrics.json").is_file()


def test_export_and_demo_take_the_file(run, saved):
    network = Network.from_checkpoint(saved, 0.1)
    expected = Network.from_checkpoint(run, 0.1)
    assert network.config == expected.config
    assert list(find_detectors([saved, run])) == ["shapes", "run, step 0"]


def test_config_of_a_file_keeps_local_fields(run, tmp_path):
    foreign = change(
        CONFIG,
        model={"init_from": "/foreign"},
        data={"num_workers": 999},
        runtime={"compilation_cache_dir": "/foreign/cache"},
    )
    _, variables = restore_trained(run / "checkpoints/0", read_config(run / "checkpoints/0"))
    arrays = export_arrays(foreign, variables, "safetensors")
    write_arrays(tmp_path / "foreign.safetensors", arrays.values, arrays.metadata)
    config = read_trained_config(tmp_path / "foreign.safetensors")
    assert config == with_local_fields(foreign)
    assert "/foreign" not in to_json(config)


@pytest.mark.parametrize(
    "metadata",
    [
        "{}",
        "[]",
        "{",
        '{"model": {"image_size": -1}}',
        '{"model": {"image_size": "x"}}',
        '{"models": {}}',
        '{"model": {"classes": ["a"], "extras": 3}}',
        '{"model": {"classes": 3}}',
    ],
)
def test_invalid_config_in_a_file_is_one_line(tmp_path, metadata):
    path = tmp_path / "odd.safetensors"
    write_arrays(path, {"params/base/x": np.zeros(1, "f")}, {CONFIG_KEY: metadata})
    with pytest.raises((WeightsError, ConfigError), match=r"odd\.safetensors") as error:
        read_trained_config(path)
    assert "\n" not in str(error.value)


def test_shape_that_differs_from_the_config_is_named(saved):
    config = read_trained_config(saved)
    wider = change(config, model={"width_multiplier": 0.25})
    with pytest.raises(ConfigError, match=r"shapes.safetensors does not fit the config"):
        restore_trained(saved, wider)


def test_base_network_is_no_detector(tmp_path):
    rng = np.random.default_rng(0)
    sizes = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    names = [f"conv{k}_{i}" for k, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    arrays = {}
    for name, inputs, outputs in zip(names, sizes, sizes[1:], strict=False):
        arrays[f"{name}/w"] = rng.normal(size=(3, 3, inputs, outputs)).astype("f")
        arrays[f"{name}/b"] = np.zeros(outputs, "f")
    np.savez(tmp_path / "vgg.npz", **arrays)
    with pytest.raises(ConfigError, match=r"vgg.npz holds a base network, .* model.init_from"):
        read_trained_config(tmp_path / "vgg.npz")


@pytest.fixture
def published(saved, tmp_path, monkeypatch):
    """A registry entry whose file is in a mirror folder; the cache is empty."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    shutil.copy(saved, mirror)
    entry = dataclasses.replace(
        registry.find_entry("ssd300-vgg16-coco"),
        name="ssd-tiny-shapes",
        file=saved.name,
        config=None,
        size=saved.stat().st_size,
        sha256=hashlib.sha256(saved.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(registry.ENTRIES, entry.name, entry)
    monkeypatch.setenv("SSD_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SSD_JAX_WEIGHTS_MIRROR", str(mirror))
    return entry


def test_name_of_the_registry_is_downloaded(published, detector, tmp_path):
    loaded = Detector.from_pretrained(published.name, batch_size=1)
    assert_same_detections(loaded, detector)
    assert find_trained(published.name).is_relative_to(tmp_path / "home")


def test_published_weights_are_evaluated_on_the_data_of_their_config(published, monkeypatch):
    entry = dataclasses.replace(published, config="ssd300_coco")
    monkeypatch.setitem(registry.ENTRIES, entry.name, entry)
    config, expected = read_trained_config(find_trained(entry.name)), load_config("ssd300_coco")
    assert config.data == with_local_fields(expected).data
    assert config.eval == dataclasses.replace(CONFIG.eval, metrics=("coco", "voc"))
    assert config.model == CONFIG.model


def test_folder_hides_the_name_of_the_registry(published, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, published.name)
    assert find_trained(published.name) == Path(published.name, "checkpoints/0")


def test_pretrained_ignores_a_folder_of_that_name(published, detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(published.name).mkdir()
    assert_same_detections(Detector.from_pretrained(published.name, batch_size=1), detector)


def test_misspelt_name_suggests_another():
    with pytest.raises(ConfigError, match=r"ssd300-vgg16-coc.*perhaps.* ssd300-vgg16-coco"):
        find_trained("ssd300-vgg16-coc")
    with pytest.raises(WeightsError, match=r"perhaps.* ssd300-vgg16-coco"):
        Detector.from_pretrained("ssd300-vgg16-coc")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.pth", "--checkpoint: file not found: none.pth"),
        ("runs/none", "--checkpoint: no checkpoint found in runs/none"),
        ("hf://user", "--checkpoint: hf://user is not a repository; write hf://USER/REPO"),
        ("hf://user/re po", "is not a repository"),
        ("hf://user/../../etc", "is not a repository"),
    ],
)
def test_missing_source_is_named(source, message):
    with pytest.raises(ConfigError, match=message):
        find_trained(source)


def test_best_of_a_file_is_an_error(saved):
    with pytest.raises(ConfigError, match=r"--best: .*shapes.safetensors is a file"):
        find_trained(saved, best=True)


class FakeHub(types.ModuleType):
    """The functions of huggingface_hub that are used, on a folder."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder, self.calls = folder, []

    def HfApi(self):
        return self

    def create_repo(self, repo, *, private, exist_ok):
        self.calls.append((repo, private, exist_ok))
        return f"https://hub.example/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id)

    def hf_hub_download(self, repo, name, *, revision):
        path = self.folder / repo / name
        if not path.is_file():
            raise OSError(f"404: {repo}\nmore lines")
        return str(path)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def push(*arguments):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        weights_command.main(["push", *map(str, arguments)])
    return output.getvalue()


def test_push_and_pull(fake_hub, run, detector, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "eval/0").mkdir(parents=True)
    (copy / "eval/0/metrics.json").write_text('{"voc07/mAP": 0.8125, "voc/mAP": null}')
    output = push(copy, "me/shapes", "--license", "mit", "--private")
    assert "https://hub.example/me/shapes" in output
    assert fake_hub.calls == [("me/shapes", True, True)]
    assert_same_detections(Detector.from_pretrained("hf://me/shapes", batch_size=1), detector)
    card = (fake_hub.folder / "me/shapes/README.md").read_text()
    assert "| mAP, 11-point (VOC 2007) | 0.8125 |" in card
    assert 'license: "mit"' in card
    assert "--checkpoint hf://me/shapes" in card
    assert "area" not in card
    for name in SHAPES:
        assert name in card


def test_pushed_config_names_no_folder_of_this_machine(fake_hub, tmp_path):
    config = change(CONFIG, data={"root": "/home/someone/secret/shapes", "format": "voc"})
    push(write_run(tmp_path / "run", config), "me/shapes")
    pushed = fake_hub.folder / "me/shapes" / hub.FILE_NAME
    assert b"someone" not in pushed.read_bytes()
    assert read_trained_config(pushed).data.root == "shapes"


def test_card_of_a_detector_without_metrics_says_so(fake_hub, run):
    push(run, "me/shapes")
    card = (fake_hub.folder / "me/shapes/README.md").read_text()
    assert "Not evaluated." in card
    assert "Not stated." in card
    assert "model-index" not in card


def test_failed_pull_is_one_line(fake_hub):
    with pytest.raises(WeightsError, match=r"cannot be downloaded: 404: me/none more lines$"):
        find_trained("hf://me/none")


def test_missing_huggingface_hub_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'ssd_jax\[hub\]'"):
        find_trained("hf://me/shapes")
