"""Checkpoints that are kept, damaged, and on full disks."""

import contextlib
import json
import math
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd_jax.checkpoints.items import CheckpointError
from ssd_jax.checkpoints.reader import find_checkpoint
from ssd_jax.checkpoints.writer import CheckpointManager, SaveError
from ssd_jax.config import TrainConfig
from ssd_jax.training.state import TrainState
from tests.tiny import TINY


def state_of(step, size=64):
    """Make a state whose values depend on the step."""
    params = {"base": {"conv": jnp.arange(size * 4, dtype=jnp.float32).reshape(size, 4) + step}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={},
        opt_state=(optax.TraceState(trace=jax.tree.map(jnp.negative, params)),),
        ema={},
        nonfinite_steps=jnp.int32(0),
    )


def save(workdir, *steps, scores=(), size=64, **fields):
    with contextlib.closing(CheckpointManager(workdir, TrainConfig(**fields))) as checkpoints:
        notes = checkpoints.open()
        for k, step in enumerate(steps):
            if scores:
                checkpoints.add_score(step, scores[k])
            checkpoints.save(state_of(step, size), {"at": step}, TINY)
    return notes


def restore(workdir):
    return CheckpointManager(workdir, TrainConfig()).restore(state_of(0))


def kept(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_is(restored, step):
    state, run_progress, _ = restored
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(state_of(step)))
    assert run_progress == {"at": step}


def test_save_then_restore_is_identical(tmp_path):
    assert restore(tmp_path) is None
    assert save(tmp_path, 1, 2) == []
    assert_is(restore(tmp_path), 2)


def test_latest_best_and_every_fourth_are_kept(tmp_path):
    scores = [0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.5, 0.6, 0.7, 0.1]
    save(tmp_path, *range(1, 11), scores=scores, max_to_keep=2, keep_best=1, keep_period=4)
    assert kept(tmp_path) == [2, 4, 8, 9, 10]


def test_best_checkpoint_has_a_finite_score(tmp_path):
    save(tmp_path, 1, 2, 3, scores=[0.5, math.nan, math.nan], max_to_keep=1, keep_best=1)
    assert kept(tmp_path) == [1, 3]


def test_saving_a_step_twice_is_allowed(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3)
    assert_is(restore(tmp_path), 3)


