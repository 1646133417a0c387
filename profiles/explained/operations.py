"""The block of every instruction of a compiled program that a trace can show.

XLA keeps the scope of most instructions, and drops that of others: XLA:CPU's matmuls, for example.
Those belong to the block of the weight that they multiply, or else of their neighbours.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from model.config import ModelConfig
from profiles.explained.blocks import block_of_scope, collective_kind
from profiles.floor.block_counts import ATTENTION, DELTA_RULE, block_of_weight
from profiles.hlo.flow import Step, leaves, walk
from profiles.hlo.program import Computation, Instruction, Program

_PRODUCTS = {"dot", "convolution", "custom-call"}
_CONTAINERS = {"while", "conditional", "call"}
_KERNELS = {"fusion", "dot", "convolution"}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_WEIGHTS = {"embedding", "unembedding", "final_norm", "layer_inputs", "layers"}


@dataclasses.dataclass(frozen=True)
class Operations:
    """What is known of a program's instructions, by their names.

    Attributes:
      blocks: the block of each; without those of which nothing tells it.
      opcodes: what each does, such as ``dot`` or ``copy``; a fusion's is that of its result.
      containers: loops, branches and calls: they last as long as what runs inside them.
      always: products and fusions that run once in every step.
    """

    blocks: Mapping[str, str]
    opcodes: Mapping[str, str]
    containers: frozenset[str]
    always: frozenset[str] = frozenset()


UNKNOWN = Operations({}, {}, frozenset())
"""Of a program that is not at hand."""


def operations(program: Program, config: ModelConfig) -> Operations:
    """Reads the blocks of a program.

    Args:
      program: a decode step of the model.
      config: the model.
    """
    steps = [step for step in walk(program) if step.instruction.opcode != "parameter"]
    found = {step.instruction.name: _block(program, step, config) for step in steps}
    callers = {
        name: step.instruction.name
        for step in steps
        for names in step.instruction.called.values()
        for name in names
    }
    computations = {step.computation.name: step.computation for step in steps}
    for computation in computations.values():
        _from_neighbours(computation, found)
    for step in reversed(steps):  # callers come after what they call
        one = step.instruction.name
        if not found[one]:
            found[one] = found.get(callers.get(step.computation.name, ""))
    return Operations(
        blocks={name: block for name, block in found.items() if block},
        opcodes={step.instruction.name: _opcode(program, step.instruction) for step in steps},
        containers=frozenset(
            step.instruction.name for step in steps if step.instruction.opcode in _CONTAINERS
        ),
        always=frozenset(
            step.instruction.name
            for step in steps
            if step.computation.name == program.entry and step.instruction.opcode in _KERNELS
        ),
    )


def _block(program: Program, step: Step, config: ModelConfig) -> str | None:
    """The block that an instruction itself tells."""
    one, inside = step.instruction, list(_inside(program, step.instruction))
    # A product is what takes the time of a fusion, whatever comes after it or moves meanwhile.
    products = [each for each in (one, *inside) if each.opcode in _PRODUCTS]
    kinds = filter(None, (collective_kind(each.opcode) for each in (one, *inside)))
    if not products and (kind := next(kinds, None)):
        return kind
    named = [block_of_scope(each.op_name) for each in products]
    if named and not any(named):
        return _of_arguments(step, config) or block_of_scope(one.op_name) or _most(inside)
    return next(filter(None, named), None) or block_of_scope(one.op_name) or _most(inside)


def _inside(program: Program, one: Instruction) -> Iterator[Instruction]:
    """Instructions of a fusion, or of what an instruction starts."""
    if one.opcode in ("fusion", "async-start"):
        for names in one.called.values():
            for name in names:
                yield from program[name].instructions.values()


def _most(inside: Iterable[Instruction]) -> str | None:
    """The block of most of these instructions."""
    blocks = collections.Counter(filter(None, (block_of_scope(one.op_name) for one in inside)))
    return blocks.most_common(1)[0][0] if blocks else None


def _of_arguments(step: Step, config: ModelConfig) -> str | None:
    """The block of the weight or cache that an instruction takes."""
    for origin in leaves(step.origins, len(step.origins)):
        parts = (origin or "").split("/")
        if parts[0] == "cache":
            return DELTA_RULE if parts[1] == "states" else ATTENTION
        if parts[0] in _WEIGHTS:
            return block_of_weight(tuple(parts), config)
    return None


def _from_neighbours(computation: Computation, found: dict[str, str | None]) -> None:
    """Gives instructions of no block that of what uses them, or else of what they use."""
    lines = [one for one in computation.instructions.values() if one.opcode != "parameter"]
    users: dict[str, list[str]] = collections.defaultdict(list)
    for one in lines:
        for operand in one.operands:
            users[operand].append(one.name)
    for one in reversed(lines):
        if not found.get(one.name):
            near = [found.get(user) for user in users[one.name] if user in found]
            found[one.name] = next(filter(None, near), None)
    for one in lines:
        if not found.get(one.name) and one.opcode not in _FREE:
            near = [found.get(operand) for operand in one.operands]
            found[one.name] = next(filter(None, near), None)


def _opcode(program: Program, one: Instruction) -> str:
    """What an instruction does; of a fusion with a product, that it multiplies."""
    inside = {each.opcode: each for each in _inside(program, one)}
    for product in ("dot", "convolution"):
        if product in inside:
            return product
    if one.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        return f"custom-call {target[1]}" if target else one.opcode
    if one.opcode != "fusion":
        return one.opcode
    inner = program[one.called["calls"][0]]
    root = inner.instructions[inner.root]
    while root.opcode == "bitcast":
        root = inner.instructions[root.operands[0]]
    return root.opcode
