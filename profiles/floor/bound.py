"""The least time a step can take: a lower bound that no honest measurement falls below.

``floor = max(memory, compute, communication)`` at peak rates, with perfect overlap and no
overheads. Memory is the weight read, constant in batch, plus the KV cache, linear in batch and
context. Communication is counted where it is known how devices are joined; leaving a term out
keeps the bound below.
"""

import dataclasses

from profiles.chips.chip import Peaks
from profiles.floor.passes import Counts


@dataclasses.dataclass(frozen=True)
class Floor:
    """A step's lower bound in seconds, by term.

    Attributes:
      weights: reading this device's weights.
      kv_cache: reading the cached tokens and writing the new ones.
      compute: matrix multiplications and attention.
      communication: what must cross links between devices; None where those are not known.
    """

    weights: float
    kv_cache: float
    compute: float
    communication: float | None = None

    @property
    def seconds(self) -> float:
        """The bound itself."""
        return max(self.memory, self.compute, self.communication or 0.0)

    @property
    def memory(self) -> float:
        """Reading and writing memory."""
        return self.weights + self.kv_cache

    @property
    def no_overlap(self) -> float:
        """A step that does nothing while it communicates: no bound, but what overlap can win."""
        return max(self.memory, self.compute) + (self.communication or 0.0)

    @property
    def bound(self) -> str:
        """The largest term of the largest side: what a faster step would have to shrink."""
        if (self.communication or 0.0) > max(self.memory, self.compute):
            return "communication"
        if self.compute > self.memory:
            return "compute"
        return "weights" if self.weights >= self.kv_cache else "kv_cache"

    def terms(self) -> dict[str, float]:
        """Seconds by term, of those that are known."""
        found = dataclasses.asdict(self)
        return {name: seconds for name, seconds in found.items() if seconds is not None}


def floor(traffic: Counts, peaks: Peaks, communication: float | None = None) -> Floor:
    """The bound for this much work per device at these peaks.

    Args:
      traffic: the work.
      peaks: of a device.
      communication: seconds that links take at least, if that is known.
    """
    return Floor(
        communication=communication,
        weights=traffic.weights_read / peaks.bandwidth,
        kv_cache=(traffic.kv_read + traffic.kv_written) / peaks.bandwidth,
        compute=traffic.flops / peaks.flops,
    )
