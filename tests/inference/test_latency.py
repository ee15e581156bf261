"""The benchmark of a checkpoint: timed programs equal detection; figures and table."""

import io
import json
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from ssd_jax.checkpoints.reader import find_checkpoint, write_checkpoint
from ssd_jax.cli import benchmark as benchmark_main
from ssd_jax.cli.run import run_main
from ssd_jax.inference import latency as module
from ssd_jax.inference.detect import DetectFn, make_post_process
from ssd_jax.models.ssd import init_variables, make_model
from tests.data.folders import write_image
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("a", "b")})


@pytest.fixture(scope="module")
def variables():
    model = make_model(CONFIG.model, CONFIG.priors)
    return init_variables(model, jax.random.key(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("benchmark") / "run"
    write_checkpoint(path, CONFIG, variables)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few calls, and the tests' compile cache as it was."""
    monkeypatch.setattr(module, "_MIN_ROUNDS", 2)
    monkeypatch.setattr(module, "_MAX_ROUNDS", 2)
    cache = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.slow
def test_network_and_post_processing_equal_detection(variables):
    model = make_model(CONFIG.model, CONFIG.priors)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    whole = DetectFn(model, CONFIG)(variables, images)
    parts = make_post_process(CONFIG)(*jax.jit(model.apply)(variables, images))
    assert int(whole.count.min()) > 10
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_allclose(whole.boxes, parts.boxes, atol=1e-5)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-5)


@pytest.mark.slow
def test_figures_and_their_table(run, tmp_path):
    pictures = []
    for k in range(2):
        pictures.append(tmp_path / f"{k}.png")
        write_image(pictures[-1], np.full((40 + k, 60, 3), 99, np.uint8))
    figures = module.benchmark(find_checkpoint(run), [1, 3], list(map(str, pictures)))
    assert json.loads(json.dumps(figures)) == figures
    assert figures["images"] == "2 files"
    assert figures["classes"] == 2
    assert figures["peak_memory_mb"] > 50
    assert list(figures["batches"]) == ["1", "3"]
    for size, of in figures["batches"].items():
        assert of["calls"] == 2
        assert of["images_per_s"] == pytest.approx(1000 * int(size) / of["latency_ms"])
        assert of["latency_ms_p5"] <= of["latency_ms"] <= of["latency_ms_p95"]
        assert sum(of["shares"].values()) == pytest.approx(1)
        assert min(of["parts_ms"].values()) > 0
        assert of["shares"]["network"] > 0.2
        assert of["compile_s"] > 0.05
    for key in ("latency_ms", "latency_ms_p5", "latency_ms_p95", "compile_s"):
        figures["batches"]["1"][key] = 12345.6
    console = Console(record=True, width=80, file=io.StringIO())
    module.print_benchmark(figures, console)
    text = console.export_text()
    assert f"{figures['batches']['3']['images_per_s']:.1f}" in text
    assert "…" not in text  # it fits a terminal


@pytest.mark.slow
def test_command(run, tmp_path, monkeypatch, capfd):
    def call(*arguments):
        line = ["ssd-jax benchmark", "--checkpoint", run, "--out", tmp_path, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        status = run_main(benchmark_main.main)
        return status, capfd.readouterr().err

    assert call("--batch-sizes", "2") == (0, "")
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(figures["batches"]) == ["2"]
    assert figures["images"] == "32 generated scenes of 500x500, in memory"
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "film.mp4").write_text("no film")
    for arguments, text in (
        (["--batch-sizes", "0"], "--batch-sizes is 0; use positive whole numbers, e.g. 1,8,32"),
        (["--batch-sizes", "1,x"], "--batch-sizes is 1,x"),
        (["--classes", "a"], "--classes belongs to ssd-jax predict"),
        (["--xml"], "--xml belongs to ssd-jax predict"),
        ([tmp_path / "film.mp4"], "film.mp4 is not an image; benchmark takes only images"),
        ([tmp_path / "broken.jpg"], "broken.jpg is not an image that can be decoded"),
        ([tmp_path / "none.jpg"], "file or folder not found"),
    ):
        status, err = call(*arguments)
        assert status == 2
        assert err.count("\n") == 1
        assert text in err
