"""Which rows of a sweep fit in the memory that there is, by arithmetic, before anything is made.

Counted is what is sure to be there at once: weights, caches, and each step's logits. A compiler's
own temporaries come on top, so what fits here can still run out of memory.
"""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.counts import PassCounter
from profiles.floor.passes import Pass
from profiles.report.numbers import byte_size
from sharding import processes
from sharding.devices import default_platform
from sharding.error_types import FloorlineError
from sharding.placement import Placement

GROUP = "/sys/fs/cgroup"


class Need(NamedTuple):
    """What a row needs of one memory.

    Attributes:
      engine: whose weights it takes; those of one engine are there once.
      weights: their bytes.
      batch: sequences.
      each: bytes of each sequence.
    """

    engine: Hashable
    weights: float
    batch: int
    each: float

    @property
    def bytes(self) -> float:
        """What the row needs where it is alone."""
        return self.weights + self.batch * self.each


def need_of(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    *,
    batch: int,
    slots: int,
    engine: Hashable = None,
) -> Need:
    """What a decode step needs of one memory: its device's, or that of this process's fake devices.

    Args:
      config: the model.
      placement: its layout on a mesh.
      dtypes: how its numbers are stored.
      batch: sequences, a multiple of what the layout divides them into.
      slots: of the cache.
      engine: tells it apart where there are several.
    """
    sizes = {"batch": batch, "context": slots - 1, "slots": slots}
    costs = PassCounter(config, placement, dtypes).count(Pass(**sizes))
    # Fake devices share the memory of their process; each of the others has its own.
    shared = placement.devices / processes.count() if shares_memory() else 1
    each = costs.kv_resident / batch + 4 * config.vocabulary / placement.devices
    return Need(engine, costs.weights_resident * shared, batch, each * shared)


def shares_memory() -> bool:
    """Whether all devices of this process are fake ones, of one memory; starts JAX."""
    return default_platform() == "cpu"


def check_room(need: Need) -> None:
    """Refuses what the memory of fake devices lacks, before loading ends in a killed process.

    Raises:
      FloorlineError: with what is needed, and what there is.
    """
    there = processes.agree(free_memory) if shares_memory() else None
    if there is not None and (why := refusals([need], there)[0]):
        raise FloorlineError(why)


def free_memory() -> float | None:
    """Bytes that this process can still have; None where the system does not tell.

    The least of what the machine, its container (control group) and the process's own limit leave.
    """
    limits = (
        (_told("/proc/meminfo", "MemAvailable:"), 0),
        (_told(f"{GROUP}/memory.max"), _told(f"{GROUP}/memory.stat", "anon")),
        (_told("/proc/self/limits", "Max address space"), _told("/proc/self/status", "VmSize:")),
    )
    return min((limit - (used or 0) for limit, used in limits if limit is not None), default=None)


def _told(path: str, word: str = "") -> int | None:
    """The number behind a word that begins a line; kB are made bytes."""
    try:
        found = re.search(rf"^{word}\s*(\d+)( kB)?", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * (1024 if found[2] else 1) if found else None


def refusals(needs: Sequence[Need], there: float) -> list[str]:
    """Why each row cannot be measured, empty for those that can be, all of them together.

    Small rows go first: a large one that does not fit leaves them their room.

    Args:
      needs: of the rows whose weights and caches are in one memory at once.
      there: its bytes.
    """
    found, used, loaded = [""] * len(needs), 0.0, set()
    for place in sorted(range(len(needs)), key=lambda place: needs[place].bytes):
        need = needs[place]
        more = need.bytes - need.weights * (need.engine in loaded)
        if used + more <= there:
            used += more
            loaded.add(need.engine)
        else:
            found[place] = _why(need, more, there, there - used)
    return found


def _why(need: Need, more: float, there: float, left: float) -> str:
    if need.bytes <= there:
        return (
            f"memory needed beside smaller rows is {byte_size(more)}, where they leave "
            f"{byte_size(left)}; measure it in a run of its own"
        )
    most = int((there - need.weights) // need.each)
    remedy = f"use a batch of {most:,} at most" if most > 0 else "use fewer bits, or more chips"
    return (
        f"memory for weights ({byte_size(need.weights)}), cache and logits is "
        f"{byte_size(need.bytes)}, where there are {byte_size(there)}; {remedy}"
    )
