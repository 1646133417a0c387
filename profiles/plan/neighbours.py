"""What is one step from a plan's choice in each direction, and why it lost."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from profiles.plan.cells import Cell
from profiles.plan.joined import travelled
from profiles.plan.search import Candidate, Keep, Search, Targets
from profiles.plan.words import gigabytes, lacking_bytes, name_of, price_of, slice_of
from profiles.report.numbers import exact, milliseconds, number, several


class Lost(NamedTuple):
    """What lost, and why."""

    what: str
    why: str


class Neighbours:
    """What is one step from a choice in each direction.

    Args:
      search: for the plan's targets.
      choice: what was chosen.
      cells: those within the targets of size and price.
    """

    def __init__(self, search: Search, choice: Candidate, cells: Sequence[Cell]):
        self.search, self.choice, self.cells = search, choice, cells

    def lost(self) -> Iterable[Lost]:
        """All of them."""
        yield from self.batches()
        yield from self.slices()
        yield from self.pipelines()
        yield from self.layouts()
        yield from self.dtype_sets()
        yield from self.chips()

    def batches(self) -> Iterable[Lost]:
        """Half and double."""
        point = self.choice
        for batch in (point.batch // 2, point.batch * 2):
            if batch:
                yield Lost(f"batch {batch:,}", self.verdict(batch))

    def slices(self) -> Iterable[Lost]:
        """The next smaller and larger of the chip; beside a pipeline also one of as many chips."""
        chosen = self.choice.cell
        offered = [cell for cell in self._of_chip() if cell.stages == 1]
        sizes = sorted({cell.chips for cell in offered})
        smaller = [size for size in sizes if size < chosen.chips][-1:]
        same = [size for size in sizes if size == chosen.chips and chosen.stages > 1]
        larger = [size for size in sizes if size > chosen.chips][:1]
        for near in (*smaller, *same, *larger):
            if near == chosen.slice.chips and chosen.stages > 1:
                continue  # that of one stage, which `pipelines` tells of
            here = [cell for cell in offered if cell.chips == near]
            names = " or ".join(dict.fromkeys(str(cell.whole) for cell in here))
            yield Lost(names, self.best(here) + travelled(here[0], self.choice.batch))

    def pipelines(self) -> Iterable[Lost]:
        """Pipelines of the same slice, or of as many chips; beside a pipeline one stage's slice."""
        chosen, offered = self.choice.cell, self._of_chip()
        alone = [cell for cell in offered if cell.slice == chosen.slice and cell.stages == 1]
        if alone and chosen.stages > 1:
            yield Lost(f"{chosen.slice} alone, for batches that it holds", self.best(alone))
        here: dict[str, list[Cell]] = {}
        for cell in offered:
            near = cell.slice == chosen.slice or cell.chips == chosen.chips
            if cell.stages > 1 and near and slice_of(cell) != slice_of(chosen):
                here.setdefault(slice_of(cell), []).append(cell)
        for name, cells in here.items():
            which = ", for batches that one of its slices does not hold" * cells[0].beside_alone
            yield Lost(f"pipeline {name}{which}", self.best(cells))

    def _of_chip(self) -> list[Cell]:
        chip = self.choice.cell.slice.chip.name
        return [cell for cell in self.search.space.cells if cell.slice.chip.name == chip]

    def layouts(self) -> Iterable[Lost]:
        """Other layouts, and other attention, on the same slice in the same form."""
        chosen, cell = self.choice.row.layout, self.choice.cell
        if not chosen:
            return
        here = [row.layout for row in cell.rows]
        for name in dict.fromkeys(layout.name for layout in here):
            if name != chosen.name:
                why = self.best([cell], lambda row, name=name: row.layout.name == name)
                yield Lost(f"layout {name}", why)
        for kind in dict.fromkeys(layout.attends for layout in here):
            if kind != chosen.attends:
                why = self.best([cell], lambda row, kind=kind: row.layout.attends == kind)
                yield Lost(f"attention by {kind}", why)

    def dtype_sets(self) -> Iterable[Lost]:
        """Other types of weights, and of the cache, on the same slice."""
        chosen = self.choice.cell
        for cell in self.cells:
            same = [
                cell.dtypes.weights == chosen.dtypes.weights,
                cell.dtypes.cache == chosen.dtypes.cache,
            ]
            alike = (cell.slice, cell.stages) == (chosen.slice, chosen.stages)
            if alike and sum(same) == 1:
                names = cell.dtypes.names()
                changed = names["kv_dtype"] if same[0] else names["weight_dtype"]
                what = "KV cache" if same[0] else "weights"
                yield Lost(f"{what} {changed} on {slice_of(cell)}", self.best([cell]))

    def chips(self) -> Iterable[Lost]:
        """Other chips, each on the slice and in the form that suit it best."""
        by_chip: dict[str, list[Cell]] = {}
        for cell in self.search.space.cells:
            by_chip.setdefault(cell.slice.chip.name, []).append(cell)
        for name, cells in by_chip.items():
            if name != self.choice.cell.slice.chip.name:
                yield Lost(f"chip {name}", self.best(cells, priced=True))

    def best(self, cells: Sequence[Cell], keep: Keep | None = None, priced: bool = False) -> str:
        """Why the best of these cells lost; `priced` says whose price it is at."""
        admitted = [cell for cell in cells if self.search.targets.admits(cell)]
        if not admitted:
            return _too_large(cells, self.search.targets)
        point = self.search.cheapest(admitted, keep)
        if not point:
            return _why_none(self.search, admitted, keep)
        at = f", at {price_of(point.cell)}" if priced else ""
        return f"{self.dearer(point.usd)} ({name_of(point)}{at})"

    def verdict(self, batch: int) -> str:
        """Why the choice with another batch lost."""
        point, limit = self.choice, self.search.targets.step_s
        lacking = point.cell.missing_bytes([point.number], batch)
        if lacking > 0:
            return f"does not fit by {gigabytes(lacking)} per chip"
        found = point.cell.estimate(point.number, batch)
        seconds = found.expected.seconds
        if limit is not None and seconds > limit:
            return f"{milliseconds(seconds)} per step is over {exact(limit * 1e3)} ms"
        return self.dearer(found.cost(seconds))

    def dearer(self, usd: float) -> str:
        """What a million tokens cost, in as many figures as tell it from the choice."""
        ours = self.choice.usd
        for figures in (3, 4, 5):
            theirs, chosen = number(usd, figures), number(ours, figures)
            if theirs != chosen:
                return f"costs {theirs} USD per million tokens against {chosen}"
        return f"costs the same, {number(usd)} USD per million tokens"


