"""Layouts on meshes, as a plan compares them: each divides arrays in one of a few hundred patterns.

What divides what depends on a mesh only by which sizes its axes divide. So a layout is settled once
for all meshes that divide the same sizes, and what passes cost is counted once for all rows of a
pattern, with their mesh sizes as arrays.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from model.config import ModelConfig
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.expected.candidates import meshes
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import BatchLine, Counts, Pass, PromptLine
from profiles.plan.divisibility import Divisibility, Table
from profiles.plan.placements import BIT, PlacementOnMeshes, PlacementsOnMeshes
from sharding.axes import MESH_AXES
from sharding.error_types import LayoutError
from sharding.layout import KINDS, Axes, Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement, division, shards

_ARRAYS = (
    (("weights",), "weights", "VD KGhD KhD FD KGh Kh eD EFD fD sD KGhq KGv NwD NMD DNMo JQHD JHD"),
    (("use",), "use", "VD KGhD KhD FD KGh Kh eD EFD fD sD KGhq KGv NwD NMD DNMo JQHD JHD"),
    (("activations",), "activations", "BR BF BKGh BKh V Bf Bs BKGv BNw BNMo BNM BJQH BJH"),
    (("attention",), "attention", "BKG BK BNM BN BJQ BJ"),
    (("cache",), "cache", "BKS BNM BN BJS"),
    (("weights", "activations"), "beside_stored", "BD"),
)
"""Arrays whose shardings are all that a pass asks a placement for, behind the tables that say."""
_OF_SOME = frozenset("EefsqvNJ")
"""Letters of arrays that not all models have."""


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A layout on a mesh; without both, a model by its sizes on so many devices."""

    devices: int
    layout: Layout | None = None
    mesh: MeshShape | None = None


class Pattern(NamedTuple):
    """How a placement divides all arrays, whatever the names and sizes of its mesh axes.

    Attributes:
      chains: mesh axes; those that always divide the same dimension, one right after the other, are
        as good as one and stand together.
      entries: for each dimension of each array the numbers of the chains that divide it.
    """

    chains: tuple[Axes, ...]
    entries: tuple[tuple[int, ...], ...]

    @classmethod
    @functools.cache
    def of(cls, entries: tuple[Axes, ...]) -> "Pattern":
        """The pattern of dimensions that these mesh axes divide."""
        nexts: dict[str, set[str | None]] = {}
        different = dict.fromkeys(entries)
        for axes in different:
            for axis, after in itertools.zip_longest(axes, axes[1:]):
                nexts.setdefault(axis, set()).add(after)
        joined = {
            axis: after
            for axis, (after, *others) in nexts.items()
            if after and not others and all((axis in axes) == (after in axes) for axes in different)
        }
        heads = [axis for axis in nexts if axis not in joined.values()]
        numbers = {axis: number for number, axis in enumerate(heads)}
        merged = tuple(tuple(numbers[axis] for axis in axes if axis in numbers) for axes in entries)
        return cls(tuple(_chain(axis, joined) for axis in heads), merged)

    def lengths(self, mesh: MeshShape) -> tuple[int, ...]:
        """Devices along each chain."""
        return tuple(shards(chain, mesh) for chain in self.chains)


def _chain(axis: str, joined: Mapping[str, str]) -> Axes:
    return (axis, *_chain(joined[axis], joined)) if axis in joined else (axis,)


