"""Preparation of a TFDS dataset as ArrayRecord files, from a download or from a folder."""

import contextlib
import errno
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ssd_jax.config import ConfigError, TfdsFields
from ssd_jax.data.errors import DataError
from ssd_jax.data.tfds.builders import coco_examples, find_splits, voc_examples
from ssd_jax.data.tfds.reader import (
    ARRAY_RECORD,
    PreparedSplit,
    data_dir,
    find_prepared,
    first_line,
    open_prepared,
)


def prepare(name: str, root: str = "", folder: Path | None = None) -> None:
    """Build a dataset unless it exists, and print progress.

    Args:
        name: TFDS's name, e.g. voc/2007.
        root: folder of all datasets; empty: TFDS's own, see `data_dir`.
        folder: folder to build from; None: download.

    Raises:
        ConfigError: TensorFlow is missing, or the dataset is unknown.
        DataError: the folder is unusable, the download failed or the disk is full. No partial
            dataset is left.
    """
    prepared = find_prepared(root, name)
    if prepared is not None:
        open_prepared(root, name)
        print(f"{name} is prepared already, in {prepared}")
        return
    splits = find_splits(name.partition(":")[0], folder) if folder else []
    # TFDS 4.9 needs importlib_resources, too, but does not declare it.
    missing = [m for m in ("tensorflow", "importlib_resources") if not importlib.util.find_spec(m)]
    if missing:
        raise ConfigError(
            f"preparing a dataset needs {' and '.join(missing)}; run pip install 'ssd_jax[prepare]'"
        )
    builder = _make_builder(name, root)
    if splits:
        examples = voc_examples if builder.name == "voc" else coco_examples
        # Keep TFDS's builder, its features and its version, but replace its input.
        builder._split_generators = lambda _: {s.name: examples(builder, s) for s in splits}
        inputs = ", ".join(f"{s.name} from {s.index} and {s.images}" for s in splits)
        print(f"{name}: building {builder.data_dir} without a download, {inputs}")
        for absent in sorted({"train", "validation", "test"} - {s.name for s in splits}):
            print(f"{name}: no split {absent}; {folder} has no list of it, or no images")
    else:
        _announce_download(name, builder)
    with tempfile.TemporaryDirectory() as no_downloads:
        _build(name, builder, no_downloads if splits else None)
    fields = TfdsFields()
    builder = open_prepared(root, name)
    for split, info in builder.info.splits.items():
        # Fill the cache of annotations. Datasets with other features are cached on first use.
        with contextlib.suppress(ConfigError):
            PreparedSplit(builder, split, fields).annotations()
        print(f"{name}:{split} has {info.num_examples} images")


def _make_builder(name: str, root: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hide notes about CPU instructions
    try:
        builder = tfds.builder(name, data_dir=data_dir(root), file_format=ARRAY_RECORD)
    except Exception as error:  # TFDS raises several types for an unknown name, config or version
        raise ConfigError(f"TFDS has no {name!r} ({first_line(error)})") from None
    title = str(builder.info.full_name).rpartition("/")[0]
    if title != name.partition(":")[0]:
        raise ConfigError(f"{name} has several configs; name one, e.g. {title}")
    return builder


def _build(name: str, builder: Any, downloads: str | None) -> None:
    try:
        # TFDS would print that it downloads an unknown size.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads)
    except DataError:
        raise
    except Exception as error:  # network, TFDS's encoders or disk
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"the disk of {builder.data_dir} is full; free some space or name another --root"
            ) from None
        raise DataError(
            f"{name} could not be built ({type(error).__name__}: {first_line(error)}); "
            "no partial dataset is left: fix the cause and run the command again"
        ) from error


class _UrlRecorder:
    """A download manager that records URLs and downloads nothing."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def download_and_extract(self, urls: Any) -> Any:
        """Record the URLs and return a placeholder for each path."""
        if isinstance(urls, Mapping):
            return {key: self.download_and_extract(url) for key, url in urls.items()}
        if isinstance(urls, list | tuple):
            return [self.download_and_extract(url) for url in urls]
        self.urls.append(str(getattr(urls, "url", urls)))
        return Path()

    download = download_and_extract


def _announce_download(name: str, builder: Any) -> None:
    """Print URLs, sizes and destination of the download.

    Raises:
        DataError: the disk has too little free space.
    """
    recorder = _UrlRecorder()
    with contextlib.suppress(Exception):  # builders may open their downloads
        builder._split_generators(recorder)
    infos = builder.url_infos or {}
    sizes = {url: infos[url].size if url in infos else 0 for url in recorder.urls}
    total = sum(sizes.values())
    for url, size in sizes.items():
        print(f"{_gigabytes(size)}  {url}")
    needed = 3 * total  # archives, their content and the built dataset
    print(
        f"{name}: downloading {_gigabytes(total)} to {builder.data_dir_root / 'downloads'} and "
        f"building {builder.data_dir}; this takes about {_gigabytes(needed)} of disk; "
        "downloads/ may be removed afterwards",
        flush=True,
    )
    root = builder.data_dir_root
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(
            f"{existing} has {_gigabytes(free)} free, and {name} takes about {_gigabytes(needed)}; "
            "free some space or name another --root"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size else "unknown size"
