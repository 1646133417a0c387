"""Which rows of a sweep fit in memory, computed before anything is allocated.

Only arrays that certainly exist at the same time are counted: weights, caches, and each step's
logits, or the activations of a chunk of prompts. The compiler's temporaries come on top, so a row
that fits here can still run out of memory.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from decode.chunks import TILE
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.activations import activation_bytes
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.report.numbers import byte_size
from sharding import processes
from sharding.devices import default_platform
from sharding.error_types import FloorlineError
from sharding.placement import Placement

GROUP = "/sys/fs/cgroup"


class Need(NamedTuple):
    """The bytes that a row of a sweep needs in one memory.

    Attributes:
      weights: bytes of the weights.
      batch: number of sequences.
      each: bytes of each sequence's cache, and of its logits or its prompt's activations.
      prompt: tokens of each prompt and of a chunk, where prompts run; None for a decode step.
    """

    weights: float
    batch: int
    each: float
    prompt: tuple[int, int] | None = None

    @property
    def bytes(self) -> float:
        """Bytes of the row in all."""
        return self.weights + self.batch * self.each


def need_of(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    *,
    batch: int,
    slots: int,
    prompt: tuple[int, int] | None = None,
    tokens: int = 1,
    spare: int = 0,
) -> Need:
    """The memory that steps need on a device, or on all fake devices of this process.

    Args:
      config: the model.
      placement: its layout on a mesh.
      dtypes: how its numbers are stored.
      batch: sequences, a multiple of what the layout divides them into.
      slots: tokens of each sequence that the cache has room for.
      prompt: tokens of each prompt and of a chunk; None for a decode step.
      tokens: those of each sequence in a decode step: more than one where it verifies drafts.
      spare: slots that a window's ring has more than its window, for refused drafts.
    """
    sizes = {"batch": batch, "context": slots - 1, "slots": slots, "spare": spare}
    costs = PassCounter(config, placement, dtypes).count(Pass(**sizes))
    # Fake devices share the memory of their process; a real device has its own.
    shared = placement.devices / processes.count() if shares_memory() else 1
    beside = 4 * config.vocabulary * tokens / placement.devices
    if prompt:
        length, chunk = prompt
        sizes = {"tokens": length, "chunk": chunk}
        beside = max(beside, float(activation_bytes(config, placement.prefill, dtypes, **sizes)))
    each = costs.kv_resident / batch + beside
    return Need(costs.weights_resident * shared, batch, each * shared, prompt)


def shares_memory() -> bool:
    """Whether the devices of this process are fake ones that share its memory; starts JAX."""
    return default_platform() == "cpu"


def check_room(need: Need, with_chunk: Callable[..., Need] | None = None) -> None:
    """Refuses steps that fake devices have no memory for, before loading gets the process killed.

    Args:
      need: what they need.
      with_chunk: what they would need with another `prompt`.

    Raises:
      FloorlineError: there is too little memory; the message has both sizes, and the chunk of
        prompts that would fit if a smaller one does.
    """
    available = processes.from_first_process(free_memory) if shares_memory() else None
    if available is None or not (why := refusal(need, available)):
        return
    length, largest = need.prompt or (0, 0)
    smaller = range((min(length, largest) - 1) // TILE * TILE, 0, -TILE) if with_chunk else ()
    for chunk in smaller:
        if with_chunk(prompt=(length, chunk)).bytes <= available:
            raise FloorlineError(f"{why}, or --chunk={chunk} at most")
    raise FloorlineError(why)


def free_memory() -> float | None:
    """Bytes that this process can still allocate; None where the system does not tell.

    The least of what the machine, its container (control group) and the process's own limit leave.
    """
    limits = (
        (_told("/proc/meminfo", "MemAvailable:"), 0),
        (_told(f"{GROUP}/memory.max"), _told(f"{GROUP}/memory.stat", "anon")),
        (_told("/proc/self/limits", "Max address space"), _told("/proc/self/status", "VmSize:")),
    )
    return min((limit - (used or 0) for limit, used in limits if limit is not None), default=None)


def _told(path: str, word: str = "") -> int | None:
    """The number after a word at the beginning of a line, kB converted to bytes."""
    try:
        match = re.search(rf"^{word}\s*(\d+)( kB)?", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * (1024 if match[2] else 1) if match else None


def refusal(need: Need, available: float) -> str:
    """Why a row does not fit in so many bytes of memory; empty for one that does."""
    if need.bytes <= available:
        return ""
    largest = int((available - need.weights) // need.each)
    remedy = (
        f"use a batch of {largest:,} at most" if largest > 0 else "use fewer bits, or more chips"
    )
    if need.prompt:
        length, chunk = need.prompt
        remedy += ", or shorter prompts" * (need.weights < available)
        return (
            f"prompt is {length:,} tokens in chunks of {chunk:,}: batch {need.batch:,} needs "
            f"{byte_size(need.bytes)}, {byte_size(need.weights)} of them for weights, where there "
            f"are {byte_size(available)}; {remedy}"
        )
    return (
        f"memory for weights ({byte_size(need.weights)}), cache and logits is "
        f"{byte_size(need.bytes)}, where there are {byte_size(available)}; {remedy}"
    )
