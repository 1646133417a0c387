"""Layouts on many meshes at once: counts of bytes, FLOPs and devices are arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from profiles.plan.divisibility import Divisibility
from sharding.axes import MESH_AXES
from sharding.layout import KINDS
from sharding.placement import Placement, used_axes

BIT = {axis: 1 << place for place, axis in enumerate(MESH_AXES)}
"""Sets of mesh axes as numbers: a bit for each axis."""
_TABLES = {"contracted": ("use", "activations"), "beside_stored": ("weights", "activations")}
"""Kinds of arrays that more than one table says how to divide, or another than their own."""


@dataclasses.dataclass(frozen=True)
class _OnMeshes(Placement):
    """What layouts on many meshes have in common.

    Attributes:
      mesh: mesh axis -> devices along it, in an array with an entry for each mesh.
    """

    mesh: Mapping[str, np.ndarray]

    def _multiple(self, letter: str) -> np.ndarray:
        both = self, self.prefill
        return np.lcm.reduce([each.parts((kind, letter)) for kind in KINDS for each in both])


@dataclasses.dataclass(frozen=True)
class PlacementOnMeshes(_OnMeshes):
    """A layout on many meshes.

    Attributes:
      first: the layout settled on one of them, which says what divides what.
    """

    first: Placement

    @functools.cached_property
    def prefill(self) -> "PlacementOnMeshes":
        """The placement of prompts."""
        first = self.first.prefill
        if first is self.first:
            return self
        return dataclasses.replace(self, layout=first.layout, first=first)

    def with_sizes(self, sizes: Mapping[str, int]) -> "PlacementOnMeshes":
        """The same layout and meshes as arrays of other sizes meet them."""
        if sizes == self.sizes:
            return self
        return dataclasses.replace(self, sizes=dict(sizes), first=self.first.with_sizes(sizes))

    def _divided_spec(self, kind: str, letters: str) -> jax.P:
        return self.first._spec(kind, letters)

    def _parts(self, *arrays: tuple[str, str]) -> np.ndarray:
        dividing = self.first.dividing(*arrays)
        return math.prod(
            devices if axis in dividing else np.ones_like(devices)
            for axis, devices in self.mesh.items()
        )


@dataclasses.dataclass(frozen=True)
class PlacementsOnMeshes(_OnMeshes):
    """Many layouts, each on meshes of its own, of which there are counts, but no shardings.

    Attributes:
      firsts: the layouts, each settled on one mesh, which say what divides what.
      divides: for each of these what its mesh divides, see `Divisibility.of`.
      which: number of the one among them that each mesh goes with.
      divisibility: says what tables ask for.
    """

    firsts: tuple[Placement, ...]
    divides: tuple[int, ...]
    which: np.ndarray
    divisibility: Divisibility

    @functools.cached_property
    def prefill(self) -> "PlacementsOnMeshes":
        """The placement of prompts."""
        firsts = tuple(first.prefill for first in self.firsts)
        return self if firsts == self.firsts else dataclasses.replace(self, firsts=firsts)

    def with_sizes(self, sizes: Mapping[str, int]) -> "PlacementsOnMeshes":
        """The same layouts and meshes as arrays of other sizes meet them."""
        if sizes == self.sizes:
            return self
        firsts = tuple(first.with_sizes(sizes) for first in self.firsts)
        return dataclasses.replace(self, sizes=dict(sizes), firsts=firsts)

    def _parts(self, *arrays: tuple[str, str]) -> np.ndarray:
        dividing = np.bitwise_or.reduce([self._bits(*array) for array in arrays])[self.which]
        return math.prod(
            np.where(dividing & BIT[axis], devices, 1) for axis, devices in self.mesh.items()
        )

    @functools.cached_property
    def _bits(self) -> Callable[[str, str], np.ndarray]:
        return functools.cache(self._find_bits)

    def _find_bits(self, kind: str, letters: str) -> np.ndarray:
        """Mesh axes that divide an array in each of the first layouts, found once for like ones."""
        found: dict[object, int] = {}
        for first, key in zip(self.firsts, self._keys(kind), strict=True):
            if key not in found:
                axes = used_axes(getattr(first, kind)(letters))
                found[key] = sum(BIT[axis] for axis in axes)
        return np.array([found[key] for key in self._keys(kind)], int)

    @functools.cached_property
    def _keys(self) -> Callable[[str], list[int]]:
        return functools.cache(self._find_keys)

    def _find_keys(self, kind: str) -> list[int]:
        """A number for all that decides how each of the first layouts divides a kind of arrays."""
        names, asked = _TABLES.get(kind, (kind,)), self.divisibility.asked
        tables = [tuple(first.tables[name] for name in names) for first in self.firsts]
        keys = [
            (each, bits & asked(*each)) for each, bits in zip(tables, self.divides, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return [numbers[key] for key in keys]
