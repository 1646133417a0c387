"""Which rows of a sweep fit in the memory that there is, by arithmetic, before anything is made.

Counted is what is sure to be there at once: weights, caches, and each step's logits. A compiler's
own temporaries come on top, so what fits here can still run out of memory.
"""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

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
            f"memory needed beside smaller rows is {_size(more)}, where they leave {_size(left)}; "
            "measure it in a run of its own"
        )
    most = int((there - need.weights) // need.each)
    remedy = f"use a batch of {most:,} at most" if most > 0 else "use fewer bits, or more chips"
    return (
        f"memory for weights ({_size(need.weights)}), cache and logits is {_size(need.bytes)}, "
        f"where there are {_size(there)}; {remedy}"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
