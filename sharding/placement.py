"""A layout settled for one model's sizes and one mesh, or the mesh refused.

The transformer is written once and asks a `Placement` for the sharding of each array; a collective
happens where two neighbouring shardings differ. The tables are those of `sharding.layout.Layout`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax

from sharding.axes import LOGICAL_AXES, UNDIVIDED
from sharding.error_types import LayoutError
from sharding.layout import KINDS, Axes, Layout, Rule

_T = TypeVar("_T")
_Items = tuple[tuple[str, _T], ...]
"""A mapping that can be a key of another."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layout settled for one model on one mesh: the sharding of every array.

    An array is asked for by its letters, one for each dimension; see `sharding.axes`. Answers are
    kept as long as the placement: whoever counts a layout's costs asks for the same many times.

    Attributes:
      layout: the strategy.
      sizes: logical axis -> length.
      mesh: mesh axis -> devices.
    """

    layout: Layout
    sizes: Mapping[str, int]
    mesh: Mapping[str, int]

    @classmethod
    def of(cls, layout: Layout, sizes: Mapping[str, int], mesh: Mapping[str, int]) -> "Placement":
        """Settles a layout for one model on one mesh, or refuses the mesh; allocates nothing.

        Args:
          layout: the strategy.
          sizes: logical axis -> length, as `ModelConfig.sizes` gives them. Batch and slots are
            not among them: whoever makes arrays rounds them up to `Placement.multiple`.
          mesh: mesh axis -> devices.

        Raises:
          LayoutError: an axis that must divide does not; the message names the axis, both sizes
            and shard counts that would work.
        """
        placement = cls(layout, dict(sizes), dict(mesh))
        rules, lengths = tuple(layout.rules.items()), tuple(sizes.items())
        for kind in ("weights", "use", "cache"):
            table = placement.tables[kind]
            if refused := _refused(table, rules, lengths, placement._mesh_items):
                raise _refusal(*refused, sizes, mesh)
        if layout.prefill:
            cls.of(layout.prefill, sizes, mesh)
        return placement

    def with_sizes(self, sizes: Mapping[str, int]) -> "Placement":
        """The same layout and mesh as arrays of other sizes meet them.

        Args:
          sizes: logical axis -> length, in place of those that there are.
        """
        return self if sizes == self.sizes else dataclasses.replace(self, sizes=dict(sizes))

    def weights(self, letters: str) -> jax.P:
        """Sharding of a stored weight."""
        return self._spec("weights", letters)

    def use(self, letters: str) -> jax.P:
        """Sharding of a weight as a matmul reads it."""
        return self._spec("use", letters)

    def activations(self, letters: str) -> jax.P:
        """Sharding of an activation."""
        return self._spec("activations", letters)

    def contracted(self, letters: str) -> jax.P:
        """Sharding of an activation that a matmul contracts: as its weight, batch as ever."""
        return self._beside("use", letters, self.activations("B")[0])

    def beside_stored(self, letters: str) -> jax.P:
        """Sharding of an activation that meets the stored vocabulary, which is never gathered.

        Batch keeps the mesh axes that divide neither V nor D, d_model is as the weights have it.
        """
        table = [axes for key, axes in self.layout.weights.items() if {"V", "D"} & {*key.split()}]
        taken = {axis for mesh_axes in table for axis in mesh_axes}
        batch = tuple(axis for axis in used_axes(self.activations("B")) if axis not in taken)
        return self._beside("weights", letters, entry(batch))

    def attention(self, letters: str) -> jax.P:
        """Sharding of an array within attention."""
        return self._spec("attention", letters)

    def cache(self, letters: str) -> jax.P:
        """Sharding of keys, values or their scales."""
        return self._spec("cache", letters)

    @property
    def devices(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.mesh.values())

    def copies(self, spec: jax.P) -> int:
        """How many devices hold each element of an array of this sharding."""
        return self.devices // shards(used_axes(spec), self.mesh)

    @functools.cached_property
    def prefill(self) -> "Placement":
        """The placement of prompts."""
        layout = self.layout.prefill
        return dataclasses.replace(self, layout=layout) if layout else self

    def share(self, *arrays: tuple[str, str]) -> float:
        """The part that each device has of an array: one of `parts`."""
        return 1 / self.parts(*arrays)

    @functools.cached_property
    def parts(self) -> Callable[..., int]:
        """``parts((kind, letters), ...)``: into how many parts an array is divided.

        Each argument is a kind of array, such as ``activations``, and letters. Of several, the
        number is that of an array divided as all of them are together, each mesh axis counted once.
        """
        return functools.cache(self._parts)

    def _parts(self, *arrays: tuple[str, str]) -> int:
        return shards(tuple(self.dividing(*arrays)), self.mesh)

    def dividing(self, *arrays: tuple[str, str]) -> set[str]:
        """Mesh axes that divide any of these arrays."""
        specs = [getattr(self, kind)(letters) for kind, letters in arrays]
        return {axis for spec in specs for axis in used_axes(spec)}

    @functools.cached_property
    def multiple(self) -> Callable[[str], int]:
        """``multiple(letter)``: what a batch (B) or number of slots (S) must be a multiple of."""
        return functools.cache(self._multiple)

    def _multiple(self, letter: str) -> int:
        specs = [p._spec(kind, letter) for kind in KINDS for p in (self, self.prefill)]
        return math.lcm(*(shards(used_axes(spec), self.mesh) for spec in specs))

    def check_batch(self, batch: int) -> None:
        """Refuses a batch that its shards do not divide.

        Raises:
          LayoutError: the batch does not divide; the message names batches that do.
        """
        parts = self.multiple("B")
        if batch % parts:
            near = batch // parts * parts
            raise LayoutError(
                f"batch is {batch}, which {self.layout.name} divides into {parts} shards; "
                f"use {f'{near} or ' if near else ''}{near + parts}"
            )

    def unused_axes(self, kind: str, letters: str) -> Axes:
        """Mesh axes that the layout gives to some of an array's dimensions but that divide none."""
        unused = self._divide(kind, letters).unused.values()
        return tuple(dict.fromkeys(axis for rest in unused for axis in rest))

    def _beside(self, kind: str, letters: str, batch: str | Axes | None) -> jax.P:
        """Sharding of an activation that meets a weight: as that, and batch over these axes."""
        spec = self._spec(kind, letters.replace("B", UNDIVIDED))
        pairs = zip(letters, spec, strict=True)
        return jax.P(*(batch if letter == "B" else by for letter, by in pairs))

    @functools.cached_property
    def _spec(self) -> Callable[[str, str], jax.P]:
        return functools.cache(self._divided_spec)

    def _divided_spec(self, kind: str, letters: str) -> jax.P:
        return self._divide(kind, letters).spec

    @functools.cached_property
    def tables(self) -> dict[str, _Items[Axes]]:
        """The layout's tables by their names, as tuples."""
        return {kind: tuple(self.layout.table(kind).items()) for kind in KINDS}

    @functools.cached_property
    def _mesh_items(self) -> _Items[int]:
        return tuple(self.mesh.items())

    def _divide(self, kind: str, letters: str) -> "_Divided":
        # 0: rounded up until it divides
        lengths = tuple([self.sizes.get(letter, 0) for letter in letters])
        return _divide(self.tables[kind], letters, lengths, self._mesh_items)


