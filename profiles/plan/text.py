"""Plans in words: what is worth having, why the rest lost, and what misses which target."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from profiles.chips.slices import slices_of
from profiles.expected.estimate_record import Recorder
from profiles.plan.search import Candidate, Keep, Search, Targets
from profiles.plan.space import Cell, Row, Space
from profiles.report.numbers import exact, milliseconds, ms, number, several
from profiles.report.record import Record
from profiles.report.table import Table
from profiles.report.titles import text_of
from sharding.error_types import FloorlineError

ROWS = 16
"""Of a table of a front; what is between them is in the document."""


class Plan(NamedTuple):
    """What a search came to.

    Attributes:
      choice: the cheapest way that meets the targets.
      front: all ways that nothing betters in both step and cost, the fastest first.
      rejected: what is next to the choice, and why it lost.
    """

    choice: Candidate
    front: list[Candidate]
    rejected: list["Lost"]


class Lost(NamedTuple):
    """What lost, and why."""

    what: str
    why: str


def plan(space: Space, targets: Targets) -> Plan:
    """The plan for these targets.

    Raises:
      FloorlineError: nothing meets them; the message has the nearest that something does.
    """
    search = Search(space, targets)
    cells = [cell for cell in space.cells if targets.admits(cell)]
    front = search.front(cells)
    if not front:
        raise FloorlineError(_nearest(search))
    choice = front[-1]
    return Plan(choice, front, list(_Neighbours(search, choice, cells).lost()))


@functools.cache
def _recorder(cell: Cell, number: int) -> Recorder:
    return Recorder(cell.estimator(number))


def record(point: Candidate) -> Record:
    """A point as programs read it."""
    recorder = _recorder(point.cell, point.number)
    make = recorder.record_service if point.cell.space.service else recorder.record
    return make(point.estimate())


# Tables ------------------------------------------------------------------------------------------


def front_table(records: Sequence[Record], choice: int) -> str:
    """The front, thinned to `ROWS`, the chosen row marked."""
    shown = range(len(records))
    if len(records) > ROWS:
        step = (len(records) - 1) / (ROWS - 1)
        shown = sorted({round(i * step) for i in range(ROWS)} | {choice})
    heading = ("", "slice", "mesh", "layout", "attention", "weights", "cache", "batch",
               "expected ms", "floor ms", "bound", "token/s/chip", "USD/Mtoken",
               "USD/chip-hour", "provider")  # fmt: skip
    rows = [_cells(records[i], i == choice) for i in shown]
    return Table(heading, rows, align="lllllllrrrlrrrl").terminal()


def _cells(record: Record, chosen: bool) -> tuple[str, ...]:
    price = record.price
    whose = [price[name] for name in ("provider", "offer") if name in price] or ["given"]
    return (
        "*" * chosen,
        record.topology,
        text_of(record, "mesh"),
        record.layout,
        text_of(record, "attention"),
        record.weight_dtype,
        record.kv_dtype,
        f"{record.batch:,}",
        ms(record.expected_s),
        ms(record.floor_s),
        record.bound,
        number(record.tokens_per_s_per_chip),
        number(record.usd_per_million_tokens),
        exact(price["usd_per_chip_hour"]),
        " ".join(whose),
    )


def choice_words(point: Candidate, targets: Targets, search: Search | None = None) -> str:
    """The choice with its terms, floor and expected."""
    found = point.estimate()
    floor, expected = found.floor, found.expected
    terms = ", ".join(f"{name} {milliseconds(s)}" for name, s in floor.terms().items() if s)
    waits = ", ".join(f"{name} {milliseconds(s)}" for name, s in expected.terms().items())
    meets = " and ".join(targets.words())
    why = f"the least cost that meets {meets}" if meets else "the least cost of all"
    hour = exact(point.cell.usd_per_hour)
    lines = [
        f"choice: {_name(point)}: {number(point.usd)} USD per million tokens, {why}; {hour} USD "
        f"per hour, at {_price(point.cell)}",
        f"  floor    {milliseconds(floor.seconds)}, bound by {floor.bound} ({terms})",
        f"  expected {milliseconds(expected.seconds)} ({waits}; communication "
        + ("beside" if expected.hidden else "after")
        + " reading, arithmetic "
        + ("after it)" if expected.adds else "beside it)"),
    ]
    if search and targets.prompt:
        first = search.first_token(point.cell, point.number)
        lines.append(
            f"  first token of a prompt of {targets.prompt:,}{_prompts(point.row)}: expected "
            f"{milliseconds(first)}"
        )
    return "\n".join(lines)


def _prompts(row: Row) -> str:
    """The layout of prompts, where it is another than that of decode steps."""
    layout = row.layout and row.layout.prefill
    return f" by {layout.name}" if layout and layout.name != row.layout.name else ""


def _name(point: Candidate) -> str:
    layout, names = point.row.layout, point.cell.dtypes.names()
    parts = [str(point.cell.slice)]
    if layout:
        mesh = "x".join(map(str, point.row.mesh.values()))
        parts.append(f"{layout.name} on {mesh}, attention by {layout.attends}")
        parts += ["expert-parallel"] * layout.expert_parallel
    parts += [f"weights {names['weight_dtype']}", f"cache {names['kv_dtype']}"]
    return ", ".join([*parts, f"batch {point.batch:,}"])


def _price(cell: Cell) -> str:
    """What a chip-hour costs, and whose price that is."""
    whose = f"of {cell.price.seller}" if cell.price.seller else "as given"
    return f"{exact(cell.price.usd)} USD per chip-hour {whose}"


# Why neighbours lost -----------------------------------------------------------------------------


class _Neighbours:
    """What is one step from a choice in each direction."""

    def __init__(self, search: Search, choice: Candidate, cells: Sequence[Cell]):
        self.search, self.choice, self.cells = search, choice, cells

    def lost(self) -> Iterable[Lost]:
        """All of them."""
        yield from self.batches()
        yield from self.slices()
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
        """The next smaller and larger of the chip."""
        chip, chips = self.choice.cell.slice.chip.name, self.choice.cell.slice.chips
        offered = [cell for cell in self.search.space.cells if cell.slice.chip.name == chip]
        sizes = sorted({cell.slice.chips for cell in offered})
        place = sizes.index(chips)
        for near in (*sizes[max(place - 1, 0) : place], *sizes[place + 1 : place + 2]):
            here = [cell for cell in offered if cell.slice.chips == near]
            names = " or ".join(dict.fromkeys(str(cell.slice) for cell in here))
            yield Lost(names, self.best(here))

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
            if cell.slice == chosen.slice and sum(same) == 1:
                names = cell.dtypes.names()
                changed = names["kv_dtype"] if same[0] else names["weight_dtype"]
                what = "KV cache" if same[0] else "weights"
                yield Lost(f"{what} {changed} on {cell.slice}", self.best([cell]))

    def chips(self) -> Iterable[Lost]:
        """Other chips, each on the slice and in the form that suit it best."""
        by_chip = itertools.groupby(self.search.space.cells, lambda cell: cell.slice.chip.name)
        for name, cells in by_chip:
            if name != self.choice.cell.slice.chip.name:
                yield Lost(f"chip {name}", self.best(list(cells), priced=True))

    def best(self, cells: Sequence[Cell], keep: Keep | None = None, priced: bool = False) -> str:
        """Why the best of these cells lost; `priced` says whose price it is at."""
        admitted = [cell for cell in cells if self.search.targets.admits(cell)]
        if not admitted:
            return _too_large(cells, self.search.targets)
        point = self.search.cheapest(admitted, keep)
        if not point:
            return _why_none(self.search, admitted, keep)
        at = f", at {_price(point.cell)}" if priced else ""
        return f"{self.dearer(point.usd)} ({_name(point)}{at})"

    def verdict(self, batch: int) -> str:
        """Why the choice with another batch lost."""
        point, limit = self.choice, self.search.targets.step_s
        lacking = point.cell.missing_bytes([point.number], batch)
        if lacking > 0:
            return f"does not fit by {_gb(lacking)} per chip"
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
    if least.slice.chips > (targets.chips or least.slice.chips):
        return f"{least.slice} is over {several(targets.chips, 'chip')}"
    return f"{exact(least.usd_per_hour)} USD per hour is over {exact(targets.usd_per_hour)}"


def _why_none(search: Search, cells: Sequence[Cell], keep: Keep | None) -> str:
    """Why no way in these cells meets the targets, by the way that comes nearest."""
    nearest = min(cells, key=lambda cell: _lacking(cell, keep))
    lacking = _lacking(nearest, keep)
    if math.isinf(lacking):
        return "no layout goes with it"
    if lacking > 0:
        return f"does not fit by {_gb(lacking)} per chip ({nearest.slice}, {nearest.dtypes})"
    targets = search.targets
    point = search.fastest(cells, keep)
    if point and targets.step_s is not None and point.step_s > targets.step_s:
        return (
            f"{milliseconds(point.step_s)} per step is over {exact(targets.step_s * 1e3)} ms "
            f"({_name(point)})"
        )
    point = search.relaxed(first_token_s=None).cheapest(cells, keep)
    if not point or targets.first_token_s is None:
        return "no step of it is expected to end"
    first = milliseconds(search.first_token(point.cell, point.number))
    limit = exact(targets.first_token_s * 1e3)
    return f"{first} to the first token is over {limit} ms ({_name(point)})"


def _lacking(cell: Cell, keep: Keep | None = None) -> float:
    """Bytes per chip by which one sequence fits in none of these rows; infinite without rows."""
    rows = [place for place, row in enumerate(cell.rows) if not keep or keep(row)]
    return cell.missing_bytes(rows) if rows else math.inf


def _gb(size: float) -> str:
    return f"{number(size / 1e9)} GB"


# What misses which target ------------------------------------------------------------------------


def _nearest(search: Search) -> str:
    """What the targets are, and each that alone could be relaxed, to what and by which way."""
    space, targets = search.space, search.targets
    fitting = [cell for cell in space.cells if _lacking(cell) <= 0]
    if not fitting:
        return (
            f"model is {space.model.name}, which fits on none of the slices looked at; "
            f"{_shortest(search)}{_holding(space)}"
        )
    found = sorted(_relaxed(search, fitting), key=lambda each: each[0])
    said = " and ".join(targets.words()) or "none"
    if not found:
        point = Search(space, Targets(prompt=targets.prompt)).cheapest(fitting)
        if not point:
            return f"targets are {said}, but no step is expected to end at a cost that has a number"
        return (
            f"targets are {said}, which nothing meets, nor if one of them is dropped; the cheapest "
            f"with none: {_name(point)}: {milliseconds(point.step_s)} per step, "
            f"{exact(point.cell.usd_per_hour)} USD per hour"
        )
    ways = "; or ".join(f"{words} ({_name(point)})" for _, words, point in found)
    return f"targets are {said}, which nothing meets; nearest: {ways}"


def _shortest(search: Search) -> str:
    """Where least is lacking, of slices within the targets of size and price if there are any."""
    targets = search.targets
    cells = [cell for cell in search.space.cells if targets.admits(cell)]
    short = min(cells or search.space.cells, key=_lacking)
    limits = (
        Targets(chips=targets.chips, usd_per_hour=targets.usd_per_hour).words() if cells else []
    )
    within = f" within {' and '.join(limits)}" if limits else ""
    if math.isinf(_lacking(short)):
        return f"no layout goes with it on any{within}"
    return (
        f"nearest{within}: {short.slice}, {short.dtypes}, where {_gb(_lacking(short))} per chip "
        "are lacking"
    )


def _holding(space: Space) -> str:
    """The slice of least cost, of the same chips, that would hold what the plan asks for."""
    prices = {slice.chip: price for slice, price in space.slices}
    found = []
    for chip, price in prices.items():
        every = tuple((slice, price) for slice in slices_of(chip))
        cells = dataclasses.replace(space, slices=every).cells
        found += itertools.islice(
            (each for each in cells if each.may_fit and _lacking(each) <= 0), 1
        )
    if not found:
        return ""
    least = min(found, key=lambda cell: cell.usd_per_hour)
    return f"; the least slice that holds it is {least.slice}, {least.dtypes}"


def _relaxed(search: Search, cells: Sequence[Cell]) -> Iterable[tuple[float, str, Candidate]]:
    """For each target: by which factor, to what it alone would have to be relaxed, and a way."""
    targets = search.targets
    admitted = [cell for cell in cells if targets.admits(cell)]
    if targets.step_s is not None and (point := search.fastest(admitted)):
        words = f"{milliseconds(point.step_s)} per step"
        yield point.step_s / targets.step_s, words, point
    sizes = (("chips", lambda cell: cell.slice.chips, lambda count: several(count, "chip")),
             ("usd_per_hour", lambda cell: cell.usd_per_hour,
              lambda usd: f"{exact(usd)} USD per hour"))  # fmt: skip
    for name, size, words in sizes:
        limit = getattr(targets, name)
        if limit is not None and (found := _first(search.relaxed(**{name: None}), cells, size)):
            needed = size(found.cell)
            yield needed / limit, words(needed), found
    if targets.first_token_s is not None:
        loose = search.relaxed(first_token_s=None)
        points = loose.front(admitted)
        if points:
            point = min(points, key=lambda p: search.first_token(p.cell, p.number))
            first = search.first_token(point.cell, point.number)
            yield first / targets.first_token_s, f"{milliseconds(first)} to the first token", point


def _first(
    search: Search, cells: Sequence[Cell], size: Callable[[Cell], float]
) -> Candidate | None:
    """The cheapest way on the cells of the least size that have any."""
    admitted = sorted((cell for cell in cells if search.targets.admits(cell)), key=size)
    for _, here in itertools.groupby(admitted, size):
        if point := search.cheapest(list(here)):
            return point
    return None
