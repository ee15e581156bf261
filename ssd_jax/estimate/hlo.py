"""Programs as text: instructions that run, their number, and the bytes that they access.

Two formats are read: optimised HLO from `Compiled.as_text()`, which the accelerator runs, and
StableHLO from `Lowered.as_text()`, where a convolution still has its original shapes.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_TILE = re.compile(r"\{(?P<order>[\d,]*):T\((?P<tile>[\d,]*)\)")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(?:body|to_apply|calls|\w+_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# Instructions that only name existing values: nothing runs for them.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_SLICES = {"slice", "dynamic-slice", "gather"}
# Instructions that run other computations; that of a fusion, in contrast, is a single kernel.
_CALLERS = {"while", "call", "conditional", "async-start"}


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    opcode: str
    shape: str
    """Shape of the result, e.g. `bf16[32,38,38,512]{3,2,1,0}`, or a tuple of shapes."""
    operands: tuple[str, ...]
    line: str
    """Text from the opcode on."""


class AllReduce(NamedTuple):
    """A sum over the devices."""

    times: int
    """Number of runs in a step."""
    size: int
    """Bytes of each device."""


@dataclass(frozen=True)
class Program:
    """An optimised program, as one device runs it."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse optimised HLO; raise ValueError if it has no entry computation."""
        computations: dict[str, tuple[Instruction, ...]] = {}
        entry, name = "", ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                name, lines = start[2], []
                entry = name if start[1] else entry
            elif line.startswith("}"):
                computations[name] = tuple(lines)
            elif instruction := _INSTRUCTION.match(line):
                lines.append(_instruction(instruction[2], instruction[3]))
        if not entry:
            raise ValueError("the text has no ENTRY computation; give optimised HLO")
        return cls(computations, entry)

    def running(self, computation: str = "", times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yield the instructions of a step and their number of runs; unknown loops run once."""
        for one in self.computations[computation or self.entry]:
            if one.opcode in _CALLERS:
                trips = _TRIPS.search(one.line)
                branches = _BRANCHES.search(one.line)
                inner = _NAME.findall(branches[1]) if branches else _CALLED.findall(one.line)
                for name in inner:
                    yield from self.running(name, times * (int(trips[1]) if trips else 1))
            elif one.opcode not in _FREE:
                yield one, times

    def all_reduces(self) -> list[AllReduce]:
        """List the all-reduces; a pair of start and done counts once."""
        return [
            AllReduce(times, array_bytes(one.shape))
            for one, times in self.running()
            if one.opcode in ("all-reduce", "all-reduce-start")
        ]

    def count(self, opcode: str) -> int:
        """Count the runs of an instruction in a step, alone or in fusions."""
        return sum(
            times
            for one, times in self.running()
            if one.opcode.removesuffix("-start") == opcode
            or any(inner.opcode == opcode for inner in self._fused(one))
        )

    def bytes_accessed(self) -> int:
        """Return the bytes that a step reads from and writes to the device's main memory.

        Each kernel reads its operands and writes its result once; of an operand that is only
        sliced, it reads the slices. Registers, caches and on-chip memory are not counted.
        """
        sizes = {i.name: memory_bytes(i.shape) for c in self.computations.values() for i in c}
        total = 0
        for one, times in self.running():
            read = [sizes.get(name, 0) for name in one.operands]
            written = sizes[one.name]
            # Asynchronous instructions read at their start and write at their end.
            if one.opcode.endswith("-done"):
                read = []
            elif one.opcode.endswith("-start"):
                written = 0
            if one.opcode in _SLICES:
                read = [written]
            elif one.opcode == "slice-start":  # (operands, slice, context)
                read = [array_bytes(one.shape) - sum(read)] if any(read) else []
            fused = self._fused(one)
            for inner in fused:
                users = [i for i in fused if inner.name in i.operands]
                if inner.opcode == "parameter" and users and _only_slices(users):
                    k = int(inner.line.split("(")[1].split(")")[0])
                    read[k] = min(read[k], sum(sizes[i.name] for i in users))
            total += times * (sum(read) + written)
        return total

    def _fused(self, one: Instruction) -> tuple[Instruction, ...]:
        """Return the instructions of a fusion; empty for other instructions."""
        if one.opcode != "fusion":
            return ()
        return self.computations.get(_CALLED.findall(one.line)[0], ())


def _only_slices(users: list[Instruction]) -> bool:
    return all(i.opcode in _SLICES for i in users)


def _instruction(name: str, rest: str) -> Instruction:
    """Parse `SHAPE opcode(operands), attributes`."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, call = rest[: end + 1], rest[end + 1 :].lstrip()
    opcode = call[: call.index("(")]
    operands = _NAME.findall(call[len(opcode) : _closing(call, len(opcode))])
    return Instruction(name, opcode, shape, tuple(operands), call)


def _closing(text: str, start: int) -> int:
    """Find the closing parenthesis of the one at `start`."""
    depth = 0
    for k in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[k], 0)
        if depth == 0:
            return k
    raise ValueError(f"unbalanced parenthesis: {text[:80]}")


