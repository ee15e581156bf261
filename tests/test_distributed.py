"""Compilation cache, and errors of one of several processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ssd_jax import distributed
from ssd_jax.config import ConfigError
from ssd_jax.distributed import use_compilation_cache
from tests.runs import write_run
from tests.tiny import TINY, change


@pytest.fixture
def cache_config(monkeypatch, tmp_path):
    """Return a function that reads JAX's cache settings, with a temporary home folder."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], None)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield lambda: tuple(jax.config.values[name] for name in names)
    for name, value in before.items():
        jax.config.update(name, value)


def test_default_cache_is_private_to_the_user(cache_config, tmp_path):
    use_compilation_cache()
    assert cache_config() == (str(tmp_path / ".cache/ssd_jax"), True)
    assert (tmp_path / ".cache/ssd_jax").stat().st_mode & 0o777 == 0o700


def test_first_cache_folder_takes_precedence(cache_config, tmp_path):
    use_compilation_cache(str(tmp_path / "cache"))
    use_compilation_cache()
    assert cache_config() == (str(tmp_path / "cache"), True)


def test_empty_folder_disables_the_cache(cache_config):
    use_compilation_cache("")
    use_compilation_cache()
    assert cache_config()[1] is False


def test_unusable_cache_folder(cache_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the compilation cache .*file/x cannot be used: "):
        use_compilation_cache(str(tmp_path / "file/x"))
    with pytest.raises(ConfigError, match="cannot be used"):
        use_compilation_cache("a\0b")
    # An unwritable home folder is not an error.
    (tmp_path / ".cache").write_text("")
    use_compilation_cache()
    assert cache_config() == (None, True)


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError("x"), 2), (OSError(28, "No space left on device"), 1)]
)
def test_error_of_one_process_ends_it_at_once(error, status, monkeypatch, capfd):
    """A normal exit would wait for the other processes, which wait for this one."""
    options = {"coordinator": None, "processes": None, "process": None, "peer_timeout": 60}

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(distributed, "_join", lambda *_, **more: None)
    monkeypatch.setattr(os, "_exit", leave)
    with (
        pytest.raises(SystemExit) as left,
        distributed.distributed_context(distributed=True, **options),
    ):
        raise error
    assert left.value.code == status
    assert str(error) in capfd.readouterr().err


@pytest.mark.nightly
def test_second_start_loads_compiled_programs(tmp_path):
    run = write_run(tmp_path / "run", change(TINY, model={"classes": ("a", "b")}))
    program = """
import sys, jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
from ssd_jax.inference.detector import Detector
Detector.from_checkpoint(sys.argv[1]).compile()
print(hits.count("/jax/compilation_cache/cache_hits"))
"""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", program, str(run)],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
