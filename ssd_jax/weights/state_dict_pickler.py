"""Pickle state dicts for PyTorch, without PyTorch."""

import math
import pickle
import struct
from collections.abc import Iterable

from ssd_jax.weights.pickled_tensors import STORAGE_TYPES


def pickle_state_dict(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Pickle an OrderedDict of contiguous tensors.

    Args:
        tensors: name, type (a key of `ITEM_SIZES`) and shape of each tensor. The keys of their
            storages are "0", "1" and so on.

    Raises:
        ValueError: a type is not supported.
    """
    parts = [pickle.PROTO + b"\x02", _EMPTY_ORDERED_DICT, pickle.MARK]
    for index, (name, dtype, shape) in enumerate(tensors):
        if dtype not in _STORAGE_NAMES:
            raise ValueError(f"{name} is of type {dtype}, which PyTorch's files do not have")
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = (
            _pickle_text("storage"),
            _pickle_global("torch", _STORAGE_NAMES[dtype]),
            _pickle_text(str(index)),
            _pickle_text("cpu"),
            _pickle_int(math.prod(shape)),
        )
        arguments = (
            _pickle_tuple(storage) + pickle.BINPERSID,
            _pickle_int(0),
            _pickle_tuple(map(_pickle_int, shape)),
            _pickle_tuple(map(_pickle_int, strides)),
            pickle.NEWFALSE,
            _EMPTY_ORDERED_DICT,
        )
        parts += [_pickle_text(name), _pickle_global("torch._utils", "_rebuild_tensor_v2")]
        parts += [_pickle_tuple(arguments), pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _pickle_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _pickle_text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _pickle_int(number: int) -> bytes:
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x09" + number.to_bytes(9, byteorder="little")


def _pickle_tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


_EMPTY_ORDERED_DICT = (
    _pickle_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
)
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_TYPES.items()}
