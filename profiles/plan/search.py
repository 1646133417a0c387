"""Which slice, layout, batch and types serve a model: fast enough, at the least cost."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from profiles.expected.estimate import Estimate
from profiles.expected.serving import ServiceEstimate
from profiles.plan.cells import Cell
from profiles.plan.rows import Row
from profiles.plan.space import Space
from profiles.report.numbers import exact, several

_GAIN = 1 + 1e-9  # so that another rounding puts no bound above what it bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What is asked of a deployment; None asks nothing.

    Attributes:
      step_s: expected seconds of a decode step.
      prompt: tokens of a prompt; a first token takes one's prefill.
      first_token_s: expected seconds of it.
      chips: at most.
      usd_per_hour: most that all chips may cost in an hour, in USD.
    """

    step_s: float | None = None
    prompt: int | None = None
    first_token_s: float | None = None
    chips: int | None = None
    usd_per_hour: float | None = None

    def words(self) -> list[str]:
        """Each target that is asked for."""
        said = (
            (self.step_s, lambda: f"{exact(self.step_s * 1e3)} ms per step"),
            (
                self.first_token_s,
                lambda: f"{exact(self.first_token_s * 1e3)} ms to the first token",
            ),
            (self.chips, lambda: several(self.chips, "chip")),
            (self.usd_per_hour, lambda: f"{exact(self.usd_per_hour)} USD per hour"),
        )
        return [words() for value, words in said if value is not None]

    def admits(self, cell: Cell) -> bool:
        """Whether a slice is within the targets of size and price."""
        return cell.chips <= _or_more(self.chips) and (
            cell.usd_per_hour <= _or_more(self.usd_per_hour)
        )


class Candidate(NamedTuple):
    """One way to serve.

    Attributes:
      cell: slice and form.
      number: number of the cell's row, which is a layout on a mesh.
      batch: sequences; of a pipeline, those of each batch in flight.
      step_s: expected seconds of a decode step.
      usd: expected cost of a million tokens.
    """

    cell: Cell
    number: int
    batch: int
    step_s: float
    usd: float

    @property
    def row(self) -> Row:
        """Layout and mesh."""
        return self.cell.rows[self.number]

    def estimate(self) -> Estimate | ServiceEstimate:
        """With floor and terms."""
        return self.cell.estimate(self.number, self.batch)


