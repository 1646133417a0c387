"""The kernels that a GPU launches in a step, and the bytes that each reads and writes.

From a program of XLA:GPU: a fusion, a custom call, a copy or a collective is one kernel. What a
library does in a call is not in the program, nor how large the blocks are that autotuning chooses
on a device.
"""

import collections
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from profiles.floor.element_types import bits
from profiles.hlo.census import scopes
from profiles.hlo.flow import Step, is_collective, leaves
from profiles.hlo.moves import Users, updated_in_place
from profiles.hlo.program import Computation, Instruction, Program, placed

MATMUL, TRITON, FUSION, PALLAS = "Triton matmul", "Triton fusion", "fusion", "Pallas kernel"
LIBRARY, COPY, COLLECTIVE, OTHER = "library call", "copy", "collective", "other"
SORTS = (MATMUL, LIBRARY, PALLAS, TRITON, FUSION, COPY, COLLECTIVE, OTHER)
"""What kernels are, in the order in which reports list them."""

_PALLAS = re.compile(r'custom_call_target="[^"]*(triton|mosaic)')
_LIBRARY = re.compile(r'custom_call_target="[^"]*(cublas|cudnn|cub\$|cusolver|cufft)')
_KIND = re.compile(r'"kind":"(__[\w$]+)"')  # of a fusion that is not XLA's own emitters'
_LIBRARY_KIND = re.compile(r"cublas|cudnn|cutlass")
# Instructions that launch nothing.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "while",
    "conditional", "call", "partition-id", "replica-id", "optimization-barrier", "add-dependency",
    "iota", "call-start",
}  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_INTEGERS = ("s8", "u8", "s4", "u4")  # weights in few bits


class Kernel(NamedTuple):
    """A kernel, or those of all layers that are alike.

    Attributes:
      sort: one of `SORTS`.
      place: named scopes, layers not told apart, such as ``layer/mlp``.
      count: launches per step.
      bytes_read: bytes of all its operands that it reads, each time.
      bytes_written: bytes of its results, each time.
      weights_read: of the bytes read those of weights.
      cache_read: of the bytes read those of the cache.
      converted: numbers of weights that are integers of few bits and are multiplied as floats.
    """

    sort: str
    place: str
    count: int
    bytes_read: int
    bytes_written: int
    weights_read: int
    cache_read: int
    converted: int


def kernels(
    program: Program, steps: Iterable[Step], cache: str, others: tuple[str, ...]
) -> list[Kernel]:
    """The kernels of a step in the order of their launch, those of all layers alike as one.

    Args:
      program: scheduled, for GPUs.
      steps: what `flow.walk` gives.
      cache: what the names of the cache's arrays begin with.
      others: what those of arguments begin with that are neither weights nor cache.
    """
    counts: dict[Kernel, int] = {}
    users = Users()
    for step in steps:
        one = step.instruction
        if one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
            kernel = _kernel(program, step, cache, others)
            if scopes(one.op_name) or not kernel.place:
                kernel = kernel._replace(place=_place(users.scope(step)))
            counts[kernel] = counts.get(kernel, 0) + step.executions
    return [kernel._replace(count=count) for kernel, count in counts.items()]