class Group:
    """Rows of one pattern, whose passes are counted together.

    Args:
      first: the placement of one of them.
      pattern: its pattern.
    """

    def __init__(self, first: Placement, pattern: Pattern):
        self.first, self._pattern = first, pattern
        self._members: list[tuple[int, tuple[int, ...], tuple[Axes, ...]]] = []

    def add(self, number: int, pattern: Pattern, mesh: MeshShape) -> None:
        """Takes in a row by its number, with its own names of mesh axes."""
        self._members.append((number, pattern.lengths(mesh), pattern.chains))

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows."""
        return np.array([number for number, *_ in self._members])

    @functools.cached_property
    def placement(self) -> PlacementOnMeshes:
        """All rows at once, in the mesh axes of the first; axes that divide nothing have size 1."""
        lengths = np.array([lengths for _, lengths, _ in self._members]).T
        mesh = {axis: np.ones(len(self._members), int) for axis in MESH_AXES}
        mesh |= {chain[0]: of for chain, of in zip(self._pattern.chains, lengths, strict=True)}
        return PlacementOnMeshes(self.first.layout, self.first.sizes, mesh, self.first)

    @functools.cache  # noqa: B019
    def own_axes(self, axes: Axes) -> np.ndarray:
        """Mesh axes of the first in those of each row: a bit for each of x, y and z."""
        picked = [n for n, chain in enumerate(self._pattern.chains) if chain[0] in axes]
        return np.bitwise_or.reduce(self._bits[:, picked], axis=1)

    @functools.cached_property
    def _bits(self) -> np.ndarray:
        return np.array(
            [[sum(BIT[axis] for axis in chain) for chain in chains]
             for *_, chains in self._members]
        )  # fmt: skip


class Rows:
    """All layouts on all meshes of some numbers of devices that divide arrays in different ways.

    Of those that divide all arrays alike the first layout on the mesh with the fewest axes.

    Args:
      model: by its arrays.
      dtypes: refuse what groups of a few bits do not divide.
      layouts: wanted ones.
      counts: numbers of devices.
    """

    def __init__(
        self, model: ModelConfig, dtypes: Dtypes, layouts: Sequence[Layout], counts: Iterable[int]
    ):
        self.model, self.dtypes = model, dtypes
        self.rows: list[Row] = []
        self.groups: dict[object, Group] = {}
        self.collective_groups: dict[object, Group] = {}  # those whose collectives are alike, too
        self._ranges: dict[int, range] = {}
        self._settled: dict[tuple[int, int], tuple[Placement, Pattern] | None] = {}
        self._divided: dict[object, list[Axes]] = {}
        stored, sizes = dtypes.quantization, model.sizes.values()
        units = {(stored and stored.group_of(size)) or 1 for size in sizes}
        self._divisibility = Divisibility(model.sizes, {1, *units})
        asked = [self._divisibility.asked(*_tables(layout)) for layout in layouts]
        for devices in sorted(set(counts)):
            start, found = len(self.rows), set()
            shapes = sorted(meshes(devices), key=lambda mesh: sum(s > 1 for s in mesh.values()))
            divides = [self._divisibility.of(mesh) for mesh in shapes]
            for number, layout in enumerate(layouts):
                for mesh, bits in zip(shapes, divides, strict=True):
                    self._add(found, (number, bits & asked[number]), layout, mesh)
            self._ranges[devices] = range(start, len(self.rows))

    def _add(self, found: set, key: tuple[int, int], layout: Layout, mesh: MeshShape) -> None:
        """Adds a layout on a mesh, unless it is refused or one like it was found."""
        if key not in self._settled:
            self._settled[key] = self._settle(layout, mesh, key[1])
        if not self._settled[key]:
            return
        placement, pattern = self._settled[key]
        lengths, alike = pattern.lengths(mesh), (layout.collectives, pattern.entries)
        if (lengths, alike) in found:
            return
        found.add((lengths, alike))
        number, devices = len(self.rows), math.prod(mesh.values())
        group = self.groups.setdefault(alike, Group(placement, pattern))
        group.add(number, pattern, mesh)
        if layout.collectives == "overlapped":  # whose loops depend on sizes
            group, alike = Group(dataclasses.replace(placement, mesh=mesh), pattern), number
            group.add(number, pattern, mesh)
        self.collective_groups[alike] = group
        self.rows.append(Row(devices, layout, mesh))

    def _settle(
        self, layout: Layout, mesh: MeshShape, bits: int
    ) -> tuple[Placement, Pattern] | None:
        try:
            placement = settle(self.model, self.dtypes, layout, mesh)
        except LayoutError:
            return None
        entries = self._entries(placement, bits)
        if placement.prefill is not placement:
            entries += self._entries(placement.prefill, bits)
        return placement, Pattern.of(tuple(entries))

    def _entries(self, placement: Placement, bits: int) -> list[Axes]:
        """Mesh axes that divide each dimension of all arrays; layouts share their tables."""
        found = []
        for names, kind, arrays in _ARRAYS:
            tables = tuple(placement.tables[name] for name in names)
            key = arrays, tables, bits & self._divisibility.asked(*tables)
            if key not in self._divided:
                self._divided[key] = [
                    axes
                    for letters in arrays.split()
                    if placement.sizes.keys() >= _OF_SOME & set(letters)
                    for axes in division(getattr(placement, kind)(letters))
                ]
            found += self._divided[key]
        return found

    def of(self, devices: int) -> range:
        """Numbers of the rows of so many devices."""
        return self._ranges[devices]

    def placement(self, number: int) -> Placement:
        """A row's layout settled on its mesh."""
        row = self.rows[number]
        return settle(self.model, self.dtypes, row.layout, row.mesh)

    @functools.cached_property
    def multiples(self) -> np.ndarray:
        """What batches of each row are padded to."""
        return self._together.multiple("B")

    def lines(self, dtypes: Dtypes, context: int, slots: int, prompt: int | None) -> BatchLine:
        """Decode steps of all rows, each field an array; beside a prompt, its activations fit too.

        Args:
          dtypes: how numbers are stored.
          context: tokens in the cache of each sequence.
          slots: tokens that it has room for.
          prompt: tokens of a prompt; None for none.
        """
        found = self._counter(dtypes).line(context, slots)
        if prompt is not None:
            beside = self._prefill(dtypes, prompt).activations
            found = found._replace(resident=found.resident + beside)
        return BatchLine(*np.array(np.broadcast_arrays(*found), float))

    def prompts(self, dtypes: Dtypes, tokens: int, experts: str) -> np.ndarray:
        """Bytes that a padded prompt's pass moves on each device, FLOPs, rows, experts' FLOPs."""
        one = self._prefill(dtypes, tokens, experts)
        moved = one.memory + 2 * one.weights_gathered
        return np.array(np.broadcast_arrays(moved, one.flops, one.rows, one.expert_flops))

    def prompt_lines(self, dtypes: Dtypes, tokens: int) -> PromptLine:
        """What each prompt of a service adds to steps, each field an array."""
        counter, counts = self._counter(dtypes), self._prefill(dtypes, tokens)
        found = counter.prompt_line(counts, self.multiples)
        return PromptLine(*np.array(np.broadcast_arrays(*found, self.multiples)[:-1], float))

    def _counter(self, dtypes: Dtypes) -> PassCounter:
        return PassCounter(self.model, self._together, dtypes)

    def _prefill(self, dtypes: Dtypes, tokens: int, experts: str | None = None) -> Counts:
        counter = PassCounter(self.model, self._together.prefill, dtypes)
        return counter.count(Pass(self.multiples, 0, tokens), experts)

    @functools.cached_property
    def _together(self) -> PlacementsOnMeshes:
        """The placements of all rows at once."""
        which = np.empty(len(self.rows), int)
        meshes = np.empty((len(MESH_AXES), len(self.rows)), int)
        for place, group in enumerate(self.groups.values()):
            which[group.numbers] = place
            meshes[:, group.numbers] = [*group.placement.mesh.values()]
        firsts = tuple(group.first for group in self.groups.values())
        divides = tuple(self._divisibility.of(first.mesh) for first in firsts)
        mesh, sizes = dict(zip(MESH_AXES, meshes, strict=True)), self.model.sizes
        return PlacementsOnMeshes(None, sizes, mesh, firsts, divides, which, self._divisibility)


def _tables(layout: Layout) -> list[Table]:
    """All tables of a layout, and of that of its prompts."""
    both = (layout, layout.prefill) if layout.prefill else (layout,)
    return [tuple(each.table(kind).items()) for each in both for kind in KINDS]
