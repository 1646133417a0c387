"""Which slice, layout, batch and form serve a model: fast enough, at the least cost.

Every way is looked at, most of them by a bound alone: ways whose steps without collectives would be
slower and dearer than steps already found, collectives and all, need no closer look. What is found
is what looking at each would find.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from profiles.expected.estimate import Estimate
from profiles.plan.space import Cell, Row, Space
from profiles.report.numbers import exact, several

_GAIN = 1 + 1e-9  # what is not faster or cheaper by so much is no gain, but another rounding
_AT_ONCE = 16  # rows between two looks at what is left: a look takes as long as some rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What is asked of a deployment; None asks nothing.

    Attributes:
      step_s: expected seconds of a decode step.
      prompt: tokens of a prompt; a first token takes one's prefill.
      first_token_s: expected seconds of it.
      chips: at most.
      usd_per_hour: of all chips.
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
        return cell.slice.chips <= _or_more(self.chips) and (
            cell.usd_per_hour <= _or_more(self.usd_per_hour)
        )


class Point(NamedTuple):
    """One way to serve.

    Attributes:
      cell: slice and form.
      number: of the cell's row: layout and mesh.
      batch: sequences.
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

    def estimate(self) -> Estimate:
        """With floor and terms."""
        return self.cell.estimate(self.number, self.batch)


Keep = Callable[[Row], bool]
"""Which rows are looked at."""


def _every(row: Row) -> bool:
    return True


class Search:
    """Looks for ways that meet targets, in one space.

    Args:
      space: all ways.
      targets: to meet; those of size and price are of the cells that a search is asked for.
    """

    def __init__(self, space: Space, targets: Targets):
        self.space, self.targets = space, targets
        self._steps = functools.cache(lambda cell, number: cell.steps(number))
        self.first_token = functools.cache(self._find_first_token)

    def front(self, cells: Iterable[Cell]) -> list[Point]:
        """All ways that no other betters in step or cost without being worse in the other.

        The fastest first; of equals the one found first.
        """
        found = _Front()
        self._look(cells, _every, found, lambda steps, costs: (steps, costs))
        return found.points

    def cheapest(self, cells: Iterable[Cell], keep: Keep = _every) -> Point | None:
        """The way of the least cost that meets the targets; of equals the fastest."""
        found = _Front()
        self._look(cells, keep, found, lambda steps, costs: (np.zeros_like(steps), costs))
        return found.points[-1] if found.points else None

    def fastest(self, cells: Iterable[Cell], keep: Keep = _every) -> Point | None:
        """The way of the shortest step, whatever it costs."""
        found = _Front()
        loose = self.relaxed(step_s=None)
        loose._look(cells, keep, found, lambda steps, costs: (steps, np.zeros_like(costs)))
        return found.points[0] if found.points else None

    def relaxed(self, **changes: float | None) -> "Search":
        """A search with other targets, that shares what was found."""
        other = Search(self.space, dataclasses.replace(self.targets, **changes))
        other.first_token, other._steps = self.first_token, self._steps
        return other

    def _look(
        self,
        cells: Iterable[Cell],
        keep: Keep,
        found: "_Front",
        aims: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Adds ways of cells that meet the targets and that nothing found before betters.

        Args:
          cells: to look at, those of the least bounds first.
          keep: which rows.
          found: what was found before, by the aims.
          aims: of steps and costs, what is to be small.
        """
        hopes = []
        for cell in cells:
            batches, steps = cell.least
            bound = self._hope(cell, steps * _GAIN, batches, aims)
            if np.isfinite(bound[1]).any():
                hopes.append((float(bound[1].min()), len(hopes), cell, bound))
        hopes.sort(key=lambda hope: hope[:2])
        for *_, cell, bound in hopes:
            if not found.betters(*bound).all() and self._early_enough(cell):
                self._look_into(cell, keep, found, aims)

    def _look_into(self, cell: Cell, keep: Keep, found: "_Front", aims: Callable) -> None:
        """Ways of one cell, rows of the least bounds first."""
        numbers = np.array([n for n, row in enumerate(cell.rows) if keep(row)], int)
        while numbers.size:
            batches = cell.batches[numbers]
            bounds = self._hope(cell, cell.bounds[numbers] * _GAIN, batches, aims)
            open_ = (~found.betters(*bounds)).any(axis=1)
            numbers, bounds = numbers[open_], [bound[open_] for bound in bounds]
            if not numbers.size:
                return
            order = np.argsort(bounds[0].min(axis=1) + bounds[1].min(axis=1), kind="stable")
            self._add(cell, numbers[order[:_AT_ONCE]], found, aims)
            numbers = numbers[order[_AT_ONCE:]]

    def _add(self, cell: Cell, numbers: np.ndarray, found: "_Front", aims: Callable) -> None:
        """Ways of these rows, by their exact steps."""
        steps = np.array([self._steps(cell, int(number)) for number in numbers])
        batches = cell.batches[numbers]
        costs = cell.cost(steps, batches)
        first, second = self._hope(cell, steps, batches, aims)
        for place, column in np.argwhere(~found.betters(first, second)):
            number, aimed = int(numbers[place]), (first[place, column], second[place, column])
            if found.betters(*aimed) or not self._in_time(cell, number):
                continue
            step, cost = float(steps[place, column]), float(costs[place, column])
            found.add(Point(cell, number, int(batches[place, column]), step, cost), *aimed)

    def _in_time(self, cell: Cell, number: int) -> bool:
        """Whether a first token comes in time."""
        wanted = self.targets.first_token_s
        return wanted is None or self.first_token(cell, number) <= wanted

    def _hope(
        self, cell: Cell, steps: np.ndarray, batches: np.ndarray, aims: Callable
    ) -> tuple[np.ndarray, np.ndarray]:
        """Aims of steps that meet the target of a step; infinite of others."""
        within = (steps <= _or_more(self.targets.step_s)) & np.isfinite(steps)
        aimed = aims(steps, cell.cost(steps, batches))
        return tuple(np.where(within, aim, math.inf) for aim in aimed)

    def _early_enough(self, cell: Cell) -> bool:
        """Whether a prompt divided evenly would be through in time, if collectives took none."""
        targets = self.targets
        if targets.first_token_s is None:
            return True
        return cell.prompt_bound(targets.prompt) * _GAIN <= targets.first_token_s

    def _find_first_token(self, cell: Cell, number: int) -> float:
        """Expected seconds of one prompt's prefill."""
        return cell.estimator(number).prefill(1, self.targets.prompt).expected.seconds


class _Front:
    """Points of which none betters another in both of two aims, by the first of them."""

    def __init__(self):
        self.points: list[Point] = []
        self._first, self._second = np.array([-math.inf]), np.array([math.inf])

    def betters(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether a point of these aims would be no gain, as one with infinite aims is none."""
        before = np.searchsorted(self._first, first, side="right") - 1
        return (self._second[before] <= second) | np.isinf(second)

    def add(self, point: Point, first: float, second: float) -> None:
        """Takes a point in, and those that it betters out."""
        if self.betters(first, second):
            return
        kept = ~((self._first >= first) & (self._second >= second))
        kept[0] = True
        place = int(np.searchsorted(self._first[kept], first, side="right"))
        self.points = [p for p, keep in zip(self.points, kept[1:], strict=True) if keep]
        self.points.insert(place - 1, point)
        self._first = np.insert(self._first[kept], place, first)
        self._second = np.insert(self._second[kept], place, second)


def _or_more(limit: float | None) -> float:
    return math.inf if limit is None else limit
