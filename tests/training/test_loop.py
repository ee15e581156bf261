"""Whole runs: output files, resuming, evaluating the checkpoint, errors and signals."""

import json
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

import evaluate as evaluate_main
from ssd_jax.checkpoints.reader import (
    find_checkpoint,
    read_config,
    restore_model,
    write_checkpoint,
)
from ssd_jax.checkpoints.writer import SaveError
from ssd_jax.config import ConfigError, UserError, from_json
from ssd_jax.evaluation.report.output_dir import OutputError
from ssd_jax.inference.detect import StoppedError
from ssd_jax.models.ssd import init_variables, make_model
from ssd_jax.training import loop, trainer
from ssd_jax.training.loop import train
from ssd_jax.training.metric_writer import LogError
from ssd_jax.training.pending_metrics import PendingSteps
from ssd_jax.training.preemption import Preempted
from ssd_jax.training.workdir import LostWorkdirError, Workdir, WorkdirError
from tests.tiny import TINY, change
from tests.training.launch import lines, saved

RESOLVED = change(TINY, model={"classes": ("circle", "square", "triangle", "star")})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "straight"
    return workdir, train(change(TINY, eval={"report": True}), workdir)


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.smoke
def test_output_files(run):
    workdir, mean_ap = run
    config = from_json((workdir / "config.json").read_text())
    assert config.model.classes == ("circle", "square", "triangle", "star")
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4", "best"]
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "eval/4/images.jpg").stat().st_size > 0
    assert "Evaluation of straight, step 4" in (workdir / "eval/4/report.html").read_text()
    lines = read_lines(workdir)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("train", 4),
        ("eval", 4),
    ]
    assert {"loss", "loss_loc", "loss_conf", "learning_rate", "images_per_s", "data_wait"} <= set(
        lines[0]
    )
    assert lines[-1]["mAP"] == mean_ap
    assert lines[-1]["best_step"] == 4
    assert json.loads((workdir / "eval/4/metrics.json").read_text())["voc/mAP"] == mean_ap


def test_evaluating_the_checkpoint_gives_the_same_metrics(run, tmp_path):
    workdir, mean_ap = run
    evaluate_main.main(["--checkpoint", str(workdir), "--out", str(tmp_path)])
    ours = json.loads((tmp_path / "metrics.json").read_text())
    assert ours == json.loads((workdir / "eval/4/metrics.json").read_text())
    assert ours["voc/mAP"] == mean_ap
    report = (tmp_path / "report.html").read_bytes()
    assert report == (workdir / "eval/4/report.html").read_bytes()


def test_unwritable_output_folder_is_reported_before_detection(run, tmp_path, monkeypatch):
    workdir, _ = run
    monkeypatch.setattr("ssd_jax.checkpoints.reader.restore_model", pytest.fail)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/out"
    with pytest.raises(UserError, match=rf"cannot write the results to {out} \(Not a dir"):
        evaluate_main.main(["--checkpoint", str(workdir), "--out", str(out)])


@pytest.mark.slow
def test_comparison_of_two_checkpoints(run, tmp_path, capsys):
    workdir, mean_ap = run
    arguments = ["--checkpoint", workdir, "--compare", workdir / "checkpoints/2"]
    evaluate_main.main([*map(str, arguments), "--out", str(tmp_path)])
    assert "A: straight, step 4\nB: straight, step 2\n" in capsys.readouterr().out
    both = json.loads((tmp_path / "comparison.json").read_text())
    for name in ("a", "b"):
        alone = json.loads((tmp_path / name / "metrics.json").read_text())
        assert alone["voc/mAP"] == both["figures"]["voc/mAP"][name]
        assert alone["step"] == {"a": 4, "b": 2}[name]
    assert both["figures"]["voc/mAP"]["a"] == mean_ap
    assert both["figures"]["voc/APm"]["difference"] != 0
    assert (tmp_path / "comparison.html").is_file()