def array_bytes(shape: str) -> int:
    """Return the bytes of an array or a tuple of arrays, e.g. 28 for `(f32[2,3]{1,0}, s32[])`."""
    return sum(math.prod(_sizes(d)) * _bits(kind) // 8 for kind, d, _ in _ARRAY.findall(shape))


def memory_bytes(shape: str) -> int:
    """Return the bytes in main memory: 0 for arrays in a TPU's on-chip memory, marked S(1).

    The padding of a TPU's tiles, as in `f32[9,3]{1,0:T(8,128)}`, is included.
    """
    total = 0
    for kind, dims, layout in _ARRAY.findall(shape):
        if "S(1)" in layout:
            continue
        sizes = _sizes(dims)
        if tiling := _TILE.search(layout):
            tile = _sizes(tiling["tile"])
            # Starting with the fastest-varying dimension.
            for d, t in zip(_sizes(tiling["order"]), reversed(tile), strict=False):
                sizes[d] = -(-sizes[d] // t) * t
        total += math.prod(sizes) * _bits(kind) // 8
    return total


def _sizes(numbers: str) -> list[int]:
    return [int(n) for n in numbers.split(",") if n]


def _bits(kind: str) -> int:
    """Return the bits of an element: the first number in the type's name, 8 for pred."""
    number = re.search(r"\d+", kind)
    return int(number[0]) if number else {"pred": 8}.get(kind, 0)


_CONVOLUTION = re.compile(
    r"stablehlo\.convolution\(.*?dim_numbers = \[.*?\]x\[(?P<kernel>.*?)\]->"
    r".*?lhs_dilate = \[(?P<dilate>[\d, ]*)\]"
    r".*: \(tensor<[^>]*>, tensor<(?P<rhs>[^>]*)>\) -> tensor<(?P<out>[^>]*)>"
)


def convolution_flops(stablehlo: str) -> int:
    """Count the FLOP of the convolutions in a StableHLO text, two for each multiply-add.

    Each element of the result takes the kernel's elements of one output channel. Multiplications
    with padding count, as accelerators perform them; those with zeros between the inputs
    (lhs_dilate, in the gradient of a stride) do not. The body of a loop counts once.
    """
    total = 0
    for match in _CONVOLUTION.finditer(stablehlo):
        out, rhs = _dimensions(match["out"]), _dimensions(match["rhs"])
        channels = rhs[match["kernel"].split(", ").index("o")]
        zeros = math.prod(map(int, match["dilate"].split(", ")))
        total += 2 * math.prod(out) * math.prod(rhs) // channels // zeros
    return total


def _dimensions(tensor: str) -> list[int]:
    """Parse the dimensions of a tensor type: [32, 300, 300, 3] for `32x300x300x3xbf16`."""
    return [int(n) for n in tensor.split("x")[:-1]]
