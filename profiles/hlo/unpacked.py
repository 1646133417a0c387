"""Weights in few bits that a compiled step holds in more, as a whole.

Such a step writes and reads again what it was to save. A compiler that converts values within the
loop of a matmul holds none.
"""

import itertools
import math
import operator
import re

from flax.traverse_util import flatten_dict

from decode.engine import Engine
from model.declarations import matrices
from model.transformer import Transformer
from profiles.floor.element_types import bits
from profiles.hlo.program import Instruction, Program, parse
from sharding.quantization import bits as array_bits

_SHAPE = re.compile(r"\b((?:f|bf|s|u)\d+)\[([\d,]+)\]")
_ALIASES = ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "conditional", "call")
_INNER = ("fusion", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map")

Dims = tuple[int, ...]


def dequantized_bytes(engine: Engine, text: str) -> int:
    """Bytes of all arrays of a step that are a matrix in few bits, but in more.

    Args:
      engine: the engine whose step it is, with parameters or their shapes.
      text: the optimized program as XLA prints it.

    Returns:
      Their sum over one device's program; they need not all live at once.
    """
    stored = _matrices(engine)
    if not stored:
        return 0
    program = parse(text)
    inner = _inner(program)
    return sum(
        _bytes(instruction, stored)
        for name, computation in program.computations.items()
        if name not in inner
        for instruction in computation.instructions.values()
    )


def _matrices(engine: Engine) -> dict[Dims, tuple[int, int]]:
    """One device's part of each matrix in few bits: the bits that it is in, and its groups."""
    flat, found = flatten_dict(engine.parameters), {}
    for path in matrices(Transformer(engine.config, engine.dtypes)):
        values, scales = (flat[*path, name] for name in ("values", "scales"))
        groups = scales.sharding.shard_shape(scales.shape)[-1]
        found[values.sharding.shard_shape(values.shape)] = array_bits(values), groups
    return found


def _inner(program: Program) -> set[str]:
    """Computations whose values live in registers, such as the bodies of fusions."""
    return {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode in _INNER
        for names in instruction.called.values()
        for name in names
    }


def _bytes(instruction: Instruction, stored: dict[Dims, tuple[int, int]]) -> int:
    if instruction.opcode in _ALIASES:
        return 0
    total = 0
    for element, text in _SHAPE.findall(instruction.shape):
        dims = tuple(map(int, text.split(",")))
        if any(
            bits(element) > stored_bits and _is_merged(dims, matrix, groups)
            for matrix, (stored_bits, groups) in stored.items()
        ):
            total += math.prod(dims) * bits(element) // 8
    return total


def _is_merged(dims: Dims, matrix: Dims, groups: int) -> bool:
    """Whether neighbours in `matrix`, its inputs perhaps in groups, give `dims` when multiplied."""
    split = (*matrix[:-1], groups, matrix[-1] // groups)
    products = [set(itertools.accumulate(each, operator.mul)) for each in (dims, split)]
    return math.prod(dims) == math.prod(matrix) and products[0] - {1} <= products[1]
