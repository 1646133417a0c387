"""One collective of a step, as a layout asks for it or as a compiler made it.

Lists of `Collective` are what expected and compiled steps are compared by, so equality speaks of
what crosses links: kind, mesh axes, payload, count and place. How it came about is beside that.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable

from profiles.floor.element_types import bits
from sharding.collectives import Division, reshard_path
from sharding.layout import Axes

OVERLAPS = PRODUCT, WORK, PREFETCH, ALONE = (
    "beside a product", "beside other work", "beside a prefetch", "alone",
)  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute", "broadcast")

_IN_LAYERS = re.compile(r"layer(_\d+)?(/|$)")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """A collective, equal to another if the same bytes move over the same mesh axes as often.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that its groups span, in the mesh's order; axes of size 1 never appear.
      payload_bytes: per device, of the larger side: an all-gather's result, the operand of all
        others.
      count: times per step, trip counts of loops applied.
      where: the chain of named scopes, such as ``layer_0/mlp``; empty if unknown.
      element: HLO's name of the element type, such as ``bf16``; empty if unknown.
      by_hand: written in `shard_map`, so that no compiler chose its kind.
      asynchronous: started and awaited apart, so that work may overlap it.
      overlap: what a scheduled program does meanwhile, one of `OVERLAPS`; empty if unknown.
      of_weights: its payload is of weights, the same for every batch; known of expected ones.
    """

    kind: str
    axes: tuple[str, ...]
    payload_bytes: int
    count: int = 1
    where: str = ""
    element: str = dataclasses.field(default="", compare=False)
    by_hand: bool = dataclasses.field(default=False, compare=False)
    asynchronous: bool = dataclasses.field(default=False, compare=False)
    overlap: str = dataclasses.field(default="", compare=False)
    of_weights: bool = dataclasses.field(default=False, compare=False)

    @property
    def in_layers(self) -> bool:
        """Whether layers run it, as in ``layer_0/mlp`` and ``layer``, but not ``layer_inputs``."""
        return _IN_LAYERS.match(self.where) is not None

    def narrowed(self, most: int) -> "Collective":
        """The same with activations in so many bits at most; weights stay as they are stored."""
        if self.of_weights or not self.element or bits(self.element) <= most:
            return self
        payload = self.payload_bytes * most / bits(self.element)
        return dataclasses.replace(self, payload_bytes=payload)

    def as_record(self) -> dict[str, object]:
        """The JSON form; sizes in bytes."""
        return {
            "kind": self.kind,
            "axes": list(self.axes),
            "payload_bytes": self.payload_bytes,
            "count": self.count,
            "where": self.where,
        }


def merge(collectives: Iterable[Collective]) -> list[Collective]:
    """The same collectives, sorted, those alike in all but count added up.

    Of fields that equality leaves out, an entry keeps those of the first that it adds up.
    """
    merged: dict[Collective, Collective] = {}
    for one in collectives:
        key = dataclasses.replace(one, count=1)
        before = merged.get(key)
        merged[key] = dataclasses.replace(before, count=before.count + one.count) if before else one
    return sorted(merged.values())


def merge_by_overlap(collectives: Iterable[Collective]) -> list[Collective]:
    """As `merge`, but those with which a program does different things stay apart."""
    groups: dict[str, list[Collective]] = {}
    for one in collectives:
        groups.setdefault(one.overlap, []).append(one)
    return sorted(each for group in groups.values() for each in merge(group))


def without_places(collectives: Iterable[Collective]) -> list[Collective]:
    """The collectives merged wherever they happen: for comparing programs whose scopes differ."""
    return merge(dataclasses.replace(one, where="") for one in collectives)


@functools.lru_cache(maxsize=2**14)
def changes(start: Division, target: Division) -> list[tuple[str, Axes, Division]]:
    """Collectives of a change of sharding: kind, mesh axes, and the division that each makes."""
    found = []
    for before, after in itertools.pairwise([start, *reshard_path(start, target)]):
        lost = sum((b[len(a) :] for b, a in zip(before, after, strict=True)), ())
        if lost:
            kept = set(lost) <= {axis for axes in after for axis in axes}
            found.append(("all-to-all" if kept else "all-gather", lost, after))
    return found
