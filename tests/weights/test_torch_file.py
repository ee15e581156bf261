"""PyTorch's files without PyTorch: equal to PyTorch's reader, and refused in one line."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from ssd_jax.weights import state_dict_unpickler, torch_file
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import read_arrays, write_arrays
from ssd_jax.weights.torch_file import read_torch, write_torch
from tests.weights.torch_files import (
    DATA,
    MAGIC_NUMBER,
    STOP,
    SYSTEM,
    VERSION,
    call,
    global_,
    legacy_file,
    storage,
    tensor,
    tuple_,
    value,
    zip_file,
)

ARRAY = np.arange(6, dtype="f").reshape(2, 3)
STATE_DICT = b"\x80\x02" + value({"a": tensor()}) + STOP
DTYPES = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
CONTAINERS = {"zip": zip_file, "legacy": legacy_file}
both_formats = pytest.mark.parametrize("make_file", CONTAINERS.values(), ids=CONTAINERS)


def read(tmp_path, data):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    return read_arrays(path).values


def assert_equal(arrays, expected):
    """Fail unless names, order, types, shapes and bits are equal."""
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], strict=True, err_msg=name)


# Without PyTorch.

RECORDED = {  # of make_recorded
    "0.weight": ARRAY,
    "0.tied": ARRAY.T,
    "0.bias": np.array([0.5, -2], "f"),
    "1.num_batches_tracked": np.array(7),
    "1.mask": np.array([True, False]),
}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_recorded_files(golden, name):
    arrays = read_arrays(golden / name).values
    assert_equal(arrays, RECORDED)
    assert np.shares_memory(arrays["0.weight"], arrays["0.tied"])


@both_formats
def test_files_made_by_hand(tmp_path, make_file):
    assert_equal(read(tmp_path, make_file(STATE_DICT)), {"a": ARRAY})


@pytest.mark.parametrize("dtype", [*DTYPES, "ml_dtypes.bfloat16"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4)])
def test_written_arrays_are_read(tmp_path, dtype, shape):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = ml_dtypes.bfloat16 if "bfloat16" in dtype else np.dtype(dtype)
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    write_torch(tmp_path / "a.pth", {"a": array, "b": array})
    arrays = read_torch(tmp_path / "a.pth", max_bytes=10_000)
    expected = array.astype("f") if dtype == ml_dtypes.bfloat16 else array
    assert_equal(arrays, {"a": expected, "b": expected})


def test_written_files_are_reproducible(tmp_path):
    for name in "ab":
        write_arrays(tmp_path / f"{name}.pth", {"x": ARRAY, "y": ARRAY.T}, {})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert_equal(read_arrays(tmp_path / "a.pth").values, {"x": ARRAY, "y": ARRAY.T})


def test_written_storages_are_aligned(tmp_path):
    write_torch(tmp_path / "a.pth", {str(k): ARRAY for k in range(20)})
    data = (tmp_path / "a.pth").read_bytes()
    for k in range(20):
        assert data.index(ARRAY.tobytes(), 64 * k) % 64 == 0
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None


def test_big_endian_arrays_are_written(tmp_path):
    write_arrays(tmp_path / "a.pth", {"a": ARRAY.astype(">f4")}, {})
    assert_equal(read_arrays(tmp_path / "a.pth").values, {"a": ARRAY})


def test_unsupported_types_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="a is of type complex64"):
        write_torch(tmp_path / "a.pth", {"a": np.zeros(2, "complex64")})


def test_floating_arrays_become_float32(tmp_path):
    values = {"double": np.array([1e300, 0.1]), "half": np.array([0.1], "float16")}
    write_torch(tmp_path / "a.pth", values)
    arrays = read_arrays(tmp_path / "a.pth").values
    expected = {"double": np.array([np.inf, 0.1], "f"), "half": values["half"].astype("f")}
    assert_equal(arrays, expected)


def short(text):
    """A str of Python 2."""
    return pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode()


def test_file_of_python_2(tmp_path):
    """As of 2017: the items of an OrderedDict as its argument, storages on a GPU, long numbers."""
    numel = pickle.LONG1 + b"\x01\x06"
    parts = [short("storage"), global_("torch.cuda.FloatStorage"), short("0"), short("cuda:0")]
    where = tuple_(*parts, numel, pickle.NONE) + pickle.BINPERSID
    shape = [value(x) for x in (0, (2, 3), (3, 1))]
    item = pickle.EMPTY_LIST + pickle.BINPUT + b"\x03" + pickle.MARK + short("module.a")
    item += call("torch._utils._rebuild_tensor", where, *shape) + pickle.APPENDS
    items = pickle.EMPTY_LIST + pickle.BINPUT + b"\x02" + item + pickle.APPEND
    program = b"\x80\x02" + call("collections.OrderedDict", items) + STOP
    assert_equal(read(tmp_path, legacy_file(program)), {"module.a": ARRAY})


def test_views_of_storages(tmp_path):
    where = storage(view=[("7", 2, 3)])
    program = b"\x80\x02" + value({"a": tensor(where, 1, (2,), (1,))}) + STOP
    assert_equal(read(tmp_path, legacy_file(program)), {"a": np.array([3, 4], "f")})
    for view in (("7", 4, 3), ("7", -1, 2), ("7", 2), "7"):
        program = b"\x80\x02" + value({"a": tensor(storage(view=[view]), 0, (1,), (1,))}) + STOP
        with pytest.raises(WeightsError, match="cannot be read: a view"):
            read(tmp_path, legacy_file(program))
    program = b"\x80\x02" + value({"a": tensor(where, 2, (2,), (1,))}) + STOP
    with pytest.raises(WeightsError, match="a tensor exceeds its storage"):
        read(tmp_path, legacy_file(program))


def test_newer_pickle_protocols(tmp_path):
    def unicode_(text):
        return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() + pickle.MEMOIZE

    def new_global(name):
        module, _, name = name.rpartition(".")
        return unicode_(module) + unicode_(name) + pickle.STACK_GLOBAL + pickle.MEMOIZE

    where = storage().replace(
        global_("torch.FloatStorage"),
        new_global("torch.FloatStorage") + pickle.BINPUT + b"\x64",
    )
    body = value({"a": tensor(where)}) + STOP
    for protocol in (4, 5):
        frame = pickle.FRAME + struct.pack("<Q", len(body))
        program = pickle.PROTO + bytes([protocol]) + frame + body
        assert_equal(read(tmp_path, zip_file(program)), {"a": ARRAY})


@pytest.mark.parametrize("key", ["state_dict", "model"])
@both_formats
def test_wrapped_state_dicts(tmp_path, make_file, key):
    meta = {"epoch": value(3), "lr": value([0.1, (1, None, True)]), 7: value({})}
    inner = call("collections.OrderedDict") + pickle.MARK + value("a") + tensor() + pickle.SETITEMS
    inner += value({"_metadata": call("collections.OrderedDict")}) + pickle.BUILD
    program = b"\x80\x02" + value({"meta": value(meta), key: inner}) + STOP
    assert_equal(read(tmp_path, make_file(program)), {"a": ARRAY})


def test_unused_storages_are_not_read(tmp_path, monkeypatch):
    sizes = []
    read_bytes = torch_file._read_bytes
    monkeypatch.setattr(
        torch_file, "_read_bytes", lambda f, size: sizes.append(size) or read_bytes(f, size)
    )
    other = tensor(storage(key="1", numel=500), 0, (500,), (1,))
    program = b"\x80\x02" + value({"model": value({"a": tensor()}), "optimizer": other}) + STOP
    for make_file in CONTAINERS.values():
        assert_equal(
            read(tmp_path, make_file(program, {"1": bytes(2000), "0": DATA})), {"a": ARRAY}
        )
    assert 2000 not in sizes
    assert sizes.count(24) == 2


def test_big_endian_file(tmp_path):
    shorts = storage("torch.BFloat16Storage", "1", 2)
    program = value({"a": tensor(), "b": tensor(shorts, 0, (2,), (1,))}) + STOP
    storages = {"0": ARRAY.astype(">f4").tobytes(), "1": b"\x3f\x80\xc0\x00"}
    arrays = read(tmp_path, zip_file(program, storages, byteorder="big"))
    assert_equal(arrays, {"a": ARRAY, "b": np.array([1, -2], "f")})
    with pytest.raises(WeightsError, match="its byte order is unknown"):
        read(tmp_path, zip_file(program, storages, byteorder="middle"))


@both_formats
def test_integer_names_become_text(tmp_path, make_file):
    program = b"\x80\x02" + value({1: tensor()}) + STOP
    assert_equal(read(tmp_path, make_file(program)), {"1": ARRAY})


def test_truncated_storages_are_refused(tmp_path):
    other = tensor(storage(key="1", numel=500), 0, (500,), (1,))
    program = b"\x80\x02" + value({"model": value({"a": tensor()}), "other": other}) + STOP
    with pytest.raises(WeightsError, match="cannot be read: it is truncated"):
        read(tmp_path, legacy_file(program, {"0": DATA, "1": bytes(2000)})[:-1])
    with pytest.raises(ValueError, match="it is truncated"):  # while it is read
        torch_file._read_bytes(io.BytesIO(b"ab"), 3)


@both_formats
def test_bytes_of_booleans_need_not_be_0_or_1(tmp_path, make_file):
    where = storage("torch.BoolStorage", numel=3)
    program = b"\x80\x02" + value({"a": tensor(where, 0, (3,), (1,))}) + STOP
    arrays = read(tmp_path, make_file(program, {"0": b"\x00\x01\x02"}, item_size=1))
    assert arrays["a"].tobytes() == b"\x00\x01\x01"


@both_formats
def test_arrays_can_be_written_to(tmp_path, make_file):
    arrays = read(tmp_path, make_file(STATE_DICT))
    arrays["a"] += 1
    np.testing.assert_array_equal(arrays["a"], ARRAY + 1)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (global_("os.system"), r"contains os.system, which is not part of a state dict; it was"),
        (call("builtins.eval", value("1")), "contains builtins.eval, which"),
        (global_("a.b\x1b[31m"), r"contains a.b\?\[31m, which"),
        (tuple_(value(1)) + value(()) + pickle.REDUCE, "contains a call of something else"),
        (global_("torch.FloatStorage") + value(()) + pickle.REDUCE, "contains a call of some"),
        (value({}) + value({"x": value(1)}) + pickle.BUILD, "contains the state of an object"),
        (tensor() + value({"x": value(1)}) + pickle.BUILD, "contains the state of an object"),
        (value(("module", 1, 2, 3, 4)) + pickle.BINPERSID, "a reference to something else than a"),
        (value(("storage", 1)) + pickle.BINPERSID, "a reference to something else than a storage"),
        (pickle.PERSID + b"1\n", "contains the pickle instruction PERSID"),
        (global_("torch.Size") + value(()) + pickle.NEWOBJ, "the pickle instruction NEWOBJ"),
        (pickle.MARK + pickle.INST + b"os\nsystem\n", "contains the pickle instruction INST"),
        (pickle.EXT1 + b"\x01", "contains the pickle instruction EXT1"),
        (pickle.BINBYTES8 + b"\xff" * 8, "contains the pickle instruction BINBYTES8"),
        (b"\xff", "cannot be read: it has an invalid pickle instruction"),
        (value({"a": value(1)}), "a is a int, not an array; expected a state dict"),
        (value({"a": storage()}), "a is a Storage, not an array"),
        (value({"a": global_("torch.FloatStorage")}), "a is a Global, not an array"),
        (value({"a\nb": tensor()}), r"the name of a\?b is not printable"),
        (value({"a" * 200: tensor()}), r"the name of a{100} is not printable or too long"),
        (value([1]), "contains a list; expected a state dict"),
        (tensor(), "contains a Tensor; expected a state dict"),
        (value({}), "contains no arrays"),
        (b"", "its pickle does not end with one value"),
        (value(1) * 2, "its pickle does not end with one value"),
        (pickle.MARK + value({}), "its pickle does not end with one value"),
        (pickle.TUPLE, "an instruction of its pickle lacks an operand"),
        (pickle.TUPLE2, "an instruction of its pickle lacks an operand"),
        (pickle.REDUCE, "an instruction of its pickle lacks an operand"),
        (value([]) + pickle.MARK + value(1) + pickle.SETITEMS, "pickle expects a dict"),
        (value({}) + value(1) + pickle.APPEND, "pickle expects a list"),
        (value({}) + pickle.MARK + value(1) + pickle.SETITEMS, "a key in its pickle lacks a v"),
        (value({}) + value((1,)) + value(1) + pickle.SETITEM, "a dict with keys of type tuple"),
        (pickle.BINGET + b"\x00", "an invalid memo index"),
        (value(1) + pickle.LONG_BINPUT + b"\xff" * 4, "an invalid memo index"),
        (pickle.BINUNICODE + b"\xff" * 4, "truncated, or its pickle is too large"),
        (pickle.BINSTRING + b"\xff" * 4, "truncated, or its pickle is too large"),
        (pickle.SHORT_BINSTRING + b"\x01\xff", "a text in its pickle is not UTF-8"),
        (pickle.GLOBAL + b"a" * 1000, "a name is too long"),
        (value(1) + value(2) + pickle.STACK_GLOBAL, "a name in its pickle is not text"),
        (pickle.PROTO + b"\x63", "its pickle has an unknown protocol"),
        (call("collections.OrderedDict", value(1)), "an OrderedDict without a list of items"),
        (call("collections.OrderedDict", value([1])), "an OrderedDict without pairs"),
        (call("torch.Size", value(1)), "a torch.Size without a tuple"),
        (call("torch.Size", value(1), value(2)), "torch.Size has 2 arguments"),
        (call("torch._utils._rebuild_parameter", *map(value, (1, 2, 3))), "a parameter without a"),
        (call("torch._utils._rebuild_tensor", *[value(())] * 4), "without a storage or offset"),
        (tensor(offset=-1), "a tensor without a storage or offset"),
        (tensor(offset=True), "a tensor without a storage or offset"),
        (tensor(offset=1), "a tensor exceeds its storage"),
        (tensor(shape=(3, 3)), "a tensor exceeds its storage"),
        (tensor(shape=(2**70, 1)), "a tensor exceeds its storage"),
        (tensor(strides=(4, 1)), "a tensor exceeds its storage"),
        (tensor(strides=(2**70, 1)), "a tensor exceeds its storage"),
        (tensor(shape=[2, 3]), "a tensor without a shape and strides"),
        (tensor(strides=(1,)), "a tensor with an invalid number of dimensions"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "an invalid number of dimensions"),
        (tensor(strides=(-3, 1)), "a tensor with an invalid shape or strides"),
        (tensor(shape=(2, -3)), "a tensor with an invalid shape or strides"),
        (tensor(shape=("2", 3)), "a tensor with an invalid shape or strides"),
        (tensor(strides=(0, 1)), "contains a tensor whose elements share memory, which cannot"),
        (tensor(strides=(1, 1)), "contains a tensor whose elements share memory"),
        (tensor(strides=(2, 1)), "contains a tensor whose elements share memory"),
        (tensor(storage("torch.ComplexFloatStorage")), "contains a complex tensor, which"),
        (tensor(storage("torch.QInt8Storage")), "contains a quantized tensor, which"),
        (global_("torch._utils._rebuild_sparse_tensor"), "contains a sparse tensor, which"),
        (global_("torch._utils._rebuild_tensor_v3"), "a tensor of an unusual type"),
        (tensor(storage(numel=-6)), "a storage without a type, key or size"),
        (tensor(storage("collections.OrderedDict")), "a storage without a type, key or size"),
        (tuple_(tensor(), tensor(storage(numel=7))), "a storage has two types or sizes"),
        (value({"a": tensor(storage(key="../1"))}), "cannot be read: it"),
    ],
)
@both_formats
def test_refused_pickles(tmp_path, make_file, program, message):
    with pytest.raises(WeightsError, match=message) as error:
        read(tmp_path, make_file(b"\x80\x02" + program + STOP))
    assert str(tmp_path / "a.pth") in str(error.value)
    assert str(error.value).isprintable()


def test_negated_view_is_refused(tmp_path):
    negated = tensor()[: -len(pickle.TUPLE + pickle.REDUCE)] + value({"neg": value(True)})
    program = value({"a": negated + pickle.TUPLE + pickle.REDUCE}) + STOP
    with pytest.raises(WeightsError, match="a conjugate or negated view"):
        read(tmp_path, zip_file(program))


def stored(*entries):
    """An archive with the entries (name, data)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def overlapping():
    """An archive, two entries of which are the same bytes."""
    program = value({"a": tensor(), "b": tensor(storage(key="1"))}) + STOP
    data = zip_file(program, {"0": DATA, "1": DATA})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first, second = (archive.getinfo(f"archive/data/{k}").header_offset for k in "01")
    name = b"archive/data/1"  # follows the position in the directory
    return data.replace(struct.pack("<I", second) + name, struct.pack("<I", first) + name)


