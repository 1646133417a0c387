"""What a scheduled program does while a collective runs.

The text of such a program is its schedule. A collective of one instruction stops the chip's
arithmetic, but not fetches into VMEM that were started before it and are awaited after.
"""

import re
from collections.abc import Callable

from profiles.floor.collective import ALONE, PREFETCH, PRODUCT, WORK
from profiles.hlo.flow import is_collective
from profiles.hlo.program import ON_CHIP, Computation, Instruction, Program, placed

# Instructions that take no time.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "after-all",
    "partition-id", "replica-id", "optimization-barrier", "add-dependency",
}  # fmt: skip
_PRODUCTS = ("dot", "convolution")
_KERNELS = re.compile(r'custom_call_target="[^"]*(tpu_custom_call|triton|mosaic|cublas|cudnn)')
_PREFETCHES = ("copy-start", "slice-start", "async-start")


def overlaps(program: Program) -> Callable[[Computation, Instruction], str]:
    """Says of an instruction of a scheduled program what is done while it runs.

    Returns:
      A function of a computation and one of its instructions, which gives one of
      `collective.OVERLAPS`: `PRODUCT` if a matmul stands between its start and its end, `WORK` if
      anything else does; `PREFETCH` if an array of two dimensions or more is on its way to the chip
      all the while; or `ALONE`.
    """
    read: dict[str, _Schedule] = {}

    def overlap(computation: Computation, one: Instruction) -> str:
        if computation.name not in read:
            read[computation.name] = _Schedule(computation, program)
        return read[computation.name].overlap(one)

    return overlap


class _Schedule:
    """The order of one computation, and what is under way at each position of it."""

    def __init__(self, computation: Computation, program: Program):
        self.program = program
        self.lines = list(computation.instructions.values())
        self.positions = {one.name: position for position, one in enumerate(self.lines)}
        self.ends = self._ends()
        self.fetched = [0] * (len(self.lines) + 1)  # prefetches under way before each position
        changes = [0] * (len(self.lines) + 1)
        for name, end in self.ends.items():
            if _prefetches(self.lines[self.positions[name]]):
                changes[self.positions[name] + 1] += 1
                changes[end] -= 1
        for position in range(len(self.lines)):
            self.fetched[position + 1] = self.fetched[position] + changes[position]

    def _ends(self) -> dict[str, int]:
        """The position where each instruction that starts something is awaited."""
        begun: dict[str, str] = {}  # value -> the start that it is of
        ends: dict[str, int] = {}
        for position, one in enumerate(self.lines):
            started = one.opcode.endswith("-start") or re.match(r"async\S*-start", one.name)
            source = next((begun[name] for name in one.operands if name in begun), None)
            if source and (one.opcode.endswith("-done") or "-done" in one.name):
                ends[source] = position
            elif started:
                begun[one.name] = one.name
            elif source and one.opcode in ("tuple", "get-tuple-element", "bitcast"):
                begun[one.name] = source
        return ends

    def overlap(self, one: Instruction) -> str:
        position = self.positions[one.name]
        end = self.ends.get(one.name, position)
        between = [each for each in self.lines[position + 1 : end] if _works(each)]
        if any(_multiplies(each, self.program) for each in between):
            return PRODUCT
        if between:
            return WORK
        return PREFETCH if self.fetched[position + 1] > 0 else ALONE


def _prefetches(one: Instruction) -> bool:
    """Whether an instruction begins to fetch an array of more than one dimension."""
    if one.opcode not in _PREFETCHES:
        return False
    arrays = placed(one.shape)
    if not any(array.space in ON_CHIP and len(array.dims) > 1 for array in arrays):
        return False
    # Of a copy the target comes first; from there to main memory it is a write.
    return one.opcode != "copy-start" or arrays[0].space in ON_CHIP


def _multiplies(one: Instruction, program: Program) -> bool:
    """Whether an instruction is a matmul, or has one in it; no kernel here is anything else.

    Of one token XLA makes a sum.
    """
    summed = one.opcode == "reduce" and one.op_name.endswith("/dot_general")
    if one.opcode in _PRODUCTS or _is_kernel(one) or summed:
        return True
    inner = (program[name] for names in one.called.values() for name in names)
    return any(
        _multiplies(each, program) for called in inner for each in called.instructions.values()
    )


def _works(one: Instruction) -> bool:
    """Whether an instruction keeps the chip busy."""
    if one.opcode in _FREE or one.opcode.endswith(("-start", "-done", "-update")):
        return False
    if one.opcode == "custom-call":
        return _is_kernel(one)
    return not is_collective(one)


def _is_kernel(one: Instruction) -> bool:
    """Whether a custom call is a Pallas kernel or a library's; others only name memory."""
    return one.opcode == "custom-call" and _KERNELS.search(one.attributes) is not None