def _too_large(cells: Sequence[Cell], targets: Targets) -> str:
    least = min(cells, key=lambda cell: cell.usd_per_hour)
    if least.chips > (targets.chips or least.chips):
        return f"{least.whole} is over {several(targets.chips, 'chip')}"
    return f"{exact(least.usd_per_hour)} USD per hour is over {exact(targets.usd_per_hour)}"


def _why_none(search: Search, cells: Sequence[Cell], keep: Keep | None) -> str:
    """Why no way in these cells meets the targets, by the way that comes nearest."""
    nearest = min(cells, key=lambda cell: lacking_bytes(cell, keep))
    lacking = lacking_bytes(nearest, keep)
    if math.isinf(lacking):
        return "no layout goes with it"
    if lacking > 0:
        return (
            f"does not fit by {gigabytes(lacking)} per chip ({slice_of(nearest)}, {nearest.dtypes})"
        )
    targets = search.targets
    point = search.fastest(cells, keep)
    if point and targets.step_s is not None and point.step_s > targets.step_s:
        return (
            f"{milliseconds(point.step_s)} per step is over {exact(targets.step_s * 1e3)} ms "
            f"({name_of(point)})"
        )
    point = search.relaxed(first_token_s=None).cheapest(cells, keep)
    if not point or targets.first_token_s is None:
        return "no step of it is expected to end"
    first = milliseconds(search.first_token(point.cell, point.number))
    limit = exact(targets.first_token_s * 1e3)
    return f"{first} to the first token is over {limit} ms ({name_of(point)})"
