"""Unpickle and pickle PyTorch state dicts, without PyTorch and without calling any foreign code.

A pickle is a program. `StateDictUnpickler` interprets only the instructions that state dicts
need. Names of functions and classes become tokens, and the few calls that a state dict makes are
carried out by functions of this module, which return records: nothing that a file names is
imported or called. Python's own unpickler is not used, because its memo and its strings can be
made to allocate gigabytes by a few bytes.

The formats are defined by Python's `pickletools` and by PyTorch's `torch/serialization.py`.
"""

import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

MAX_PICKLE = 1 << 23
"""Largest pickle that is read (bytes); a tensor of a state dict needs about 200."""
MAX_OPCODES = 300_000
"""Largest number of instructions; a tensor of a state dict needs about 60.

Each takes about 1 microsecond and at most 300 bytes. Names and calls count as several.
"""
_CALL_COST = 5
_MAX_NAME = 256
_MAX_DIMENSIONS = 64  # NumPy's limit

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

_UNSUPPORTED_TENSORS = {
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


class Global:
    """A function or class that a pickle names; never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _truncated() -> DamagedPickleError:
    return DamagedPickleError("it is truncated, or its pickle is too large")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:100])


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(storage) is not Storage or not _is_index(offset):
        raise DamagedPickleError("a tensor without a storage or offset")
    if type(shape) is not tuple or type(strides) is not tuple:
        raise DamagedPickleError("a tensor without a shape and strides")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise DamagedPickleError("a tensor with an invalid number of dimensions")
    if not all(map(_is_index, shape + strides)):
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
        result[_dict_key(pair[0])] = pair[1]
    return result


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    if type(numbers) not in (list, tuple):
        raise DamagedPickleError("a torch.Size without a tuple")
    return tuple(numbers)


def _dict_key(key: Any) -> str:
    # Only strings: their hashes are randomized, so a file cannot choose keys that collide, and
    # hashing cannot recurse, as it would with nested tuples.
    if type(key) is int:
        return str(key)
    if type(key) is not str:
        raise ForeignContentError(f"a dict with keys of type {type(key).__name__}")
    return key


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_ARGUMENTS = {  # fewest and most
    "collections.OrderedDict": (0, 1),
    "torch.Size": (0, 1),
    "torch._utils._rebuild_tensor": (4, 4),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_parameter": (3, 3),
}
_STORAGES = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in STORAGE_TYPES.items()
}
_GLOBALS = {name: Global(name) for name in (*_CALLS, *_STORAGES)}


class StateDictUnpickler:
    """Read consecutive pickles of state dicts and plain values.

    A state dict becomes a dict with names as keys and `Tensor` records as values. Plain values
    are None, bool, int, float, str, tuple, list and dict. Integer keys of dicts become strings.
    Containers may contain themselves, so a caller must not recurse through them.

    Args:
        data: bytes with pickles at the beginning, of which at most MAX_PICKLE are read.
    """

    def __init__(self, data: bytes) -> None:
        self.position = 0
        """Position after the last pickle that was read."""
        self.storages: dict[str, tuple[str, int]] = {}
        """(dtype, number of elements) of every storage that was named, by key."""
        self._data = data
        self._end = min(len(data), MAX_PICKLE)
        self._opcodes_left = MAX_OPCODES
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read the next pickle.

        Raises:
            DamagedPickleError: it is malformed, or exceeds MAX_PICKLE or MAX_OPCODES.
            ForeignContentError: it contains something that state dicts do not.
            UnsupportedTensorError: it contains a tensor that NumPy cannot represent.
        """
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            if self.position >= self._end:
                raise _truncated()
            self._spend(1)
            opcode = self._data[self.position]
            self.position += 1
            if opcode == _STOP:
                break
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise _refused_opcode(opcode)
            handler(self)
        if self._marks or len(self._stack) != 1:
            raise DamagedPickleError("its pickle does not end with one value")
        return self._stack.pop()

    def _spend(self, instructions: int) -> None:
        self._opcodes_left -= instructions
        if self._opcodes_left < 0:
            raise DamagedPickleError(f"its pickle has more than {MAX_OPCODES} instructions")

    def _read(self, size: int) -> bytes:
        start, end = self.position, self.position + size
        if size < 0 or end > self._end:
            raise _truncated()
        self.position = end
        return self._data[start:end]

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._read(layout.size))[0]

    def _line(self) -> str:
        most = min(_MAX_NAME, self._end - self.position)
        end = self._data.find(b"\n", self.position, self.position + most)
        if end < 0:
            raise _truncated() if most < _MAX_NAME else DamagedPickleError("a name is too long")
        line = self._read(end - self.position)
        self.position += 1
        return self._text(line)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise DamagedPickleError("a text in its pickle is not UTF-8") from None

    def _pop(self) -> Any:
        if not self._stack:
            raise DamagedPickleError("an instruction of its pickle lacks an operand")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise DamagedPickleError("an instruction of its pickle lacks an operand")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise DamagedPickleError(f"an instruction of its pickle expects a {kind.__name__}")
        return self._stack[-1]

    # Instructions.

    def _proto(self) -> None:
        if self._read(1)[0] > pickle.HIGHEST_PROTOCOL:
            raise DamagedPickleError("its pickle has an unknown protocol")

    def _frame(self) -> None:
        self._read(8)  # a hint for buffers

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _long(self) -> None:
        self._stack.append(
            int.from_bytes(self._read(self._read(1)[0]), byteorder="little", signed=True)
        )

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def _appends(self) -> None:
        items = self._pop_mark()
        self._top(list).extend(items)

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_dict_key(key)] = value

    def _setitems(self) -> None:
        items = self._pop_mark()
        target = self._top(dict)
        if len(items) % 2:
            raise DamagedPickleError("a key in its pickle lacks a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_dict_key(key)] = value

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _put(self, index: int) -> None:
        # Picklers number the entries; other indices serve only to exhaust memory or time.
        if index > MAX_OPCODES:
            raise DamagedPickleError("its pickle has an invalid memo index")
        self._memo[index] = self._top(object)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise DamagedPickleError("its pickle has an invalid memo index")
        self._stack.append(self._memo[index])

    def _global(self) -> None:
        module = self._line()
        self._name(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise DamagedPickleError("a name in its pickle is not text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        self._spend(_CALL_COST)
        full = f"{module}.{name}"
        if full in _UNSUPPORTED_TENSORS:
            raise UnsupportedTensorError(_UNSUPPORTED_TENSORS[full])
        if full not in _GLOBALS:
            raise ForeignContentError(_printable(full))
        self._stack.append(_GLOBALS[full])

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if type(function) is Global else ""
        if name not in _CALLS or type(arguments) is not tuple:
            raise ForeignContentError("a call of something else than a function of state dicts")
        fewest, most = _ARGUMENTS[name]
        if not fewest <= len(arguments) <= most:
            raise DamagedPickleError(f"{name} has {len(arguments)} arguments")
        # A call can copy its arguments, which the memo can repeat.
        copied = sum(len(a) for a in arguments if type(a) in (list, tuple))
        self._spend(_CALL_COST + copied)
        self._stack.append(_CALLS[name](*arguments))

    def _build(self) -> None:
        state = self._pop()
        # Modules store versions of their layers as an attribute of the OrderedDict.
        if not self._stack or type(self._stack[-1]) is not OrderedDict or type(state) is not dict:
            raise ForeignContentError("the state of an object")

    def _persistent_id(self) -> None:
        entry = self._pop()
        if type(entry) is not tuple or not 5 <= len(entry) <= 6 or entry[0] != "storage":
            raise ForeignContentError("a reference to something else than a storage")
        _, kind, key, _location, numel, *view = entry
        dtype = _STORAGES.get(kind.name) if type(kind) is Global else None
        if dtype is None or type(key) is not str or not _is_index(numel):
            raise DamagedPickleError("a storage without a type, key or size")
        if self.storages.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise DamagedPickleError("a storage has two types or sizes")
        start, size = 0, numel
        if view and view[0] is not None:  # of PyTorch before 0.4
            if type(view[0]) is not tuple or len(view[0]) != 3:
                raise DamagedPickleError("a view of a storage without an offset and a size")
            _, start, size = view[0]
            if not _is_index(start) or not _is_index(size) or start + size > numel:
                raise DamagedPickleError("a view exceeds its storage")
        self._stack.append(Storage(key, dtype, numel, start, size))


Handler = Callable[[StateDictUnpickler], None]


def _push(value: Any) -> Handler:
    return lambda self: self._stack.append(value)


def _push_number(layout: str) -> Handler:
    number = struct.Struct(layout)
    return lambda self: self._stack.append(self._number(number))


def _push_text(layout: str) -> Handler:
    length = struct.Struct(layout)
    return lambda self: self._stack.append(self._text(self._read(self._number(length))))


def _push_tuple(size: int) -> Handler:
    def handler(self: StateDictUnpickler) -> None:
        if len(self._stack) < size:
            raise DamagedPickleError("an instruction of its pickle lacks an operand")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    return handler


def _memo(method: Callable[[StateDictUnpickler, int], None], layout: str) -> Handler:
    index = struct.Struct(layout)
    return lambda self: method(self, self._number(index))


_STOP = pickle.STOP[0]
_HANDLERS: dict[int, Handler] = {
    opcode[0]: handler
    for opcode, handler in {
        pickle.PROTO: StateDictUnpickler._proto,
        pickle.FRAME: StateDictUnpickler._frame,
        pickle.MARK: StateDictUnpickler._mark,
        pickle.NONE: _push(None),
        pickle.NEWTRUE: _push(True),
        pickle.NEWFALSE: _push(False),
        pickle.EMPTY_TUPLE: _push(()),
        pickle.EMPTY_LIST: StateDictUnpickler._empty_list,
        pickle.EMPTY_DICT: StateDictUnpickler._empty_dict,
        pickle.BININT: _push_number("<i"),
        pickle.BININT1: _push_number("<B"),
        pickle.BININT2: _push_number("<H"),
        pickle.BINFLOAT: _push_number(">d"),
        pickle.LONG1: StateDictUnpickler._long,
        pickle.BINUNICODE: _push_text("<I"),
        pickle.SHORT_BINUNICODE: _push_text("<B"),
        pickle.BINSTRING: _push_text("<i"),  # str of Python 2
        pickle.SHORT_BINSTRING: _push_text("<B"),
        pickle.TUPLE: StateDictUnpickler._tuple,
        pickle.TUPLE1: _push_tuple(1),
        pickle.TUPLE2: _push_tuple(2),
        pickle.TUPLE3: _push_tuple(3),
        pickle.APPEND: StateDictUnpickler._append,
        pickle.APPENDS: StateDictUnpickler._appends,
        pickle.SETITEM: StateDictUnpickler._setitem,
        pickle.SETITEMS: StateDictUnpickler._setitems,
        pickle.MEMOIZE: StateDictUnpickler._memoize,
        pickle.BINPUT: _memo(StateDictUnpickler._put, "<B"),
        pickle.LONG_BINPUT: _memo(StateDictUnpickler._put, "<I"),
        pickle.BINGET: _memo(StateDictUnpickler._get, "<B"),
        pickle.LONG_BINGET: _memo(StateDictUnpickler._get, "<I"),
        pickle.GLOBAL: StateDictUnpickler._global,
        pickle.STACK_GLOBAL: StateDictUnpickler._stack_global,
        pickle.REDUCE: StateDictUnpickler._reduce,
        pickle.BUILD: StateDictUnpickler._build,
        pickle.BINPERSID: StateDictUnpickler._persistent_id,
    }.items()
}
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _refused_opcode(opcode: int) -> ValueError:
    if opcode in _OPCODE_NAMES:
        return ForeignContentError(f"the pickle instruction {_OPCODE_NAMES[opcode]}")
    return DamagedPickleError("it has an invalid pickle instruction")


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
