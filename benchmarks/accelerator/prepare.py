"""Make a folder that runs the benchmark on a machine without a package index."""

import json
import shutil
import stat
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
    *("jax", "flax", "optax", "orbax-checkpoint", "opencv-python-headless"),
    *("jaxtyping", "matplotlib", "Pillow", "safetensors"),
)
"""Packages that the machine has, with all they need."""
UNUSED = ("tensorflow-datasets",)
"""Dependencies of the project that no part of the benchmark imports."""
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
# Install the wheels beside this file into a folder of their own, which leaves the machine's
# environment as it is, and run the benchmark. Arguments are those of
# python -m benchmarks accelerator.
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
) -> list[str]:
    """Write the folder and return lines that say what it holds.

    Args:
        folder: New or empty.
        photographs: A data set in VOC's layout with the lists trainval and test.
        weights: VGG16's convolutions as model.init_from takes them (.npz).
        python: Version of the target's Python.
        jax: Version of the target's jax.

    Raises:
        ConfigError: an input is missing, the folder is in use, or it would be above LIMIT_MB.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--prepare: {folder} is not empty; name a new folder")
    for name, path in (("--photographs", photographs / "Annotations"), ("--weights", weights)):
        if not path.exists():
            raise ConfigError(f"{name}: file not found: {path}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROJECT:
        copy(_ROOT / name, folder / "project" / name)
    names = download_wheels(folder / "wheels", python=python, jax=jax)
    count = zip_photographs(photographs, folder / PHOTOGRAPHS)
    compact_weights(weights, folder / WEIGHTS)
    script = folder / "run.sh"
    script.write_text(_RUN.format(python=python))
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    sizes = {path.name: megabytes(path) for path in sorted(folder.iterdir())}
    total = sum(sizes.values())
    if total > LIMIT_MB:
        shutil.rmtree(folder)
        raise ConfigError(
            f"--prepare: the folder would have {total:.0f} MB, the limit is {LIMIT_MB}; name fewer "
            f"--photographs ({sizes[PHOTOGRAPHS]:.0f} MB)"
        )
    return [
        f"{folder}: {total:.1f} MB",
        *(f"  {name}: {size:.1f} MB" for name, size in sizes.items()),
        f"  {count} photographs; wheels: {', '.join(names)}",
    ]


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder without compiled Python."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def download_wheels(folder: Path, *, python: str, jax: str) -> list[str]:
    """Download the wheels that the target lacks; their names with versions."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    needed = [x for x in project["dependencies"] if not x.startswith(UNUSED)]
    present = [f"jax=={jax}", *(name for name in PRESENT if name != "jax")]
    have = resolve(present, python)
    missing = {
        name: version
        for name, version in resolve([f"jax=={jax}", *needed], python).items()
        if name not in have
    }
    pins = [f"{name}=={version}" for name, version in missing.items()]
    pip("download", "--no-deps", "--dest", str(folder), *target_options(python), *pins)
    return pins


def resolve(requirements: Sequence[str], python: str) -> dict[str, str]:
    """Versions of all packages that pip would install for the target, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        pip(
            *("install", "--dry-run", "--ignore-installed", "--report", str(report)),
            *("--target", scratch, *target_options(python), *requirements),
        )
        packages = json.loads(report.read_text())["install"]
    return {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in packages
    }


def target_options(python: str) -> list[str]:
    """What tells pip to look for another machine's wheels."""
    platforms = [option for name in _PLATFORMS for option in ("--platform", name)]
    return [
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
        *platforms,
    ]


def pip(*arguments: str) -> None:
    """Run pip. Raises ConfigError with its last line if it fails."""
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
    """Put a VOC folder's lists, annotations and images into one file; the number of images."""
    images = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
            for path in sorted((root / name).iterdir()):
                file.write(path, f"{name}/{path.name}")
                images += name == "JPEGImages"
    return images


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
