"""Memories that a cache can be held in: what holding it costs against fetching it, by tier.

A device costs the same whether it is full or busy. Bytes that are held for t seconds take
``bytes / capacity`` of it all that time; a fetch takes all of it for ``bytes / bandwidth``. So
holding costs as much as t / (capacity / bandwidth) fetches whatever the device costs: the time to
drain a tier is how long it is balanced to hold what is fetched once. Source: `tiers.json`.

A device that was bought is paid off in `LIFE_S`, the five years that makers of such drives answer
for, so a byte costs ``usd_per_byte / LIFE_S`` per second that it is held.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from importlib import resources

LIFE_S = 5 * 365 * 86_400.0


@dataclasses.dataclass(frozen=True)
class Tier:
    """One kind of memory, by a device of it.

    Attributes:
      name: the kind.
      device: what the figures are of.
      capacity: bytes.
      bandwidth: bytes per second that are read.
      round_s: the least and the most seconds to read all of it, in a talk's round figures.
      usd_per_byte: what it costs to buy; None for a chip's own memory.
    """

    name: str
    device: str
    capacity: float
    bandwidth: float
    round_s: tuple[float, float]
    usd_per_byte: float | None = None

    @property
    def drain_s(self) -> float:
        """Seconds to read all of it once."""
        return self.capacity / self.bandwidth

    @property
    def round_drain_s(self) -> float:
        """The middle of the round figures, by ratio."""
        return math.sqrt(math.prod(self.round_s))

    def fetches(self, seconds: float) -> float:
        """Fetches of some bytes that cost as much as holding them for so many seconds."""
        return seconds / self.drain_s


def tiers(chip: str, capacity: float, bandwidth: float) -> tuple[Tier, ...]:
    """All tiers, the fastest first, which is the memory of this chip."""
    data = _data()
    own = {"device": chip, "capacity": capacity, "bandwidth": bandwidth}
    names = "name", "device", "capacity", "bandwidth", "round_s"
    return tuple(
        Tier(*((own | row)[name] for name in names), _usd_per_byte(row.get("price")))
        for row in data["tiers"]
    )


def _usd_per_byte(price: dict | None) -> float | None:
    return price and price["usd"] / price["bytes"]


def implied(offered: Iterable[Tier], seconds: float, rounded: bool = False) -> Tier:
    """The tier whose drain time is nearest by ratio, where holding and a fetch cost most alike.

    Args:
      offered: the tiers to choose from.
      seconds: how long a cache is held.
      rounded: whether to go by round figures instead of those of devices.
    """

    def apart(tier: Tier) -> float:
        return abs(math.log(seconds / (tier.round_drain_s if rounded else tier.drain_s)))

    return min(offered, key=apart)


@functools.cache
def _data() -> dict:
    return json.loads(resources.files("profiles.floor").joinpath("tiers.json").read_text())
