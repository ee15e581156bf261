"""Read and write files of named arrays: PyTorch, safetensors, NumPy, HDF5 and Caffe.

Files are untrusted: no code in them is executed, and every error is one line that names the file.
"""

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.io import exists, is_dir, is_file, reason, staged
from ssd_jax.weights.caffe_file import read_caffemodel
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.torch_file import read_torch, write_torch

# The largest published file of this family, VGG16 with its fc layers, unpacks to 0.6 GB.
MAX_BYTES = 4 << 30
# A .caffemodel file can start with a line feed and "<", the length of its name.
_WEB_PAGE = re.compile(rb"\s*<(!doctype|!--|\?xml|html|head|body)", re.IGNORECASE)


class WeightFile(NamedTuple):
    """Content of a file."""

    values: dict[str, np.ndarray]
    """Arrays by name; floating-point ones are float32."""
    metadata: dict[str, str]
    """Metadata, which only safetensors has."""


def read_arrays(path: Path) -> WeightFile:
    """Read the arrays in a .pth, .pt, .npz, .safetensors, .h5 or .caffemodel file.

    Raises:
        WeightsError: the file is missing, damaged, in an unsupported format, larger than 4 GiB
            unpacked, or needs a library that is not installed. The message names the file.
    """
    if is_dir(path):
        raise WeightsError(f"{path} is a folder; name a file of weights")
    if not is_file(path):
        raise WeightsError(f"file not found: {path}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(f"{path} has an unknown suffix; expected one of {', '.join(_READERS)}")
    with path.open("rb") as file:
        start = file.read(512)
    if _WEB_PAGE.match(start):
        raise WeightsError(f"{path} is a web page, not weights; download the file itself")
    try:
        values, metadata = reader(path)
    except WeightsError:
        raise
    except ImportError as error:
        raise WeightsError(
            f"{path}: reading it needs {error.name}; pip install 'ssd_jax[h5]'"
        ) from None
    except Exception as error:  # a damaged file can make its reader raise anything
        raise WeightsError(f"{path} cannot be read: {reason(error)}") from None
    if not values:
        raise WeightsError(f"{path} contains no arrays")
    return WeightFile({name: _as_float32(value) for name, value in values.items()}, metadata)


def _as_float32(value: np.ndarray) -> np.ndarray:
    if not np.issubdtype(value.dtype, np.floating):
        return value
    with np.errstate(over="ignore", invalid="ignore"):  # the importers require finite values
        return np.asarray(value, np.float32)


def check_array(
    path: Path, name: str, value: np.ndarray, shape: tuple[int, ...], advice: str = ""
) -> None:
    """Raise WeightsError if an array of a file has another shape, is not floating or not finite."""
    if value.shape != shape:
        raise WeightsError(
            f"{path}: {name} has shape {value.shape} and the network {shape}{advice}"
        )
    if not np.issubdtype(value.dtype, np.floating):
        raise WeightsError(f"{path}: {name} is of type {value.dtype}; expected floating point")
    if not np.all(np.isfinite(value)):
        raise WeightsError(f"{path}: {name} is not finite")


def first_of(names: Sequence[str]) -> str:
    """Return the first name and the number of the others."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_zip(path: Path) -> None:
    """Refuse an archive that would unpack to more than weights need."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise WeightsError(
            f"{path} would unpack to {size / 2**30:.0f} GiB; the limit is {MAX_BYTES >> 30} GiB"
        )


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return read_torch(path, max_bytes=MAX_BYTES), {}


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    _check_zip(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _read_h5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import h5py

    values: dict[str, np.ndarray] = {}

    # visititems follows no links, so a file cannot lead to another one.
    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:
            raise WeightsError(f"{path}: {name} is stored in another file; expected one file")
        if sum(v.nbytes for v in values.values()) + item.nbytes > MAX_BYTES:
            raise WeightsError(f"{path} contains more than {MAX_BYTES >> 30} GiB, the limit")
        if np.issubdtype(item.dtype, np.number):
            values[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return values, {}


def _read_caffe(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return read_caffemodel(path, max_bytes=MAX_BYTES), {}


Reader = Callable[[Path], tuple[dict[str, np.ndarray], dict[str, str]]]
_READERS: dict[str, Reader] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".caffemodel": _read_caffe,
}
SUFFIXES = tuple(_READERS)
"""Suffixes of files that `read_arrays` reads."""


def write_arrays(
    path: Path,
    values: Mapping[str, np.ndarray],
    metadata: dict[str, str],
    *,
    field: str = "--out",
) -> None:
    """Write a .pth or .safetensors file in one step.

    Args:
        path: a new file.
        values: arrays by name.
        metadata: text to store; only safetensors can.
        field: option that set the path, for error messages.

    Raises:
        WeightsError: the file exists, has an unsupported suffix or cannot be written. The message
            names the file.
    """
    if exists(path):
        raise WeightsError(f"{field}: {path} exists; name another file")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(f"{field}: {path} must end in .pth or .safetensors")
    try:
        with staged(path) as part:
            part.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                from safetensors.numpy import save

                arrays = {name: np.ascontiguousarray(value) for name, value in values.items()}
                part.write_bytes(save(arrays, metadata))
            else:
                write_torch(part, values)
    except OSError as error:
        raise WeightsError(f"{field}: {path} cannot be written: {reason(error)}") from None
