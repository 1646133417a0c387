"""A layer of experts over one rack or several: where experts lie, and how long tokens travel.

Each chip sends every token's activations to the k experts that it chose, and gets them back. Over r
racks with experts spread evenly, (r - 1) / r of them go through the network. Source: Reiner Pope x
Dwarkesh Patel podcast, 29 Apr 2026 (transcript): over two racks half, eight times slower.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Domains:
    """Chips in racks, or in other domains of a fast fabric.

    Attributes:
      chips: chips of all of them.
      size: chips of one.
      fabric: bytes per second one way from a chip to others of its domain.
      network: the same to other domains.
    """

    chips: int
    size: int
    fabric: float
    network: float

    def exchange_s(self, payload: float) -> float:
        """Seconds of an all-to-all in which each chip has so many bytes for all chips alike.

        Fabric and network work at once, so it takes as long as the longer of them.
        """
        inside = payload * (self.size - 1) / self.chips / self.fabric
        between = payload * (1 - self.size / self.chips) / self.network
        return max(inside, between)


def placed(experts: int, chips: int) -> tuple[int, int]:
    """Experts of the fullest chip, and the fewest chips that hold all if none has more.

    256 experts on 72 chips are 4 on a chip, however they are spread, and 64 chips hold them.
    """
    each = math.ceil(experts / chips)
    return each, math.ceil(experts / each)
