"""Which sizes of a model a mesh's axes divide: all that decides how a layout divides arrays on it.

Meshes that agree in what its tables ask for are alike to it, whatever else they differ in.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sharding.layout import Axes
from sharding.mesh import MeshShape
from sharding.placement import shards

Table = tuple[tuple[str, Axes], ...]
"""Letters, and the mesh axes that divide them, as `Placement.tables` has them."""


class _Fact(NamedTuple):
    """What may be so of a mesh: an axis has devices along it, or axes divide a size."""

    axes: Axes
    size: int | None = None
    unit: int = 1

    def holds(self, mesh: MeshShape) -> bool:
        """Whether it is so."""
        parts = shards(self.axes, mesh)
        return parts > 1 if self.size is None else self.size % (parts * self.unit) == 0


class Divisibility:
    """What is so of a mesh, in a bit each.

    Args:
      sizes: logical axis -> length.
      units: what the parts of a size must be multiples of, such as groups that share a scale.
    """

    def __init__(self, sizes: Mapping[str, int], units: Iterable[int]):
        self._sizes, self._units = sizes, sorted({*units})
        self._bits: dict[_Fact, int] = {}
        self._asked: dict[Table, int] = {}

    def asked(self, *tables: Table) -> int:
        """The bits that decide over which axes these tables divide arrays."""
        found = 0
        for table in tables:
            if table not in self._asked:
                facts = self._facts(table)
                bits = {self._bits.setdefault(fact, 1 << len(self._bits)) for fact in facts}
                self._asked[table] = sum(bits)
            found |= self._asked[table]
        return found

    def of(self, mesh: MeshShape) -> int:
        """All bits of a mesh that were asked for until now."""
        return sum(bit for fact, bit in self._bits.items() if fact.holds(mesh))

    def _facts(self, table: Table) -> Iterator[_Fact]:
        for letters, axes in table:
            yield from (_Fact((axis,)) for axis in axes)
            lengths = {self._sizes.get(letter) for letter in letters.split()} - {None}
            runs = (itertools.combinations(axes, count + 1) for count in range(len(axes)))
            for run, size, unit in itertools.product(itertools.chain(*runs), lengths, self._units):
                yield _Fact(run, size, unit)
