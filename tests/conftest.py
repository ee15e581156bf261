"""One process with two CPU devices; no silent rank promotion; warnings are errors (pyproject)."""

import os
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import shutil
import subprocess
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typechecking

# Types and shapes of the operations are checked when they are called.
install_import_hook("ssd_jax.ops", f"{tests.typechecking.__name__}.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A program that several tests compile is compiled once; the folder is removed with the process.
_CACHE = tempfile.TemporaryDirectory(prefix="ssd_jax_tests_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference implementation's figures."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of published figures."""
    return TESTS / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images that do not belong to the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data, real images that are not part of the repository")
    return SHARED / "data"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes, and how to mount it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if (
        os.getuid()
        or not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