def repeated():
    """An archive with two entries of one name."""
    return zip_file(STATE_DICT, {"0": DATA, "1": DATA}).replace(b"data/1", b"data/0")


LEGACY = legacy_file(STATE_DICT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not a file of PyTorch: it is neither a zip archive nor a binary pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "is not a file of PyTorch"),
        (b"<!DOCTYPE html>", "is a web page"),
        (
            b"storages".ljust(257, b"\0") + b"ustar".ljust(2000, b"\0"),
            "is in the tar format of the first",
        ),
        (pickle.dumps({"a": 1}), "is a pickle, but not of PyTorch's torch.save"),
        (MAGIC_NUMBER + MAGIC_NUMBER, "is a pickle, but not of PyTorch's torch.save"),
        (zip_file(STATE_DICT, compression=zipfile.ZIP_DEFLATED), "is compressed, which PyTorch's"),
        (zip_file(STATE_DICT, **{"constants.pkl": "x"}), "is a TorchScript archive"),
        (stored(("a.npy", b"x")), "is a zip archive, but not of PyTorch"),
        (stored(("a/data.pkl", b"x"), ("b/data.pkl", b"x")), "but not of PyTorch: it has 2"),
        (zip_file(STATE_DICT, {}), "cannot be read: it lacks the entry archive/data/0"),
        (zip_file(STATE_DICT, {"0": DATA[1:]}), "data/0 has 23 bytes; expected 24"),
        (zip_file(STATE_DICT, {"0": DATA + DATA}), "data/0 has 48 bytes; expected 24"),
        (zip_file(STATE_DICT)[:-30], "cannot be read: "),
        (overlapping(), "cannot be read: its entries overlap"),
        (repeated(), "cannot be read: names of its entries repeat"),
        (zip_file(STATE_DICT).replace(DATA, DATA[:-1] + b"\x01"), "cannot be read: Bad CRC-32"),
        (LEGACY[:-1], "cannot be read: it is truncated"),
        (LEGACY[:30], "cannot be read: it is truncated"),
        (legacy_file(STATE_DICT, {}), "its list of storages does not fit"),
        (legacy_file(STATE_DICT, {"1": DATA}), "its list of storages does not fit"),
        (legacy_file(STATE_DICT, {"0": DATA[4:]}), "the size of storage 0 differs"),
        (
            MAGIC_NUMBER + VERSION + SYSTEM + STATE_DICT + pickle.dumps("00", 2),
            "it lacks the list of its storages",
        ),
    ],
)
def test_refused_files(tmp_path, data, message):
    with pytest.raises(WeightsError, match=message) as error:
        read(tmp_path, data)
    assert str(tmp_path / "a.pth") in str(error.value)
    assert str(error.value).isprintable()


