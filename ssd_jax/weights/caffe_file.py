"""Read the weights of Caffe (.caffemodel) without Caffe and without protobuf.

A file is one message of Google's protocol buffers, a NetParameter of Caffe's
src/caffe/proto/caffe.proto. It holds layers, a layer holds blobs, and a blob is an array with its
shape. Only these messages are read; all other fields are skipped. The encoding is described at
https://protobuf.dev/programming-guides/encoding/.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_jax.weights.errors import WeightsError

MAX_STEPS = 100_000
"""Largest number of fields that are read, each of which takes a few microseconds.

A layer has about 15 fields and the largest networks about 2,000 layers. A run of numbers that are
not packed is one field, but counts as several.
"""
_RUN_COST = 10
_MAX_AXES = 32  # as in Caffe
_MAX_DIM = (1 << 31) - 1  # as in Caffe
_MAX_NAME = 200
_MAX_BLOCK = 1 << 20

# Wire types; 3 and 4 (groups) and 6 and 7 (undefined) do not occur in Caffe's messages.
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_WIDTHS = {_I32: 4, _I64: 8}

# Numbers of fields: NetParameter; the name and the blobs of LayerParameter and V1LayerParameter;
# V1LayerParameter's layer of the version before; BlobProto; BlobShape.
_LAYERS_V1, _LAYERS = 2, 100
_NAME_AND_BLOBS = {_LAYERS: (1, 7), _LAYERS_V1: (4, 6)}
_LAYER_V0 = 1
_LEGACY_DIMS = (1, 2, 3, 4)  # num, channels, height, width
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_DATA_TYPES = {_DATA: (_I32, "<f4"), _DOUBLE_DATA: (_I64, "<f8")}
_RAW_DATA = (10, 12)  # of NVIDIA's fork
_DIM = 1


class _Field(NamedTuple):
    """A field of a message."""

    number: int
    wire_type: int
    start: int
    """Position of the content in the file."""
    end: int
    """Position after it."""
    value: int
    """The number, if the wire type is _VARINT."""
    stride: int
    """Distance of the numbers of a run, if the wire type is _I32 or _I64."""

    def check(self, *wire_types: int) -> None:
        """Raise ValueError if the wire type is not one of these."""
        if self.wire_type not in wire_types:
            raise ValueError(
                f"field {self.number} at byte {self.start:,} has the wire type {self.wire_type}"
            )


class _Numbers(NamedTuple):
    """Numbers of a blob in the file."""

    start: int
    size: int
    stride: int


def read_caffemodel(path: Path, *, max_bytes: int) -> dict[str, np.ndarray]:
    """Read the arrays in a .caffemodel file.

    Args:
        path: a file of Caffe, with layers of the current version or of the one before (V1).
        max_bytes: largest size of the file.

    Returns:
        Arrays of float32 in the file's order. They are named by the layer and their index in it:
        `conv1_1/0` is the kernel (OIHW) and `conv1_1/1` the bias. The four legacy dimensions of
        old files lose leading ones: a bias is [n], and the weights of a dense layer are [out, in].

    Raises:
        WeightsError: the file is too large, has layers of Caffe's first version, half precision of
            NVIDIA's fork, or two arrays of one name. The message names the file.
        ValueError: the file is damaged, or has more than `MAX_STEPS` fields.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path} is empty")
    if size > max_bytes:
        raise WeightsError(f"{path} has {size:,} bytes; the limit is {max_bytes:,}")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _Reader(path, content).read()


