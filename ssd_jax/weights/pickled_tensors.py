"""Tensors and calls in pickled state dicts of PyTorch.

A pickled state dict calls a few functions of PyTorch. They are replaced by functions of this
module, which check their arguments and return records.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

STORAGE_TYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Element types by the name of the storage class in `torch` or `torch.cuda`."""
ITEM_SIZES = {
    **{"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1},
}
"""Bytes of an element by type."""

UNSUPPORTED_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_tensor_v3": "a tensor of an unusual type, such as uint16 or float8",
    "torch.ComplexFloatStorage": "a complex tensor",
    "torch.ComplexDoubleStorage": "a complex tensor",
    **{f"torch.{q}Storage": "a quantized tensor" for q in ("QInt8", "QUInt8", "QInt32")},
}
"""Kinds of tensors that are refused, by a name in the pickle."""


class DamagedPickleError(ValueError):
    """A truncated, malformed or too long pickle."""


class ForeignContentError(ValueError):
    """A pickle that contains more than state dicts do; the message names the content."""


class UnsupportedTensorError(ValueError):
    """A pickle with a tensor that has no counterpart in NumPy; the message names the kind."""


class Storage(NamedTuple):
    """A storage, or a part of one."""

    key: str
    """Name of the storage in the file."""
    dtype: str
    """Type of the elements, a key of `ITEM_SIZES`."""
    numel: int
    """Elements of the complete storage."""
    start: int
    """First element of the part."""
    size: int
    """Elements of the part."""


class Tensor(NamedTuple):
    """A tensor within the bounds of its storage, no two elements of which share memory."""

    storage: Storage
    offset: int
    """First element, from the start of the complete storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Strides in elements."""


_MAX_DIMENSIONS = 64  # NumPy's limit


def is_index(value: object) -> bool:
    """Return whether a value is an integer, not a bool, and not negative."""
    return type(value) is int and value >= 0


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(storage) is not Storage or not is_index(offset):
        raise DamagedPickleError("a tensor without a storage or offset")
    if type(shape) is not tuple or type(strides) is not tuple:
        raise DamagedPickleError("a tensor without a shape and strides")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise DamagedPickleError("a tensor with an invalid number of dimensions")
    if not all(map(is_index, shape + strides)):
        raise DamagedPickleError("a tensor with an invalid shape or strides")
    if math.prod(shape) == 0:
        return Tensor(storage, 0, shape, (0,) * len(shape))
    # In ascending order of stride, each step must lead past all elements of the dimensions before.
    last = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride <= last:
            raise UnsupportedTensorError("a tensor whose elements share memory")
        last += stride * (size - 1)
    if offset + last >= storage.size:
        raise DamagedPickleError("a tensor exceeds its storage")
    return Tensor(storage, storage.start + offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    backward_hooks: Any,
    metadata: Any = None,
) -> Tensor:
    if metadata:  # the bits "conj" and "neg"
        raise UnsupportedTensorError("a conjugate or negated view of a tensor")
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, requires_grad: Any, backward_hooks: Any) -> Tensor:
    if type(data) is not Tensor:
        raise DamagedPickleError("a parameter without a tensor")
    return data


def _ordered_dict(pairs: Any = ()) -> OrderedDict[str, Any]:
    # Python 2 pickles the items as an argument.
    result: OrderedDict[str, Any] = OrderedDict()
    if type(pairs) not in (list, tuple):
        raise DamagedPickleError("an OrderedDict without a list of items")
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise DamagedPickleError("an OrderedDict without pairs")
        result[dict_key(pair[0])] = pair[1]
    return result


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    if type(numbers) not in (list, tuple):
        raise DamagedPickleError("a torch.Size without a tuple")
    return tuple(numbers)


def dict_key(key: Any) -> str:
    """Return the key of a dict as text."""
    # Only strings: their hashes are randomized, so a file cannot choose keys that collide, and
    # hashing cannot recurse, as it would with nested tuples.
    if type(key) is int:
        return str(key)
    if type(key) is not str:
        raise ForeignContentError(f"a dict with keys of type {type(key).__name__}")
    return key


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
"""Functions by the name that a pickle calls."""
ARGUMENTS = {
    "collections.OrderedDict": (0, 1),
    "torch.Size": (0, 1),
    "torch._utils._rebuild_tensor": (4, 4),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_parameter": (3, 3),
}
"""Fewest and most arguments of each function in `CALLS`."""