Keep = Callable[[Row], bool]
"""Which rows are looked at."""
Aims = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of steps and costs, two numbers that are to be small."""


class Search:
    """Looks at all ways of a space for those that meet targets.

    Args:
      space: all ways.
      targets: to meet; those of size and price are of the cells that a search is asked for.
    """

    def __init__(self, space: Space, targets: Targets):
        self.space, self.targets = space, targets

    def front(self, cells: Iterable[Cell]) -> list[Candidate]:
        """All ways that no other betters in step or cost without being worse in the other.

        The fastest first; of equals the one found first.
        """
        return self._look(cells, None, lambda steps, costs: (steps, costs))

    def cheapest(self, cells: Iterable[Cell], keep: Keep | None = None) -> Candidate | None:
        """The way of the least cost that meets the targets; of equals the one found first."""
        found = self._look(cells, keep, lambda steps, costs: (np.zeros_like(steps), costs))
        return found[0] if found else None

    def fastest(self, cells: Iterable[Cell], keep: Keep | None = None) -> Candidate | None:
        """The way of the shortest step, whatever it costs."""
        loose = self.relaxed(step_s=None)
        found = loose._look(cells, keep, lambda steps, costs: (steps, np.zeros_like(costs)))
        return found[0] if found else None

    def relaxed(self, **changes: float | None) -> "Search":
        """A search with other targets."""
        return Search(self.space, dataclasses.replace(self.targets, **changes))

    def first_token(self, cell: Cell, number: int) -> float:
        """Expected seconds of one prompt's prefill."""
        return float(cell.first_tokens(self.targets.prompt)[number])

    def _look(self, cells: Iterable[Cell], keep: Keep | None, aims: Aims) -> list[Candidate]:
        """Ways that meet the targets and that none betters in both aims, by the first of them.

        Of equals the first: on the slice that would cost least, in the layout that would take and
        cost least, if collectives took no time.
        """
        hopes = [(self._hope(cell, aims), cell) for cell in cells]
        found: list[tuple[float, float, Candidate]] = []
        for hope, cell in sorted(hopes, key=lambda each: each[0][1].min()):
            if not _gains(found, *hope).any():
                continue
            first, second = self._aimed(cell.steps, cell.cost(cell.steps, cell.batches), aims)
            gains = _gains(found, first, second) & self._kept(cell, keep)[:, None]
            if gains.any():
                new = self._points(cell, gains, (first, second), aims)
                found = _unbettered([*found, *new])
        return [point for *_, point in found]

    def _hope(self, cell: Cell, aims: Aims) -> tuple[np.ndarray, np.ndarray]:
        """Lower bounds of both aims in any layout, for batches from each to the next of a list.

        A larger batch takes no less time, a smaller one costs no less.
        """
        batches, steps = cell.even_bounds
        costs = cell.cost(steps, batches)
        return self._aimed(steps[:-1] / _GAIN, costs[1:] / _GAIN, aims)

    def _points(
        self, cell: Cell, chosen: np.ndarray, aimed: tuple[np.ndarray, np.ndarray], aims: Aims
    ) -> list[tuple[float, float, Candidate]]:
        """Chosen ways of a cell, each behind its aims, in the order in which one is preferred."""
        steps = cell.bounds * _GAIN
        bounds = self._aimed(steps, cell.cost(steps, cell.batches), aims)
        hopes = bounds[0].min(axis=1) + bounds[1].min(axis=1)
        first, second = (aim[chosen] for aim in aimed)
        places = np.argwhere(chosen)
        order = np.lexsort((hopes[places[:, 0]], second, first))
        least = np.minimum.accumulate(second[order])
        order = order[np.diff(least, prepend=math.inf) < 0]
        costs = cell.cost(cell.steps, cell.batches)
        return [
            (*both, Candidate(cell, place[0], int(cell.batches[place]), float(cell.steps[place]),
                          float(costs[place])))
            for both, place in zip(zip(first[order].tolist(), second[order].tolist(), strict=True),
                                   map(tuple, places[order].tolist()), strict=True)
        ]  # fmt: skip

    def _kept(self, cell: Cell, keep: Keep | None) -> np.ndarray:
        """Which rows are looked at and have a first token in time."""
        kept = np.array([not keep or keep(row) for row in cell.rows], bool)
        if self.targets.first_token_s is not None and kept.any():
            kept &= cell.first_tokens(self.targets.prompt) <= self.targets.first_token_s
        return kept

    def _aimed(
        self, steps: np.ndarray, costs: np.ndarray, aims: Aims
    ) -> tuple[np.ndarray, np.ndarray]:
        """Aims of steps that meet the target of a step; infinite of others."""
        within = (steps <= _or_more(self.targets.step_s)) & np.isfinite(steps)
        return tuple(np.where(within, aim, math.inf) for aim in aims(steps, costs))


def _gains(
    found: Sequence[tuple[float, float, Candidate]], first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Where nothing found is as good in both aims; what was found is in order of the first."""
    edges, limits = np.array([(-math.inf, math.inf), *(each[:2] for each in found)]).T
    return second < limits[np.searchsorted(edges, first, side="right") - 1]


def _unbettered(
    ways: Iterable[tuple[float, float, Candidate]],
) -> list[tuple[float, float, Candidate]]:
    """Those that no other betters in both aims, by the first; of equals the first."""
    found: list[tuple[float, float, Candidate]] = []
    for way in sorted(ways, key=lambda way: way[:2]):
        if not found or way[1] < found[-1][1]:
            found.append(way)
    return found


def _or_more(limit: float | None) -> float:
    return math.inf if limit is None else limit
