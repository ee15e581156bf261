"""Build a TFDS data set once, in ArrayRecord form: from a download or from a folder.

python -m ssd_jax.data prepare NAME [--root DATA_DIR] [--from FOLDER]
"""

import contextlib
import errno
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ssd_jax.cli import Parser
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

_DESCRIPTION = """Build a TFDS data set once, in ArrayRecord form. This needs TensorFlow, reading it
does not: pip install 'ssd_jax[prepare]'.

NAME            the data set as TFDS calls it: voc/2007, voc/2012, coco/2017 ...
--root DATA_DIR the folder of all data sets, data.root of a config; default: $TFDS_DATA_DIR or
                ~/tensorflow_datasets
--from FOLDER   build from what was downloaded before, without network: a VOCdevkit, or a folder
                with COCO's annotations/ and images; voc and coco only"""


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and build."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--root", default="")
    parser.add_argument("--from", dest="folder", type=Path)
    own, unknown = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(unknown):
        print(_DESCRIPTION)
        return
    if unknown:
        raise ConfigError(f"prepare has no {' '.join(unknown)}; see --help")
    if not own.name:
        raise ConfigError("the data set's name is missing, e.g. voc/2007; see --help")
    prepare(own.name, own.root, own.folder)


def prepare(name: str, root: str = "", folder: Path | None = None) -> None:
    """Builds a data set where it is not built yet, and says what it does.

    Args:
        name: as TFDS calls it, e.g. voc/2007.
        root: folder of all data sets; empty: TFDS's own, see `data_dir`.
        folder: what to build from; None: what TFDS downloads.

    Raises:
        ConfigError: TensorFlow is missing, or there is no such data set.
        DataError: the folder, the download or the disk does not do. Nothing is left half-built.
    """
    prepared = find_prepared(root, name)
    if prepared is not None:
        open_prepared(root, name)
        print(f"{name} is prepared already, in {prepared}")
        return
    splits = find_splits(name.partition(":")[0], folder) if folder else []
    # TFDS 4.9 needs importlib_resources as well, and does not ask for it.
    missing = [m for m in ("tensorflow", "importlib_resources") if not importlib.util.find_spec(m)]
    if missing:
        raise ConfigError(
            f"preparing a data set needs {' and '.join(missing)}, though reading one does not; "
            "run pip install 'ssd_jax[prepare]'"
        )
    builder = _make_builder(name, root)
    if splits:
        examples = voc_examples if builder.name == "voc" else coco_examples
        # TFDS's own builder, with its features and its version, and other hands to feed it.
        builder._split_generators = lambda _: {s.name: examples(builder, s) for s in splits}
        found = ", ".join(f"{s.name} from {s.listed} and {s.images}" for s in splits)
        print(f"{name}: building {builder.data_dir} without a download, {found}")
        for absent in sorted({"train", "validation", "test"} - {s.name for s in splits}):
            print(f"{name}: there will be no split {absent}; {folder} has none, or not its images")
    else:
        _announce_download(name, builder)
    with tempfile.TemporaryDirectory() as no_downloads:
        _build(name, builder, no_downloads if splits else None)
    fields = TfdsFields()
    builder = open_prepared(root, name)
    for split, info in builder.info.splits.items():
        # So that no start has to read all images. Other fields than these are a config's affair.
        with contextlib.suppress(ConfigError):
            PreparedSplit(builder, split, fields).objects()
        print(f"{name}:{split} has {info.num_examples} images")


def _make_builder(name: str, root: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no notes on the CPU's instructions
    try:
        builder = tfds.builder(name, data_dir=data_dir(root), file_format=ARRAY_RECORD)
    except Exception as error:  # TFDS has several for a name, a config and a version
        raise ConfigError(f"TFDS has no {name!r} ({first_line(error)})") from None
    title = str(builder.info.full_name).rpartition("/")[0]
    if title != name.partition(":")[0]:
        raise ConfigError(f"{name} comes in several configs; name one, e.g. {title}")
    return builder


def _build(name: str, builder: Any, downloads: str | None) -> None:
    try:
        # TFDS would say that it downloads something of unknown size.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads)
    except DataError:
        raise
    except Exception as error:  # of the network, of TFDS's encoders, of the disk
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"the disk of {builder.data_dir} is full", "make room or name another --root"
            ) from None
        raise DataError(
            f"{name} could not be built ({type(error).__name__}: {first_line(error)})",
            "nothing is left half-built; run the command again when that is fixed",
        ) from error


class _Listing:
    """Stands in for TFDS's download manager: notes what it is asked for and downloads nothing."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def download_and_extract(self, urls: Any) -> Any:
        """Something in the place of each path."""
        if isinstance(urls, Mapping):
            return {key: self.download_and_extract(url) for key, url in urls.items()}
        if isinstance(urls, list | tuple):
            return [self.download_and_extract(url) for url in urls]
        self.urls.append(str(getattr(urls, "url", urls)))
        return Path()

    download = download_and_extract


def _announce_download(name: str, builder: Any) -> None:
    """Says what is downloaded, how much, from where and to where.

    Raises:
        DataError: there is no room for it.
    """
    listing = _Listing()
    with contextlib.suppress(Exception):  # a builder that looks into what it has downloaded
        builder._split_generators(listing)
    known = builder.url_infos or {}
    sizes = {url: known[url].size if url in known else 0 for url in listing.urls}
    total = sum(sizes.values())
    for url, size in sizes.items():
        print(f"{_gigabytes(size)}  {url}")
    room = 3 * total  # the archives, what is in them, and what is built of it
    print(
        f"{name}: downloading {_gigabytes(total)} to {builder.data_dir_root / 'downloads'} and "
        f"building {builder.data_dir}; this takes about {_gigabytes(room)} of disk, and downloads/ "
        "may be removed afterwards",
        flush=True,
    )
    root = builder.data_dir_root
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < room:
        raise DataError(
            f"{existing} has {_gigabytes(free)} of room, and {name} takes about {_gigabytes(room)}",
            "make room or name another --root",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size else "unknown size"