def test_total_size_is_limited(tmp_path):
    names = {str(k): tensor() for k in range(100)}
    (tmp_path / "a.pth").write_bytes(zip_file(value(names) + STOP))
    with pytest.raises(WeightsError, match="tensors of more than 2,399 bytes"):
        read_torch(tmp_path / "a.pth", max_bytes=2399)
    assert len(read_torch(tmp_path / "a.pth", max_bytes=2400)) == 100
    small = {"a": tensor(shape=(1,), strides=(1,))}
    (tmp_path / "b.pth").write_bytes(zip_file(value(small) + STOP))
    with pytest.raises(WeightsError, match="tensors of more than 23 bytes"):
        read_torch(tmp_path / "b.pth", max_bytes=23)
    # Tensors of a shared storage take 200 bytes each in the pickle and 40,000 in memory.
    where = storage("torch.HalfStorage", numel=10_000)
    names = {str(k): tensor(where, 0, (10_000,), (1,)) for k in range(100)}
    with pytest.raises(WeightsError, match="the limit for this file"):
        read(tmp_path, zip_file(value(names) + STOP, {"0": bytes(20_000)}))


@pytest.mark.parametrize("limit", ["MAX_PICKLE", "MAX_OPCODES"])
@both_formats
def test_large_pickles_are_refused(tmp_path, monkeypatch, make_file, limit):
    program = b"\x80\x02" + value({str(k): tensor() for k in range(100)}) + STOP
    monkeypatch.setattr(state_dict_unpickler, limit, 1000)
    message = "its pickle is too large" if limit == "MAX_PICKLE" else "more than 1000 instructions"
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, make_file(program))


