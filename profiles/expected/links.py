"""Time that collectives take on the links of a slice: their floor, and the time that is expected.

Mesh axes are embedded in the dimensions of a torus, in a domain of switches, and in the network
between those. A group of a collective then extends so far along each dimension. Floors count what a
chip must receive, or what must cross the middle of a ring, over all links that the group's
dimensions have. Source: Google's scaling book, "Sharded matrices", for rings and for all-to-all, a
quarter of an all-gather on a wrapped ring; Pope et al. 2022, appendix A.1.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from profiles.chips.calibration import Calibration
from profiles.chips.slices import Slice
from profiles.floor.collective import Collective
from sharding.error_types import LayoutError
from sharding.mesh import MeshShape

RING, LINE, SWITCH, NETWORK = "ring", "line", "switch", "network"
EXPECTED_EMBEDDINGS = 16
"""Embeddings of a mesh that an expected time looks at: others tear axes into many pieces."""


class Dimension(NamedTuple):
    """One way in which devices of a slice are joined.

    Attributes:
      size: devices along it.
      kind: a `RING` that closes, a `LINE` that does not, a `SWITCH` or the `NETWORK`.
      rate: bytes per second one way: of a link, or of a device to a switch or a network.
    """

    size: int
    kind: str
    rate: float


_DIRECTIONS = {"all-gather": ("in",), "reduce-scatter": ("out",), "all-to-all": ("across",)}
"""Where the bytes of a collective's floor go on a device; of other kinds, both in and out."""

Extents = tuple[int, ...]
"""Devices that a group has along each dimension."""


