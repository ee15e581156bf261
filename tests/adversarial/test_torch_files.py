"""PyTorch files: arrays, or one error line, without a call, an import or another file.

Each refusal takes at most 1 s of one CPU and 200 MB.
"""

import io
import pickle
import struct
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.config import UserError
from ssd_jax.weights.files import read_arrays
from ssd_jax.weights.state_dict_unpickler import MAX_OPCODES, MAX_PICKLE
from tests.adversarial.limits import assert_one_line, read_weights_in_process, result_or_error
from tests.adversarial.strategies import HOSTILE, edited_bytes
from tests.weights.torch_files import (
    DATA,
    STOP,
    call,
    global_,
    legacy_file,
    storage,
    tensor,
    tuple_,
    value,
    zip_file,
)

pytestmark = pytest.mark.adversarial

PROTO = b"\x80\x02"
CONTAINERS = {"zip": zip_file, "legacy": legacy_file}
SECONDS = 1
BYTES = 200e6

# Side effects.

_events: list[tuple[str, str]] | None = None


def _record(event, args):
    if _events is not None and not event.startswith("object."):
        _events.append((event, str(args[0]) if args else ""))


sys.addaudithook(_record)


def watched(call, path):
    """Call a reader; fail if it opens another file, or imports or runs anything."""
    global _events
    _events = []
    start = time.process_time()
    try:
        result = result_or_error(call, num_bytes=BYTES)
    finally:
        events, _events = _events, None
    assert time.process_time() - start < SECONDS
    # The limits are measured in /proc.
    expected = (str(path), "/proc/self/status", "/proc/self/clear_refs")
    assert [event for event in events if event not in [("open", e) for e in expected]] == []
    return result


def read(path):
    return watched(lambda: read_arrays(path).values, path)


@pytest.fixture(autouse=True, scope="module")
def warm_up(tmp_path_factory):
    """Read a file, so that modules that the standard library imports late are loaded."""
    path = tmp_path_factory.mktemp("warm") / "a.pth"
    for make_file in CONTAINERS.values():
        path.write_bytes(make_file(PROTO + value({"a": tensor()}) + STOP))
        read_arrays(path)


@pytest.mark.parametrize(
    "code", ["os.mkdir('trace')", "__import__('this')", "os.system('true')", "eval('1')"]
)
def test_side_effects_are_detected(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    compiled = compile(code, "test", "exec")
    with pytest.raises(AssertionError, match=r"mkdir|import|system|exec"):
        watched(lambda: exec(compiled), tmp_path / "a.pth")


# Pickles that would call something.

NAMES = [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output"),
    *("builtins.eval", "builtins.exec", "builtins.open", "builtins.getattr", "builtins.__import__"),
    *("__builtin__.eval", "__builtin__.apply", "__builtin__.file", "builtins.bytearray"),
    *("importlib.import_module", "runpy.run_path", "pty.spawn", "socket.create_connection"),
    *("shutil.rmtree", "pathlib.Path.unlink", "webbrowser.open", "code.interact", "pdb.run"),
    *("operator.attrgetter", "operator.methodcaller", "functools.partial", "types.FunctionType"),
    *("pickle.loads", "_pickle.loads", "marshal.loads", "copyreg._reconstructor", "shelve.open"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.save", "torch.Tensor.numpy"),
    *("torch.serialization.load", "torch.storage._load_from_bytes", "torch._utils.import_module"),
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch._tensor._rebuild_from_type_v2"),
    *("numpy.load", "numpy.core.multiarray._reconstruct", "numpy.fromfile", "numpy.dtype"),
    *("collections.OrderedDict.__reduce__", "collections.Counter", "collections..OrderedDict"),
    *("collections.OrderedDict ", "torch.Size.__class__", "torch.FloatStorage.from_file"),
    *("ssd_jax.weights.torch_file.write_torch", "ssd_jax.io.atomic_write", "__main__.x"),
    *("antigravity.fly", "this.s", "a\0b.c", "\x1b[31m.red", "a" * 200 + ".b", "ü.é"),
]
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner)),
    max_leaves=5,
).map(value)


