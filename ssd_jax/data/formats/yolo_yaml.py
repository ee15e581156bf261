"""YOLO's data.yaml: the names of the classes, and the paths of the splits."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ssd_jax.config import shorten
from ssd_jax.data.errors import DataError, Finding, brief
from ssd_jax.io import is_dir, is_file, read_text, reason

YAML_SUFFIXES = (".yaml", ".yml")
MAX_YAML = 1 << 18
"""Largest data.yaml that is read (bytes): 10,000 classes; PyYAML reads about 100 kB a second."""

_USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Ultralytics writes val, Roboflow's folder is valid, and old files have validation.
_EVAL_NAMES = ("val", "valid", "validation")
_SPLITS = ("train", *_EVAL_NAMES, "test")
_MAX_DEPTH = 10  # of lists and maps in each other
_MAX_PATH = 4096  # characters, as on Linux
_MAX_TAIL = 8  # parts of a path of another machine that are tried here
_DRIVE = re.compile("[A-Za-z]:/")


@dataclass(frozen=True)
class DataYaml:
    """The content of a data.yaml."""

    path: Path
    names: tuple[str, ...]
    """Names of the classes, in the order of their indices."""
    splits: dict[str, tuple[str, ...]]
    """Split -> its paths as in the file."""
    base: str = ""
    """Folder that relative paths start from, as in the file."""
    has_keypoints: bool = False
    """Labels are of a pose dataset: keypoints follow the box."""

    def paths(self, split: str) -> tuple[str, ...]:
        """Return the paths of a split: folders of images and lists of images.

        Raises:
            DataError: the file has no such split.
        """
        alternatives = _EVAL_NAMES if split in _EVAL_NAMES else ()
        for name in (split, *alternatives):
            if name in self.splits:
                return self.splits[name]
        names = list(self.splits)
        if not names:
            problem = f"{self.path} has no split"
            raise DataError(Finding(problem, "write the paths of train and val", file=self.path))
        advice = (
            "name them in data.train_split and data.eval_split, e.g. "
            f"--data.train-split {names[0]} --data.eval-split {names[min(1, len(names) - 1)]}"
        )
        problem = f"{self.path} has no split {brief(split)}; its splits are {', '.join(names)}"
        raise DataError(Finding(problem, advice, file=self.path))

    def find(self, text: str, *folders: Path) -> Path | None:
        """Return the file or folder that a path of the dataset names; None if it is missing.

        Relative paths start from `folders`, then from `base`, then from the file's own folder.
        Two kinds of paths are written for another place: `../train/images` by Roboflow, for
        which train/images is tried last, and absolute paths of another machine, whose last two
        parts or more are tried in the file's folder.
        """
        root = self.path.parent
        text = text.strip().replace("\\", "/")
        if len(text) > _MAX_PATH:
            return None
        path = PurePosixPath(text)
        candidates = [folder / path for folder in (*folders, root / self.base, root)]
        parts = path.parts
        if parts[:1] == ("..",):
            inside = [part for part in parts if part != ".."]
            candidates.append(root.joinpath(*inside))
        elif path.is_absolute() or _DRIVE.match(text):
            fewest = 1 if path.suffix == ".txt" else 2
            tails = range(min(len(parts) - 1, _MAX_TAIL), fewest - 1, -1)
            candidates += [root.joinpath(*parts[-k:]) for k in tails]
        return next((c for c in candidates if is_file(c) or is_dir(c)), None)


def find_yaml(root: str | Path) -> Path:
    """Return the data.yaml of a dataset.

    Args:
        root: the folder that has it, or the file itself; ~ is the home directory.

    Raises:
        DataError: the folder has none, or several.
    """
    base = Path(root).expanduser()
    if is_file(base) and base.suffix.lower() in YAML_SUFFIXES:
        return base
    if not is_dir(base):
        raise DataError(f"data.root {base} is not a folder; name the folder of the dataset")
    files = yaml_files(base)
    if not files:
        advice = "write one with names and with the paths of train and val"
        raise DataError(f"data.root {base} has no data.yaml; {advice}")
    if len(files) > 1:
        names = shorten([f.name for f in files], 10)
        raise DataError(f"data.root {base} has {names}; set data.root to one of these files")
    return files[0]


def yaml_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may describe the dataset: one with a usual name, or all.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        # Compare names exactly: some file systems ignore case.
        files = {path.name: path for path in folder.iterdir() if path.suffix in YAML_SUFFIXES}
    except OSError as error:
        raise DataError(f"data.root {folder} cannot be read ({reason(error)})") from None
    for name in _USUAL_NAMES:
        if name in files:
            return [files[name]]
    return [files[name] for name in sorted(files) if is_described_by(files[name])]


def is_described_by(path: Path) -> bool:
    """Return whether a YAML file has the names and a split of a dataset."""
    try:
        return bool(read_data_yaml(path).splits)
    except DataError:
        return False


def read_data_yaml(path: Path) -> DataYaml:
    """Read a data.yaml. Keys that are not about classes and splits are ignored.

    Raises:
        DataError: the file cannot be read, or is invalid.
    """
    content = _load(path)
    names = _read_names(path, content)
    count = content.get("nc", "")
    if count and count != str(len(names)):
        advice = "correct one of them"
        raise _error(path, f"has nc {brief(count)} and {len(names)} names", advice)
    base = content.get("path", "")
    if not isinstance(base, str):
        raise _error(path, f"has path {brief(base)}", "write the folder of the dataset")
    splits = {split: _read_paths(path, split, content.get(split)) for split in _SPLITS}
    return DataYaml(
        path,
        names,
        {split: paths for split, paths in splits.items() if paths},
        base.replace("\\", "/"),
        has_keypoints="kpt_shape" in content,
    )


class _PlainLoader(yaml.BaseLoader):
    """Reads every scalar as text and ignores tags; rejects aliases and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("has an alias (*NAME), which is not supported; write the value again")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"has lists or maps nested more than {_MAX_DEPTH} deep; remove them")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            twice = brief(_repeated(key.value for key, _ in node.value))
            raise ValueError(f"has {twice} twice; remove one")
        return mapping


