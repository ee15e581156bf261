"""The compile cache: whose folder it is, and what happens where it cannot be used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from ssd_jax import distributed
from ssd_jax.config import ConfigError
from ssd_jax.distributed import use_compilation_cache
from tests.runs import write_run
from tests.tiny import TINY, change


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What JAX is told, with a home of the test's own."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], None)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield lambda: tuple(jax.config.values[name] for name in names)
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_of_this_machine_is_its_user_s_alone(told, tmp_path):
    use_compilation_cache()
    assert told() == (str(tmp_path / ".cache/ssd_jax"), True)
    assert (tmp_path / ".cache/ssd_jax").stat().st_mode & 0o777 == 0o700


def test_what_is_told_first_stays(told, tmp_path):
    use_compilation_cache(str(tmp_path / "mine"))
    use_compilation_cache()
    assert told() == (str(tmp_path / "mine"), True)


def test_none(told):
    use_compilation_cache("")
    use_compilation_cache()
    assert told()[1] is False


def test_a_folder_that_cannot_be_used(told, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the compile cache .*file/x cannot be used: "):
        use_compilation_cache(str(tmp_path / "file/x"))
    with pytest.raises(ConfigError, match="cannot be used"):
        use_compilation_cache("a\0b")
    # A home that cannot be written is no reason to stop.
    (tmp_path / ".cache").write_text("")
    use_compilation_cache()
    assert told() == (None, True)


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError("x"), 2), (OSError(28, "No space left on device"), 1)]
)
def test_an_error_of_one_process_ends_it_at_once(error, status, monkeypatch, capfd):
    """Leaving properly would wait for the others, which wait for this one."""
    flags = SimpleNamespace(
        distributed=True, coordinator=None, processes=None, process=None, peer_timeout=60
    )

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(distributed, "_join", lambda *_, **more: None)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as left, distributed.distributed_context(flags):
        raise error
    assert left.value.code == status
    assert str(error) in capfd.readouterr().err


@pytest.mark.slow
def test_the_second_start_loads_what_the_first_compiled(tmp_path):
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
