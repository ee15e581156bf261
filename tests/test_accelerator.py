"""Accelerator benchmark: isolation of failing parts, results on disk, figures and reports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.accelerator import command, correctness, finetune, prepare, report, timing, trace
from benchmarks.accelerator.parts import PARTS, Part
from benchmarks.accelerator.runner import run_parts
from benchmarks.accelerator.trace import Kernel

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parts_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    # Their processes need no accelerator and no threads.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def planted(name, limit=60.0, minimum=0.0):
    return Part(name, f"accelerator_parts:{name}", limit, minimum)


def test_failed_timed_out_and_skipped_parts_do_not_stop_later_parts(parts_on_path, tmp_path):
    parts = [
        planted("fails"),
        planted("hangs", limit=6),
        planted("needs_a_missing_package"),
        planted("works"),
    ]
    reports = []
    status = run_parts(
        parts,
        tmp_path,
        bundle=None,
        seconds=126,
        tiny=False,
        after_part=lambda: reports.append(report.write_report(tmp_path)),
    )
    assert [part["status"] for part in status.values()] == ["failed", "cut", "skipped", "done"]
    assert "RuntimeError: planted" in status["fails"]["error"]
    assert "no_such_package is not installed" in status["needs_a_missing_package"]["reason"]
    # Results recorded before the failure and the timeout are kept.
    for name, value in (
        ("fails", {"before": 1}),
        ("hangs", {"before": 1}),
        ("works", {"answer": 42}),
    ):
        assert json.loads((tmp_path / f"{name}.json").read_text()) == value
    assert len(reports) == 4
    text = (tmp_path / "report.md").read_text()
    assert "RuntimeError: planted" in text
    assert json.loads((tmp_path / "report.json").read_text())["status"] == status


def test_last_parts_are_dropped_when_time_is_short(tmp_path):
    parts = [planted("works", minimum=100), planted("fails", minimum=2)]
    status = run_parts(
        parts, tmp_path, bundle=None, seconds=1.0, tiny=False, after_part=lambda: None
    )
    assert [part["status"] for part in status.values()] == ["dropped", "dropped"]
    assert not (tmp_path / "works.log").exists()


def test_later_runs_keep_earlier_results(tmp_path):
    for name in ("works", "fails"):
        run_parts(
            [planted(name, minimum=9)],
            tmp_path,
            bundle=None,
            seconds=1.0,
            tiny=False,
            after_part=lambda: None,
        )
    assert set(json.loads((tmp_path / "status.json").read_text())) == {"works", "fails"}


def test_finetuning_has_three_of_eight_minutes():
    *others, training = PARTS
    assert training.name == "finetune"
    assert 8 * 60 - sum(part.limit for part in others) >= 180


def test_trace_summary_has_kernels_categories_and_gaps():
    kernels = [
        Kernel("cudnn_conv", 0, 4e6),
        Kernel("input_transpose_fusion", 3e6, 2e6),  # overlaps the first by 1 ms
        Kernel("cudnn_conv", 6e6, 2e6),  # after a gap of 1 ms
        Kernel("wrapped_convert", 8e6, 2e6),
    ]
    summary = trace.reduce_trace(kernels, steps=2)
    assert summary["device"] == pytest.approx(
        {
            "ms": 5.0,
            "busy_ms": 4.5,
            "idle_ms": 0.5,
            "idle_share": 0.1,
            "gaps_above_10us": 0.5,
            "longest_gap_us": 1000.0,
            "kernels": 2.0,
        }
    )
    assert summary["categories"] == pytest.approx(
        {"convolutions and products": 0.6, "transposes": 0.2, "other": 0.2}
    )
    assert summary["longest"][0] == {
        "name": "cudnn_conv",
        "category": "convolutions and products",
        "ms": 3.0,
        "calls": 1.0,
        "share": 0.6,
    }


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolutions and products"),
        ("loop_convert_fusion", "other"),
        ("MemcpyD2D", "copies"),
        ("input_transpose_fusion_3", "transposes"),
        ("input_reduce_fusion", "reductions"),
        ("cub::DeviceRadixSortOnesweepKernel", "sorts"),
    ],
)
def test_kernels_are_sorted_into_categories_by_name(name, category):
    assert trace.category(name) == category


def test_throughput_waits_for_each_block_of_calls():
    waited, called = [], []
    times = timing.throughput(
        lambda: called.append(0) or len(called), waited.append, seconds=0.0, calls=10, warm_up=3
    )
    assert len(called) == 33
    assert waited == [1, 2, 3, 13, 23, 33]
    assert times["calls"] == 30
    assert times["s_min"] <= times["s"] <= times["s_max"]


def test_only_detections_of_equal_class_score_and_box_count_as_equal():
    box = np.array([0.1, 0.1, 0.5, 0.5], np.float32)

    def detections(boxes, scores, labels):
        return SimpleNamespace(
            boxes=np.array([boxes]),
            scores=np.array([scores], np.float32),
            labels=np.array([labels]),
            count=np.array([len(labels)]),
        )

    cpu = detections([box] * 4, [0.9, 0.8, 0.7, 0.6], [1, 2, 3, 4])
    device = detections([box, box, box + 0.01, box], [0.9, 0.81, 0.7, 0.6], [1, 2, 3, 5])
    assert correctness.count_equal_detections(device, cpu, 0) == 1


def test_report_lists_failed_cases_and_leaves_unmeasured_cells_empty():
    measured = {"images_per_s": 1234.0, "ms": 1.0, "ms_min": 0.5, "ms_max": 2.0, "mfu": None}
    results = {
        "training_step": {"a": measured, "b": {"failed": "RuntimeError: out of memory"}},
        "training_step_torchvision": {"c": measured | {"compile_s": 24.2}},
    }
    text = report.markdown({}, results)
    assert "| a | 1,234 | 1.0 (0.5 to 2.0) |  |  |  |  |  |  |  |" in text
    assert "| c | 1,234 | 1.0 (0.5 to 2.0) |  |  |  |  | 24 |  |  |" in text
    assert text.endswith("Failed:\n\n- b: RuntimeError: out of memory\n")


def test_compact_weights_are_close_to_the_original(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "conv1_1/w": rng.normal(0, 0.1, (3, 3, 3, 64)).astype(np.float32),
        "conv1_1/b": rng.normal(0, 1, 64).astype(np.float32),
    }
    np.savez(tmp_path / "full.npz", **arrays)
    finetune.compact_weights(tmp_path / "full.npz", tmp_path / "compact.npz")
    file = finetune.expand_weights(tmp_path / "compact.npz", tmp_path / "expanded.npz")
    with np.load(file) as expanded:
        assert set(expanded.files) == set(arrays)
        np.testing.assert_array_equal(expanded["conv1_1/b"], arrays["conv1_1/b"])
        w, original = expanded["conv1_1/w"], arrays["conv1_1/w"]
        step = np.abs(original).max(axis=(0, 1, 2)) / 127
        assert w.dtype == np.float32
        assert np.all(np.abs(w - original) <= 0.501 * step)


def test_invalid_arguments_give_one_error_line(tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    (tmp_path / "weights.npz").touch()
    inputs = ["--photographs", str(tmp_path), "--weights", str(tmp_path / "weights.npz")]
    for arguments, message in (
        (["--minutes", "0"], "--minutes is 0.0; must be above 0"),
        (["--prepare", str(tmp_path / "new")], "--photographs is missing"),
        (["--prepare", str(tmp_path / "used"), *inputs], "is not empty"),
        (["--prepare", str(tmp_path / "new"), *inputs], "file not found"),
    ):
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_zipped_photographs_can_be_unpacked(tmp_path):
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for name in ("ImageSets/Main/test.txt", "Annotations/a.xml", "JPEGImages/a.jpg"):
        (tmp_path / "set" / name).write_text(name)
    assert prepare.zip_photographs(tmp_path / "set", tmp_path / "set.zip") == 1
    root = finetune.unpack(tmp_path / "set.zip", tmp_path / "unpacked")
    assert (root / "JPEGImages/a.jpg").read_text() == "JPEGImages/a.jpg"


@pytest.mark.slow
def test_every_part_runs_at_reduced_size(tmp_path):
    arguments = ["accelerator", "--tiny", "--minutes", "20", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results_file = json.loads((tmp_path / "report.json").read_text())
    peers = {"training_step_torchvision", "detection_torchvision"}  # need torchvision
    for part in PARTS:
        expected = ("done", "skipped") if part.name in peers else ("done",)
        assert results_file["status"][part.name]["status"] in expected
    results = results_file["results"]
    assert all(row["ok"] for row in results["correctness"].values())
    assert not any("failed" in row for row in results["training_step"].values())
    assert not any("failed" in row for row in results["detection"].values())
    assert len(results["trace"]["longest"]) == trace.LONGEST
    assert 0 <= results["finetune"]["training"]["mAP"] <= 1
    text = (tmp_path / "report.md").read_text()
    for heading in (
        "Machine",
        "Agreement",
        "Training step",
        "Trace",
        "Detection",
        "Input",
        "Parts",
    ):
        assert f"## {heading}" in text
    assert (tmp_path / "training.png").read_bytes()[1:4] == b"PNG"
