"""A partitioning strategy as data: which mesh axes divide which logical axis of an array.

`Layout` is five tables: weights as stored, weights in use, activations, attention, KV cache.
`sharding.catalog` has the layouts that there are, and `sharding.placement` settles one for a
model's sizes and a mesh, or refuses the mesh.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

KINDS = ("weights", "use", "activations", "attention", "cache")

Axes = tuple[str, ...]
Table = Mapping[str, Axes]
Rule = Literal["refuse", "replicate"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A partitioning strategy.

    A table says which mesh axes divide which logical axis. A key of several letters, ``"K h"``,
    lets them share: the first takes the longest run of the mesh axes that divides it, the next
    what is left. A mesh axis divides one dimension of an array: where several keys name it, the
    first that it divides takes it. A letter in no key is whole on every chip.

    Where partial sums are scattered, the axes scattered over come last in the result's entry, and
    axes gathered come last in the stored one: in any other order XLA moves whole arrays instead.

    Attributes:
      name: what ``--layout`` calls it.
      weights: table for stored weights.
      activations: table for arrays between layers and for what matmuls make.
      attention: table for queries and what attention makes of them.
      cache: table for keys and values.
      rules: what happens, by key, when sizes of stored arrays do not divide: ``refuse`` the mesh,
        or ``replicate`` the arrays and say so. A key without a rule refuses. What matmuls make is
        divided as far as it goes.
      summary: one line on when to use it.
      use: table for weights as matmuls read them; a stored weight that is divided further is
        gathered just before. None for the same table as `weights`.
      attends: how attention is divided: ``heads``, ``batch`` or ``sequence``.
      collectives: who schedules those beside matmuls: the ``compiler``, or loops written by hand in
        which they are ``overlapped`` with the products.
      prefill: layout for prompts, over the same stored weights and into the same cache; None for
        this one.
    """

    name: str
    weights: Table
    activations: Table
    attention: Table
    cache: Table
    rules: Mapping[str, Rule]
    summary: str
    use: Table | None = None
    attends: str = "heads"
    collectives: str = "compiler"
    prefill: "Layout | None" = None

    @property
    def expert_parallel(self) -> bool:
        """Whether mesh axes divide the experts of a mixture, before they divide any of them."""
        return "E" in self.weights

    def table(self, kind: str) -> Table:
        """One of the tables by its name."""
        if kind == "use":
            return self.weights if self.use is None else self.use
        return getattr(self, kind)
