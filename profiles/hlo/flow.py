"""Where the arguments of a compiled program go: which values are an argument, whole or in part.

A value stands for an argument if it was made of it by moving, slicing, converting or scaling its
numbers, or by updating it in place; what a matmul or a reduction makes of it is something new. A
value of several arrays has an origin for each.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from profiles.hlo.program import Computation, Instruction, Program, placed, trip_count

Origin = str | None | tuple["Origin", ...]
"""The argument that an array is made of; of a tuple, one for each element."""

# What makes something new of its operands.
_NEW_VALUE = {
    "dot", "convolution", "reduce", "reduce-window", "select-and-scatter", "gather", "sort", "map",
    "rng", "iota", "constant", "broadcast", "partition-id", "replica-id", "infeed", "recv", "topk",
    "cholesky", "triangular-solve", "fft",
}  # fmt: skip
# What hands on its operand, or its first operand changed in part.
_SAME_VALUE = {
    "bitcast", "copy", "transpose", "reshape", "convert", "optimization-barrier", "add-dependency",
}  # fmt: skip
_FIRST_OPERAND = {
    "dynamic-update-slice", "scatter", "slice", "dynamic-slice", "reverse", "pad",
    "reduce-precision",
}  # fmt: skip
_COLLECTIVE = {
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
}  # fmt: skip
_JOINED = "ConcatBitcast"  # XLA:TPU's name for slices that were put side by side as they came


class Step(NamedTuple):
    """One instruction of a program that runs by itself: not inside a fusion.

    Attributes:
      computation: the computation that it is in.
      instruction: the instruction itself.
      executions: how often it runs in a step; loops of unknown length count as one round.
      origins: the origins of its operands.
      origin: the origin of its value.
    """

    computation: Computation
    instruction: Instruction
    executions: int
    origins: tuple[Origin, ...]
    origin: Origin


def argument_name(op_name: str) -> str:
    """An argument's path, such as ``layers/0/mlp/down`` or ``cache/keys/0``, as JAX names it."""
    plain = op_name.replace("\\'", "'").replace("'", "")
    parts = [part for part in re.split(r"[\[\].]+", plain) if part]
    return "/".join(parts[1:] if parts[:1] == ["parameters"] else parts)


def arguments(program: Program) -> dict[str, Instruction]:
    """The program's arguments by name, those without one by that of their instruction."""
    lines = program[program.entry].instructions.values()
    found = [one for one in lines if one.opcode == "parameter"]
    return {argument_name(one.op_name) or one.name: one for one in found}


def walk(program: Program) -> Iterator[Step]:
    """Every instruction that one run of a program makes, in the order of its schedule."""
    named = {one.name: name for name, one in arguments(program).items()}
    entry = program[program.entry]
    yield from _Flow(program).run(entry, dict(named), 1)


