"""Files in PyTorch's formats made without PyTorch, instruction by instruction."""

import io
import pickle
import struct
import zipfile

MAGIC_NUMBER = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
STOP = pickle.STOP


def global_(name):
    module, _, name = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def value(plain):
    """Pickle a plain value, without protocol and memo; the items of a dict are instructions."""
    if isinstance(plain, dict):
        items = b"".join(value(key) + item for key, item in plain.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True  # without memo
    pickler.dump(plain)
    return buffer.getvalue()[2:-1]


def tuple_(*items):
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def call(name, *arguments):
    return global_(name) + tuple_(*arguments) + pickle.REDUCE


def storage(kind="torch.FloatStorage", key="0", numel=6, view=()):
    parts = [value("storage"), global_(kind), value(key), value("cpu"), value(numel)]
    return tuple_(*parts, *map(value, view)) + pickle.BINPERSID


def tensor(where=None, offset=0, shape=(2, 3), strides=(3, 1)):
    arguments = [value(x) for x in (offset, shape, strides, False)]
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", where or storage(), *arguments, hooks)


DATA = struct.pack("<6f", *range(6))
"""The storage of `tensor`."""


def zip_file(
    program,
    storages=None,
    *,
    folder="archive",
    compression=zipfile.ZIP_STORED,
    item_size=4,
    **more,
):
    """Make a file in the zip format, which has no item size; `more` are further entries."""
    buffer = io.BytesIO()
    storages = {"0": DATA} if storages is None else storages
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"{folder}/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"{folder}/{name}", data)
    return buffer.getvalue()


def legacy_file(program, storages=None, *, item_size=4):
    """Make a file in the format before PyTorch 1.6."""
    if storages is None:
        storages = {"0": DATA} if pickle.BINPERSID in program else {}
    parts = [MAGIC_NUMBER, VERSION, SYSTEM, program, pickle.dumps(list(storages), 2)]
    for data in storages.values():
        parts += [struct.pack("<q", len(data) // item_size), data]
    return b"".join(parts)
