"""Slices of chips, at hand or not, by the text of ``--topology``: ``v5e:4x4``, ``h100:8``.

Several slices that are connected by a network are written with their number: ``v5e:16x16*2``.
"""

import dataclasses
import functools
import heapq
import itertools
import math
import re
from collections.abc import Iterable, Iterator

from profiles.chips.chip import Chip, Wiring, find_chip
from sharding.error_types import UsageError

Shape = tuple[int, ...]
MOST_SLICES = 1024
"""Largest number of slices that a network connects: more than anyone has."""
MOST = 4096
"""Chips of the largest slice to consider, unless a caller says otherwise."""
ONE_MACHINE = 8
"""Chips of one machine, where it is not known how many are connected."""

_NUMBER = r"[1-9]\d{0,8}"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are connected to each other.

    Attributes:
      chip: the kind of all these chips.
      shape: chips along each dimension of a torus; without a torus, their number alone.
      count: number of slices of this shape, connected by the network between hosts.
    """

    chip: Chip
    shape: Shape
    count: int = 1

    def __str__(self) -> str:
        return f"{self.chip.name}:{_text(self.shape)}" + f"*{self.count}" * (self.count > 1)

    @property
    def chips(self) -> int:
        """The number of chips, in all slices together."""
        return math.prod(self.shape) * self.count

    @property
    def devices(self) -> int:
        """The number of JAX devices of these chips."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int | None:
        """Machines that hold the chips, or hold more than them; None where not known."""
        per_host = self.chip.chips_per_host
        return per_host and -(-self.chips // per_host)

    @property
    def domain(self) -> int:
        """Number of chips that communicate without the network between hosts."""
        wiring, chips = self.chip.wiring, math.prod(self.shape)
        return chips if wiring.dimensions else min(chips, wiring.domain or chips)

    @property
    def wraps(self) -> tuple[bool | None, ...]:
        """Whether each dimension wraps around into a ring.

        None where that is not published: a floor then assumes a ring, an expected time none.
        """
        wiring = self.chip.wiring
        if not wiring.dimensions:
            return (False,) * len(self.shape)
        if wiring.cube:  # optical switches close the rings, and only connect complete cubes
            return (all(size % wiring.cube == 0 for size in self.shape),) * len(self.shape)
        return tuple(wiring.wraps_at and size == wiring.wraps_at for size in self.shape)


def parse_slice(text: str) -> Slice:
    """Reads a chip's short name, a shape and perhaps a number of slices: ``v5p:2x2x4*2``.

    Permuted dimensions of a torus are the same slice: ``v5e:4x2`` is ``v5e:2x4``.

    Raises:
      UsageError: the text has another form, the chip is not known, or has no slice of this shape.
    """
    parts = re.fullmatch(r"([^:]+):(N(?:xN)*)(?:\*(N))?".replace("N", _NUMBER), text)
    if not parts:
        raise UsageError(
            f"topology is {text!r}; write a chip and the shape of a slice, such as v5e:4x4, "
            "v5p:2x2x4 or h100:8, and *2 after it for two of them"
        )
    chip, shape = find_chip(parts[1]), tuple(map(int, parts[2].split("x")))
    offered = _tori(chip.wiring) if chip.wiring.dimensions else _groups(chip.wiring, shape)
    turned = set(itertools.permutations(shape)) if len(shape) == chip.wiring.dimensions else {shape}
    if found := turned.intersection(offered):
        (shape,) = found
    else:
        nearest = heapq.nsmallest(2, offered, key=functools.partial(_distance, shape))
        raise UsageError(
            f"topology is {text}, a slice that {chip.name} does not come in; "
            f"use {' or '.join(str(Slice(chip, other)) for other in nearest)}"
        )
    count = parts[3] or "1"
    if int(count) > MOST_SLICES:
        raise UsageError(f"topology is {text}, of {count} slices; use {MOST_SLICES} at most")
    return Slice(chip, shape, int(count))


def slices_of(chip: Chip, most: int = MOST) -> list[Slice]:
    """Slices worth planning with, the fewest chips first; of as many chips, the most compact first.

    Where any number of chips can be connected: powers of two of chips within a domain, then powers
    of two of domains; at most one machine's chips where no domain is known. Where the shapes of a
    torus are not published: sides that are powers of two.

    Args:
      chip: the kind of the chips.
      most: largest number of chips.
    """
    wiring, domain = chip.wiring, chip.wiring.domain
    if not wiring.dimensions:
        if domain is None:  # how more than one machine's chips are connected is not known
            domain, most = ONE_MACHINE, min(most, ONE_MACHINE)
        within = [1 << power for power in range(most.bit_length()) if 1 << power < domain]
        domains = [domain << power for power in range(most.bit_length())]
        return [Slice(chip, (count,)) for count in (*within, *domains) if count <= most]
    known = wiring.shapes or wiring.cube
    shapes = [
        shape
        for shape in _tori(wiring)
        if math.prod(shape) <= most and (known or all(side & (side - 1) == 0 for side in shape))
    ]
    shapes.sort(key=lambda shape: (math.prod(shape), sum(shape), shape))
    return [Slice(chip, shape) for shape in shapes]


def joined_slices_of(chip: Chip, counts: Iterable[int], most: int = MOST) -> list[Slice]:
    """Several slices of one shape, joined by the network, worth planning pipelines with.

    Each has whole hosts at least, and behind switches a whole domain: what is smaller shares faster
    links. Empty where the network's rate is not known.

    Args:
      chip: the kind of the chips.
      counts: numbers of slices.
      most: largest number of chips of all of them.
    """
    if not chip.network:
        return []
    wiring = chip.wiring
    least = chip.chips_per_host or 1 if wiring.dimensions else wiring.domain or math.inf
    whole = [slice for slice in slices_of(chip, most // 2) if slice.chips >= least]
    if not wiring.dimensions:
        whole = [slice for slice in whole if slice.chips == wiring.domain]
    found = (dataclasses.replace(slice, count=count) for slice in whole for count in counts)
    return [slice for slice in found if slice.count > 1 and slice.chips <= most]


def _groups(wiring: Wiring, asked: Shape) -> list[Shape]:
    """Numbers of chips behind switches: any in a domain, and multiples of it near `asked`."""
    chips, domain = math.prod(asked), wiring.domain
    if domain is None:
        return [(chips,)]
    full = max(chips // domain, 1) * domain
    return [(count,) for count in (*range(1, domain), full, full + domain)]


@functools.cache
def _tori(wiring: Wiring) -> frozenset[Shape]:
    """Shapes of slices of a torus: listed ones and boxes of cubes; all boxes if none is listed."""
    listed = [tuple(map(int, shape.split("x"))) for shape in wiring.shapes or ()]
    edge = wiring.cube if wiring.shapes else 1
    return frozenset(listed).union(_boxes(wiring.dimensions, edge, wiring.domain) if edge else ())


def _boxes(dimensions: int, edge: int, most: int, least: int = 1) -> Iterator[Shape]:
    """Boxes of cubes of at most `most` chips, sides in rising order, none below `least` cubes."""
    if not dimensions:
        yield ()
        return
    for cubes in itertools.count(least):
        side = cubes * edge
        if side**dimensions > most:
            return
        for rest in _boxes(dimensions - 1, edge, most // side, cubes):
            yield (side, *rest)


def _distance(asked: Shape, offered: Shape) -> tuple[float, int, Shape]:
    """Sorts shapes by the ratio of numbers of chips, then by the sides; the shape breaks ties."""
    falling = (sorted(shape, reverse=True) for shape in (asked, offered))
    sides = itertools.zip_longest(*falling, fillvalue=1)
    ratio = abs(math.log(math.prod(offered) / math.prod(asked)))
    return ratio, sum(abs(one - other) for one, other in sides), offered


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
