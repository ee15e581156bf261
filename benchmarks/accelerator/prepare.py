"""Make a folder that runs the benchmark on a machine without a package index."""

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator.finetune import PHOTOGRAPHS, WEIGHTS, compact_weights
from ssd_jax.config import ConfigError

PRESENT = (
    *("flax", "optax", "orbax-checkpoint", "opencv-python-headless"),
    *("jaxtyping", "matplotlib", "Pillow", "safetensors"),
)
"""Packages that the target has besides jax, with their dependencies."""
UNUSED = ("tensorflow-datasets",)
"""Dependencies of the project that no part imports."""
PROJECT = (
    *("ssd_jax", "benchmarks", "configs", "train.py", "evaluate.py", "predict.py"),
    *("pyproject.toml", "LICENSE"),
)
LIMIT_MB = 50
_ROOT = Path(__file__).parents[2]
# The platform tags of Linux distributions from about 2014 on; pip compares them literally.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
)
_RUN = """\
#!/usr/bin/env bash
# Install the wheels into the folder site beside this file, without changing the machine's
# environment, and run the benchmark. Arguments: see python -m benchmarks accelerator --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${{PYTHON:-python3}}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != "{python}" ]; then
  echo "run.sh: $python is Python $version and the wheels are for {python}; set PYTHON" >&2
  exit 2
fi
if [ ! -e "$here/site/complete" ]; then
  rm -rf "$here/site"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check \\
    --target "$here/site" "$here"/wheels/*.whl
  touch "$here/site/complete"
fi
export PYTHONPATH="$here/project:$here/site"
export PYTHONDONTWRITEBYTECODE=1
cd "$here"
exec "$python" -m benchmarks accelerator --bundle "$here" "$@"
"""


def prepare(
    folder: Path, *, photographs: Path, weights: Path, python: str = "3.12", jax: str = "0.11.2"
) -> str:
    """Write the folder and return a summary of its contents.

    Args:
        folder: New or empty folder.
        photographs: Dataset in VOC's layout with the lists trainval and test.
        weights: VGG16's convolutions in the form that model.init_from takes (.npz).
        python: Version of the target's Python.
        jax: Version of the target's jax.

    Raises:
        ConfigError: an input is missing, the folder is not empty, or it would exceed LIMIT_MB.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--prepare: {folder} is not empty; name a new folder")
    for name, path in (("--photographs", photographs / "Annotations"), ("--weights", weights)):
        if not path.exists():
            raise ConfigError(f"{name}: file not found: {path}")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        _ROOT,
        folder / "project",
        ignore=lambda path, names: {
            name
            for name in names
            if name == "__pycache__" or (Path(path) == _ROOT and name not in PROJECT)
        },
    )
    names = download_wheels(folder / "wheels", python=python, jax=jax)
    count = zip_photographs(photographs, folder / PHOTOGRAPHS)
    compact_weights(weights, folder / WEIGHTS)
    script = folder / "run.sh"
    script.write_text(_RUN.format(python=python))
    script.chmod(0o755)
    sizes = {path.name: megabytes(path) for path in sorted(folder.iterdir())}
    total = sum(sizes.values())
    if total > LIMIT_MB:
        shutil.rmtree(folder)
        raise ConfigError(
            f"--prepare: the folder would have {total:.0f} MB, the limit is {LIMIT_MB}; use fewer "
            f"--photographs ({sizes[PHOTOGRAPHS]:.0f} MB)"
        )
    parts = "".join(f"\n  {name}: {size:.1f} MB" for name, size in sizes.items())
    return f"{folder}: {total:.1f} MB{parts}\n  {count} photographs; wheels: {', '.join(names)}"


def download_wheels(folder: Path, *, python: str, jax: str) -> list[str]:
    """Download the wheels that the target lacks, and return their names with versions."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    needed = [x for x in project["dependencies"] if not x.startswith(UNUSED)]
    installed, required = (resolve([f"jax=={jax}", *names], python) for names in (PRESENT, needed))
    pins = [f"{name}=={required[name]}" for name in required if name not in installed]
    pip("download", "--no-deps", "--dest", str(folder), *target_options(python), *pins)
    return pins


def resolve(requirements: Sequence[str], python: str) -> dict[str, str]:
    """Return the versions of all packages that pip would install for the target, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        pip(
            *("install", "--dry-run", "--ignore-installed", "--report", str(report)),
            *("--target", scratch, *target_options(python), *requirements),
        )
        packages = json.loads(report.read_text())["install"]
    return {
        package["metadata"]["name"].lower().replace("_", "-"): package["metadata"]["version"]
        for package in packages
    }


def target_options(python: str) -> list[str]:
    """Return pip's options that select the target's wheels."""
    platforms = [option for name in _PLATFORMS for option in ("--platform", name)]
    return [
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
        *platforms,
    ]


def pip(*arguments: str) -> None:
    """Run pip; raise ConfigError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(f"--prepare: pip {arguments[0]} failed: {lines[-1]}")


def zip_photographs(root: Path, archive: Path) -> int:
    """Write lists, annotations and images of a VOC folder to one file; return the image count."""
    images = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
            for path in sorted((root / name).iterdir()):
                file.write(path, f"{name}/{path.name}")
                images += name == "JPEGImages"
    return images


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder (MB)."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