class _Flow:
    """Follows origins through the computations of one program."""

    def __init__(self, program: Program):
        self.program = program
        self.results: dict[str, Origin] = {}

    def run(
        self, computation: Computation, known: dict[str, Origin], executions: int
    ) -> Iterator[Step]:
        """Steps of a computation, given the origins of its parameters by their names."""
        for one in computation.instructions.values():
            if one.opcode == "parameter":
                origins, origin = (), known.get(one.name)
            elif one.opcode in ("while", "conditional", "call", "call-start"):
                origins = tuple(known.get(name) for name in one.operands)
                origin = yield from self._called(computation, one, origins, executions)
            else:
                origins = tuple(known.get(name) for name in one.operands)
                origin = self._origin(computation, one, origins)
            known[one.name] = origin
            yield Step(computation, one, executions, origins, origin)
        self.results[computation.name] = known.get(computation.root)

    def _called(
        self,
        computation: Computation,
        one: Instruction,
        origins: tuple[Origin, ...],
        executions: int,
    ) -> Iterator[Step]:
        """Steps of what an instruction runs; returns the origin of its value."""
        if one.opcode == "while":
            trips = trip_count(self.program, computation, one)
            rounds = executions * (1 if trips is None else trips)
            yield from self._body(one.called["body"][0], origins, rounds)
            return origins[0]
        names = [name for names in one.called.values() for name in names]
        for number, name in enumerate(names):
            parameter_origins = (origins[1 + number],) if one.opcode == "conditional" else origins
            yield from self._body(name, parameter_origins, executions)
        result = self.results[names[0]]
        return (origins, result) if one.opcode == "call-start" else result

    def _body(
        self, name: str, parameter_origins: tuple[Origin, ...], executions: int
    ) -> Iterator[Step]:
        body = self.program[name]
        yield from self.run(body, _parameters(body, parameter_origins), executions)

    def _origin(
        self, computation: Computation, one: Instruction, origins: tuple[Origin, ...]
    ) -> Origin:
        """The origin of what an instruction makes."""
        opcode = one.opcode
        if opcode == "tuple":
            return origins
        if opcode == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", one.attributes)[1])
            return _element(origins[0], index)
        if not any(map(_known, origins)):
            return None
        if opcode in ("fusion", "async-start"):
            return self._fused(one, origins)
        if opcode.endswith("-start"):
            first = origins[0]
            return (first, first) if opcode == "copy-start" else ((first,), first)
        if opcode.endswith(("-done", "-update")):
            if opcode.endswith("-update"):
                return origins[0]
            index = 0 if opcode == "copy-done" else 1
            return _element(origins[0], index)
        return _plain(computation, one, origins)

    def _fused(self, one: Instruction, origins: tuple[Origin, ...]) -> Origin:
        """The origin of a fusion's value, by following origins through the fusion."""
        inner = self.program[one.called["calls"][0]]
        known = _parameters(inner, origins)
        for each in inner.instructions.values():
            if each.opcode != "parameter":
                operands = tuple(known.get(name) for name in each.operands)
                known[each.name] = self._origin(inner, each, operands)
        origin = known.get(inner.root)
        return (origins, origin) if one.opcode == "async-start" else origin


def _parameters(inner: Computation, parameter_origins: tuple[Origin, ...]) -> dict[str, Origin]:
    """Origins of a computation's parameters by their names; None for those that have none."""
    lines = (one for one in inner.instructions.values() if one.opcode == "parameter")
    numbers = {one.name: int(one.operands[0]) for one in lines}
    return {
        name: parameter_origins[n] if n < len(parameter_origins) else None
        for name, n in numbers.items()
    }


def _plain(computation: Computation, one: Instruction, origins: tuple[Origin, ...]) -> Origin:
    opcode = one.opcode
    if opcode in _NEW_VALUE or (opcode == "custom-call" and _JOINED not in one.attributes):
        return None
    if opcode in _SAME_VALUE or opcode in _FIRST_OPERAND or opcode in _COLLECTIVE:
        return origins[0] if opcode in _FIRST_OPERAND else next(filter(_known, origins), None)
    # Number by number: of the operand that has as many as the result.
    size = sum(array.elements for array in placed(one.shape))
    for name, origin in zip(one.operands, origins, strict=True):
        operand = computation.instructions[name]
        parts = sum(array.elements for array in placed(operand.shape))
        if isinstance(origin, str) and (parts == size or opcode in ("concatenate", "custom-call")):
            return origin
    return None


def _element(origin: Origin, index: int) -> Origin:
    if isinstance(origin, tuple):
        return origin[index] if index < len(origin) else None
    return origin


def _known(origin: Origin) -> bool:
    return any(map(_known, origin)) if isinstance(origin, tuple) else origin is not None


def is_collective(one: Instruction) -> bool:
    """Whether an instruction is a collective, or the start of one."""
    return one.opcode.removesuffix("-start") in _COLLECTIVE


def leaves(origin: Origin, count: int) -> tuple[str | None, ...]:
    """Origins of each of so many arrays, tuples flattened."""
    if isinstance(origin, tuple):
        found = [leaf for each in origin for leaf in leaves(each, 1)]
        return tuple((found + [None] * count)[:count])
    return (origin,) * count