def test_comparison_requires_the_same_classes(run, tmp_path):
    workdir, _ = run
    other = change(RESOLVED, model={"classes": ("star", "square", "triangle", "circle")})
    model = make_model(other.model, other.priors)
    weights = init_variables(model, jax.random.key(0))
    write_checkpoint(tmp_path / "other", other, dict(weights))
    arguments = ["--checkpoint", str(workdir), "--out", str(tmp_path / "out"), "--compare"]
    with pytest.raises(ConfigError, match=r"--compare: .*other.* has different classes from"):
        evaluate_main.main([*arguments, str(tmp_path / "other")])
    with pytest.raises(ConfigError, match=r"--compare: no checkpoint found in"):
        evaluate_main.main([*arguments, str(tmp_path / "none")])
    assert not (tmp_path / "out").exists()


def test_several_metrics_and_saved_detections(run, tmp_path):
    workdir, mean_ap = run
    more = ["--save-detections", "--eval.metrics", "voc", "voc07", "coco"]
    evaluate_main.main(["--checkpoint", str(workdir), "--out", str(tmp_path), *more])
    ours = json.loads((tmp_path / "metrics.json").read_text())
    assert ours["voc/mAP"] == mean_ap
    assert {"voc07/mAP", "coco/AP", "coco/ARl"} <= set(ours)
    names = sorted(p.name for p in (tmp_path / "detections").iterdir())
    assert names == sorted(f"comp4_det_test-5_{name}.txt" for name in ours["per_class"])
    lines = sum(len(p.read_text().splitlines()) for p in (tmp_path / "detections").iterdir())
    assert lines == sum(c["detections"] for c in ours["per_class"].values())


@pytest.mark.smoke
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(run, tmp_path, monkeypatch):
    straight, mean_ap = run
    workdir = tmp_path / "resumed"
    train(change(TINY, train={"steps": 2}), workdir)
    assert train(TINY, workdir, resume=True) == mean_ap
    config = read_config(workdir / "checkpoints/4")
    _, resumed = restore_model(workdir / "checkpoints/4", config)
    _, expected = restore_model(straight / "checkpoints/4", config)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    steps = [(line["kind"], line["step"]) for line in read_lines(workdir)]
    assert steps == [("train", 2), ("eval", 2), ("train", 4), ("eval", 4)]
    # Resuming after the last step returns the same mAP and neither evaluates nor logs again, even
    # if evaluate.py has written to the folder since.
    monkeypatch.setattr(trainer, "evaluate_source", None)
    (workdir / "eval/4/metrics.json").write_text('{"voc/mAP": 0.123}')
    assert train(TINY, workdir, resume=True) == mean_ap
    assert train(change(TINY, eval={"batch_size": 2}), workdir, resume=True) == mean_ap
    assert [(line["kind"], line["step"]) for line in read_lines(workdir)] == steps


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"model": {"width_multiplier": 0.25}},
            r"/4 does not fit the config: batch_stats/base/conv1_1/bn/",
        ),
        (
            {"model": {"freeze_before": "conv2_1"}},
            r"opt_state/2/trace/base/conv1_1/bn/bias is \(8,\) there and absent by the config",
        ),
    ],
)
def test_resuming_with_other_shapes_is_refused(run, section, message):
    workdir, _ = run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    with pytest.raises(ConfigError, match=message):
        train(change(TINY, **section), workdir, resume=True)
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_existing_run_is_not_overwritten(run):
    with pytest.raises(ConfigError, match="already contains a run; add --resume"):
        train(TINY, run[0])


def test_find_checkpoint(run, tmp_path):
    workdir, _ = run
    newest = workdir / "checkpoints/4"
    assert find_checkpoint(workdir) == newest
    assert find_checkpoint(workdir / "checkpoints") == newest
    assert find_checkpoint(workdir / "checkpoints/2") == workdir / "checkpoints/2"
    assert find_checkpoint(workdir, best=True) == newest
    assert find_checkpoint(workdir / "checkpoints", best=True) == newest
    assert find_checkpoint(workdir / "checkpoints/best") == newest
    with pytest.raises(ConfigError, match="no checkpoint found in"):
        find_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=r"--best: .*/2 has no checkpoints/best, which a run"):
        find_checkpoint(workdir / "checkpoints/2", best=True)


