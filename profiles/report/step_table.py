"""Records as a table, measured and expected beside the floor, with a title and notes.

A percentage is only printed below a title that names the bandwidth it refers to.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from profiles.report.numbers import byte_size, exact, ms, number, several
from profiles.report.record import TITLES, Record
from profiles.report.table import WIDTH, Table
from profiles.report.titles import bandwidth_words, distinct, field_text, subject

ALLOCATED = 2  # from so many times the filled slots on, what reading all would cost is told
TO = "\N{EN DASH}"


class Column(NamedTuple):
    """A table's column: a heading of one or two lines, and a cell's text ("" where not known)."""

    heading: str
    cell: Callable[[Record], str]
    key: str = ""  # the field that it shows, of those known before the step ran
    if_varied: bool = False  # shown only where records differ; the title says it otherwise
    of_floor: bool = False  # means nothing where the floor does not apply
    percentage: bool = False  # means nothing unless the bandwidth is named
    spare: bool = False  # left out when a terminal's width would not do


def _show(field: str, form: Callable[[Any], str] = field_text) -> Callable[[Record], str]:
    def cell(point: Record) -> str:
        value = getattr(point, field)
        return "" if value is None else form(value)

    return cell


def _basis(point: Record) -> str:
    """Which of the times a record's rate and cost were taken from."""
    times = (("measured", point.step_s), ("expected", point.expected_s), ("floor", point.floor_s))
    return next((word for word, time in times if time is not None), "")


def _by_basis(basis: str, field: str) -> Callable[[Record], str]:
    show = _show(field, number)
    return lambda point: show(point) if _basis(point) == basis else ""


def _devices_and_mesh(point: Record) -> str:
    mesh = f" ({field_text(point.mesh)})" if point.mesh else ""
    return f"{point.devices or point.chips or ''}{mesh}"


def _experts(point: Record) -> str:
    touched = point.experts_touched or {}
    return f"{touched['measured']:.1f} ({touched['expected']:.1f})" if "measured" in touched else ""


def _arithmetic(point: Record) -> str:
    """The measured rate of arithmetic, in passes over prompts."""
    if point.phase != "prefill" or not (point.ran and point.flops_per_chip):
        return ""
    return number(point.flops_per_chip / point.step_s["median"] / 1e12)


def _share(fraction: float) -> str:
    return f"{fraction:.0%}" + " (!)" * (fraction > 1)


COLUMNS = (
    *(Column(field, _show(field), key=field, if_varied=True) for field in TITLES),
    Column("devices\n(x,y,z)", _devices_and_mesh, key="devices"),
    Column("prompt\ntokens", _show("prompt_length", exact), key="prompt_length"),
    Column("context", _show("context", exact), key="context"),
    Column("batch", _show("batch", exact), key="batch"),
    Column(
        "tokens per\nsequence",
        _show("tokens_per_sequence", exact),
        key="tokens_per_sequence",
        if_varied=True,
    ),
    Column("experts read\n(if even)", _experts, spare=True),
    Column("measured\nstep ms", _show("step_s", lambda s: ms(s["median"]))),
    Column(
        f"measured\np10{TO}p90 ms",
        _show("step_s", lambda s: f"{ms(s['p10'])}{TO}{ms(s['p90'])}"),
        spare=True,
    ),
    Column("expected\nstep ms", _show("expected_s", ms)),
    Column("floor\nstep ms", _show("floor_s", ms), of_floor=True),
    Column("weight\nfloor ms", _show("weight_floor_s", ms), of_floor=True, spare=True),
    Column("floor\nbound by", _show("bound"), of_floor=True),
    Column("floor /\nmeasured", _show("fraction_of_floor", _share), of_floor=True, percentage=True),
    Column("TFLOP/s\nper chip", _arithmetic),
    *(
        Column(f"{basis}\n{unit}", _by_basis(basis, field))
        for field, unit in (("tokens_per_s", "tokens/s"), ("usd_per_million_tokens", "USD/Mtok"))
        for basis in ("measured", "expected", "floor")
    ),
)


def step_table(points: Sequence[Record], bandwidth: dict | None = None) -> str:
    """Records as a table for a terminal, below its title and above its notes.

    Args:
      points: records, a row each; one whose step did not run shows its status and message.
      bandwidth: a document's; without it percentages are left out, for want of their peak.
    """
    notes = [part for note in _notes(points) for part in textwrap.wrap(note, WIDTH)]
    shown = _table(points, bandwidth).terminal()
    return "\n".join([*_title(points, bandwidth), "", shown, *[""] * bool(notes), *notes])


