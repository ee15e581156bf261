"""Folder of a run: invalid folders, exclusive use, and deletion during the run."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest

import train as train_main
from ssd_jax.config import ConfigError
from ssd_jax.training.workdir import LostWorkdirError, Workdir, WorkdirError

HOLDER = """
import sys, time
from pathlib import Path
from ssd_jax.training.workdir import Workdir
with Workdir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start another process that uses tmp_path/run."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_run_is_refused_until_the_first_one_ends(tmp_path, holder):
    message = rf"run is used by another run \(process {holder.pid} on .+\); wait for its end"
    with pytest.raises(WorkdirError, match=message) as raised, Workdir(tmp_path / "run"):
        pass
    assert raised.value.status == 2
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    # The lock file of the dead process does not block the next one, which removes it.
    assert (tmp_path / "run/.lock").is_file()
    with Workdir(tmp_path / "run") as workdir:
        assert workdir.notes == []
        workdir.check()
    assert list((tmp_path / "run").iterdir()) == []


def test_lock_excludes_within_one_process(tmp_path):
    with (
        Workdir(tmp_path),
        pytest.raises(WorkdirError, match=f"process {os.getpid()} on"),
        Workdir(tmp_path),
    ):
        pass


def test_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with Workdir(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b/c/.lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with Workdir(tmp_path / "a/b/c"):
        (tmp_path / "a/b/c/config.json").write_text("{}")
    assert [p.name for p in (tmp_path / "a/b/c").iterdir()] == ["config.json"]


@pytest.mark.parametrize("again", [False, True])
def test_deleted_folder_is_detected(tmp_path, again):
    with Workdir(tmp_path / "run") as workdir:
        shutil.rmtree(tmp_path / "run")
        if again:  # by another run
            (tmp_path / "run").mkdir()
            (tmp_path / "run/.lock").write_text("{}")
        with pytest.raises(LostWorkdirError, match="run was deleted or moved while the run was"):
            workdir.check()
    assert (tmp_path / "run/.lock").exists() == again


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file", "--workdir: .*file is not a folder; name another"),
        ("file/run", "--workdir: .*file/run cannot be written .Not a directory.; name another"),
        ("/proc/x", "--workdir: /proc/x cannot be written .No such file or directory.; name"),
        ("x" * 300, "--workdir: .* cannot be written .File name too long.; name another"),
        ("link", "--workdir: .*link is not a folder; name another"),
        ("taken", "--workdir: .*taken cannot be written .Is a directory."),
    ],
)
def test_unusable_folder(tmp_path, path, message):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "taken/.lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match=message), Workdir(tmp_path / path):
        pass
    assert (tmp_path / "file").read_text() == "text"


def test_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with (
        pytest.raises(ConfigError, match=r"cannot be written \(Read-only file system\)"),
        Workdir(small_disk),
    ):
        pass


def test_lock_does_not_follow_links(tmp_path):
    (tmp_path / "text").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot be written"), Workdir(tmp_path / "run"):
        pass
    assert (tmp_path / "text").read_text() == "text"


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with Workdir(tmp_path) as workdir:
        (note,) = workdir.notes
        assert "cannot be locked on its file system (Operation not supported); make sure" in note
        workdir.check()


def test_empty_workdir_is_refused():
    with pytest.raises(ConfigError, match=r"--workdir is empty; name a folder"):
        train_main.main(["--config", "configs/quickstart.py", "--workdir", ""])


def test_without_locks_another_run_leaves_the_first_one_running(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with Workdir(tmp_path / "run") as first:
        assert "cannot be locked" in first.notes[0]
        with Workdir(tmp_path / "run"):
            pass
        first.check()
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "other").mkdir()  # the number of the folder's inode may be used again
        with pytest.raises(LostWorkdirError, match="was deleted or moved"):
            first.check()