def kernel_records(each: Iterable[Kernel]) -> list[dict]:
    """The form that programs read: those of one sort and place as one, bytes of all in a step."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for kernel in each:
        totals = found.setdefault((kernel.sort, kernel.place), collections.Counter())
        totals["count"] += kernel.count
        totals["bytes_read"] += kernel.count * kernel.bytes_read
        totals["bytes_written"] += kernel.count * kernel.bytes_written
        totals["resident_read"] += kernel.count * (kernel.weights_read + kernel.cache_read)
    return [{"sort": sort, "where": place, **totals} for (sort, place), totals in found.items()]


def _kernel(program: Program, step: Step, cache: str, others: tuple[str, ...]) -> Kernel:
    """A kernel without its count, and placed by the largest weight that it reads."""
    one = step.instruction
    weights = cached = read = converted = largest = 0
    place = ""
    made_floats = _made_floats(program, one)
    for number, size, elements, element, origin in _operands(program, step):
        read += size
        if origin is None or origin.startswith(others):
            continue
        if origin.startswith(cache):
            cached += size
            continue
        weights += size
        if size > largest:
            largest, place = size, _place_of_weight(origin)
            if place == "embedding" and size * 8 >= elements * bits(element):
                place = "unembedding"  # a lookup reads some of its rows
        converted += elements if size and element in _INTEGERS and number in made_floats else 0
    in_place = updated_in_place(program, step)
    made = placed(one.shape)
    if one.opcode.endswith("-start"):  # operands, then what is made of them
        made = made[len(made) // 2 :]
    written = sum(array.padded for index, array in enumerate(made) if index not in in_place)
    return Kernel(_sort(one), place, 0, read, written, weights, cached, converted)


def _sort(one: Instruction) -> str:
    if one.opcode == "fusion":
        kind = _KIND.search(one.attributes)
        if not kind:
            return FUSION
        if _LIBRARY_KIND.search(kind[1]):
            return LIBRARY
        return MATMUL if "gemm" in kind[1] else TRITON if "triton" in kind[1] else FUSION
    if one.opcode == "custom-call":
        if _PALLAS.search(one.attributes):
            return PALLAS
        return LIBRARY if _LIBRARY.search(one.attributes) else OTHER
    if is_collective(one) or one.opcode.startswith(("all-", "reduce-scatter", "async-")):
        return COLLECTIVE
    return COPY if one.opcode in ("copy", "copy-start", "transpose") else OTHER


def _place(scope: str) -> str:
    """The block of the model: a layer and its part, or one outside all layers."""
    parts = scope.partition(" (")[0].split("/")
    return "/".join(parts[: 2 if parts[0] == "layer" else 1])


def _place_of_weight(name: str) -> str:
    """The scope in which a step multiplies by a weight, such as ``layers/0/mlp/down``."""
    parts = name.split("/")
    if parts[0] != "layers":
        return "norm" if "norm" in parts[0] else parts[0]
    if parts[2] == "attention":
        return "layer/attention_output" if parts[3] == "output" else "layer/query_key_value"
    if parts[2] == "input":
        return "layer/layer_inputs"
    return "layer/norm" if "norm" in parts[2] else f"layer/{parts[2]}"


def _operands(program: Program, step: Step) -> Iterator[tuple[int, int, int, str, str | None]]:
    """Each operand's place, bytes read of its arrays, their elements, type, and argument."""
    one = step.instruction
    inner = program[one.called["calls"][0]] if one.opcode == "fusion" else None
    for number, (name, origin) in enumerate(zip(one.operands, step.origins, strict=True)):
        arrays = placed(step.computation.instructions[name].shape)
        found = leaves(origin, len(arrays))
        for array, leaf in zip(arrays, found, strict=True):
            size = array.padded
            if inner:
                size = min(size, _read_of_parameter(inner, number, size))
            elif one.opcode in _PARTS and number == 0:
                size = sum(each.padded for each in placed(one.shape))
            elif one.opcode in _UPDATES and number == 0:
                size = 0
            yield number, size, array.elements, array.element, leaf


def _read_of_parameter(inner: Computation, number: int, whole: int) -> int:
    """Bytes that a fusion reads of one parameter: all, a part, or none where it updates it."""
    lines = list(inner.instructions.values())
    (name,) = (
        one.name for one in lines if one.opcode == "parameter" and one.operands == (str(number),)
    )
    names, read = {name}, 0
    for one in lines:
        if not names.intersection(one.operands):
            continue
        first = one.operands[0] in names
        if one.opcode == "bitcast":
            names.add(one.name)
        elif first and one.opcode in _PARTS:
            read += sum(array.padded for array in placed(one.shape))
        elif not (first and one.opcode in _UPDATES):
            return whole
    return read


def _made_floats(program: Program, one: Instruction) -> set[int]:
    """Places of the operands that a fusion makes floats of, and then multiplies.

    Integers that are multiplied as they are, in few bits or in 32, are not converted, nor is
    anything in a library's call, which takes the types that it multiplies.
    """
    if one.opcode != "fusion":
        return set()
    lines = program[one.called["calls"][0]].instructions.values()
    summed = any(each.opcode in ("reduce", "dot") for each in lines)
    if not summed and _sort(one) not in (MATMUL, LIBRARY):
        return set()
    few_bits: dict[str, set[int]] = {}  # values that are not converted yet, of which operands
    found: set[int] = set()
    for each in lines:
        if each.opcode == "parameter":
            few_bits[each.name] = {int(each.operands[0])}
        elif each.opcode != "tuple":
            held = set().union(*(few_bits.get(name, ()) for name in each.operands))
            element = placed(each.shape)[0].element
            if element in _INTEGERS:
                few_bits[each.name] = held
            elif element.startswith(("f", "bf")):
                found |= held
    return found
