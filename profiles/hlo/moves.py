"""Whole weights and caches that a step moves about in main memory, and need not.

Fetching an array into VMEM is reading it, which every step must. Writing one to HBM again, in
another type, in another order or from VMEM, costs time that no floor has.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from profiles.floor.element_types import bits
from profiles.hlo.census import scopes
from profiles.hlo.flow import Step, arguments, is_collective, leaves
from profiles.hlo.program import ON_CHIP, Array, Computation, Instruction, Program, placed

_ALIASES = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "optimization-barrier", "add-dependency", "after-all", "custom-call", "slice-start",
    "async-start", "call-start",
}  # fmt: skip
_ALIASED = re.compile(r"output_to_operand_aliasing=\{((?:\{\d*\}: \(\d+, \{[\d, ]*\}\)(?:, )?)+)\}")
_UPDATES = ("dynamic-update-slice", "scatter")
REWRITTEN = "cache/states/"
"""How names begin of arguments that each step writes anew, all of them: a floor has that write."""
MOVED_FRACTION = 0.5
"""Part of an array that must be moved in a step for it to count as moved."""


@dataclasses.dataclass(frozen=True)
class Move:
    """An array written to HBM again, wherever in the program it happens.

    Attributes:
      origin: the argument that it is, ``layers/0/mlp/down``.
      how: what is done: ``copied``, ``written back from VMEM``, ``converted from s8 to bf16``...
      bytes: bytes read from and written to HBM each time.
      written: of these those written.
      count: times per step.
      scope: the named scopes, and the primitive that asked for it.
      widened: it then takes more bits a number than its origin.
    """

    origin: str
    how: str
    bytes: int
    written: int
    count: int
    scope: str
    widened: bool = False

    @property
    def beside_floor(self) -> int:
        """Bytes each time that a floor does not have.

        What was written is read later in place of the origin, whose one read the floor has. Where
        it is as large, that comes to `bytes`; in more bits it is written and read in these.
        """
        return 2 * self.written if self.widened else self.bytes

    @property
    def total_bytes(self) -> int:
        """Bytes per step."""
        return self.bytes * self.count


def moves(program: Program, steps: Iterable[Step]) -> list[Move]:
    """The moves of a step, of arrays of which at least half is moved.

    Args:
      program: scheduled.
      steps: what `flow.walk` gives.
    """
    argument_arrays = {name: placed(one.shape)[0] for name, one in arguments(program).items()}
    by_origin: dict[tuple, list[tuple[Move, int]]] = {}
    users = Users()
    for step in steps:
        for move, elements in _of(program, step, argument_arrays, users):
            by_origin.setdefault((move.origin, move.how), []).append((move, elements * move.count))
    return [
        move
        for (origin, _), parts in by_origin.items()
        if sum(elements for _, elements in parts)
        >= MOVED_FRACTION * argument_arrays[origin].elements
        for move, _ in parts
    ]


def grouped(each: Iterable[Move]) -> list[Move]:
    """Those alike in all layers as one, the largest first: origins are like ``layers/*/mlp/down``.

    A count is of all; where sizes differ, as of parts of an array, the mean stands, and of several
    places the first that is known.
    """
    groups: dict[tuple, list[Move]] = {}
    for move in each:
        origin = re.sub(r"(?<=/)\d+(?=/|$)", "*", move.origin)
        groups.setdefault((origin, move.how, move.widened), []).append(move)
    merged = []
    for (origin, how, widened), alike in groups.items():
        count = sum(move.count for move in alike)
        size, written = (
            round(sum(getattr(move, of) * move.count for move in alike) / count)
            for of in ("bytes", "written")
        )
        scope = next((move.scope for move in alike if move.scope), "")
        merged.append(Move(origin, how, size, written, count, scope, widened))
    return sorted(merged, key=lambda move: -move.total_bytes)


class Temporary(NamedTuple):
    """A large array that a step makes in main memory, wherever in the program alike.

    Attributes:
      what: element type and sizes, with the place in the model.
      bytes: bytes of one array.
      count: times per step.
      sent: a collective takes it or fills it, whose own time that is.
    """

    what: str
    bytes: int
    count: int
    sent: bool


def temporaries(program: Program, steps: Iterable[Step], min_bytes: int) -> list[Temporary]:
    """What is made in main memory beside arguments and results, large arrays first.

    Args:
      program: scheduled.
      steps: what `flow.walk` gives.
      min_bytes: bytes of an array worth a word.
    """
    users, counts = Users(), collections.Counter()
    for step in steps:
        one = step.instruction
        if one.opcode in _ALIASES or one.opcode.endswith(("-start", "-done", "-update")):
            continue
        in_place, sent = updated_in_place(program, step), _sent(program, one)
        for index, (array, origin) in enumerate(zip(*_values(step), strict=True)):
            if array.space or index in in_place or array.padded < min_bytes or origin is not None:
                continue
            sizes = ",".join(map(str, array.dims))
            what = f"{array.element}[{sizes}] in {users.scope(step) or one.name}"
            counts[what, array.padded, (array.element, array.dims) in sent] += step.executions
    found = [Temporary(what, size, count, sent) for (what, size, sent), count in counts.items()]
    return sorted(found, key=lambda each: -each.bytes)


def _sent(program: Program, one: Instruction) -> set[tuple[str, tuple[int, ...]]]:
    """Element types and sizes of what a collective takes and makes, or those in a fusion."""
    if is_collective(one):
        return {(array.element, array.dims) for array in placed(one.shape)}
    if one.opcode != "fusion":
        return set()
    inner = program[one.called["calls"][0]].instructions
    shapes = [
        inner[name].shape
        for each in filter(is_collective, inner.values())
        for name in (each.name, *each.operands)
    ]
    return {(array.element, array.dims) for shape in shapes for array in placed(shape)}


def _values(step: Step) -> tuple[tuple[Array, ...], tuple[str | None, ...]]:
    """The arrays that an instruction makes, and their origins."""
    made = placed(step.instruction.shape)
    return made, leaves(step.origin, len(made))


def _of(
    program: Program, step: Step, argument_arrays: dict[str, Array], users: "Users"
) -> Iterator[tuple[Move, int]]:
    """Moves that one instruction makes, with how many numbers each."""
    one = step.instruction
    if one.opcode in _ALIASES or one.opcode.endswith(("-done", "-update")):
        return
    made = placed(one.shape)
    if one.opcode == "copy-start":
        made = made[:1]
    elif is_collective(one):
        return
    origins = leaves(step.origin, len(made))
    in_place = updated_in_place(program, step) if one.opcode != "copy-start" else ()
    for index, (array, origin) in enumerate(zip(made, origins, strict=True)):
        if (
            origin not in argument_arrays
            or array.space
            or math.prod(array.dims) <= 1
            or index in in_place
        ):
            continue
        read, source = _read(step, origin, array)
        how, widened = _how(array, source, argument_arrays[origin])
        if origin.startswith(REWRITTEN) and _is_rewrite(one, source, how):
            continue
        size, scope = array.padded, users.scope(step)
        move = Move(origin, how, size + read, size, step.executions, scope, widened)
        yield move, array.elements


def _is_rewrite(one: Instruction, source: Array, how: str) -> bool:
    """Whether this makes a state's new numbers of its old ones, or brings them back from VMEM."""
    return (how == "copied" and one.opcode == "fusion") or bool(source.space)


def _read(step: Step, origin: str, made: Array) -> tuple[int, Array]:
    """Bytes of the array's origin that an instruction reads from HBM, and where they lie."""
    for name, operand_origin in zip(step.instruction.operands, step.origins, strict=True):
        arrays = placed(step.computation.instructions[name].shape)
        for array, leaf in zip(arrays, leaves(operand_origin, len(arrays)), strict=True):
            if leaf == origin:
                part = min(1.0, made.elements / max(array.elements, 1))
                return 0 if array.space else math.ceil(array.padded * part), array
    return 0, made


def _how(made: Array, source: Array, argument: Array) -> tuple[str, bool]:
    """In words, and whether a number takes more bits than in the argument."""
    widened = bits(made.element) > bits(argument.element)
    if made.element != source.element:
        return f"converted from {source.element} to {made.element}", widened
    if source.space:
        return f"written back from {ON_CHIP.get(source.space, 'the chip')}", widened
    same_order = made.elements == source.elements and _physical(made) == _physical(source)
    if same_order:
        return "copied", widened
    return ("copied by parts" if made.elements < source.elements else "laid out again"), widened


def _physical(array: Array) -> tuple:
    """Sizes as they lie in memory, without those of 1, and tiles."""
    sizes = [array.dims[axis] for axis in array.order]
    return tuple(size for size in sizes if size > 1), array.tiles


def updated_in_place(program: Program, step: Step) -> set[int]:
    """Which arrays of an instruction's value are its operands, updated in place."""
    one = step.instruction
    if one.opcode in _UPDATES:
        return {0} if _alike(step.computation, one, one.operands[0]) else set()
    if one.opcode == "custom-call":
        found = _ALIASED.search(one.attributes)
        return (
            {int(index or 0) for index in re.findall(r"\{(\d*)\}: ", found[1])} if found else set()
        )
    if one.opcode != "fusion":
        return set()
    inner = program[one.called["calls"][0]]
    root = inner.instructions[inner.root]
    parts = root.operands if root.opcode == "tuple" else (inner.root,)
    return {index for index, name in enumerate(parts) if _stays(program, inner, name)}


def _stays(program: Program, inner: Computation, name: str) -> bool:
    """Whether a value that a fusion gives is where it was, or what a collective put there."""
    made = inner.instructions[name]
    if made.opcode == "parameter":  # what a collective under way hands on from one to the next
        return inner.name.startswith("async_collective")
    return is_collective(made) or _updates_parameter(program, inner, name)


def _updates_parameter(program: Program, inner: Computation, name: str) -> bool:
    """Whether a value in a fusion is a parameter of it but for the numbers that are updated."""
    one = inner.instructions[name]
    changed = False
    while True:
        if one.opcode == "parameter":
            return changed
        if one.opcode in _UPDATES:
            if not _alike(inner, one, one.operands[0]):
                return False
            changed = True
        elif one.opcode == "fusion":
            deeper = program[one.called["calls"][0]]
            index = _updated_parameter(program, deeper)
            if index is None:
                return False
            one, changed = inner.instructions[one.operands[index]], True
            continue
        elif one.opcode != "bitcast" or not _alike(inner, one, one.operands[0]):
            return False
        one = inner.instructions[one.operands[0]]


def _updated_parameter(program: Program, inner: Computation) -> int | None:
    """The number of the parameter that a computation updates; None if it does something else."""
    if not _updates_parameter(program, inner, inner.root):
        return None
    one = inner.instructions[inner.root]
    while one.opcode != "parameter":
        if one.opcode == "fusion":
            index = _updated_parameter(program, program[one.called["calls"][0]])
            one = inner.instructions[one.operands[index]]
        else:
            one = inner.instructions[one.operands[0]]
    return int(one.operands[0])


def _alike(computation: Computation, one: Instruction, name: str) -> bool:
    """Whether a value lies in memory as its operand does."""
    (made,), (operand,) = (placed(s)[:1] for s in (one.shape, computation.instructions[name].shape))
    return (made.element, made.tiles) == (operand.element, operand.tiles)


class Users:
    """Finds where in the model an instruction is, by what uses it if it does not say itself."""

    def __init__(self) -> None:
        self.read: dict[str, dict[str, Instruction]] = {}

    def scope(self, step: Step) -> str:
        """Named scopes and primitive, layers not told apart; empty if nobody says."""
        one, steps = step.instruction, 8  # the longest chain of copies and tuples
        while one and not scopes(one.op_name) and steps:
            one, steps = self._of(step.computation).get(one.name), steps - 1
        if not one or not scopes(one.op_name):
            return ""
        scope = re.sub(r"^layer_\d+", "layer", scopes(one.op_name))
        by = "" if one is step.instruction else "for "
        return f"{scope} ({by}{one.op_name.rpartition('/')[2]})"

    def _of(self, computation: Computation) -> dict[str, Instruction]:
        """The first user of each value."""
        if computation.name not in self.read:
            first_users: dict[str, Instruction] = {}
            for one in computation.instructions.values():
                for name in one.operands:
                    first_users.setdefault(name, one)
            self.read[computation.name] = first_users
        return self.read[computation.name]
