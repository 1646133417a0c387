"""Which rows of a sweep fit in memory, computed before anything is allocated.

Only arrays that certainly exist at the same time are counted: weights, caches, and each step's
logits; of prompts also the residual stream of a chunk. The compiler's temporaries come on top, so a
row that fits here can still run out of memory.
"""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from model.config import ModelConfig
from model.dtypes import Dtypes
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
      engine: the engine whose weights it uses; rows of one engine share them.
      weights: bytes of the weights.
      batch: number of sequences.
      each: bytes of each sequence's cache and logits, and of its part of a chunk.
      prompt: tokens of each prompt and of a chunk, where prompts run; None for a decode step.
    """

    engine: Hashable
    weights: float
    batch: int
    each: float
    prompt: tuple[int, int] | None = None

    @property
    def bytes(self) -> float:
        """Bytes of the row without any others."""
        return self.weights + self.batch * self.each


def need_of(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    *,
    batch: int,
    slots: int,
    prompt: tuple[int, int] | None = None,
    engine: Hashable = None,
) -> Need:
    """The memory that a step needs on a device, or on all fake devices of this process.

    Args:
      config: the model.
      placement: its layout on a mesh.
      dtypes: how its numbers are stored.
      batch: sequences, a multiple of what the layout divides them into.
      slots: tokens of each sequence that the cache has room for.
      prompt: tokens of each prompt and of a chunk; None for a decode step.
      engine: a key for the engine where there are several.
    """
    sizes = {"batch": batch, "context": slots - 1, "slots": slots}
    costs = PassCounter(config, placement, dtypes).count(Pass(**sizes))
    # Fake devices share the memory of their process; a real device has its own.
    shared = placement.devices / processes.count() if shares_memory() else 1
    each = costs.kv_resident / batch + 4 * config.vocabulary / placement.devices
    if prompt:
        stream = config.d_model * dtypes.dtype.itemsize
        stream *= placement.prefill.share(("activations", "BR"))
        each += min(prompt) * stream
    return Need(engine, costs.weights_resident * shared, batch, each * shared, prompt)


def shares_memory() -> bool:
    """Whether the devices of this process are fake ones that share its memory; starts JAX."""
    return default_platform() == "cpu"


def check_room(need: Need) -> None:
    """Refuses a step that fake devices have no memory for, before loading gets the process killed.

    Raises:
      FloorlineError: there is too little memory; the message has both sizes.
    """
    available = processes.from_first_process(free_memory) if shares_memory() else None
    if available is not None and (why := refusals([need], available)[0]):
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


def refusals(needs: Sequence[Need], available: float) -> list[str]:
    """Why each row does not fit beside the others; empty for rows that do.

    Small rows go first, so that a large one that does not fit takes no room from them.

    Args:
      needs: the rows whose weights and caches are in one memory at the same time.
      available: bytes of that memory.
    """
    reasons, used, loaded = [""] * len(needs), 0.0, set()
    for row in sorted(range(len(needs)), key=lambda row: needs[row].bytes):
        need = needs[row]
        more = need.bytes - need.weights * (need.engine in loaded)
        if used + more <= available:
            used += more
            loaded.add(need.engine)
        else:
            reasons[row] = _why(need, more, available, available - used)
    return reasons


def _why(need: Need, more: float, available: float, left: float) -> str:
    if need.bytes <= available:
        return (
            f"memory needed beside smaller rows is {byte_size(more)}, where they leave "
            f"{byte_size(left)}; measure it in a run of its own"
        )
    largest = int((available - need.weights) // need.each)
    remedy = (
        f"use a batch of {largest:,} at most" if largest > 0 else "use fewer bits, or more chips"
    )
    if need.prompt:
        length, chunk = need.prompt
        fitting = f"{remedy}, or shorter prompts" if need.weights < available else remedy
        return (
            f"prompt is {length:,} tokens in chunks of {chunk:,}: batch {need.batch:,} needs "
            f"{byte_size(need.bytes)}, {byte_size(need.weights)} of them for weights, where there "
            f"are {byte_size(available)}; {fitting}"
        )
    return (
        f"memory for weights ({byte_size(need.weights)}), cache and logits is "
        f"{byte_size(need.bytes)}, where there are {byte_size(available)}; {remedy}"
    )
