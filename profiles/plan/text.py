"""Plans in words: what is worth having, why the rest lost, and what misses which target."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from profiles.expected.estimate_record import Recorder
from profiles.plan.cells import Cell
from profiles.plan.joined import joined_words
from profiles.plan.nearest import nearest
from profiles.plan.neighbours import Lost, Neighbours
from profiles.plan.rows import Row
from profiles.plan.search import Candidate, Search, Targets
from profiles.plan.space import Space
from profiles.plan.words import name_of, price_of
from profiles.report.numbers import exact, milliseconds, ms, number
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
    rejected: list[Lost]


def plan(space: Space, targets: Targets) -> Plan:
    """The plan for these targets.

    Raises:
      FloorlineError: nothing meets them; the message has the nearest that something does.
    """
    search = Search(space, targets)
    cells = [cell for cell in space.cells if targets.admits(cell)]
    front = search.front(cells)
    if not front:
        raise FloorlineError(nearest(search))
    choice = front[-1]
    return Plan(choice, front, list(Neighbours(search, choice, cells).lost()))


@functools.cache
def _recorder(cell: Cell, number: int, balanced: bool) -> Recorder:
    return Recorder(cell.estimator(number), balanced)


def record(point: Candidate, balanced: bool = True) -> Record:
    """A point as programs read it; for `balanced` see `Recorder`."""
    recorder = _recorder(point.cell, point.number, balanced)
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
    rows, align = [_cells(records[i], i == choice) for i in shown], "lllllllrrrlrrrl"
    if any(records[i].pipeline for i in shown):
        stages = [str((records[i].pipeline or {}).get("stages", 1)) for i in shown]
        heading, align = (*heading[:2], "stages", *heading[2:]), f"{align[:2]}r{align[2:]}"
        rows = [(*row[:2], each, *row[2:]) for row, each in zip(rows, stages, strict=True)]
    return Table(heading, rows, align=align).terminal()


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
        f"choice: {name_of(point)}: {number(point.usd)} USD per million tokens, {why}; {hour} USD "
        f"per hour, at {price_of(point.cell)}",
        f"  floor    {milliseconds(floor.seconds)}, bound by {floor.bound} ({terms})",
        f"  expected {milliseconds(expected.seconds)} ({waits}; communication "
        + ("beside" if expected.hidden else "after")
        + " reading, arithmetic "
        + ("after it)" if expected.adds else "beside it)"),
        *(f"  {line}" for line in joined_words(point)),
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