class _Divided(NamedTuple):
    """Mesh axes that each letter of one array takes, and by key those that none takes."""

    spec: jax.P
    unused: dict[str, Axes]


@functools.lru_cache(maxsize=2**16)
def _divide(
    table: _Items[Axes], letters: str, lengths: tuple[int, ...], mesh_items: _Items[int]
) -> _Divided:
    """Divides one array; layouts that differ elsewhere share what was found."""
    mesh, sizes = dict(mesh_items), dict(zip(letters, lengths, strict=True))
    taken: dict[str, Axes] = {}
    free = {axis for axis, size in mesh.items() if size > 1}
    unused: dict[str, Axes] = {}
    for key, mesh_axes in table:
        present = [letter for letter in key.split() if letter in letters]
        if not present:
            continue
        rest = tuple(axis for axis in mesh_axes if axis in free)
        for letter in present:
            taken[letter], rest = longest_dividing_run(sizes[letter], rest, mesh)
            free -= {*taken[letter]}
        unused[key] = rest
    still_free = {key: tuple(axis for axis in rest if axis in free) for key, rest in unused.items()}
    return _Divided(jax.P(*[entry(taken.get(letter, ())) for letter in letters]), still_free)


@functools.lru_cache(maxsize=2**14)
def _refused(
    table: _Items[Axes], rules: _Items[Rule], sizes: _Items[int], mesh: _Items[int]
) -> tuple[str, Axes] | None:
    """Letters and the mesh axes that must divide them but do not; None where all do."""
    lengths, rule_of = dict(sizes), dict(rules)
    for key, _ in table:
        letters = "".join(letter for letter in key.split() if letter in lengths)
        # The d_ff of experts divides what they leave; it is in no array without them.
        array = letters + ("E" if "F" in letters and "E" in lengths else "")
        rest = _divide(table, array, tuple(map(lengths.get, array)), mesh).unused.get(key, ())
        if rest and rule_of.get(key, "refuse") == "refuse":
            return letters, rest
    return None


@functools.lru_cache(maxsize=2**14)
def used_axes(spec: jax.P) -> Axes:
    """The mesh axes that a sharding names, in order."""
    return tuple(axis for dimension in spec for axis in entry_axes(dimension))


def shards(axes: Axes, mesh: Mapping[str, int]) -> int:
    """Into how many parts these mesh axes divide a dimension."""
    return math.prod(mesh[axis] for axis in axes)


def longest_dividing_run(size: int, axes: Axes, mesh: Mapping[str, int]) -> tuple[Axes, Axes]:
    """Splits `axes` into the longest leading run whose shards divide `size`, and the rest."""
    best = len(axes)
    while size % shards(axes[:best], mesh):
        best -= 1
    return axes[:best], axes[best:]


def entry(axes: Axes) -> str | Axes | None:
    """Mesh axes as one dimension's entry of a `jax.P`."""
    return axes[0] if len(axes) == 1 else axes or None


def entry_axes(entry: str | Axes | None) -> Axes:
    """The mesh axes of one dimension's entry."""
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


@functools.lru_cache(maxsize=2**14)
def division(spec: jax.P) -> tuple[Axes, ...]:
    """The mesh axes of every dimension."""
    return tuple(map(entry_axes, spec))


def _refusal(
    letters: str, axes: Axes, sizes: Mapping[str, int], mesh: Mapping[str, int]
) -> LayoutError:
    size, parts = math.prod(sizes[letter] for letter in letters), shards(axes, mesh)
    names = " times ".join(LOGICAL_AXES[letter].split(",")[0].split(":")[0] for letter in letters)
    taken = " ".join(f"{axis}={mesh[axis]}" for axis in axes)
    working = [n for n in range(1, min(max(2 * parts, 9), size + 1)) if size % n == 0]
    *others, last = sorted(sorted(working, key=lambda n: abs(n - parts))[:4])
    return LayoutError(
        f"{names} is {size}, which mesh axes {taken} ({parts} shards) do not divide; "
        f"use {', '.join(map(str, others))} or {last} shards"
    )