def dimensions(slice: Slice, for_floor: bool) -> tuple[Dimension, ...]:
    """How the devices of a slice are joined, the fastest first.

    Args:
      slice: the slice.
      for_floor: take what is not published for the best, as a floor does: an axis wraps around.

    Where no rate is published, it is taken to be infinite.
    """
    chip, parts = slice.chip, slice.chip.devices_per_chip
    halves = 1 if for_floor else parts  # what both halves of a chip want need only come to it once
    found = []
    if chip.wiring.dimensions:
        rate = chip.ici or math.inf
        for size, wraps in zip(slice.shape, slice.wraps, strict=True):
            closed = for_floor if wraps is None else wraps
            found.append(Dimension(size, RING if closed else LINE, rate / halves))
    else:
        found.append(Dimension(slice.domain, SWITCH, (chip.link or math.inf) / halves))
    if slice.chips > slice.domain:
        network = chip.network or math.inf
        found.append(Dimension(slice.chips // slice.domain, NETWORK, network / halves))
    if parts > 1:  # halves of a chip share its links
        found.insert(0, Dimension(parts, SWITCH, math.inf))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class MeshEmbedding:
    """A mesh embedded in a slice: its axes along the dimensions that join devices.

    Attributes:
      dimensions: how the slice joins its devices.
      spans: by mesh axis, its devices along each dimension.
      hop_latency: seconds from a chip to its neighbour.
    """

    dimensions: tuple[Dimension, ...]
    spans: Mapping[str, Extents]
    hop_latency: float

    def extents(self, axes: Sequence[str]) -> Extents:
        """Devices that a group over these mesh axes has along each dimension."""
        along = zip(*(self.spans[axis] for axis in axes), strict=True)
        return tuple(map(math.prod, along))

    def spanned_dimensions(self, extents: Extents) -> Iterator[tuple[Dimension, int]]:
        """The dimensions that a group spans, and how far; part of a ring is a line."""
        for dimension, size in zip(self.dimensions, extents, strict=True):
            if size > 1:
                part = dimension.kind == RING and size < dimension.size
                yield dimension._replace(kind=LINE) if part else dimension, size

    def floor_seconds(self, collective: Collective) -> float:
        """The floor of one collective in seconds, in the direction of most bytes on a device."""
        spanned = tuple(self.spanned_dimensions(self.extents(collective.axes)))
        return collective.payload_bytes * _per_byte(collective.kind, spanned, for_floor=True)

    def expected_cost(
        self, kind: str, axes: Sequence[str], calibration: Calibration
    ) -> tuple[float, float]:
        """What a collective is expected to take: seconds to start, with its hops, and per byte.

        Bytes at the links' calibration, in the algorithms that are used.
        """
        if axes not in self._extents:
            self._extents[axes] = self.extents(axes)
        return self.expected_cost_over(kind, self._extents[axes], calibration)

    def expected_cost_over(
        self, kind: str, extents: Extents, calibration: Calibration
    ) -> tuple[float, float]:
        """The same for a group that extends so far along each dimension."""
        key = kind, extents
        if key not in self._memo:
            spanned = tuple(self.spanned_dimensions(extents))
            hops = sum(_hops(dimension, size) for dimension, size in spanned)
            hops = 1 if kind == "permute" else (2 if kind == "all-reduce" else 1) * hops
            between = any(dimension.kind == NETWORK for dimension, _ in spanned)
            latency = hops * self.hop_latency
            self._memo[key] = latency, between, _expected_per_byte(kind, spanned)
        latency, between, per_byte = self._memo[key]
        return calibration.collective_s + latency + calibration.network_s * between, per_byte

    @functools.cached_property
    def _memo(self) -> dict[tuple[str, Extents], tuple[float, bool, float]]:
        return {}

    @functools.cached_property
    def _extents(self) -> dict[Sequence[str], Extents]:
        return {}


@functools.lru_cache(maxsize=65536)
def _per_byte(kind: str, spanned: tuple[tuple[Dimension, int], ...], for_floor: bool) -> float:
    """Seconds per byte of payload of the device that has most to do, in the best algorithm.

    For an expected time, sums are scattered and then gathered, one after the other.
    """
    bounds = [0.0]
    devices = math.prod(size for _, size in spanned)
    inside = 1  # devices of the group that are joined faster than by the dimension at hand
    joined = [part for part in spanned if part[0].kind in (RING, LINE)]
    if joined:
        links = sum(_links(dimension) * dimension.rate for dimension, _ in joined)
        cluster = math.prod(size for _, size in joined)
        if kind == "all-to-all":
            bounds += [_crossing(dimension, size) for dimension, size in joined]
        elif kind == "permute":
            # One of two directions; a ring has links for both.
            return 1 / sum(2 * dimension.rate for dimension, _ in joined)
        else:
            # The end of a line can send its part of a sum while the sum of others comes back.
            bounds.append(_received(kind, cluster, summing=for_floor) / links)
        inside = cluster
    for dimension, size in spanned:
        if dimension.kind in (RING, LINE):
            continue
        share = inside if dimension.kind == NETWORK else 1
        if kind == "all-to-all":
            others = 1 - 1 / size if dimension.kind == NETWORK else (size - 1) / devices
            bounds.append(others / dimension.rate)
        else:
            summing = dimension.kind == SWITCH  # which may add up on the way
            bounds.append(_received(kind, size, summing) / share / dimension.rate)
        inside *= size
    return max(bounds)


def _received(kind: str, devices: int, summing: bool) -> float:
    """Bytes that a device receives (or sends, if more), per byte of payload."""
    part = (devices - 1) / devices
    if kind == "all-reduce":
        return min(2 * part, 1.0) if summing else 2 * part
    return 1.0 if kind == "permute" else part


def _links(dimension: Dimension) -> int:
    """Links of the device that has the fewest: the end of a line."""
    return 2 if dimension.kind == RING else 1


def _crossing(dimension: Dimension, size: int) -> float:
    """Seconds per byte of an all-to-all through the middle of one dimension.

    Each half of the devices sends the other its part: over two links on a ring, one on a line.
    """
    half = size // 2
    return half * (size - half) / size / (_links(dimension) * dimension.rate)


@functools.lru_cache(maxsize=65536)
def _expected_per_byte(kind: str, spanned: tuple[tuple[Dimension, int], ...]) -> float:
    """Seconds per byte of payload, where no switch adds up on the way."""
    per_byte = _per_byte(kind, spanned, for_floor=False)
    for dimension, size in spanned:
        if dimension.kind == SWITCH and kind == "all-reduce":
            per_byte = max(per_byte, 2 * (size - 1) / size / dimension.rate)
    return per_byte


def _hops(dimension: Dimension, size: int) -> int:
    """From one end of a group to the other."""
    if dimension.kind == RING:
        return size // 2
    return size - 1 if dimension.kind == LINE else 0


# Embeddings of a mesh in a slice ------------------------------------------------------------------


def check_size(slice: Slice, mesh: MeshShape) -> None:
    """Refuses a mesh for a slice of another size.

    Raises:
      LayoutError: the mesh does not have as many devices as the slice.
    """
    if math.prod(mesh.values()) != slice.devices:
        sizes = "x".join(map(str, mesh.values()))
        halves = ", two to a chip" * (slice.chip.devices_per_chip > 1)
        raise LayoutError(
            f"mesh is {sizes}, of {math.prod(mesh.values())} devices, but {slice} has "
            f"{slice.devices}{halves}; use sizes whose product is {slice.devices}"
        )


@functools.lru_cache(maxsize=4096)
def embeddings(
    slice: Slice, mesh: tuple[tuple[str, int], ...], for_floor: bool
) -> tuple[MeshEmbedding, ...]:
    """Embeddings of a mesh in a slice, those first whose axes are in fewest pieces.

    An axis in several pieces spans as many dimensions, and has the links of all: a mesh of one axis
    has every embedding that a mesh of several has.

    Args:
      slice: the slice.
      mesh: axis and size, as items of a mesh.
      for_floor: all embeddings, for a floor; otherwise the first few. See `dimensions`, too.

    Raises:
      LayoutError: the mesh does not have as many devices as the slice.
    """
    check_size(slice, dict(mesh))
    found = dimensions(slice, for_floor)
    names, sizes = zip(*mesh, strict=True)
    spans = axis_extents(sizes, tuple(dimension.size for dimension in found))
    spans = spans if for_floor else spans[:EXPECTED_EMBEDDINGS]
    hop = slice.chip.hop_latency or 0.0
    return tuple(MeshEmbedding(found, dict(zip(names, each, strict=True)), hop) for each in spans)


@functools.lru_cache(maxsize=4096)
def axis_extents(sizes: Extents, lengths: Extents) -> tuple[tuple[Extents, ...], ...]:
    """Extents of each mesh axis along each dimension, in all embeddings of axes in dimensions.

    Args:
      sizes: devices along each mesh axis.
      lengths: devices along each dimension; together as many.

    Returns:
      Those first whose axes are in fewest pieces.
    """
    pieces = lambda spans: sum(size > 1 for extents in spans for size in extents)  # noqa: E731
    return tuple(sorted(_divide(sizes, lengths), key=pieces))


def _divide(sizes: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[Extents, ...]]:
    """All ways to write each size as a product over dimensions that they fill together."""
    if not sizes:
        if all(length == 1 for length in lengths):
            yield ()
        return
    for extents in _products(sizes[0], lengths):
        left = [length // size for length, size in zip(lengths, extents, strict=True)]
        for rest in _divide(sizes[1:], left):
            yield (extents, *rest)


def _products(size: int, lengths: Sequence[int]) -> Iterator[Extents]:
    """All ways to write a size as a product of divisors of the lengths."""
    if not lengths:
        if size == 1:
            yield ()
        return
    length, *others = lengths
    for part in range(1, length + 1):
        if length % part == 0 and size % part == 0:
            for rest in _products(size // part, others):
                yield (part, *rest)


def mesh_items(mesh: MeshShape) -> tuple[tuple[str, int], ...]:
    """A mesh as a key."""
    return tuple(mesh.items())


def floor_bounds(
    collectives: Iterable[Collective], embedding: MeshEmbedding
) -> dict[object, float]:
    """Seconds below which all collectives of a step cannot stay, however well they overlap.

    Bounds of two kinds. Collectives of one group share its links, so the times add up of those that
    a device receives in, and of those that it sends in. And each byte that a device receives
    crosses some link of the dimensions that its group spans, so what is received over some
    dimensions, or fewer of them, takes the links of those, on average over devices.

    Returns:
      Bounds by what they are of, each proportional to payloads.
    """
    bounds: dict[object, float] = {}
    over: dict[frozenset[int], float] = {}
    for each in collectives:
        extents = embedding.extents(each.axes)
        for direction in _DIRECTIONS.get(each.kind, ("in", "out")):
            place = extents, direction
            bounds[place] = bounds.get(place, 0) + each.count * embedding.floor_seconds(each)
        if each.kind != "permute":
            # Halves of a chip take no link between them.
            spanned = [i for i, size in enumerate(extents)
                       if size > 1 and embedding.dimensions[i].rate < math.inf]  # fmt: skip
            summing = any(embedding.dimensions[i].kind == SWITCH for i in spanned)
            received = _received(each.kind, math.prod(extents[i] for i in spanned), summing)
            key, sent = frozenset(spanned), each.count * each.payload_bytes * received
            over[key] = over.get(key, 0) + sent
    for chosen in _subsets(len(embedding.dimensions)):
        total = sum(sent for spanned, sent in over.items() if spanned <= chosen)
        if total:
            bounds[chosen] = total / sum(_whole_rate(embedding.dimensions[i]) for i in chosen)
    return bounds


def _subsets(count: int) -> Iterator[frozenset[int]]:
    for size in range(1, count + 1):
        yield from map(frozenset, itertools.combinations(range(count), size))


def _whole_rate(dimension: Dimension) -> float:
    """Bytes per second that a device receives over a dimension, on average over devices."""
    if dimension.kind == RING:
        return 2 * dimension.rate
    if dimension.kind == LINE:
        return 2 * dimension.rate * (dimension.size - 1) / dimension.size
    return dimension.rate