class Trap:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(2, 6))
@both_formats
def test_nothing_is_called_or_imported(tmp_path, monkeypatch, make_file, protocol):
    trace = tmp_path / "trace"
    traps = [Trap(os.system, f"touch {trace}"), Trap(open, str(trace), "w"), Trap(exec, "1 / 0")]
    programs = [pickle.dumps(OrderedDict(a=trap), protocol) for trap in traps]
    programs.append(b"\x80\x02" + call("antigravity.geohash", value(1)) + STOP)
    assert "antigravity" not in sys.modules
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("called"))
    for program in programs:
        with pytest.raises(WeightsError, match="it was not loaded, since a pickle can run code"):
            read(tmp_path, make_file(program))
    assert "antigravity" not in sys.modules
    assert not trace.exists()


# Beside PyTorch.


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def assert_equals_torch(torch, path):
    """Compare with PyTorch's own reader."""
    expected = {}
    for name, loaded in torch.load(path, weights_only=True).items():
        loaded = loaded.detach()
        expected[name] = (loaded.float() if loaded.is_floating_point() else loaded).numpy()
    assert_equal(read_arrays(path).values, expected)


def make_recorded(torch):
    weight = torch.arange(6.0)
    state = OrderedDict()
    state["0.weight"] = weight.reshape(2, 3)
    state["0.tied"] = weight.reshape(2, 3).t()
    state["0.bias"] = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)
    state["1.num_batches_tracked"] = torch.tensor(7)
    state["1.mask"] = torch.tensor([True, False])
    state._metadata = OrderedDict([("", {"version": 1})])
    return state