@st.composite
def calls(draw):
    """Draw instructions that name a function and call it in one of the ways of pickle."""
    name = draw(st.sampled_from(NAMES))
    module, _, function = name.rpartition(".")
    arguments = draw(st.sampled_from([("touch trace",), ("trace", "w"), (), ([1, 2],), (1,)]))
    how = draw(st.sampled_from(["reduce", "newobj", "newobj_ex", "obj", "inst", "build", "stack"]))
    named, packed = global_(name), value(arguments)
    if how == "stack":
        named = value(module) + value(function) + pickle.STACK_GLOBAL
    if how == "inst":
        line = f"{module}\n{function}\n".encode()
        return pickle.MARK + b"".join(map(value, arguments)) + pickle.INST + line
    if how == "obj":
        return pickle.MARK + named + b"".join(map(value, arguments)) + pickle.OBJ
    if how == "newobj_ex":
        return named + packed + value({}) + pickle.NEWOBJ_EX
    if how == "build":
        return named + value({"__setstate__": named}) + pickle.BUILD
    return named + packed + (pickle.NEWOBJ if how == "newobj" else pickle.REDUCE)


OTHER = st.sampled_from(
    [
        value(("storage", "os.system", "0", "cpu", 6)) + pickle.BINPERSID,
        value(("module", "a", "b", "c")) + pickle.BINPERSID,
        value("0") + pickle.BINPERSID,
        value(7) + pickle.BINPERSID,
        pickle.PERSID + b"os.system\n",
        tuple_(*map(value, ("storage", 1, "0", "cpu", 6))) + pickle.BINPERSID,
        storage(key="../../etc/passwd"),
        storage(key="/etc/passwd"),
        storage("os.system"),
        storage("torch.cuda.is_available"),
        storage(numel=1 << 62),
        storage(view=[("1", 0, 1 << 62)]),
        *(op + b"\x01" for op in (pickle.EXT1, pickle.EXT2 + b"\0", pickle.EXT4 + b"\0\0\0")),
        *(op + b"\xff" * 8 for op in (pickle.BINBYTES8, pickle.BINUNICODE8, pickle.BYTEARRAY8)),
        *(op + b"\xff\xff\xff\x7f" for op in (pickle.LONG4, pickle.BINBYTES, pickle.BINSTRING)),
        pickle.NEXT_BUFFER,
        pickle.NEXT_BUFFER + pickle.READONLY_BUFFER,
        pickle.EMPTY_SET,
        pickle.MARK + pickle.FROZENSET,
        value(1) + pickle.LONG_BINPUT + b"\xff" * 4,
        pickle.LONG_BINGET + b"\xff" * 4,
        pickle.INT + b"1" * 5000 + b"\n",
        pickle.LONG + b"9" * 100_000 + b"L\n",
        pickle.STRING + b"'a'\n",
        pickle.POP,
        pickle.DUP,
        call("torch._utils._rebuild_parameter", value({}), value(1), value({})),
        call("collections.OrderedDict", value([("a",)])),
        call("torch.Size", value({})),
        value({}) + tensor() + value(1) + pickle.SETITEM,
    ]
)


@pytest.mark.parametrize("container", CONTAINERS)
@settings(HOSTILE, max_examples=200)
@given(st.one_of(calls(), calls(), OTHER), PLAIN, st.booleans(), st.sampled_from(["", "model"]))
def test_hostile_instructions_are_refused(
    tmp_path_factory, container, fragment, plain, first, wrapper
):
    folder = tmp_path_factory.mktemp("hostile")
    items = {"a": tensor(), "x": fragment + pickle.MEMOIZE}
    items = dict(reversed(items.items())) if first else items
    program = value({"plain": plain, wrapper: value(items)}) if wrapper else value(items)
    (folder / "a.pth").write_bytes(CONTAINERS[container](PROTO + program + STOP))
    before = set(sys.modules)
    assert isinstance(read(folder / "a.pth"), UserError)
    assert set(sys.modules) == before
    assert [path.name for path in folder.iterdir()] == ["a.pth"]


# Tensors against an obvious check of every element.


@settings(HOSTILE, max_examples=1000)
@given(st.data())
def test_tensors_stay_within_their_storage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tensor") / "a.pth"
    rank = data.draw(st.integers(0, 4))
    shape = tuple(data.draw(st.integers(-1, 4)) for _ in range(rank))
    strides = tuple(data.draw(st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 8, 12])) for _ in range(rank))
    offset, numel = data.draw(st.integers(-1, 8)), data.draw(st.sampled_from([6, 24]))
    program = value({"a": tensor(storage(numel=numel), offset, shape, strides)}) + STOP
    content = np.arange(numel, dtype="f")
    make_file = data.draw(st.sampled_from([zip_file, legacy_file]))
    path.write_bytes(make_file(PROTO + program, {"0": content.tobytes()}))
    result = read(path)
    if isinstance(result, UserError):
        if min((offset, *shape, *strides), default=0) >= 0:
            assert not is_contiguous(shape, strides, offset, numel)
        return
    indices = list(np.ndindex(shape))
    positions = [offset + int(np.dot(index, strides)) for index in indices]
    assert all(0 <= position < numel for position in positions)
    assert len(set(positions)) == len(positions)
    assert result["a"].shape == shape
    assert [result["a"][index] for index in indices] == positions


