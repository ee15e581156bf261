"""Read and write state dicts of PyTorch (.pth, .pt) without PyTorch.

PyTorch has two formats. Since version 1.6 a file is a zip archive without compression: `data.pkl`
is a pickle of the state dict, and `data/0`, `data/1`, ... are the storages of its tensors. Before,
a file was five pickles (magic number, version, properties of the system, state dict, keys of the
storages), followed by the storages. Both are little-endian.
"""

import io
import math
import struct
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.pickled_tensors import (
    ITEM_SIZES,
    DamagedPickleError,
    ForeignContentError,
    Tensor,
    UnsupportedTensorError,
)
from ssd_jax.weights.state_dict_pickler import pickle_state_dict
from ssd_jax.weights.state_dict_unpickler import MAX_PICKLE, StateDictUnpickler

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_DIRECTORY = 1 << 21
"""Largest directory of an archive that is read (bytes); an entry has about 70."""
_CHUNK = 1 << 20
_MAX_RATIO = 8
"""Largest size of the arrays as float32, as a multiple of the file's size.

float16 and bfloat16 double in size, and tensors may share a storage.
"""
_ALIGNMENT = 64
_ENTRY_HEADER = 30
"""Bytes before an entry, in addition to its name and padding."""


def read_torch(path: Path, *, max_bytes: int) -> dict[str, np.ndarray]:
    """Read the state dict in a .pth or .pt file, also one in a "state_dict" or "model" entry.

    Args:
        path: a file of PyTorch's zip format or of the format before version 1.6.
        max_bytes: largest total size of the storages, and of the arrays as float32.

    Returns:
        Arrays by name, in the file's order; bfloat16 becomes float32. Arrays that share a storage
        in the file share memory.

    Raises:
        WeightsError: the file contains anything but plain values and dense tensors of floating
            point, integers or booleans, or more than `max_bytes` of them, or is no file of
            PyTorch. The message names the file.
        ValueError, OSError, zipfile.BadZipFile: the file is damaged. The standard library can
            raise others, too.
    """
    size = path.stat().st_size
    # Unbuffered: storages are read directly into their arrays.
    with _File(path) as file:
        head = file.read(512)
        file.seek(0)
        try:
            if head.startswith(b"PK\x03\x04"):
                source: _Archive | _Legacy = _Archive(path, file, size)
            elif head.startswith(b"\x80"):
                source = _Legacy(path, file, size)
            else:
                _refuse_format(path, head)
            tensors = _state_dict(path, source.tree)
        except ForeignContentError as error:
            raise WeightsError(
                f"{path} contains {error}, which is not part of a state dict; it was not loaded, "
                "since a pickle can run code: save net.state_dict() in the original program"
            ) from None
        except UnsupportedTensorError as error:
            raise WeightsError(
                f"{path} contains {error}, which cannot be read; save it as a contiguous, "
                "dense tensor of float32 in the original program"
            ) from None
        most = min(max_bytes, _MAX_RATIO * size)
        sizes = {t.storage.key: t.storage.numel * _item_size(t) for t in tensors.values()}
        if max(sum(sizes.values()), sum(map(_num_bytes, tensors.values()))) > most:
            raise WeightsError(
                f"{path} contains tensors of more than {most:,} bytes, the limit for this file"
            )
        storages = {key: source.read(key, num_bytes) for key, num_bytes in sizes.items()}
        return {
            name: _array(tensor, storages[tensor.storage.key]) for name, tensor in tensors.items()
        }


def _refuse_format(path: Path, head: bytes) -> NoReturn:
    if not head:
        raise WeightsError(f"{path} is empty")
    if head[257:262] == b"ustar":
        raise WeightsError(
            f"{path} is in the tar format of the first versions of PyTorch; load and save it with "
            "a version that reads it"
        )
    raise WeightsError(
        f"{path} is not a file of PyTorch: it is neither a zip archive nor a binary pickle"
    )


def _state_dict(path: Path, tree: Any) -> dict[str, Tensor]:
    # Training scripts wrap the state dict.
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} contains a {type(tree).__name__}; expected a state dict")
    for name, value in tree.items():
        shown = "".join(c if c.isprintable() else "?" for c in name[:100])
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: {shown} is a {type(value).__name__}, not an array; expected a state dict"
            )
        if shown != name:
            raise WeightsError(f"{path}: the name of {shown} is not printable or too long")
    return dict(tree)


def _item_size(tensor: Tensor) -> int:
    return ITEM_SIZES[tensor.storage.dtype]


def _num_bytes(tensor: Tensor) -> int:
    return max(4, _item_size(tensor)) * math.prod(tensor.shape)