def test_recorded_files_equal_torch(torch, golden):
    expected = make_recorded(torch)
    for name in ("torch_zip.pth", "torch_legacy.pth"):
        loaded = torch.load(golden / name, weights_only=True)
        assert list(loaded) == list(expected)
        assert all(torch.equal(loaded[k], value) for k, value in expected.items())
        assert_equals_torch(torch, golden / name)


def random_tensor(torch, rng):
    dtype = getattr(torch, rng.choice([*DTYPES, "bfloat16"]))
    shape = rng.integers(0, 5, rng.integers(0, 5)).tolist()
    values = torch.from_numpy(np.asarray(rng.normal(0, 50, shape)))
    if dtype == torch.uint8:
        values = values.abs()
    values = (values > 0 if dtype == torch.bool else values).to(dtype)
    return random_view(torch, rng, values)


def random_view(torch, rng, values):
    """Return the tensor transposed, sliced, in another layout or as a parameter, or itself."""
    kind = rng.choice(["same", "transpose", "slice", "steps", "channels_last", "parameter"])
    if kind == "transpose":
        return values.permute(rng.permutation(values.dim()).tolist())
    if kind in ("slice", "steps") and values.dim():
        start, step = int(rng.integers(0, 3)), 1 if kind == "slice" else 2
        axis = int(rng.integers(values.dim()))
        return values[(slice(None),) * axis + (slice(start, None, step),)]
    if kind == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if kind == "parameter" and values.is_floating_point():
        return torch.nn.Parameter(values, requires_grad=bool(rng.integers(2)))
    return values


