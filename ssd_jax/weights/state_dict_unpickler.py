"""Unpickle state dicts of PyTorch, without PyTorch and without calling any foreign code.

A pickle is a program. `StateDictUnpickler` interprets only the instructions that state dicts
need. Names of functions and classes become tokens, and the few calls that a state dict makes are
carried out by functions of `pickled_tensors`, which return records: nothing that a file names is
imported or called. Python's own unpickler is not used, because its memo and its strings can be
made to allocate gigabytes by a few bytes.

The formats are defined by Python's `pickletools` and by PyTorch's `torch/serialization.py`.
"""

import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ssd_jax.weights.pickled_tensors import (
    ARGUMENTS,
    CALLS,
    STORAGE_TYPES,
    UNSUPPORTED_TENSORS,
    DamagedPickleError,
    ForeignContentError,
    Storage,
    UnsupportedTensorError,
    dict_key,
    is_index,
)

MAX_PICKLE = 1 << 23
"""Largest pickle that is read (bytes); a tensor of a state dict needs about 200."""
MAX_OPCODES = 300_000
"""Largest number of instructions; a tensor of a state dict needs about 60.

Each takes about 1 microsecond and at most 300 bytes. Names and calls count as several.
"""
_CALL_COST = 5
_MAX_NAME = 256


class Global:
    """A function or class that a pickle names; never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _truncated() -> DamagedPickleError:
    return DamagedPickleError("it is truncated, or its pickle is too large")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:100])


_STORAGES = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in STORAGE_TYPES.items()
}
_GLOBALS = {name: Global(name) for name in (*CALLS, *_STORAGES)}


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
        self._top(dict)[dict_key(key)] = value

    def _setitems(self) -> None:
        items = self._pop_mark()
        target = self._top(dict)
        if len(items) % 2:
            raise DamagedPickleError("a key in its pickle lacks a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[dict_key(key)] = value

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
        if full in UNSUPPORTED_TENSORS:
            raise UnsupportedTensorError(UNSUPPORTED_TENSORS[full])
        if full not in _GLOBALS:
            raise ForeignContentError(_printable(full))
        self._stack.append(_GLOBALS[full])

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if type(function) is Global else ""
        if name not in CALLS or type(arguments) is not tuple:
            raise ForeignContentError("a call of something else than a function of state dicts")
        fewest, most = ARGUMENTS[name]
        if not fewest <= len(arguments) <= most:
            raise DamagedPickleError(f"{name} has {len(arguments)} arguments")
        # A call can copy its arguments, which the memo can repeat.
        copied = sum(len(a) for a in arguments if type(a) in (list, tuple))
        self._spend(_CALL_COST + copied)
        self._stack.append(CALLS[name](*arguments))

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
        if dtype is None or type(key) is not str or not is_index(numel):
            raise DamagedPickleError("a storage without a type, key or size")
        if self.storages.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise DamagedPickleError("a storage has two types or sizes")
        start, size = 0, numel
        if view and view[0] is not None:  # of PyTorch before 0.4
            if type(view[0]) is not tuple or len(view[0]) != 3:
                raise DamagedPickleError("a view of a storage without an offset and a size")
            _, start, size = view[0]
            if not is_index(start) or not is_index(size) or start + size > numel:
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
