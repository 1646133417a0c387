"""Reads optimized HLO text, as `compiled.as_text()` gives it, into computations of instructions.

Only what a census needs is read: shapes, operands, attributes as text, and which computations an
instruction calls. Source: XLA's `HloInstruction::ToString` and https://openxla.org/xla/hlo_dumps.
"""

import dataclasses
import functools
import math
import re

from profiles.floor.element_types import bits
from sharding.error_types import FloorlineError


class HloError(FloorlineError):
    """A program text of a form that is not understood, or not what it was taken for."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      opcode: such as ``all-gather-start``.
      shape: the shape as text, layouts included.
      operands: names, in order.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations in each attribute that names any, such as ``body``."""
        found = {}
        # Most of a line's attributes are notes of the compiler and of JAX, which call nothing.
        plain = self.attributes.partition(", metadata={")[0]
        for key, one, several in _CALLED.findall(plain):
            found[key] = tuple(_NAME.findall(several or one))
        return found

    @functools.cached_property
    def channel(self) -> int | None:
        """The channel that joins the devices' copies of a collective, if it has one."""
        found = re.search(r"\bchannel_id=(\d+)", self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """Where JAX made it: transformations, named scopes and primitive; may be empty."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program.

    Attributes:
      name: unique in the program.
      instructions: each instruction by its name, in order.
      root: the name of its result.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
      computations: each computation by its name.
      entry: the name of the one that runs.
      replicas: copies of the program, each of `partitions` devices. A jit over a mesh has one.
      partitions: devices that share one replica's arrays.
    """

    computations: dict[str, Computation]
    entry: str
    replicas: int
    partitions: int

    def __getitem__(self, name: str) -> Computation:
        if name not in self.computations:
            raise HloError(f"program calls {name}, which is not in it; pass the text whole")
        return self.computations[name]


_NAME = re.compile(r"[\w.\-]+")
_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(\(.*)?\{$")
_LINE = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|called_computations"
    r"|true_computation|false_computation)=(?:%?([\w.\-]+)|\{([^}]*)\})"
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=\s]*)\](?:\{([^{}]*)\})?")


def parse(text: str) -> Program:
    """Reads a whole module.

    Raises:
      HloError: there is no entry, or an instruction cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, name, root, lines = "", "", "", {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if not line.startswith((" ", "}")):
            if header := _HEADER.fullmatch(line.rstrip()):
                name, root, lines = header[2], "", {}
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, lines, root or next(reversed(lines), ""))
        elif found := _LINE.fullmatch(line):
            lines[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    if not entry:
        raise HloError("program text is without ENTRY; pass what compiled.as_text() gives")
    replicas, partitions = (
        int(found[1]) if (found := re.search(rf"^HloModule.*\b{key}=(\d+)", text, re.M)) else 1
        for key in ("replica_count", "num_partitions")
    )
    return Program(computations, entry, replicas, partitions)


def _instruction(name: str, rest: str) -> Instruction:
    split = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:split], rest[split:].lstrip()
    start = rest.find("(")
    if split < 1 or start < 1:
        raise HloError(f"instruction {name} is {rest[:60]!r}; only HLO text can be read")
    end = start + _closing(rest[start:])
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(rest[start + 1 : end - 1]))
    return Instruction(name, rest[:start], shape, operands, rest[end:])


def _closing(text: str) -> int:
    """The length of the bracketed text that `text` begins with."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return 0


def _split(operands: str) -> list[str]:
    """Splits at commas outside all brackets: operands may be printed with their shapes."""
    if not re.search(r"[\[{(]", operands):
        return [part for part in operands.split(",") if part.strip()]
    parts, depth = [""], 0
    for letter in operands:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def arrays(shape: str) -> list[tuple[str, int]]:
    """Element type and bytes of each array in a shape, tuples flattened.

    Tiling adds nothing: ``f32[8,16]{1,0:T(8,128)}`` is 512 bytes. Elements below a byte are
    packed and the last byte is filled up.
    """
    found = []
    for element, dims, _ in _ARRAY.findall(shape):
        sizes = [int(size) for size in re.findall(r"\d+", dims)]
        found.append((element, math.ceil(math.prod(sizes) * bits(element) / 8)))
    return found