@formats
@pytest.mark.parametrize("seed", range(50))
def test_random_state_dicts_equal_torch(torch, tmp_path, zipped, seed):
    rng = np.random.default_rng([20161208, seed])
    state = OrderedDict()
    for k in range(rng.integers(1, 12)):
        state[f"module.layers.{k}.ü"] = random_tensor(torch, rng)
    for name in list(state)[::3]:
        state[f"{name}.tied"] = random_view(torch, rng, state[name].detach())
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert_equals_torch(torch, tmp_path / "a.pth")


@formats
def test_state_dict_of_a_module_equals_torch(torch, tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    options = {"_use_new_zipfile_serialization": zipped}
    torch.save(module.state_dict(), tmp_path / "a.pth", **options)
    assert_equals_torch(torch, tmp_path / "a.pth")
    wrapped = {"model": module.state_dict(), "epoch": 3, "shape": module[0].weight.shape}
    torch.save(wrapped, tmp_path / "b.pth", **options)
    expected = read_arrays(tmp_path / "a.pth").values
    assert_equal(read_arrays(tmp_path / "b.pth").values, expected)


@formats
@pytest.mark.parametrize("protocol", range(3, 6))
def test_newer_protocols_of_torch(torch, tmp_path, zipped, protocol):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(make_recorded(torch), tmp_path / "a.pth", **options)
    assert_equal(read_arrays(tmp_path / "a.pth").values, RECORDED)


@formats
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.ones(2).expand(3, 2), "elements share memory"),
        (lambda torch: torch.ones(2, dtype=torch.complex64), "a complex tensor"),
        (lambda torch: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda torch: torch.ones(2).to(torch.uint16), "a tensor of an unusual type"),
        (lambda torch: torch.ones(2).to(torch.float8_e5m2), "a tensor of an unusual type"),
        (lambda torch: torch.ones(2, dtype=torch.complex64).conj().imag, "negated view"),
        (lambda torch: torch.ones(2, device="meta"), "a tensor without values"),
    ],
)
def test_tensors_that_are_not_supported(torch, tmp_path, zipped, make, message):
    torch.save({"a": make(torch)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=message):
        read_arrays(tmp_path / "a.pth")


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_written_files(torch, tmp_path, mmap):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    arrays = {dtype: np.asarray(rng.uniform(0, 9, (2, 3)), dtype) for dtype in DTYPES}
    arrays |= {"zero": np.zeros((0, 3)), "scalar ü": np.array(3.5)}
    arrays |= {"transposed": arrays["float32"].T, "big-endian": arrays["int32"].astype(">i4")}
    arrays["bfloat16"] = np.array([1, -2], ml_dtypes.bfloat16)
    write_arrays(tmp_path / "a.pth", arrays, {})
    loaded = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].is_contiguous()
        result = loaded[name].float() if name == "bfloat16" else loaded[name]
        expected = array.astype("f") if name == "bfloat16" else array
        np.testing.assert_array_equal(result.numpy(), expected, err_msg=name)
        assert str(loaded[name].dtype) == f"torch.{array.dtype.name}"