class _File(io.FileIO):
    """A file of which one call of `read` returns at most `_MAX_DIRECTORY` bytes.

    `zipfile` reads the directory of an archive in one call, whatever its size. Its other reads are
    smaller.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _MAX_DIRECTORY
        if size > _MAX_DIRECTORY:
            raise ValueError("its directory is too large")
        return super().read(size) or b""


class _Archive:
    """A file in the zip format."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._archive = zipfile.ZipFile(file)
        entries = self._archive.infolist()
        names = {entry.filename for entry in entries}
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(
                f"{path} is a zip archive, but not of PyTorch: it has {len(pickles)} entries "
                "data.pkl; expected one"
            )
        if len(names) != len(entries):
            raise ValueError("names of its entries repeat")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}constants.pkl" in names:
            raise WeightsError(
                f"{path} is a TorchScript archive; save net.state_dict() in the original program"
            )
        _check_entries(path, entries, size)
        order = "little"
        if f"{self._folder}byteorder" in names:
            order = self._read_small("byteorder", 16).decode()
        if order not in ("little", "big"):
            raise ValueError("its byte order is unknown")
        self._swap = order != sys.byteorder
        self._unpickler = StateDictUnpickler(self._read_small("data.pkl", MAX_PICKLE))
        self.tree = self._unpickler.load()

    def _read_small(self, name: str, most: int) -> bytes:
        entry = self._archive.getinfo(self._folder + name)
        if entry.file_size > most:
            raise ValueError(f"its {name} has {entry.file_size:,} bytes, more than {most:,}")
        return self._read_entry(entry).tobytes()

    def _read_entry(self, entry: zipfile.ZipInfo) -> np.ndarray:
        with self._archive.open(entry) as stream:  # checks the CRC
            return _read_bytes(stream, entry.file_size)

    def read(self, key: str, size: int) -> np.ndarray:
        """Read a storage as uint8 [size] in the byte order of the machine."""
        name = f"{self._folder}data/{key}"
        try:
            entry = self._archive.getinfo(name)
        except KeyError:
            raise ValueError(f"it lacks the entry {name}") from None
        if entry.file_size != size:
            raise ValueError(f"its entry {name} has {entry.file_size} bytes; expected {size}")
        storage = self._read_entry(entry)
        item_size = ITEM_SIZES[self._unpickler.storages[key][0]]
        if self._swap:
            storage.view(f"u{item_size}").byteswap(inplace=True)
        return storage


def _check_entries(path: Path, entries: Iterable[zipfile.ZipInfo], size: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED:
            # A compressed file could unpack to any size.
            raise WeightsError(f"{path} is compressed, which PyTorch's files never are")
        if entry.file_size != entry.compress_size or entry.header_offset < end:
            raise ValueError("its entries overlap")
        end = entry.header_offset + _ENTRY_HEADER + entry.file_size
    if end > size:
        raise ValueError("it is truncated")


class _Legacy:
    """A file in the format before PyTorch 1.6."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._file = file
        unpickler = StateDictUnpickler(_read_bytes(file, min(size, MAX_PICKLE)).tobytes())
        if unpickler.load() != _MAGIC_NUMBER or unpickler.load() != _VERSION:
            raise WeightsError(f"{path} is a pickle, but not of PyTorch's torch.save")
        unpickler.load()  # properties of the system; the storages are little-endian on all
        self.tree = unpickler.load()
        keys = unpickler.load()
        if not isinstance(keys, list):
            raise DamagedPickleError("it lacks the list of its storages")
        self._positions: dict[str, int] = {}
        self._dtypes: dict[str, str] = {}
        position = unpickler.position
        for key in keys:
            if type(key) is not str or key in self._positions or key not in unpickler.storages:
                raise DamagedPickleError("its list of storages does not fit its state dict")
            self._dtypes[key], numel = unpickler.storages[key]
            file.seek(position)
            if int.from_bytes(file.read(8), byteorder="little") != numel:
                raise DamagedPickleError(f"the size of storage {len(self._positions)} differs")
            self._positions[key] = position + 8
            position += 8 + numel * ITEM_SIZES[self._dtypes[key]]
            if position > size:
                raise DamagedPickleError("it is truncated")

    def read(self, key: str, size: int) -> np.ndarray:
        """Read a storage as uint8 [size] in the byte order of the machine."""
        if key not in self._positions:
            raise DamagedPickleError("its list of storages does not fit its state dict")
        self._file.seek(self._positions[key])
        storage = _read_bytes(self._file, size)
        if sys.byteorder != "little":
            storage.view(f"u{ITEM_SIZES[self._dtypes[key]]}").byteswap(inplace=True)
        return storage


def _read_bytes(stream: Any, size: int) -> np.ndarray:
    result = np.empty(size, np.uint8)
    view = result.data
    position = 0
    while position < size:
        count = stream.readinto(view[position : position + _CHUNK])
        if not count:
            raise ValueError("it is truncated")
        position += count
    return result


def _array(tensor: Tensor, storage: np.ndarray) -> np.ndarray:
    """Return the elements of a tensor; bfloat16 as float32."""
    size, dtype = _item_size(tensor), tensor.storage.dtype
    # NumPy has no bfloat16, which is the first half of float32. Bytes other than 0 and 1 are True.
    kind = {"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype)
    array = np.ndarray(
        tensor.shape,
        kind,
        buffer=storage,
        offset=tensor.offset * size,
        strides=[stride * size for stride in tensor.strides],
    )
    if dtype == "bool":
        return np.not_equal(array, 0, out=np.empty(array.shape, bool))
    if dtype == "bfloat16":
        wide = array.astype(np.uint32)
        return np.left_shift(wide, 16, out=wide).view(np.float32)
    return array


def write_torch(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write a state dict in PyTorch's zip format; the same arrays give the same bytes.

    Args:
        path: a file, which is replaced if it exists.
        values: arrays by name, of types that `read_torch` reads.

    Raises:
        ValueError: an array is of another type.
        OSError: the file cannot be written.
    """
    arrays = [np.asarray(value) for value in values.values()]
    entries = zip(values, arrays, strict=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        data = pickle_state_dict((name, a.dtype.name, a.shape) for name, a in entries)
        _write_entry(archive, "data.pkl", data)
        _write_entry(archive, "byteorder", b"little")
        for index, array in enumerate(arrays):
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            _write_entry(archive, f"data/{index}", little.reshape(-1).view(np.uint8))
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")
    # Storages start at multiples of 64 bytes, as PyTorch's own, so that they can be mapped.
    start = archive.start_dir + _ENTRY_HEADER + len(entry.filename) + 4
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(entry, data)
