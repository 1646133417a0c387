"""The least time a step can take: a lower bound that no honest measurement falls below.

``floor = max(memory, compute)`` at peak rates, with perfect overlap and no overheads. Memory is
the weight read, constant in batch, plus the KV cache, linear in batch and context. Time on links
between chips is not counted yet; leaving a term out keeps the bound below.
"""

import dataclasses

from profiles.hardware import Peaks
from profiles.traffic import Traffic


@dataclasses.dataclass(frozen=True)
class Floor:
    """A step's lower bound in seconds, by term.

    Attributes:
      weights: reading this device's weights.
      kv_cache: reading the cached tokens and writing the new ones.
      compute: matrix multiplications and attention.
    """

    weights: float
    kv_cache: float
    compute: float

    @property
    def seconds(self) -> float:
        """The bound itself."""
        return max(self.weights + self.kv_cache, self.compute)

    @property
    def bound(self) -> str:
        """The largest term of the larger side: what a faster step would have to shrink."""
        if self.compute > self.weights + self.kv_cache:
            return "compute"
        return "weights" if self.weights >= self.kv_cache else "kv_cache"


def floor(traffic: Traffic, peaks: Peaks) -> Floor:
    """The bound for this much work per device at these peaks."""
    return Floor(
        weights=traffic.weights_read / peaks.bandwidth,
        kv_cache=(traffic.kv_read + traffic.kv_written) / peaks.bandwidth,
        compute=traffic.flops / peaks.flops,
    )