def is_contiguous(shape, strides, offset, numel):
    """Return whether a tensor is a contiguous part of its storage, in any order of dimensions."""
    if 0 in shape:
        return True
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return offset + expected <= numel


# Damaged files.

MANY = value({f"layer.{k}": tensor() for k in range(3)}) + STOP


@pytest.mark.parametrize("container", CONTAINERS)
@settings(HOSTILE, max_examples=300)
@given(st.data())
def test_damaged_files(tmp_path_factory, container, data):
    path = tmp_path_factory.mktemp("damaged") / "a.pth"
    path.write_bytes(data.draw(edited_bytes(CONTAINERS[container](PROTO + MANY))))
    result = read(path)
    if not isinstance(result, UserError):
        assert all(array.dtype.kind in "fiub" for array in result.values())


@settings(HOSTILE, max_examples=300)
@given(st.data())
def test_damaged_pickles(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.pth"
    path.write_bytes(zip_file(data.draw(edited_bytes(PROTO + MANY))))
    read(path)


@settings(HOSTILE, max_examples=200)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_random_instructions(tmp_path_factory, opcodes):
    path = tmp_path_factory.mktemp("random") / "a.pth"
    path.write_bytes(zip_file(PROTO + bytes(opcodes) + STOP))
    read(path)


# Bombs, each in its own process.


def put(index):
    return pickle.BINPUT + bytes([index])


def get(index):
    return pickle.BINGET + bytes([index])


def repeated(instructions, count):
    """Repeat instructions as often as their number is allowed."""
    return instructions * (MAX_OPCODES // count - 100)


TENSOR_CALL = get(0) + get(1) + pickle.REDUCE
TENSOR = global_("torch._utils._rebuild_tensor_v2")
# Memo 0 is the function, memo 1 its arguments.
TENSOR_MEMO = TENSOR + put(0) + tensor()[len(TENSOR) : -1] + put(1) + pickle.REDUCE
DICT_MEMO = global_("collections.OrderedDict") + put(0)
LONGEST = MAX_PICKLE - 100
PICKLE_BOMBS = {
    "marks": lambda: repeated(pickle.MARK, 1),
    "lists": lambda: repeated(pickle.EMPTY_LIST, 1),
    "dicts": lambda: repeated(pickle.EMPTY_DICT, 1),
    "floats": lambda: repeated(pickle.BINFLOAT + bytes(8), 1),
    "longs": lambda: (pickle.LONG1 + b"\xff" + b"\x7f" * 255) * (LONGEST // 257),
    "texts": lambda: (
        (pickle.SHORT_BINUNICODE + b"\xff" + b"a" * 251 + "😀".encode()) * (LONGEST // 257)
    ),
    "long text": lambda: (
        pickle.BINUNICODE + struct.pack("<I", LONGEST) + b"a" * (LONGEST - 4) + "😀".encode()
    ),
    "names": lambda: (pickle.GLOBAL + b"torch\nSize\n") * (LONGEST // 12),
    "memo": lambda: value(1) + repeated(pickle.MEMOIZE, 1),
    "memo of lists": lambda: repeated(pickle.EMPTY_LIST + pickle.MEMOIZE, 2),
    "last memo entry": lambda: value(1) + repeated(pickle.LONG_BINPUT + b"\xe0\x93\x04\x00", 1),
    "large memo index": lambda: value(1) + pickle.LONG_BINPUT + b"\xff" * 4,
    "lengths": lambda: pickle.BINUNICODE + b"\xff" * 4,
    "frames": lambda: repeated(pickle.FRAME + b"\xff" * 8, 1),
    "nested tuples": lambda: value(1) + repeated(pickle.TUPLE1, 1),
    "nested lists": lambda: pickle.EMPTY_LIST * 140_000 + pickle.APPEND * 139_999,
    "nested dicts": lambda: (
        (pickle.EMPTY_DICT + value("")) * 90_000 + pickle.NONE + pickle.SETITEM * 90_000
    ),
    "billion laughs": lambda: (
        value("ha") + put(0) + repeated(get(0) + get(0) + pickle.TUPLE2 + put(0), 4)
    ),
    "nested keys": lambda: (
        value({}) + value(1) + pickle.TUPLE1 * 200_000 + value(1) + pickle.SETITEM
    ),
    "OrderedDicts": lambda: DICT_MEMO + repeated(get(0) + pickle.EMPTY_TUPLE + pickle.REDUCE, 8),
    "copied items": lambda: (
        DICT_MEMO
        + value([("a", 1)] * 1000)
        + pickle.TUPLE1
        + put(1)
        + (get(0) + get(1) + pickle.REDUCE) * 50_000
    ),
    "copied sizes": lambda: (
        global_("torch.Size")
        + put(0)
        + tuple_(value([1] * 1000))
        + put(1)
        + (get(0) + get(1) + pickle.REDUCE) * 50_000
    ),
    "colliding keys": lambda: (
        pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(value((2**61 - 1) * k) + pickle.NONE for k in range(100_000))
        + pickle.SETITEMS
    ),
    "tensors": lambda: TENSOR_MEMO + repeated(TENSOR_CALL, 8),
    "long shapes": lambda: tensor(shape=(1,) * 100_000, strides=(1,) * 100_000),
    "huge shapes": lambda: tensor(shape=(2**2000,) * 64, strides=(2**2000,) * 64),
    "storages": lambda: b"".join(storage(key=str(k)) for k in range(20_000)),
    "self-reference": lambda: (
        pickle.EMPTY_DICT + put(0) + value("state_dict") + get(0) + pickle.SETITEM
    ),
    "many large views": lambda: (
        pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(
            value(str(k)) + tensor(storage("torch.HalfStorage", numel=500_000), 0, (500_000,), (1,))
            for k in range(5000)
        )
        + pickle.SETITEMS
    ),
}
"""Functions, because the bombs are large."""


def archive(*entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name) if not data else name, data)
    return buffer.getvalue()


def patch(data, field, number, size):
    """Set a field of the last record of the directory of an archive, at an offset in bytes."""
    start = data.rindex(b"PK\x01\x02") + field
    return data[:start] + number.to_bytes(size, "little") + data[start + size :]


def repeated_entry(count):
    """An archive, the directory of which names one entry many times."""
    data = zip_file(PROTO + value({"a": tensor()}) + STOP)
    start, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    directory, entry = data.index(b"PK\x01\x02"), data[start:end]
    header = entry[:28] + struct.pack("<H", len("archive/data/000000")) + entry[30:46]
    entries = b"".join(header + b"archive/data/%06d" % k for k in range(count))
    number, size = min(count, 65535), end - directory + len(entries)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, size, directory, 0)
    return data[:end] + entries + last


SMALL = zip_file(PROTO + value({"a": tensor()}) + STOP)
FILE_BOMBS = {
    "deflated": lambda: archive(
        ("a/data.pkl", bytes(300_000_000)), compression=zipfile.ZIP_DEFLATED
    ),
    "deflated storage": lambda: archive(
        ("a/data.pkl", PROTO + value({"a": tensor()}) + STOP),
        ("a/data/0", bytes(300_000_000)),
        compression=zipfile.ZIP_DEFLATED,
    ),
    "many entries": lambda: repeated_entry(500_000),
    "as many entries as are read": lambda: archive(
        ("a/data.pkl", b"x"), *((f"{k:05}", b"") for k in range(40_000))
    ),
    "repeated entry": lambda: repeated_entry(20_000),
    "large entry": lambda: patch(patch(SMALL, 20, 2**32 - 2, 4), 24, 2**32 - 2, 4),
    "entry beyond the end": lambda: patch(SMALL, 42, 2**32 - 2, 4),
    "encrypted entry": lambda: patch(SMALL, 8, 1, 2),
    "unknown compression": lambda: patch(SMALL, 10, 99, 2),
    "large legacy storage": lambda: legacy_file(
        PROTO + value({"a": tensor(storage(numel=1 << 40))}) + STOP
    ).replace(struct.pack("<q", 6) + DATA, struct.pack("<q", 1 << 40) + DATA),
    "large file": lambda: b"\x80" * 50_000_000,
}


def refuse(path):
    error = read_weights_in_process(path, seconds=SECONDS, num_bytes=BYTES)
    assert error.startswith(str(path))
    assert_one_line(error)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_pickle_bombs(tmp_path, name, container):
    path = tmp_path / f"{name}.pth"
    storages = {"0": bytes(1_000_000)} if name == "many large views" else {"0": DATA}
    options = {"item_size": 2} if container == "legacy" and name == "many large views" else {}
    path.write_bytes(
        CONTAINERS[container](PROTO + PICKLE_BOMBS[name]() + STOP, storages, **options)
    )
    refuse(path)


@pytest.mark.parametrize("name", FILE_BOMBS)
def test_file_bombs(tmp_path, name):
    path = tmp_path / f"{name}.pth"
    path.write_bytes(FILE_BOMBS[name]())
    refuse(path)
