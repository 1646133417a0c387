"""Partitioning layouts as data: which mesh axes divide which logical axis of an array.

A `Layout` is three tables (weights, activations, KV cache). The transformer is written once and
asks a `Placement` (a layout checked against one model's sizes and one mesh) for the sharding
of each array it creates; collectives happen where two neighbouring shardings differ. Layouts
follow Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 3.2.

Adding a layout is adding an entry to `LAYOUTS`.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import jax

from sharding.axes import LOGICAL_AXES, MESH_AXES
from sharding.errors import LayoutError, UsageError

Axes = tuple[str, ...]
Table = Mapping[str, Axes]
Rule = Literal["refuse", "replicate"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A partitioning strategy.

    A table says which mesh axes divide which logical axis. A key of several letters, ``"K h"``,
    lets them share: the first takes the longest run of the mesh axes that divides it, the next
    what is left. A letter in no key is whole on every chip.

    Attributes:
      name: what ``--layout`` calls it.
      weights: for stored weights.
      activations: for arrays between layers.
      cache: for keys and values.
      rules: what happens, by key, when sizes do not divide: ``refuse`` the mesh, or
        ``replicate`` the arrays and say so. A key without a rule refuses.
      summary: one line on when to use it.
    """

    name: str
    weights: Table
    activations: Table
    cache: Table
    rules: Mapping[str, Rule]
    summary: str

    def check(self, sizes: Mapping[str, int], mesh: Mapping[str, int]) -> "Placement":
        """Settles this layout for one model on one mesh; allocates nothing.

        Args:
          sizes: logical axis -> length, as `ModelConfig.sizes` gives them.
          mesh: mesh axis -> devices.

        Raises:
          LayoutError: an axis that must divide does not; the message names the axis, both sizes
            and shard counts that would work.
        """
        placement = Placement(self, dict(sizes), dict(mesh))
        for kind in KINDS:
            for key in getattr(self, kind):
                letters = tuple(key.split())
                rest = placement.left_over(kind, letters)
                if rest and self.rules.get(key, "refuse") == "refuse":
                    raise _refusal(letters, sizes, rest, mesh)
        return placement


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layout settled for one model on one mesh: the sharding of every array.

    Attributes:
      layout: the strategy.
      sizes: logical axis -> length.
      mesh: mesh axis -> devices.
    """

    layout: Layout
    sizes: Mapping[str, int]
    mesh: Mapping[str, int]

    def weights(self, *axes: str | None) -> jax.P:
        """Sharding of a stored weight, one logical axis per dimension; None is whole."""
        return self._spec("weights", axes)

    def activations(self, *axes: str | None) -> jax.P:
        """Sharding of an activation, one logical axis per dimension; None is whole."""
        return self._spec("activations", axes)

    def cache(self, *axes: str | None) -> jax.P:
        """Sharding of keys or values, one logical axis per dimension; None is whole."""
        return self._spec("cache", axes)

    @property
    def devices(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.mesh.values())

    def copies(self, spec: jax.P) -> int:
        """How many devices hold each element of an array of this sharding."""
        return self.devices // shards(used_axes(spec), self.mesh)

    def left_over(self, kind: str, axes: tuple[str | None, ...]) -> Axes:
        """Mesh axes that the layout gives to these logical axes but that divide none of them."""
        return tuple(axis for rest in self._settle(kind, axes)[1] for axis in rest)

    def _spec(self, kind: str, axes: tuple[str | None, ...]) -> jax.P:
        taken, _ = self._settle(kind, axes)
        return jax.P(*(_entry(taken.get(axis, ())) for axis in axes))

    def _settle(
        self, kind: str, axes: tuple[str | None, ...]
    ) -> tuple[dict[str | None, Axes], list[Axes]]:
        """Mesh axes taken by each logical axis of one array, and those left over by each key."""
        taken: dict[str | None, Axes] = {}
        left = []
        for key, mesh_axes in getattr(self.layout, kind).items():
            rest = tuple(axis for axis in mesh_axes if self.mesh[axis] > 1)
            present = [letter for letter in key.split() if letter in axes]
            for letter in present:
                taken[letter], rest = longest_dividing_run(self.sizes[letter], rest, self.mesh)
            if present and rest:
                left.append(rest)
        return taken, left


def used_axes(spec: jax.P) -> Axes:
    """The mesh axes that a sharding names, in order."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in spec if entry)
    return tuple(axis for entry in entries for axis in entry)


def shards(axes: Axes, mesh: Mapping[str, int]) -> int:
    """Into how many parts these mesh axes divide a dimension."""
    return math.prod(mesh[axis] for axis in axes)


def longest_dividing_run(size: int, axes: Axes, mesh: Mapping[str, int]) -> tuple[Axes, Axes]:
    """Splits `axes` into the longest leading run whose shards divide `size`, and the rest."""
    best = max(n for n in range(len(axes) + 1) if size % shards(axes[:n], mesh) == 0)
    return axes[:best], axes[best:]


def find_layout(name: str) -> Layout:
    """The catalogue's layout of this name.

    Raises:
      UsageError: there is none.
    """
    if name not in LAYOUTS:
        raise UsageError(f"layout is {name!r}; use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _entry(axes: Axes) -> str | Axes | None:
    return axes[0] if len(axes) == 1 else axes or None


def _refusal(
    letters: tuple[str, ...], sizes: Mapping[str, int], axes: Axes, mesh: Mapping[str, int]
) -> LayoutError:
    size, parts = math.prod(sizes[letter] for letter in letters), shards(axes, mesh)
    names = " times ".join(LOGICAL_AXES[letter].split(",")[0].split(":")[0] for letter in letters)
    where = " ".join(f"{axis}={mesh[axis]}" for axis in axes)
    working = [n for n in range(1, min(max(2 * parts, 9), size + 1)) if size % n == 0]
    *most, last = sorted(sorted(working, key=lambda n: abs(n - parts))[:4])
    return LayoutError(
        f"{names} is {size}, which mesh axes {where} ({parts} shards) do not divide; "
        f"use {', '.join(map(str, most))} or {last} shards"
    )


_ALL = tuple(MESH_AXES)
KINDS = ("weights", "activations", "cache")

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(
                name="weight_stationary_1d",
                weights={"F": _ALL, "K G h": _ALL, "V": _ALL},
                activations={"F": _ALL, "K G": _ALL, "V": _ALL},
                cache={"K": _ALL},
                rules={
                    "K G h": "replicate",
                    "K G": "replicate",
                    "K": "replicate",
                    "V": "replicate",
                },
                summary="few chips: every chip keeps its slice of d_ff, heads and vocabulary; "
                "two all-reduces of [B, T, D] per layer",
            ),
        )
    }
)
