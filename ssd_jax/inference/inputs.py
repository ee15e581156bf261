"""Images, videos and cameras named on a command line."""

import errno
import glob
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssd_jax.config import ConfigError
from ssd_jax.io import exists, is_dir

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")

Kind = Literal["image", "video", "camera"]


@dataclass(frozen=True)
class Input:
    """An image file, a video file or a camera."""

    name: str
    """Path of the file, or index of the camera."""
    stem: str
    """Stem of its output files, unique among the inputs."""
    kind: Kind

    def output(self, folder: Path) -> Path:
        """Return the path of the annotated image or video."""
        return folder / f"{self.stem}{'.jpg' if self.kind == 'image' else '.mp4'}"

    def problem(self) -> str:
        """Return why it cannot be opened, as the end of a sentence; empty if it is a file."""
        path = Path(self.name)
        if self.kind == "camera":
            return ""
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if not path.is_symlink():
                return f"cannot be read ({error.strerror})"
            if error.errno == errno.ELOOP:
                return "is a circular link"
            return "is a link to a file that does not exist"
        if stat.S_ISDIR(mode):
            return "is a folder"
        return "" if stat.S_ISREG(mode) else "is a pipe or a device"


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Find images, videos and cameras by name, each file once.

    Files count as images or videos by their suffix, also those that turn out to be unreadable.

    Args:
        names: files, folders (the images and videos directly in them), patterns with * ? [ or **,
            or indices of cameras.

    Raises:
        ConfigError: nothing is found for a name.
    """
    inputs: dict[str, tuple[Path, Kind]] = {}  # by resolved path
    for name in names:
        path = Path(name).expanduser()
        if not exists(path) and name.isdecimal():
            inputs[name] = path, "camera"
            continue
        for file in _find_files(name, path):
            kind: Kind = "video" if file.suffix.lower() in _VIDEOS else "image"
            inputs.setdefault(str(_resolve(file)), (file, kind))
    return _assign_stems(list(inputs.values()))


def check_outputs(inputs: Sequence[Input], folder: Path) -> None:
    """Check that no output file in the folder would replace an input.

    Raises:
        ConfigError: one would.
    """
    sources = {_resolve(Path(each.name)) for each in inputs}
    for each in inputs:
        path = each.output(folder)
        if _resolve(path) in sources:
            raise ConfigError(f"--out: {path} is an input; name another folder")


def _find_files(name: str, path: Path) -> list[Path]:
    if is_dir(path):
        try:
            files = [p for p in sorted(path.iterdir()) if _has_known_suffix(p)]
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        problem = f"no images or videos directly in {path}; to include subfolders: '{path}/**'"
    elif exists(path):
        return [path]
    elif glob.has_magic(name):
        matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207  # Path's has no base
        files = [p for p in sorted(map(Path, matches)) if _has_known_suffix(p)]
        problem = f"no image or video matches {name}"
    else:
        files, problem = [], f"file or folder not found: {name}"
    if not files:
        raise ConfigError(problem)
    return files


def _has_known_suffix(path: Path) -> bool:
    return path.suffix.lower() in (*_IMAGES, *_VIDEOS) and not path.name.startswith(".")


def _resolve(path: Path) -> Path:
    """Return the file that a path leads to, or the path itself if its links are circular."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _assign_stems(files: Sequence[tuple[Path, Kind]]) -> list[Input]:
    """Give each a unique stem: its own, else with the folder's name, else with a number."""
    taken, inputs = set(), []
    for path, kind in files:
        stem = f"camera{path}" if kind == "camera" else path.stem
        choices = [stem, f"{_resolve(path).parent.name}-{stem}"]
        choices += [f"{stem}-{k}" for k in range(2, 2 + len(files))]
        # Some file systems ignore case.
        stem = next(choice for choice in choices if choice.lower() not in taken)
        taken.add(stem.lower())
        inputs.append(Input(name=str(path), stem=stem, kind=kind))
    return inputs
