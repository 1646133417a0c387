"""Records as a table, measured and expected beside the floor, with a title and notes.

A percentage is only printed below a title that names the bandwidth it refers to.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from profiles.report.notes import notes, status
from profiles.report.numbers import exact, ms, number
from profiles.report.record import TITLES, Record
from profiles.report.table import WIDTH, Table
from profiles.report.titles import distinct, field_text, rates_words, subject

TO = "\N{EN DASH}"


class Column(NamedTuple):
    """A table's column: a heading of one or two lines, and a cell's text ("" where not known)."""

    heading: str
    cell: Callable[[Record], str]
    key: str = ""  # the field that it shows, of those known before the step ran
    if_varied: bool = False  # shown only where records differ; the title says it otherwise
    of_floor: bool = False  # means nothing where the floor does not apply
    lasting: bool = False  # shown though the floor applies nowhere
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


def _expected_share(point: Record) -> str:
    known = point.ran and point.expected_s is not None
    return f"{point.expected_s / point.step_s['median']:.0%}" if known else ""


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
    Column("floor\nstep ms", _show("floor_s", ms), of_floor=True, lasting=True),
    Column("expected\nstep ms", _show("expected_s", ms)),
    Column("measured\nstep ms", _show("step_s", lambda s: ms(s["median"]))),
    Column(
        "floor /\nmeasured",
        _show("fraction_of_floor", lambda share: f"{share:.0%}" + " (!)" * (share > 1)),
        of_floor=True,
        lasting=True,
        percentage=True,
    ),
    Column("expected /\nmeasured", _expected_share, percentage=True),
    Column(
        "floor at\nread rate /\nmeasured",
        _show("fraction_of_read_floor", "{:.0%}".format),
        of_floor=True,
        percentage=True,
    ),
    Column("floor\nbound by", _show("bound"), of_floor=True, spare=True),
    Column(
        f"measured\np10{TO}p90 ms",
        _show("step_s", lambda s: f"{ms(s['p10'])}{TO}{ms(s['p90'])}"),
        spare=True,
    ),
    Column("host\ncall ms", _show("host_s", lambda s: ms(s["median"])), spare=True),
    Column("weight\nfloor ms", _show("weight_floor_s", ms), of_floor=True, spare=True),
    Column("TFLOP/s\nper chip", _arithmetic),
    *(
        Column(f"{basis}\n{unit}", _by_basis(basis, field))
        for field, unit in (("tokens_per_s", "tokens/s"), ("usd_per_million_tokens", "USD/Mtok"))
        for basis in ("measured", "expected", "floor")
    ),
)


def step_table(
    points: Sequence[Record], bandwidth: dict | None = None, calibration: dict | None = None
) -> str:
    """Records as a table for a terminal, below its title and above its notes.

    Args:
      points: records, a row each; one whose step did not run shows its status and message.
      bandwidth: a document's; without it percentages are left out, for want of their peak.
      calibration: a document's, that expected times are by.
    """
    below = [part for note in notes(points) for part in textwrap.wrap(note, WIDTH)]
    shown = _table(points, bandwidth).terminal()
    title = _title(points, bandwidth, calibration)
    return "\n".join([*title, "", shown, *[""] * bool(below), *below])


def markdown_table(
    points: Sequence[Record],
    bandwidth: dict | None = None,
    calibration: dict | None = None,
    only: Sequence[str] = (),
) -> str:
    """The same table in Markdown, title above and notes below.

    Args:
      points: as in `step_table`, like the next two.
      bandwidth: the same.
      calibration: the same.
      only: headings of the columns to show, of those that the records have; all if empty.
    """
    table = _table(points, bandwidth)
    there = {" ".join(heading.split("\n")) for heading in table.head}
    shown = table.markdown([heading for heading in only if heading in there])
    title = _title(points, bandwidth, calibration)
    return "\n".join([*title, "", shown, *(f"\n{note}" for note in notes(points))])


def _title(points: Sequence[Record], bandwidth: dict | None, calibration: dict | None) -> list[str]:
    kind = ", ".join(distinct(points, "device_kind"))
    rates = rates_words(bandwidth, calibration, kind) if bandwidth else ""
    return [part for text in (subject(points), rates) for part in textwrap.wrap(text, WIDTH)]


def _table(points: Sequence[Record], bandwidth: dict | None) -> Table:
    """The columns worth showing; a row whose step did not run holds its keys and its status."""

    def cell(column: Column, point: Record) -> str:
        if not (_ran(point) or column.key):
            return ""
        return column.cell(point) if point.ok or not column.of_floor else "-"

    columns = [
        column
        for column in COLUMNS
        if any(cell(column, point).strip("" if column.lasting else "-") for point in points)
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
        remarks=["" if _ran(point) else status(point) for point in points],
        remarks_head="status",
        spare=[i for i, column in enumerate(columns) if column.spare],
    )


def _ran(point: Record) -> bool:
    """Whether its step has numbers to show; the others show their status in place of them."""
    return point.ok or point.ran