ON_CHIP = {1: "VMEM", 3: "CMEM"}
"""Memories of a TPU chip that hold arrays, by their number in layouts; only v4 has CMEM."""


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape, and where it lies.

    Attributes:
      element: HLO's name of its type.
      dims: sizes.
      order: dimensions, the one whose neighbours are side by side first.
      tiles: the tiles as text, such as ``T(8,128)(2,1)``; empty if not tiled.
      space: 0 for a chip's main memory; of those on a TPU chip see `ON_CHIP`.
    """

    element: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tiles: str
    space: int

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.dims)

    @property
    def padded(self) -> int:
        """Bytes in memory: each of the innermost dimensions fills whole tiles."""
        sizes = [self.dims[axis] for axis in reversed(self.order)] or list(self.dims)
        if tile := re.match(r"T\(([\d,]+)\)", self.tiles):
            edges = [int(edge) for edge in tile[1].split(",")]
            edges = edges[max(0, len(edges) - len(sizes)) :]
            for dim, edge in zip(range(-len(edges), 0), edges, strict=True):
                sizes[dim] = -(-sizes[dim] // edge) * edge
        return math.ceil(math.prod(sizes) * bits(self.element) / 8)


@functools.lru_cache(maxsize=65536)
def placed(shape: str) -> tuple[Array, ...]:
    """Each array in a shape with its place in memory, tuples flattened."""
    found = []
    for element, dims, layout in _ARRAY.findall(shape):
        order, _, rest = layout.partition(":")
        space = re.search(r"S\((\d+)\)", rest)
        tiles = re.match(r"T(\([\d,]+\))+", rest)
        found.append(
            Array(
                element=element,
                dims=tuple(int(size) for size in re.findall(r"\d+", dims)),
                order=tuple(int(axis) for axis in re.findall(r"\d+", order)),
                tiles=tiles[0] if tiles else "",
                space=int(space[1]) if space else 0,
            )
        )
    return tuple(found)


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """How often a while loop runs: what XLA found, or else the count of a plain counting loop.

    A plain one starts from a constant, adds a constant, and ends at a constant.

    Returns:
      None if it is neither.
    """
    known = re.search(r'known_trip_count\\*":\s*\{\\*"n\\*":\s*\\*"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition, body = (program[loop.called[key][0]] for key in ("condition", "body"))
    compare = _through_fusion(program, condition, condition.root)
    if not compare or compare[0] != "compare" or "direction=LT" not in compare[2]:
        return None
    counter, end = (_leaf(condition, name) for name in compare[1])
    index, last = _index(counter), _constant(end)
    start = _constant(_leaf(caller, _element(caller, loop.operands[0], index)))
    step = _step(program, body, index)
    if None in (index, last, start, step) or step <= 0:
        return None
    return max(0, -(-(last - start) // step))


def _step(program: Program, body: Computation, index: int | None) -> int | None:
    """What a loop's body adds to one element of its state."""
    name = _element(body, body.root, index)
    add = _through_fusion(program, body, name) if name else None
    if not add or add[0] != "add":
        return None
    leaves = [_leaf(body, operand) for operand in add[1]]
    steps = [value for leaf in leaves if (value := _constant(leaf)) is not None]
    return steps[0] if len(steps) == 1 and index in map(_index, leaves) else None


def _element(computation: Computation, name: str, index: int | None) -> str | None:
    made = _leaf(computation, name)
    if made is None or made.opcode != "tuple" or index is None:
        return None
    return made.operands[index]


def _leaf(computation: Computation, name: str | None) -> Instruction | None:
    """The instruction that a value was copied from."""
    one = computation.instructions.get(name or "")
    while one and one.opcode in ("copy", "bitcast"):
        one = computation.instructions.get(one.operands[0])
    return one


def _through_fusion(
    program: Program, computation: Computation, name: str
) -> tuple[str, tuple[str, ...], str] | None:
    """Opcode, operands and attributes of a value, seen through a fusion of that one operation."""
    one = _leaf(computation, name)
    if one is None or one.opcode != "fusion":
        return one and (one.opcode, one.operands, one.attributes)
    inner = program[one.called["calls"][0]]
    root = inner.instructions[inner.root]
    operands = []
    for operand in root.operands:
        source = inner.instructions[operand]
        if source.opcode != "parameter":
            return None
        operands.append(one.operands[int(source.operands[0])])
    return root.opcode, tuple(operands), root.attributes


def _constant(one: Instruction | None) -> int | None:
    integer = one and one.opcode == "constant" and re.fullmatch(r"-?\d+", one.operands[0])
    return int(one.operands[0]) if integer else None


def _index(one: Instruction | None) -> int | None:
    found = one and one.opcode == "get-tuple-element" and re.search(r"index=(\d+)", one.attributes)
    return int(found[1]) if found else None
