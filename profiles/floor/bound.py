"""The floor: the least time a step can take, which no correct measurement falls below.

``floor = max(memory, compute, communication)`` at peak rates, with perfect overlap and no
overheads. Memory is the weight read, constant in batch, plus the KV cache, linear in batch and
context. Communication is counted where it is known how devices are connected; without it the result
is still a lower bound.
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
      communication: transfers that must cross links between devices; None if links are unknown.
      hops: latency of hops between the stages of a pipeline, which nothing of the same batch runs
        beside; None where it is not known.
    """

    weights: float
    kv_cache: float
    compute: float
    communication: float | None = None
    hops: float | None = None

    @property
    def seconds(self) -> float:
        """The floor: the largest of memory, compute and communication, and then hops."""
        return max(self.memory, self.compute, self.communication or 0.0) + (self.hops or 0.0)

    @property
    def memory(self) -> float:
        """Reading and writing memory."""
        return self.weights + self.kv_cache

    @property
    def no_overlap(self) -> float:
        """Seconds if nothing overlaps communication: no floor, but shows what overlap can gain."""
        return max(self.memory, self.compute) + (self.communication or 0.0) + (self.hops or 0.0)

    @property
    def bound(self) -> str:
        """Name of the term that bounds the step; of weights and KV cache, the larger."""
        if (self.hops or 0.0) > self.seconds / 2:
            return "hops"
        if (self.communication or 0.0) > max(self.memory, self.compute):
            return "communication"
        if self.compute > self.memory:
            return "compute"
        return "weights" if self.weights >= self.kv_cache else "kv_cache"

    def terms(self) -> dict[str, float]:
        """Seconds by name of the term, without a term that is not known."""
        terms = dataclasses.asdict(self)
        return {name: seconds for name, seconds in terms.items() if seconds is not None}


def floor(traffic: Counts, peaks: Peaks, communication: float | None = None) -> Floor:
    """The floor of a pass with this work per device, at these peaks.

    Args:
      traffic: the work of each device.
      peaks: peak rates of a device.
      communication: least seconds that links take; None where links are not known.
    """
    return Floor(
        communication=communication,
        weights=traffic.weights_read / peaks.bandwidth,
        kv_cache=(traffic.kv_read + traffic.kv_written) / peaks.bandwidth,
        compute=traffic.flops / peaks.flops,
    )
