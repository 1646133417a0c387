"""The few PTX instructions of this folder's GPU kernels, over NumPy arrays of 32-bit registers.

As NVIDIA's Parallel Thread Execution ISA, version 8.7, defines them in sections 9.7.
"""

import re

import ml_dtypes
import numpy as np

Registers = dict[str, np.ndarray]


def evaluate(code: str, operands: dict[str, np.ndarray]) -> np.ndarray:
    """What is left in $0.

    Args:
      code: instructions, and declarations, which are left out.
      operands: uint32 arrays by name, as $1.

    Raises:
      KeyError: an instruction is not among those here, or it reads a register never written.
    """
    registers = dict(operands)
    for line in filter(None, map(str.strip, re.sub(r"[{}]", "", code).split(";"))):
        name, rest = line.split(maxsplit=1)
        if name == ".reg":
            continue
        target, *sources = (word.strip() for word in rest.split(","))
        registers[target] = _INSTRUCTIONS[name](*(_read(registers, word) for word in sources))
    return registers["$0"]


def _read(registers: Registers, word: str) -> np.ndarray:
    return np.uint32(int(word, 0)) if word[0].isdigit() else registers[word]


def _look_up(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3.b32: each bit is that of the table at the three bits, a's the highest."""
    found = np.zeros_like(a | b | c)
    for place in range(8):
        if int(table) >> place & 1:
            chosen = [part if place >> n & 1 else ~part for part, n in ((a, 2), (b, 1), (c, 0))]
            found |= chosen[0] & chosen[1] & chosen[2]
    return found


def _multiply_add(*registers: np.ndarray) -> np.ndarray:
    """fma.rn.bf16x2: products and sums are exact in float64, and rounded once."""
    low, high = (
        _rounded(a * b + c).astype(np.uint32)
        for a, b, c in zip(*(halves(each) for each in registers), strict=True)
    )
    return low | high << np.uint32(16)


def halves(register: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the higher bfloat16 number of each register, as float64."""
    parts = register & np.uint32(0xFFFF), register >> np.uint32(16)
    low, high = (np.asarray(part, np.uint16).view(ml_dtypes.bfloat16) for part in parts)
    return low.astype(np.float64), high.astype(np.float64)


def _rounded(numbers: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even, as bits; none here is too small for its 8 bits."""
    mantissa, exponent = np.frexp(numbers)
    nearest = np.ldexp(np.rint(mantissa * 2**8), exponent - 8)
    return nearest.astype(ml_dtypes.bfloat16).view(np.uint16)


_INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": _look_up,
    "fma.rn.bf16x2": _multiply_add,
}