def test_checkpoint_with_other_shapes_is_refused(run):
    checkpoint = find_checkpoint(run[0])
    other = change(read_config(checkpoint), model={"width_multiplier": 0.25})
    with pytest.raises(
        ConfigError, match=r"does not fit the config: batch_stats/base/conv1_1/bn/mean is"
    ):
        restore_model(checkpoint, other)


def test_number_of_steps_in_flight_between_log_lines(tmp_path, monkeypatch):
    in_flight = []
    true_add = PendingSteps.add

    def add(self, step):
        true_add(self, step)
        in_flight.append(len(self))

    checks = []
    monkeypatch.setattr(loop.CheckpointManager, "check", lambda self: checks.append(self))
    monkeypatch.setattr(PendingSteps, "add", add)
    config = change(TINY, train={"steps": 12, "log_every": 6, "checkpoint_every": 12})
    train(config, tmp_path / "run")
    assert in_flight == [1] * 12  # on a CPU; test_pending_metrics simulates accelerators
    # A checkpoint that could not be written in the background stops the run at the next step.
    assert len(checks) == 12


def test_workdir_in_use_is_refused_first(tmp_path):
    with Workdir(tmp_path / "run"), pytest.raises(WorkdirError, match="is used by another run"):
        train(TINY, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_invalid_workdir_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "open_data", None)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"--workdir: .*file is not a folder"):
        train(TINY, tmp_path / "file")


@pytest.mark.parametrize("deleted", ["", "metrics.jsonl"])
def test_run_with_a_deleted_folder_fails(tmp_path, monkeypatch, capsys, deleted):
    workdir, true_add = tmp_path / "run", PendingSteps.add

    def add(self, step):
        true_add(self, step)
        if step.position == 4:
            shutil.rmtree(workdir) if not deleted else (workdir / deleted).unlink()

    monkeypatch.setattr(PendingSteps, "add", add)
    with pytest.raises((LostWorkdirError, LogError), match="was deleted or "):
        train(change(TINY, train={"checkpoint_every": 100}), workdir)
    assert "done" not in capsys.readouterr().out
    assert workdir.exists() == bool(deleted)


@pytest.mark.slow
def test_unwritable_evaluation_stops_after_saving(tmp_path, monkeypatch):
    true = trainer.evaluate_source

    def full(*arguments, out_dir, **more):
        true(*arguments, out_dir=out_dir, **more)
        raise OSError(28, "No space left on device")

    workdir = tmp_path / "run"
    monkeypatch.setattr(trainer, "evaluate_source", full)
    with pytest.raises(
        OutputError, match=r"write the results to .*/eval/4 \(No space left on device\); free space"
    ):
        train(TINY, workdir)
    assert not (workdir / "eval").exists()
    # The state is saved, and the evaluation is done when the run resumes.
    assert (workdir / "checkpoints/4").is_dir()
    monkeypatch.setattr(trainer, "evaluate_source", true)
    train(TINY, workdir, resume=True)
    assert (workdir / "eval/4/metrics.json").is_file()
    assert [(x["kind"], x["step"]) for x in lines(workdir)][-1] == ("eval", 4)


def test_failed_save_is_reported_instead_of_the_evaluation(tmp_path, monkeypatch):
    def full(*_, **more):
        raise OSError(28, "No space left on device")

    def close(_):
        raise SaveError("the checkpoint of step 4 cannot be written")

    monkeypatch.setattr(trainer, "evaluate_source", full)
    monkeypatch.setattr(loop.CheckpointManager, "close", close)
    with pytest.raises(SaveError, match="of step 4 cannot be written"):
        train(TINY, tmp_path / "run")


