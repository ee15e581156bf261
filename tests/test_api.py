"""The names of the package: lazy imports, training, evaluation and detection."""

import dataclasses
import json
import operator
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ssd_jax
from ssd_jax.config import ConfigError, UserError
from ssd_jax.data.formats.synthetic import SHAPES
from tests.runs import write_run
from tests.tiny import TINY, change

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parent.parent
CONFIG = change(TINY, model={"classes": SHAPES}, eval={"report": False})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("api") / "run", CONFIG)


def test_every_name_can_be_imported():
    assert set(ssd_jax.__all__) <= set(dir(ssd_jax))
    for name in ssd_jax.__all__:
        assert getattr(ssd_jax, name) is not None
    with pytest.raises(AttributeError, match="module 'ssd_jax' has no attribute 'traiin'"):
        operator.attrgetter("traiin")(ssd_jax)


def test_names_are_those_of_their_modules():
    from ssd_jax.inference.detector import Detector

    assert ssd_jax.Detector is Detector
    assert set(ssd_jax._MODULES) == set(ssd_jax.__all__) - {"__version__"}


def test_import_is_lazy():
    code = """
import sys
before = set(sys.modules)
import ssd_jax
assert not {"jax", "numpy", "tyro", "ssd_jax.config"} & (set(sys.modules) - before)
ssd_jax.Config, ssd_jax.load_config, ssd_jax.UserError
assert not {"jax", "numpy"} & (set(sys.modules) - before)
ssd_jax.Detector
assert "jax" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_package_is_typed():
    assert (ROOT / "ssd_jax/py.typed").is_file()


def test_train_takes_a_config_its_name_or_a_path(monkeypatch, tmp_path):
    calls = []

    def record(config, workdir, *, resume):
        calls.append((config, workdir, resume))
        return 0.5

    monkeypatch.setattr("ssd_jax.training.loop.train", record)
    quickstart = ssd_jax.load_config("quickstart")
    assert ssd_jax.train(quickstart, tmp_path) == 0.5
    ssd_jax.train("quickstart", str(tmp_path), resume=True)
    ssd_jax.train(ROOT / "configs/quickstart.py", tmp_path)
    assert calls == [(quickstart, tmp_path, resume) for resume in (False, True, False)]


def test_errors_are_exceptions_of_the_package(run, tmp_path):
    with pytest.raises(ConfigError, match=r"^config: unknown config quikstart; perhaps you meant"):
        ssd_jax.train("quikstart", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^checkpoint: .*no checkpoint found"):
        ssd_jax.evaluate(tmp_path)
    with pytest.raises(ConfigError, match=r"^config has another network than "):
        ssd_jax.evaluate(run, change(CONFIG, model={"width_multiplier": 0.5}))
    exits = tmp_path / "exits.py"
    exits.write_text("raise SystemExit(3)")
    with pytest.raises(ssd_jax.UserError, match=r"exits\.py fails: SystemExit: 3"):
        ssd_jax.load_config(exits)
    assert issubclass(ConfigError, UserError)
    assert list(tmp_path.iterdir()) == [exits]


def test_evaluate(run, tmp_path):
    evaluation = ssd_jax.evaluate(run, out_dir=tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["voc/mAP"] == pytest.approx(evaluation.results[0].mean_ap)
    assert not (run / "eval").exists()
    # The sections data and eval of a config replace those of the checkpoint.
    config = dataclasses.replace(
        CONFIG, eval=dataclasses.replace(CONFIG.eval, metrics=("voc", "voc07"))
    )
    other = ssd_jax.evaluate(run, config)
    assert len(other.results) == 2
    assert (run / "eval/0/metrics.json").is_file()


def test_detector_returns_lone_results_for_lone_images(run):
    detector = ssd_jax.Detector.from_checkpoint(run, threshold=0.0)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    detections = detector(image)
    assert isinstance(detections, ssd_jax.Detections)
    for images in ([image], (image,), iter([image]), image[None]):
        results = detector(images)
        assert isinstance(results, list)
        np.testing.assert_allclose(results[0].scores, detections.scores, atol=1e-5)