def markdown_table(
    points: Sequence[Record], bandwidth: dict | None = None, only: Sequence[str] = ()
) -> str:
    """The same table in Markdown, title above and notes below; of all columns, or `only` those."""
    shown = _table(points, bandwidth).markdown(only)
    return "\n".join([*_title(points, bandwidth), "", shown, *(f"\n{n}" for n in _notes(points))])


def _title(points: Sequence[Record], bandwidth: dict | None) -> list[str]:
    kind = ", ".join(distinct(points, "device_kind"))
    floor = f"Floor at {bandwidth_words(bandwidth, kind)}" if bandwidth else ""
    return [part for text in (subject(points), floor) for part in textwrap.wrap(text, WIDTH)]


def _table(points: Sequence[Record], bandwidth: dict | None) -> Table:
    """The columns worth showing; a row whose step did not run holds its keys and its status."""

    def cell(column: Column, point: Record) -> str:
        if not (_ran(point) or column.key):
            return ""
        return column.cell(point) if point.ok or not column.of_floor else "-"

    columns = [
        column
        for column in COLUMNS
        if any(cell(column, point).strip("-") for point in points)
        and not (column.if_varied and len(distinct(points, column.key)) < 2)
        and not (column.percentage and bandwidth is None)
    ]
    keys = [column for column in columns if column.key]
    return Table(
        head=[column.heading for column in columns],
        rows=[
            [cell(each, point) for each in (columns if _ran(point) else keys)] for point in points
        ],
        align="r" * len(columns),
        remarks=["" if _ran(point) else _status(point) for point in points],
        remarks_head="status",
        spare=[i for i, column in enumerate(columns) if column.spare],
    )


def _ran(point: Record) -> bool:
    """Whether its step has numbers to show; the others show their status in place of them."""
    return point.ok or point.ran


def _status(point: Record) -> str:
    return ": ".join(filter(None, (point.status, point.message)))


def _notes(points: Sequence[Record]) -> list[str]:
    """What a reader must know of steps that did run: what the floor leaves out, or got wrong."""
    odd: dict[str, list[Record]] = {}
    for point in points:
        if point.ran and not point.ok:
            odd.setdefault(point.status, []).append(point)
    notes = [
        f"-  {_status(rows[0])}" + f" (and {several(len(rows) - 1, 'row')} more)" * (len(rows) > 1)
        for rows in odd.values()
    ]
    notes += [*_unpacked(points), *_allocated(points)]
    if any((point.fraction_of_floor or 0) > 1 for point in points):
        notes.append(
            "(!)  error: a step measured below its floor; the bandwidth or the timing is wrong"
        )
    return notes


def _unpacked(points: Sequence[Record]) -> list[str]:
    """Types that the compiler holds in more bits: how much, and in which steps if not all."""
    found: dict[str, list[tuple[float, int]]] = {}
    for point in points:
        size = (point.bytes_per_chip or {}).get("weights_unpacked", 0)
        found.setdefault(point.weight_dtype or "", []).append((size, point.batch))
    notes = []
    for name, steps in found.items():
        if largest := max(steps)[0]:
            batches = dict.fromkeys(str(batch) for size, batch in steps if size)
            batch_note = "" if all(size for size, _ in steps) else f" of batch {', '.join(batches)}"
            what = f"unpacks {byte_size(largest)} of weights as a whole in each step{batch_note}"
            notes.append(f"-  {name}: the compiler {what}")
    return notes


def _allocated(points: Sequence[Record]) -> list[str]:
    """How much longer decode steps would take if they read slots that no token has filled."""
    found: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for point in points:
        filled, size = (point.context or 0) + 1, point.bytes_per_chip
        if point.ran and point.phase == "decode" and (point.slots or 0) >= ALLOCATED * filled:
            second = point.weight_floor_s / size["weights_read"]  # of a byte
            more = (size["kv_resident"] - size["kv_read"] - size["kv_written"]) * second
            found.setdefault((point.slots, filled), []).append((more, point.batch))
    notes = []
    for (slots, filled), rows in found.items():
        cost = " and ".join(
            f"{ms(more)} ms at batch {exact(batch)}"
            for more, batch in dict.fromkeys((min(rows), max(rows)))
        )
        what = f"reading all {exact(slots)} allocated slots in place of {exact(filled)} filled ones"
        notes.append(f"-  {what} would take longer by {cost}, at the rate of the floor")
    return notes