def _load(path: Path) -> dict[str, Any]:
    try:
        # MarkedYAMLError has the problem in one line; its text has several.
        content = yaml.load(read_text(path, MAX_YAML), _PlainLoader)
    except OSError as error:
        raise DataError(Finding(f"{path} cannot be read ({reason(error)})", file=path)) from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _error(path, f"is not usable YAML: {line}{error.problem}", "fix it") from None
    except UnicodeDecodeError:
        raise _error(path, "is not UTF-8", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise _error(path, f"is not usable YAML: {reason(error)}", "fix it") from None
    except ValueError as error:
        raise DataError(Finding(f"{path} {error}", file=path)) from None
    if not isinstance(content, dict):
        raise _error(path, "is not a map of keys", "write names, train and val in it")
    return content


def _read_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        by_index = {}
        for key, name in names.items():
            if not (key.isascii() and key.isdecimal() and len(key) < 10):
                raise _error(path, f"has the index {brief(key)} in names", "count from 0")
            by_index[int(key)] = name
        absent = next((k for k in range(len(names)) if k not in by_index), None)
        if absent is not None:
            problem = f"has {len(names)} names, none with index {absent}"
            raise _error(path, problem, "number the classes from 0")
        names = [by_index[k] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise _error(path, "has no names", "list the classes there: names: [cat, dog]")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise _error(path, f"has {brief(name)} in names", "write the name of a class")
    if len(set(names)) < len(names):
        raise _error(path, f"has {brief(_repeated(names))} twice in names", "rename one")
    return tuple(names)


def _read_paths(path: Path, split: str, value: Any) -> tuple[str, ...]:
    """Return the paths of a split; none if it is absent or empty, as an optional test split is."""
    if value in (None, "", "~", "null", "None"):
        return ()
    paths = value if isinstance(value, list) else [value]
    for text in paths:
        if not isinstance(text, str) or not text.strip():
            advice = "write a folder of images, a list file, or a list of these"
            raise _error(path, f"has {split} {brief(text)}", advice)
    return tuple(paths)


def _repeated(texts: Iterable[str]) -> str:
    return Counter(texts).most_common(1)[0][0]


def _error(path: Path, problem: str, advice: str) -> DataError:
    return DataError(Finding(f"{path} {problem}", advice, file=path))
