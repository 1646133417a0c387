"""Slices of chips, owned or not, by the text of ``--topology``: ``v5e:4x4``, ``h100:8``.

Several slices that a network joins are written with their number: ``v5e:16x16*2``.
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
MOST = 4096
"""Chips of the largest slice that is looked at where nobody says how many there may be."""
ONE_MACHINE = 8
"""Chips that a machine holds, where it is not known how many are joined."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips wired together.

    Attributes:
      chip: of which all are.
      shape: chips along each dimension of a torus; else their number alone.
      count: slices of this shape, joined by the network between hosts.
    """

    chip: Chip
    shape: Shape
    count: int = 1

    def __str__(self) -> str:
        return f"{self.chip.name}:{_text(self.shape)}" + f"*{self.count}" * (self.count > 1)

    @property
    def chips(self) -> int:
        """How many, in all slices."""
        return math.prod(self.shape) * self.count

    @property
    def devices(self) -> int:
        """How many JAX devices they are."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int | None:
        """Machines that hold them, each perhaps rented as smaller ones; None where not known."""
        per_host = self.chip.chips_per_host
        return per_host and -(-self.chips // per_host)

    @property
    def domain(self) -> int:
        """Chips that reach one another without the network between hosts."""
        wiring, chips = self.chip.wiring, math.prod(self.shape)
        return chips if wiring.dimensions else min(chips, wiring.domain or chips)

    @property
    def wraps(self) -> tuple[bool | None, ...]:
        """Whether each dimension closes into a ring.

        None where that is not published: a floor then takes it for a ring, an expected time not.
        """
        wiring = self.chip.wiring
        if not wiring.dimensions:
            return (False,) * len(self.shape)
        if wiring.cube:  # by optical switches, which only whole cubes reach
            return (all(size % wiring.cube == 0 for size in self.shape),) * len(self.shape)
        return tuple(wiring.wraps_at and size == wiring.wraps_at for size in self.shape)


def parse_slice(text: str) -> Slice:
    """Reads a chip's short name, a shape and perhaps a number of slices: ``v5p:2x2x4*2``.

    A torus that is turned is the same slice: ``v5e:4x2`` is ``v5e:2x4``.

    Raises:
      UsageError: the text is not of this form, the chip is not known, or does not come so.
    """
    form = re.fullmatch(r"([^:]+):([1-9]\d*(?:x[1-9]\d*)*)(?:\*([1-9]\d*))?", text)
    if not form:
        raise UsageError(
            f"topology is {text!r}; write a chip and the shape of a slice, such as v5e:4x4, "
            "v5p:2x2x4 or h100:8, and *2 after it for two of them"
        )
    chip, shape = find_chip(form[1]), tuple(map(int, form[2].split("x")))
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
    return Slice(chip, shape, int(form[3] or 1))


def slices_of(chip: Chip, most: int = MOST) -> list[Slice]:
    """Slices worth planning with, those of fewest chips first; of as many, the most compact.

    Where chips come in any number, powers of two of them within a domain, and of whole domains,
    but no more than a machine's where no domain is known;
    where the shapes of a torus are not published, sides that are powers of two.

    Args:
      chip: of which they are.
      most: chips.
    """
    wiring, domain = chip.wiring, chip.wiring.domain
    if not wiring.dimensions:
        if domain is None:  # one machine's, since nothing is known of what joins more
            domain, most = ONE_MACHINE, min(most, ONE_MACHINE)
        within = [1 << power for power in range(most.bit_length()) if 1 << power < domain]
        whole = [domain << power for power in range(most.bit_length())]
        return [Slice(chip, (count,)) for count in (*within, *whole) if count <= most]
    known = wiring.shapes or wiring.cube
    shapes = [
        shape
        for shape in _tori(wiring)
        if math.prod(shape) <= most and (known or all(side & (side - 1) == 0 for side in shape))
    ]
    shapes.sort(key=lambda shape: (math.prod(shape), sum(shape), shape))
    return [Slice(chip, shape) for shape in shapes]


def _groups(wiring: Wiring, asked: Shape) -> list[Shape]:
    """Numbers of chips joined by switches: of one domain, or whole ones about as many as asked."""
    chips, domain = math.prod(asked), wiring.domain
    if domain is None:
        return [(chips,)]
    whole = max(chips // domain, 1) * domain
    return [(count,) for count in (*range(1, domain), whole, whole + domain)]


@functools.cache
def _tori(wiring: Wiring) -> frozenset[Shape]:
    """Slices of a torus: those listed and those of cubes; all that there could be if not known."""
    listed = [tuple(map(int, shape.split("x"))) for shape in wiring.shapes or ()]
    edge = wiring.cube if wiring.shapes else 1
    return frozenset(listed).union(_boxes(wiring.dimensions, edge, wiring.domain) if edge else ())


def _boxes(dimensions: int, edge: int, most: int, least: int = 1) -> Iterator[Shape]:
    """Boxes of cubes with at most so many chips; sides rise, the first from `least` cubes on."""
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
    """By the number of chips, as a ratio, then by the lengths of sides; the shape settles ties."""
    falling = (sorted(shape, reverse=True) for shape in (asked, offered))
    sides = itertools.zip_longest(*falling, fillvalue=1)
    ratio = abs(math.log(math.prod(offered) / math.prod(asked)))
    return ratio, sum(abs(one - other) for one, other in sides), offered


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