def files_of(workdir, step):
    return sorted(p for p in (workdir / f"checkpoints/{step}").rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    save(workdir, 4, 5)
    return workdir


def test_any_damage_is_detected_or_harmless(two, tmp_path):
    """No changed byte in any file makes `restore` return other values than those saved."""
    noticed = set()
    for number, file in enumerate(files_of(two, 5)):
        for kind in ("changed", "deleted", "emptied"):
            workdir = tmp_path / f"{number}-{kind}"
            shutil.copytree(two, workdir)
            target = workdir / file.relative_to(two)
            data = bytearray(target.read_bytes())
            if kind == "deleted":
                target.unlink()
            elif kind == "emptied":
                target.write_bytes(b"")
            else:
                data[len(data) // 2] ^= 0x55
                target.write_bytes(data)
            state, run_progress, notes = restore(workdir)
            assert_is((state, run_progress, notes), int(state.step))
            if int(state.step) == 4:
                (note,) = notes
                assert "checkpoints/5 is damaged (" in note
                assert "\n" not in note
                assert kept(workdir) == [4]
                assert (workdir / "corrupt/5").is_dir()
                noticed.add(kind)
    assert noticed == {"changed", "deleted", "emptied"}


def test_changed_array_is_named(two, tmp_path):
    """A change that the file format itself accepts."""
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    file = workdir / "checkpoints/5/checksums/metadata"
    checksums = json.loads(file.read_text())
    checksums["params/base/conv"] ^= 1
    file.write_text(json.dumps(checksums))
    _, _, (note,) = restore(workdir)
    assert "checkpoints/5 is damaged (params/base/conv: checksum mismatch)" in note


def test_changed_run_progress_is_named(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    (workdir / "checkpoints/5/run_progress/metadata").write_text('{"at": 7}')
    _, _, (note,) = restore(workdir)
    assert "checkpoints/5 is damaged (run_progress: checksum mismatch)" in note


def test_incomplete_checkpoint_is_quarantined(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    for file in files_of(workdir, 5)[::2]:
        file.unlink()
    assert_is(restore(workdir), 4)
    # The step can be saved again, and quarantined a second time.
    save(workdir, 5)
    (workdir / "checkpoints/5/checksums/metadata").unlink()
    assert_is(restore(workdir), 4)
    assert sorted(p.name for p in (workdir / "corrupt").iterdir()) == ["5", "5-2"]


def test_error_and_nothing_moved_if_all_are_damaged(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    for step in (4, 5):
        shutil.rmtree(workdir / f"checkpoints/{step}/state")
    with pytest.raises(
        CheckpointError, match=r"checkpoints/5 .*checkpoints/4 .*no intact checkpoint is"
    ):
        restore(workdir)
    assert kept(workdir) == [4, 5]


def test_incomplete_save_is_reported_and_removed(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    part = workdir / "checkpoints/6.orbax-checkpoint-tmp"
    part.mkdir()
    (part / "half").write_bytes(b"x")
    (note,) = save(workdir)
    assert note == "6.orbax-checkpoint-tmp was incomplete when the run ended; removed"
    assert not part.exists()
    assert_is(restore(workdir), 5)


def test_best_file_names_the_best_checkpoint(tmp_path):
    file = tmp_path / "checkpoints/best"
    save(tmp_path, 1, 2, scores=[math.nan, math.nan])
    assert not file.exists()
    with contextlib.closing(CheckpointManager(tmp_path, TrainConfig())) as checkpoints:
        checkpoints.open({2: 0.3})  # evaluated after it was saved
    assert file.read_text() == "2\n"
    save(tmp_path, 3, 4, scores=[0.4, 0.35], max_to_keep=1)
    assert file.read_text() == "3\n"
    assert kept(tmp_path) == [3, 4]
    file.write_text("broken")
    with contextlib.closing(CheckpointManager(tmp_path, TrainConfig())) as checkpoints:
        checkpoints.open()
        assert checkpoints.add_score(5, 0.4) == 5
        assert checkpoints.best is None
        checkpoints.save(state_of(5), {"at": 5}, TINY)
    assert checkpoints.best == (5, 0.4)
    assert file.read_text() == "5\n"


def test_other_files_are_ignored_or_quarantined(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    folder = workdir / "checkpoints"
    (folder / "9999").write_bytes(b"")
    for name in ("\u00b2", "\u0664", "77", "notes"):
        (folder / name).mkdir()
    assert find_checkpoint(workdir) == folder / "5"
    assert_is(restore(workdir), 5)
    notes = save(workdir, 6)
    assert len(notes) == 3
    assert f"{folder}/77 is not a checkpoint; moved to {workdir}/corrupt/77" in notes
    assert_is(restore(workdir), 6)


def test_full_disk_is_an_error_and_keeps_older_checkpoints(small_disk, capfd):
    workdir = small_disk / "run"
    save(workdir, 1)
    before = {p: p.read_bytes() for p in files_of(workdir, 1)}
    with pytest.raises(SaveError) as raised:
        save(workdir, 2, size=400_000)
    assert capfd.readouterr().err == ""
    assert "(No space left on device); the newest intact checkpoint is 1; free some space" in str(
        raised.value
    )
    assert {p: p.read_bytes() for p in files_of(workdir, 1)} == before
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["1"]
    assert_is(restore(workdir), 1)
    save(workdir, 2)
    assert_is(restore(workdir), 2)


def test_read_only_folder_is_an_error(small_disk):
    workdir = small_disk / "run"
    save(workdir, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        SaveError, match=r"\(Read-only file system\); the newest intact checkpoint is 1"
    ):
        save(workdir, 2)
    assert_is(restore(workdir), 1)
