"""What is known to help a block that takes longer than its floor, and the evidence that it would.

A remedy is data: the blocks that it is for, when it applies, and what to do. The evidence is the
block's own: its operations in the trace, the rates that it reached, and the step's types.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from profiles.explained.blocks import COLLECTIVES, HOST, LAUNCHES
from profiles.explained.explanation import Block
from profiles.floor.block_counts import (
    ATTENTION,
    EXPERTS,
    MLP,
    OUTPUT,
    QUERY_KEY_VALUE,
    UNEMBEDDING,
)
from profiles.report.numbers import exact, milliseconds
from profiles.report.record import Record

LEAST = 0.02  # part of the step that a block must lose, to be given a remedy
MOST_OF_IT = 0.3  # part of a block's time from which operations of one sort are its cause
PRODUCTS = (QUERY_KEY_VALUE, OUTPUT, MLP, EXPERTS, UNEMBEDDING)
MOVES = ("copy", "transpose", "convert")


class Evidence(NamedTuple):
    """A block of a step, the step's record, and the platform it ran on: cpu, gpu or tpu."""

    block: Block
    record: Record
    platform: str

    def seconds(self, *opcodes: str) -> float:
        """Of the block's operations that do one of these."""
        return sum(one.seconds for one in self.block.operations if one.opcode in opcodes)

    def mostly(self, *opcodes: str) -> bool:
        """Whether these operations take a large part of the block."""
        return self.seconds(*opcodes) >= MOST_OF_IT * self.block.measured_s

    @property
    def calls_python(self) -> bool:
        """Whether it waits for a function of Python, in one of its longest operations."""
        return any("callback" in one.opcode for one in self.block.operations[:3])


class Remedy(NamedTuple):
    """What to do about some blocks, or about any if there are none named."""

    blocks: tuple[str, ...]
    applies: Callable[[Evidence], bool]
    words: Callable[[Evidence], str]


REMEDIES = (
    Remedy(
        (),
        lambda e: e.calls_python,
        lambda e: "it calls a function of Python, for which the device waits: take the call out "
        "of the step",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "cpu"
        and e.record.weight_dtype != "float32"
        and e.mostly("convert"),
        lambda e: f"a large part of it widens {e.record.weight_dtype} weights before they are "
        "multiplied: --weight_dtype=float32, where they fit, needs no widening",
    ),
    Remedy(
        (),
        lambda e: e.mostly(*MOVES),
        lambda e: f"{milliseconds(e.seconds(*MOVES))} of it copy arrays or change their type or "
        f"order ({_names(e, *MOVES)}): keep them as they are multiplied, and donate what is "
        "updated",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "gpu" and bool(_unpacked(e.record)),
        lambda e: "the compiler writes matrices in few bits out in more bits in every step, and "
        "reads them again: --weight_dtype=int8",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "cpu" and e.record.weight_dtype == "bfloat16",
        lambda e: "XLA:CPU widens bfloat16 weights before it multiplies: --weight_dtype=float32",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "cpu" and e.record.weight_dtype == "int4",
        lambda e: "XLA:CPU unpacks 4-bit weights before it multiplies: --weight_dtype=int8",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "cpu"
        and e.record.weight_dtype == "float32"
        and 1 < e.record.batch < 64,
        lambda e: f"XLA:CPU multiplies {exact(e.record.batch)} rows far below the rate of its best "
        "product: a larger batch comes nearer to it",
    ),
    Remedy(
        PRODUCTS,
        lambda e: e.platform == "cpu" and e.record.batch == 1,
        lambda e: "a product of one row waits for its weights alone, those of small matrices for "
        "its start too: a larger batch reads them once for all its sequences",
    ),
    Remedy(
        (ATTENTION,),
        lambda e: e.platform == "cpu",
        lambda e: "scores, exponentials and sums are operations of their own, each of which writes "
        "what the next one reads; XLA:CPU has no one kernel for all, as GPUs and TPUs have here",
    ),
    Remedy(
        (ATTENTION,),
        lambda e: e.platform != "cpu" and e.record.kv_dtype in ("bfloat16", "float32"),
        lambda e: "fewer bytes to read take less time at any rate: --kv_dtype=int8",
    ),
    Remedy(
        tuple(dict.fromkeys(COLLECTIVES.values())),
        lambda e: e.platform == "cpu",
        lambda e: "fake devices share one memory and its cores, and wait for each other here: "
        "--devices=1 has no collectives",
    ),
    Remedy(
        tuple(dict.fromkeys(COLLECTIVES.values())),
        lambda e: e.record.collectives == "compiler",
        lambda e: "--collectives=overlapped sends sums of products round a ring while others are "
        "made, and --layout=auto looks for a layout that sends less",
    ),
    Remedy(
        (LAUNCHES,),
        lambda e: e.platform == "gpu",
        lambda e: "the traced step ran without CUDA graphs, which hide names from the profiler; "
        "in the timed one a kernel begins before the last has ended",
    ),
    Remedy(
        (LAUNCHES,),
        lambda e: True,
        lambda e: "each operation has a fixed time to start, whatever its size: a larger batch "
        "has no more operations",
    ),
    Remedy(
        (HOST,),
        lambda e: True,
        lambda e: "devices wait for the host to launch the next step: a larger batch, or a host "
        "with less else to do",
    ),
)  # fmt: skip
"""All remedies; of those that apply to a block, the first is given."""


def remedy(evidence: Evidence) -> str:
    """What is known to help a block, in words; empty where it loses little."""
    block = evidence.block
    if block.over_floor_s < LEAST * evidence.record.step_s["median"]:
        return ""
    return next(_applying(evidence), "no remedy is known here")


def _applying(evidence: Evidence) -> Iterator[str]:
    for each in REMEDIES:
        if (not each.blocks or evidence.block.name in each.blocks) and each.applies(evidence):
            yield each.words(evidence)


def _names(evidence: Evidence, *opcodes: str) -> str:
    """The longest of the block's operations that do one of these."""
    names = [one.name for one in evidence.block.operations if one.opcode in opcodes]
    return ", ".join(names[:2]) + ", ..." * (len(names) > 2)


def _unpacked(record: Record) -> float:
    return (record.bytes_per_chip or {}).get("weights_unpacked", 0)
