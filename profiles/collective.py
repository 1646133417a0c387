"""One collective of a step: what kind, over which mesh axes, of how many bytes, how often."""

import dataclasses
from collections.abc import Iterable

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """A collective as every device of the mesh takes part in it.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that its groups span, in the mesh's order; none of size 1.
      payload_bytes: per device, of the larger side: an all-gather's result, a reduce-scatter's
        operand; of the others, whose sides are alike, either.
      count: times per step.
      where: the block it belongs to, such as ``layer/mlp``; empty if not known.
      by_hand: written as this collective in the program, so that no compiler chose it.
    """

    kind: str
    axes: tuple[str, ...]
    payload_bytes: int
    count: int = 1
    where: str = ""
    by_hand: bool = dataclasses.field(default=False, compare=False)

    def as_record(self) -> dict:
        """The form that reports and programs read."""
        fields = dataclasses.asdict(self)
        del fields["by_hand"]
        return fields


def merge(collectives: Iterable[Collective]) -> list[Collective]:
    """Collectives alike but for their count as one, in the order of where they first stood."""
    merged: dict[tuple, Collective] = {}
    for each in collectives:
        key = (each.kind, each.axes, each.payload_bytes, each.where, each.by_hand)
        before = merged[key].count if key in merged else 0
        merged[key] = dataclasses.replace(each, count=before + each.count)
    return list(merged.values())
