"""What the text of a compiled program says: what runs, how often, and the bytes that it moves.

Two kinds of text are read: optimised HLO, as `Compiled.as_text()` gives it, which is what the
accelerator runs, and StableHLO, as `Lowered.as_text()` gives it, where a convolution still has the
shapes that it was written with.
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

# Names for what is there already: nothing runs for them.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_SLICES = {"slice", "dynamic-slice", "gather"}
# What a computation of its own runs inside of, beside fusions, whose computation is one kernel.
_CALLERS = {"while", "call", "conditional", "async-start"}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    """Of the result, e.g. `bf16[32,38,38,512]{3,2,1,0}`, or a tuple of such."""
    operands: tuple[str, ...]
    line: str
    """From the opcode on."""


class AllReduce(NamedTuple):
    """A sum over the devices."""

    times: int
    """How often it runs in a step."""
    size: int
    """Bytes that each device gives to it."""


@dataclass(frozen=True)
class Program:
    """An optimised program, as one device runs it."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The program of optimised HLO. Raises ValueError for a text without an entry."""
        computations: dict[str, tuple[Instruction, ...]] = {}
        entry, name = "", ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                name, lines = start[2], []
                entry = name if start[1] else entry
            elif line.startswith("}"):
                computations[name] = tuple(lines)
            elif found := _INSTRUCTION.match(line):
                lines.append(_instruction(found[2], found[3]))
        if not entry:
            raise ValueError("the text has no ENTRY computation; give optimised HLO")
        return cls(computations, entry)

    def running(self, computation: str = "", times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """What runs in a step, and how often; a loop of unknown length counts once."""
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
        """The sums over the devices; one that is split in start and done counts once."""
        return [
            AllReduce(times, array_bytes(one.shape))
            for one, times in self.running()
            if one.opcode in ("all-reduce", "all-reduce-start")
        ]

    def count(self, opcode: str) -> int:
        """How often an instruction `opcode` runs in a step, alone or as part of a fusion."""
        return sum(
            times
            for one, times in self.running()
            if one.opcode.removesuffix("-start") == opcode
            or any(inner.opcode == opcode for inner in self._fused(one))
        )

    def bytes_moved(self) -> int:
        """Bytes that a step reads from the device's main memory and writes to it.

        Each kernel reads its operands and writes its result once; of an operand that is only
        sliced it reads the slices. Registers, caches and on-chip memory are not counted.
        """
        sizes = {i.name: memory_bytes(i.shape) for c in self.computations.values() for i in c}
        total = 0
        for one, times in self.running():
            read = [sizes.get(name, 0) for name in one.operands]
            written = sizes[one.name]
            # What goes on beside other work reads at its start and writes at its end.
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
        """The instructions of a fusion."""
        if one.opcode != "fusion":
            return ()
        return self.computations.get(_CALLED.findall(one.line)[0], ())


def _only_slices(users: list[Instruction]) -> bool:
    return all(i.opcode in _SLICES for i in users)


def _instruction(name: str, rest: str) -> Instruction:
    """The parts of `SHAPE opcode(operands), attributes`."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, call = rest[: end + 1], rest[end + 1 :].lstrip()
    opcode = call[: call.index("(")]
    operands = _NAME.findall(call[len(opcode) : _closing(call, len(opcode))])
    return Instruction(name, opcode, shape, tuple(operands), call)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for k in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[k], 0)
        if depth == 0:
            return k
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def array_bytes(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, e.g. 28 for `(f32[2,3]{1,0}, s32[])`."""
    return sum(math.prod(_sizes(d)) * _bits(kind) // 8 for kind, d, _ in _ARRAY.findall(shape))


def memory_bytes(shape: str) -> int:
    """The same in the device's main memory: none for what a TPU has on the chip, marked S(1).

    A TPU's tiles, as in `f32[9,3]{1,0:T(8,128)}`, are counted as the memory that they take.
    """
    total = 0
    for kind, dims, layout in _ARRAY.findall(shape):
        if "S(1)" in layout:
            continue
        sizes = _sizes(dims)
        if found := _TILE.search(layout):
            tile = _sizes(found["tile"])
            # From the fastest dimension on.
            for d, t in zip(_sizes(found["order"]), reversed(tile), strict=False):
                sizes[d] = -(-sizes[d] // t) * t
        total += math.prod(sizes) * _bits(kind) // 8
    return total


def _sizes(numbers: str) -> list[int]:
    return [int(n) for n in numbers.split(",") if n]


def _bits(kind: str) -> int:
    """Bits of an element: the first number in the type's name, a byte for pred."""
    number = re.search(r"\d+", kind)
    return int(number[0]) if number else {"pred": 8}.get(kind, 0)


_CONVOLUTION = re.compile(
    r"stablehlo\.convolution\(.*?dim_numbers = \[.*?\]x\[(?P<kernel>.*?)\]->"
    r".*?lhs_dilate = \[(?P<dilate>[\d, ]*)\]"
    r".*: \(tensor<[^>]*>, tensor<(?P<rhs>[^>]*)>\) -> tensor<(?P<out>[^>]*)>"
)


def convolution_flops(stablehlo: str) -> int:
    """FLOP of the convolutions in a StableHLO text, two for each multiplication and addition.

    A convolution multiplies each element of its result with the kernel's elements for one output
    channel. Padding is multiplied as well, as accelerators do; zeros that stand between the inputs
    (lhs_dilate, in the gradient of a stride) are not. What is in a loop counts once.
    """
    total = 0
    for found in _CONVOLUTION.finditer(stablehlo):
        out, rhs = _dimensions(found["out"]), _dimensions(found["rhs"])
        channels = rhs[found["kernel"].split(", ").index("o")]
        zeros = math.prod(map(int, found["dilate"].split(", ")))
        total += 2 * math.prod(out) * math.prod(rhs) // channels // zeros
    return total


def _dimensions(tensor: str) -> list[int]:
    """[32, 300, 300, 3] for `32x300x300x3xbf16`."""
    return [int(n) for n in tensor.split("x")[:-1]]
