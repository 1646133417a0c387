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

    Attributes:
      name: what ``--layout`` calls it.
      weights: logical axis -> mesh axes that divide it in stored weights. A missing letter is
        whole on every chip. ``heads`` stands for K and G together: K takes the longest run of
        the mesh axes that divides it and G takes the rest, so that array shapes do not depend on
        the layout.
      activations: the same for arrays between layers.
      cache: the same for keys and values.
      rules: what happens to a logical axis that its mesh axes do not divide: ``refuse`` the
        mesh, or ``replicate`` the arrays and say what that costs. Unlisted letters refuse.
      summary: one line on when to use it.
    """

    name: str
    weights: Table
    activations: Table
    cache: Table
    rules: Mapping[str, Rule]
    summary: str

    def check(self, sizes: Mapping[str, int], mesh: Mapping[str, int]) -> "Placement":
        """Settles every axis of this layout for one model on one mesh; allocates nothing.

        Args:
          sizes: logical axis -> length, as `ModelConfig.sizes` gives them.
          mesh: mesh axis -> devices.

        Raises:
          LayoutError: an axis that must divide does not; the message names the axis, both sizes
            and device counts that would work.
        """
        tables, choices = {}, {}
        for kind in ("weights", "activations", "cache"):
            tables[kind], replicated = self._settle(getattr(self, kind), sizes, mesh)
            choices |= {(choice.axis, choice.mesh_axes): choice for choice in replicated}
        return Placement(self, dict(mesh), tables, tuple(choices.values()))

    def _settle(
        self, table: Table, sizes: Mapping[str, int], mesh: Mapping[str, int]
    ) -> tuple[dict[str, Axes], list["Replication"]]:
        """Resolves one table; returns it and the choices that replicate something."""
        settled, replicated = {}, []
        for letter, axes in table.items():
            axes = tuple(axis for axis in axes if mesh[axis] > 1)
            if letter == "heads":
                settled["K"], rest = longest_dividing_run(sizes["K"], axes, mesh)
                settled["G"], rest = longest_dividing_run(sizes["G"], rest, mesh)
                shared = rest + settled["G"]
                if rest and self._rule(letter) == "refuse":
                    raise _refusal(letter, sizes["K"] * sizes["G"], axes, mesh)
                if rest:
                    replicated.append(Replication("heads", rest, _heads_reason(sizes, rest, mesh)))
                if shared and settled["G"]:
                    replicated.append(Replication("K", shared, _cache_reason(sizes, shared, mesh)))
            elif sizes[letter] % shards(axes, mesh) == 0:
                settled[letter] = axes
            elif self._rule(letter) == "replicate":
                settled[letter], rest = longest_dividing_run(sizes[letter], axes, mesh)
                reason = (
                    f"{_name(letter)} {sizes[letter]} does not divide over {_sizes(rest, mesh)}"
                )
                replicated.append(Replication(letter, rest, reason))
            else:
                raise _refusal(letter, sizes[letter], axes, mesh)
        return settled, replicated

    def _rule(self, letter: str) -> Rule:
        return self.rules.get(letter, "refuse")


@dataclasses.dataclass(frozen=True)
class Replication:
    """A choice a layout made because sizes do not divide: copies over some mesh axes.

    Attributes:
      axis: the logical axis (or ``heads``) that stays whole.
      mesh_axes: the mesh axes over which its arrays are copied.
      reason: one clause for people, naming both sizes.
    """

    axis: str
    mesh_axes: Axes
    reason: str


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layout settled for one model on one mesh: the sharding of every array."""

    layout: Layout
    mesh: Mapping[str, int]
    tables: Mapping[str, Mapping[str, Axes]]
    replications: tuple[Replication, ...]

    def weights(self, *axes: str) -> jax.P:
        """Sharding of a stored weight, one logical axis per dimension."""
        return self._spec("weights", axes)

    def activations(self, *axes: str) -> jax.P:
        """Sharding of an activation, one logical axis per dimension."""
        return self._spec("activations", axes)

    def cache(self, *axes: str) -> jax.P:
        """Sharding of keys or values, one logical axis per dimension."""
        return self._spec("cache", axes)

    @property
    def devices(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.mesh.values())

    def copies(self, spec: jax.P) -> int:
        """How many devices hold each element of an array of this sharding."""
        return self.devices // shards(used_axes(spec), self.mesh)

    def _spec(self, kind: str, axes: tuple[str, ...]) -> jax.P:
        table = self.tables[kind]
        return jax.P(*(_entry(table.get(axis, ())) for axis in axes))


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


def _sizes(axes: Axes, mesh: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={mesh[axis]}" for axis in axes)


def _name(letter: str) -> str:
    return LOGICAL_AXES.get(letter, letter).split(",")[0].split(":")[0]


def _heads_reason(sizes: Mapping[str, int], axes: Axes, mesh: Mapping[str, int]) -> str:
    return (
        f"{sizes['K'] * sizes['G']} query heads in {sizes['K']} KV heads "
        f"do not divide over {_sizes(axes, mesh)}"
    )


def _cache_reason(sizes: Mapping[str, int], axes: Axes, mesh: Mapping[str, int]) -> str:
    return f"{sizes['K']} KV heads are shared by devices along {_sizes(axes, mesh)}"


def _refusal(letter: str, size: int, axes: Axes, mesh: Mapping[str, int]) -> LayoutError:
    parts = shards(axes, mesh)
    working = [n for n in range(1, max(2 * parts, 9)) if size % n == 0]
    nearest = sorted(sorted(working, key=lambda n: abs(n - parts))[:4])
    return LayoutError(
        f"{_name(letter)} is {size}, which mesh axes {_sizes(axes, mesh)} ({parts} shards) do not "
        f"divide; use {', '.join(map(str, nearest[:-1]))} or {nearest[-1]} shards"
    )


_ALL = tuple(MESH_AXES)

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(
                name="weight_stationary_1d",
                weights={"F": _ALL, "heads": _ALL, "V": _ALL},
                activations={"F": _ALL, "heads": _ALL, "V": _ALL},
                cache={"heads": _ALL},
                rules={"F": "refuse", "heads": "replicate", "V": "replicate"},
                summary="few chips: every chip keeps its slice of d_ff, heads and vocabulary; "
                "two all-reduces of [B, T, D] per layer",
            ),
        )
    }
)