class _Reader:
    """Reads the messages of one file.

    The nesting is that of the methods: net, layer, blob, shape. A file cannot make it deeper.
    """

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._steps_left = MAX_STEPS

    def read(self) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for field in self._fields(0, len(self._content)):
            if field.number in _NAME_AND_BLOBS:
                field.check(_LEN)
                for name, value in self._layer(field):
                    if name in values:
                        raise WeightsError(f"{self._path} has two arrays of the name {name}")
                    values[name] = value
        return values

    def _layer(self, layer: _Field) -> Iterator[tuple[str, np.ndarray]]:
        name_number, blobs_number = _NAME_AND_BLOBS[layer.number]
        name, blobs = b"", []
        for field in self._fields(layer.start, layer.end):
            if field.number == name_number:
                field.check(_LEN)
                # A longer one is not valid; its first bytes show that.
                name = self._content[field.start : min(field.end, field.start + _MAX_NAME + 1)]
            elif field.number == blobs_number:
                field.check(_LEN)
                blobs.append(field)
            elif (layer.number, field.number) == (_LAYERS_V1, _LAYER_V0):
                raise WeightsError(
                    f"{self._path} has layers of the first version of Caffe; convert it with "
                    "upgrade_net_proto_binary, a tool of Caffe"
                )
        if not blobs:
            return
        text = name.decode()
        if not text.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise ValueError("the name of a layer with arrays is empty, not printable or too long")
        for index, blob in enumerate(blobs):
            yield f"{text}/{index}", self._blob(f"{text}/{index}", blob)

    def _blob(self, name: str, blob: _Field) -> np.ndarray:
        legacy: dict[int, int] = {}
        shape: list[int] | None = None
        numbers: dict[int, list[_Numbers]] = {}
        for field in self._fields(blob.start, blob.end):
            if field.number in _LEGACY_DIMS:
                field.check(_VARINT)
                legacy[field.number] = field.value
            elif field.number == _SHAPE:
                field.check(_LEN)
                shape = [*(shape or ()), *self._dims(field)]
            elif field.number in _DATA_TYPES:
                numbers.setdefault(field.number, []).append(self._numbers(name, field))
            elif field.number in _RAW_DATA:
                raise WeightsError(
                    f"{self._path}: {name} is stored as raw data of NVIDIA's fork of Caffe, such "
                    "as float16, which cannot be read; save it as float32 there"
                )
        if legacy:  # Caffe prefers them, too.
            shape = [legacy.get(number, 0) for number in _LEGACY_DIMS]
        if shape is None:
            raise ValueError(f"{name} has no shape")
        if len(shape) > _MAX_AXES or not all(1 <= dim <= _MAX_DIM for dim in shape):
            raise ValueError(f"{name} has an invalid shape")
        if legacy and shape[:2] == [1, 1]:
            shape = shape[3:] if shape[2] == 1 else shape[2:]
        if len(numbers) > 1:
            raise ValueError(f"{name} has data of two types")
        return self._array(name, tuple(shape), numbers)

    def _dims(self, field: _Field) -> Iterator[int]:
        for dim in self._fields(field.start, field.end):
            if dim.number != _DIM:
                continue
            dim.check(_VARINT, _LEN)
            if dim.wire_type == _VARINT:
                yield dim.value
                continue
            position = dim.start
            while position < dim.end:
                self._spend(1)
                value, position = self._varint(position, dim.end)
                yield value

    def _numbers(self, name: str, field: _Field) -> _Numbers:
        wire_type, _ = _DATA_TYPES[field.number]
        width = _WIDTHS[wire_type]
        field.check(_LEN, wire_type)
        size = field.end - field.start
        if field.wire_type == wire_type:
            return _Numbers(field.start, (size - width) // field.stride + 1, field.stride)
        if size % width:
            raise ValueError(f"{name} has {size:,} bytes, which is not a multiple of {width}")
        return _Numbers(field.start, size // width, width)

    def _array(
        self, name: str, shape: tuple[int, ...], numbers: dict[int, list[_Numbers]]
    ) -> np.ndarray:
        count = sum(part.size for parts in numbers.values() for part in parts)
        if count != math.prod(shape):
            raise ValueError(f"{name} has {count:,} numbers and the shape {shape}")
        flat = np.empty(count, np.float32)
        position = 0
        for number, parts in numbers.items():
            _, dtype = _DATA_TYPES[number]
            for start, size, stride in parts:
                part: np.ndarray = np.ndarray(size, dtype, self._content, start, (stride,))
                with np.errstate(over="ignore", invalid="ignore"):
                    flat[position : position + size] = part
                position += size
        return flat.reshape(shape)

    def _fields(self, position: int, end: int) -> Iterator[_Field]:
        """Read the fields of a message; consecutive fixed-width numbers of one field are one."""
        while position < end:
            self._spend(1)
            tag, start = self._varint(position, end)
            number, wire_type = tag >> 3, tag & 7
            value = stride = 0
            if wire_type == _VARINT:
                value, stop = self._varint(start, end)
            elif wire_type == _LEN:
                size, start = self._varint(start, end)
                stop = start + size
            elif wire_type in _WIDTHS:
                stride = start - position + _WIDTHS[wire_type]
                stop = position + stride * self._run_length(position, stride, end)
            else:
                raise ValueError(
                    f"its message is damaged or of another format: byte {position:,} has the wire "
                    f"type {wire_type}"
                )
            if number == 0:
                raise ValueError(f"byte {position:,} has the field number 0")
            if stop > end:
                raise _truncated(position)
            yield _Field(number, wire_type, start, stop, value, stride)
            position = stop

    def _run_length(self, position: int, stride: int, end: int) -> int:
        """Return the number of consecutive records that start with the byte at a position."""
        self._spend(_RUN_COST)
        most = (end - position) // stride
        if self._content[position] >= 0x80:  # a tag of several bytes
            return 1
        length, block = 1, 16
        while length < most:
            block = min(2 * block, most - length, _MAX_BLOCK)
            start = position + length * stride
            tags: np.ndarray = np.ndarray(block, np.uint8, self._content, start, (stride,))
            others = tags != self._content[position]
            if others.any():
                return length + int(others.argmax())
            length += block
        return length

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return an unsigned number of up to 64 bits and the position after it."""
        value, start = 0, position
        for shift in range(0, 70, 7):
            if position >= end:
                raise _truncated(start)
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise ValueError(f"byte {start:,} starts a number of more than 10 bytes")

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise ValueError(f"its message has more than {MAX_STEPS:,} fields")


def _truncated(position: int) -> ValueError:
    return ValueError(f"it is truncated, or damaged at byte {position:,}")