def test_signal_does_not_wait_for_the_compiler(tmp_path, monkeypatch, capsys):
    end = threading.Event()

    def compile_for_minutes(*arguments):
        signal.raise_signal(signal.SIGTERM)
        end.wait(60)

    monkeypatch.setattr(trainer, "compile_on_all_processes", compile_for_minutes)
    with pytest.raises(Preempted, match="by a signal before the first step; nothing") as raised:
        train(TINY, tmp_path / "run")
    end.set()
    assert raised.value.busy
    assert raised.value.status == 75
    assert "stopping now: nothing is to be saved" in capsys.readouterr().out


@pytest.mark.slow
def test_profiler_trace(tmp_path):
    config = change(TINY, train={"steps": 8, "profile_steps": 2}, eval={"num_visualizations": 0})
    train(config, tmp_path / "run")
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0


def test_best_metric_must_be_a_metric(tmp_path):
    config = change(TINY, train={"keep_best": 1, "best_metric": "AP/dog"})
    with pytest.raises(
        ConfigError, match=r"best_metric is 'AP/dog'; use one of mAP, voc/mAP, voc/APs"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ema_weights_are_evaluated(tmp_path):
    config = change(TINY, optim={"ema_decay": 0.5})
    mean_ap = train(config, tmp_path / "run")
    evaluate_main.main(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/metrics.json").read_text())["voc/mAP"] == mean_ap
    checkpoint = find_checkpoint(tmp_path / "run")
    _, ours = restore_model(checkpoint, read_config(checkpoint))
    state = saved(tmp_path / "run", 4)
    jax.tree.map(np.testing.assert_array_equal, ours, state["ema"])
    kernels = [v["params"]["head_conv7"]["loc"]["kernel"] for v in (ours, state)]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_resume_before_the_first_checkpoint_starts_from_init_from(tmp_path):
    """The run starts from the configured weights, not from random ones."""
    model = make_model(RESOLVED.model, RESOLVED.priors)
    old = jax.device_get(init_variables(model, jax.random.key(7)))
    write_checkpoint(tmp_path / "old", RESOLVED, old)
    config = change(TINY, model={"init_from": str(tmp_path / "old")}, optim={"ema_decay": 0.9})
    train(config, tmp_path / "one")
    train(config, tmp_path / "two", resume=True)
    jax.tree.map(
        np.testing.assert_array_equal, saved(tmp_path / "one", 4), saved(tmp_path / "two", 4)
    )


@pytest.mark.slow
def test_run_stopped_in_an_evaluation_repeats_it(tmp_path, monkeypatch, capsys):
    config = change(
        TINY, train={"eval_every": 2, "checkpoint_every": 4}, eval={"num_visualizations": 0}
    )
    true = trainer.evaluate_source

    def stopped(*arguments, **more):
        raise StoppedError

    monkeypatch.setattr(trainer, "evaluate_source", stopped)
    with pytest.raises(Preempted, match="after step 2 and saved; continue with") as raised:
        train(config, tmp_path / "run")
    assert raised.value.status == 75
    monkeypatch.setattr(trainer, "evaluate_source", true)
    train(config, tmp_path / "run", resume=True)
    capsys.readouterr()
    train(config, tmp_path / "straight")
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")
    # Evaluated states are saved, and the best one is in the log, in checkpoints/best and on screen.
    checkpoints = tmp_path / "straight/checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["2", "4", "best"]
    evaluations = [x for x in lines(tmp_path / "straight") if x["kind"] == "eval"]
    best = max(evaluations, key=lambda x: (x["mAP"], x["step"]))
    assert evaluations[-1]["best_step"] == best["step"]
    assert (checkpoints / "best").read_text() == f"{best['step']}\n"
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"; best checkpoint: step {best['step']}, mAP {best['mAP']:.4f}; " in last
    assert [x["step"] for x in lines(tmp_path / "run") if x["kind"] == "eval"] == [2, 4]
