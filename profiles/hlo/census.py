"""The collectives of a compiled program: what XLA made of the shardings that a layout asked for.

Payload is counted per device and of the larger side: an all-gather's result; of all others the
operand, before any padding by the chip's tiling. An instruction of several operands is one entry
for each, but an all-to-all whose operands are the pieces for each device is one entry of them all.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from profiles.floor.collective import Collective, merge, merge_by_overlap
from profiles.hlo.groups import axes_of, axes_of_pairs, groups_of, pairs_of
from profiles.hlo.program import (
    Computation,
    HloError,
    Instruction,
    Program,
    arrays,
    parse,
    trip_count,
)

OPCODES = {
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-reduce": "all-reduce",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "permute",
    "collective-broadcast": "broadcast",
}
STEPS = ("decode_step", "prefill")
"""Named scopes that hold a whole step, which say nothing of where in it."""

# What JAX puts between named scopes: control flow, and transformations such as jit(f).
_FRAMES = re.compile(
    r"while|body|cond|closed_call|eval_jaxpr|shard_map|checkpoint|branch_\d+_fun|.*\(.*"
)


class HasShape(Protocol):
    """A `jax.sharding.Mesh`, or whatever else has the sizes of its axes."""

    @property
    def shape(self) -> Mapping[str, int]:
        """Mesh axis -> devices."""


Overlap = Callable[[Computation, Instruction], str]
"""Says what is done while an instruction of a scheduled program runs."""


def census(
    text: str | Program, mesh: HasShape | Mapping[str, int], overlap: Overlap | None = None
) -> list[Collective]:
    """Every collective that one run of a program makes, merged and sorted.

    Of a conditional, the branch that moves most bytes counts. Groups of one device move nothing
    and are left out. Where a TPU's asynchronous wrappers repeat an instruction, its channel counts
    once in each computation.

    Args:
      text: what `compiled.as_text()` gives, or the program read from it.
      mesh: the mesh of the program, or its axes and their sizes in order.
      overlap: says what happens beside a collective; those that differ in it stay apart.

    Raises:
      HloError: a collective, its groups or a loop around one is of a kind that is not understood,
        or the program is for another number of devices.
    """
    program = parse(text) if isinstance(text, str) else text
    sizes = dict(getattr(mesh, "shape", mesh))
    devices = program.replicas * program.partitions
    if devices != math.prod(sizes.values()):
        raise HloError(
            f"mesh has {math.prod(sizes.values())} devices and the program is for {devices}; "
            "use the mesh that it was compiled for"
        )
    found = _Census(program, sizes, overlap).of(program[program.entry])
    return merge_by_overlap(found) if overlap else merge(found)


@dataclasses.dataclass(frozen=True)
class _FoundCollective:
    """A collective on the way up the call graph, with what tells its repeats from others."""

    collective: Collective
    channel: int | None
    wrapped: bool = False  # in a fusion or an asynchronous computation


class _Census:
    """Walks the call graph of one program; each computation is read once."""

    def __init__(self, program: Program, mesh: dict[str, int], overlap: Overlap | None = None):
        self.program = program
        self.mesh = mesh
        self.overlap = overlap or (lambda computation, one: "")
        self.callers = collections.Counter(
            name
            for each in program.computations.values()
            for one in each.instructions.values()
            for names in one.called.values()
            for name in names
        )
        self.read: dict[tuple[str, bool], list[_FoundCollective]] = {}

    def of(self, computation: Computation) -> list[Collective]:
        return [found.collective for found in self._collectives_in(computation, scattered=False)]

    def _collectives_in(self, computation: Computation, scattered: bool) -> list[_FoundCollective]:
        key = (computation.name, scattered)
        if key not in self.read:
            lines = computation.instructions.values()
            each = [self._instruction(computation, one, scattered) for one in lines]
            self.read[key] = list(_without_repeats(each))
        return self.read[key]

    def _instruction(
        self, computation: Computation, one: Instruction, scattered: bool
    ) -> list[_FoundCollective]:
        opcode, started = one.opcode.removesuffix("-start"), one.opcode.endswith("-start")
        if opcode in OPCODES:
            made = self._collectives(computation, one, opcode, started, scattered)
            meanwhile = self.overlap(computation, one)
            return [
                _FoundCollective(dataclasses.replace(each, overlap=meanwhile), one.channel)
                for each in made
            ]
        _refuse_unknown(one)
        if one.opcode.endswith(("-done", "-update")) or not one.called:
            return []
        if opcode == "while":
            return self._loop(computation, one)
        if opcode == "conditional":
            names = [name for names in one.called.values() for name in names]
            branches = [self._collectives_in(self.program[name], scattered) for name in names]
            return max(branches, key=_bytes)
        return self._wrapped(computation, one, opcode, started, scattered)

    def _wrapped(
        self,
        computation: Computation,
        one: Instruction,
        opcode: str,
        started: bool,
        scattered: bool,
    ) -> list[_FoundCollective]:
        """Collectives of an instruction that runs other computations once each."""
        collectives = []
        wraps = opcode in ("fusion", "async")
        started = started or (wraps and one.name.startswith("async"))
        for name in (name for names in one.called.values() for name in names):
            inner, scope = self.program[name], scopes(one.op_name)
            shared = self.callers[name] > 1  # and says where its first caller is
            slices = name.startswith("all-reduce-scatter") and _slices(inner)
            for found in self._collectives_in(inner, scattered or slices):
                collective = dataclasses.replace(
                    found.collective,
                    where=(shared and scope) or found.collective.where or scope,
                    asynchronous=found.collective.asynchronous or started,
                )
                if wraps or started:
                    meanwhile = self.overlap(computation, one)
                    collective = dataclasses.replace(collective, overlap=meanwhile)
                collectives.append(_FoundCollective(collective, found.channel, wraps))
        return collectives

    def _loop(self, computation: Computation, one: Instruction) -> list[_FoundCollective]:
        body, condition = (
            self._collectives_in(self.program[one.called[key][0]], False)
            for key in ("body", "condition")
        )
        if not body and not condition:
            return []
        trips = trip_count(self.program, computation, one)
        if trips is None:
            raise HloError(
                f"trip count of loop {one.name} is unknown and collectives are in it; "
                "count with fori_loop or scan of constant length"
            )
        # A condition is asked once more than the body runs.
        repeated = [(found, trips) for found in body] + [(found, trips + 1) for found in condition]
        return [_multiplied(found, runs) for found, runs in repeated if runs]

    def _collectives(
        self, computation: Computation, one: Instruction, opcode: str, started: bool, scatter: bool
    ) -> Iterator[Collective]:
        kind = OPCODES[opcode]
        if kind == "permute":
            group, axes = 1, axes_of_pairs(pairs_of(one, self.program), self.mesh)
        else:
            groups = groups_of(one, opcode, self.program)
            group, axes = len(groups[0]), axes_of(groups, self.mesh)
        if not axes:
            return
        if kind == "all-reduce" and scatter:
            kind = "reduce-scatter"
        for element, size in _payloads(computation, one, opcode):
            yield Collective(
                kind=kind,
                axes=axes,
                payload_bytes=size * group if kind == "all-gather" else size,
                where=scopes(one.op_name),
                element=element,
                asynchronous=started,
            )


def scopes(op_name: str) -> str:
    """The named scopes of an instruction: ``jit(f)/layer_0/mlp/dot_general`` is ``layer_0/mlp``.

    Left out are what JAX's transformations and control flow add, the primitive at the end, and
    scopes that hold the whole step.
    """
    chain = [part for part in op_name.split("/")[:-1] if not _FRAMES.fullmatch(part)]
    return "/".join(part for part in chain if part not in STEPS)


def _payloads(computation: Computation, one: Instruction, opcode: str) -> list[tuple[str, int]]:
    """Element type and bytes of each operand that is sent."""
    if "slice_sizes=" in one.attributes:
        raise HloError(f"{one.name} sends slices of its operands; count it by hand")
    names = one.operands[:1] if opcode == "ragged-all-to-all" else one.operands
    parts = [array for name in names for array in arrays(computation.instructions[name].shape)]
    if opcode == "all-to-all" and "dimensions=" not in one.attributes:
        return [(parts[0][0], sum(size for _, size in parts))]
    return parts


def _refuse_unknown(one: Instruction) -> None:
    """Raises on an instruction that talks to other devices in a way that is not listed."""
    talks = "replica_groups=" in one.attributes or "source_target_pairs=" in one.attributes
    named = one.opcode.startswith(("all-", "collective-", "ragged-", "reduce-scatter"))
    sent = one.opcode in ("send", "recv") and "is_host_transfer=true" not in one.attributes
    if (talks or named or sent) and not one.opcode.endswith(("-done", "-update")):
        raise HloError(
            f"{one.name} is a {one.opcode}, a collective that the census does not know; "
            "add it to profiles.hlo.census.OPCODES"
        )


def _slices(computation: Computation) -> bool:
    """Whether a computation named for it keeps a slice of what it reduces."""
    opcodes = {one.opcode for one in computation.instructions.values()}
    return {"all-reduce", "dynamic-slice"} <= opcodes


def _without_repeats(each: list[list[_FoundCollective]]) -> Iterator[_FoundCollective]:
    """Joins what instructions found, less what a wrapper repeats of another instruction's."""
    seen = {found.channel for every in each for found in every if not found.wrapped} - {None}
    for every in each:
        for found in every:
            if not (found.wrapped and found.channel in seen):
                yield dataclasses.replace(found, wrapped=False)
        seen |= {found.channel for found in every} - {None}


def _multiplied(found: _FoundCollective, runs: int) -> _FoundCollective:
    one = found.collective
    return dataclasses.replace(found, collective=dataclasses.replace(one, count=one.count * runs))


def _bytes(found: list[_FoundCollective]) -> int:
    return sum(one.collective.payload_bytes * one.collective.count for one in found)
