"""A command starts once more with huge pages, where it may and only once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssd_jax import huge_pages

PROGRAM = """
import os, sys
from pathlib import Path
from ssd_jax import huge_pages

huge_pages._KERNEL = Path(sys.argv[1])
print("begins", os.getpid())
huge_pages.use_huge_pages()
print("runs", os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:])
sys.exit(3)
"""


@pytest.fixture
def start(tmp_path):
    def run(tunables="", kernel="always [madvise] never", command=("{program}",)):
        program, setting = tmp_path / "program.py", tmp_path / "enabled"
        program.write_text(PROGRAM)
        setting.write_text(kernel)
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        if tunables:
            environment["GLIBC_TUNABLES"] = tunables
        ended = subprocess.run(
            [
                *(sys.executable, "-X", "faulthandler"),
                *(part.format(program=program) for part in command),
                *(str(setting), "a b", "--c"),
            ],
            env={**environment, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 3, ended.stderr
        return ended.stdout.splitlines()

    return run


needs_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(os, "confstr"), reason="needs glibc"
)


@needs_glibc
@pytest.mark.parametrize("command", [("{program}",), ("-m", "program")])
def test_starts_once_more_as_it_was_started(start, command):
    first, second, last = start(command=command)
    process = first.split()[1]
    assert first == second == f"begins {process}"
    assert last == f"runs {process} glibc.malloc.hugetlb=1 a b --c"


@needs_glibc
def test_keeps_other_tunables(start):
    assert "glibc.malloc.check=0:glibc.malloc.hugetlb=1" in start("glibc.malloc.check=0")[-1]


@pytest.mark.parametrize(
    "given",
    [
        {"tunables": "glibc.malloc.hugetlb=0"},
        {"kernel": "[always] madvise never"},
        {"kernel": "always madvise [never]"},
        {"command": ("-c", "import runpy, sys; runpy.run_path('{program}', run_name='__main__')")},
    ],
)
def test_does_not_where_it_must_not(start, given):
    first, last = start(**given)
    assert first.startswith("begins")
    assert last.startswith("runs")
    assert "hugetlb=1" not in last


@pytest.mark.parametrize("library", ["glibc 2.34", "glibc 1.40", "musl 2.40", "", None])
def test_needs_a_glibc_that_can(library, monkeypatch, tmp_path):
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "_KERNEL", setting)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert huge_pages._possible()
    monkeypatch.setattr(os, "confstr", lambda name: library)
    assert not huge_pages._possible()


def test_without_the_kernel_s_file(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_KERNEL", tmp_path / "nowhere")
    assert not huge_pages._possible()
