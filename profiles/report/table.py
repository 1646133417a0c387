"""Records and rows as tables, for a terminal and in Markdown.

A percentage is only printed below a title that names the bandwidth it refers to.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from profiles.report.document import Record
from profiles.report.files import check_writable as check_writable
from profiles.report.files import write_csv as write_csv
from profiles.report.files import write_json as write_json
from profiles.report.numbers import byte_size, exact, ms, number, several
from profiles.report.titles import TITLE_FIELDS, _values, bandwidth_words, field_text, subject

WIDTH = 110  # columns of a terminal that a table may fill
TO = "\N{EN DASH}"


class Column(NamedTuple):
    """A table's column: a heading of two rows, and a cell's text ("" where not known)."""

    heading: tuple[str, str]
    cell: Callable[[Record], str]
    key: str = ""  # the field that it shows, of those known before the step ran
    if_varied: bool = False  # shown only where records differ; the title says it otherwise
    of_floor: bool = False  # means nothing where the floor does not apply
    percentage: bool = False  # means nothing unless the bandwidth is named
    spare: bool = False  # left out when a terminal's width would not do


def _show(field: str, form: Callable = field_text) -> Callable[[Record], str]:
    return lambda point: form(point[field]) if field in point else ""


def _basis(point: Record) -> str:
    """Which of the times a record's rate and cost were taken from."""
    named = (("step_s", "measured"), ("expected_s", "expected"), ("floor_s", "floor"))
    return next((word for field, word in named if field in point), "")


def _by_basis(basis: str, field: str) -> Callable[[Record], str]:
    return lambda p: number(p[field]) if field in p and _basis(p) == basis else ""


def _devices_and_mesh(point: Record) -> str:
    mesh = f" ({field_text(point['mesh'])})" if "mesh" in point else ""
    return f"{point.get('devices', point.get('chips', ''))}{mesh}"


def _experts(point: Record) -> str:
    touched = point.get("experts_touched", {})
    return f"{touched['measured']:.1f} ({touched['expected']:.1f})" if "measured" in touched else ""


def _share(fraction: float) -> str:
    return f"{fraction:.0%}" + " (!)" * (fraction > 1)


COLUMNS = (
    *(Column(("", field), _show(field), key=field, if_varied=True) for field in TITLE_FIELDS),
    Column(("devices", "(x,y,z)"), _devices_and_mesh, key="devices"),
    Column(("", "context"), _show("context", exact), key="context"),
    Column(("", "batch"), _show("batch", exact), key="batch"),
    Column(
        ("tokens per", "sequence"),
        _show("tokens_per_sequence", exact),
        key="tokens_per_sequence",
        if_varied=True,
    ),
    Column(("experts read", "(if even)"), _experts, spare=True),
    Column(("measured", "step ms"), _show("step_s", lambda s: ms(s["median"]))),
    Column(
        ("measured", f"p10{TO}p90 ms"),
        _show("step_s", lambda s: f"{ms(s['p10'])}{TO}{ms(s['p90'])}"),
        spare=True,
    ),
    Column(("expected", "step ms"), _show("expected_s", ms)),
    Column(("floor", "step ms"), _show("floor_s", ms), of_floor=True),
    Column(("weight", "floor ms"), _show("weight_floor_s", ms), of_floor=True, spare=True),
    Column(("floor", "bound by"), _show("bound"), of_floor=True),
    Column(
        ("floor /", "measured"), _show("fraction_of_floor", _share), of_floor=True, percentage=True
    ),
    *(
        Column((basis, unit), _by_basis(basis, field))
        for field, unit in (("tokens_per_s", "tokens/s"), ("usd_per_million_tokens", "USD/Mtok"))
        for basis in ("measured", "expected", "floor")
    ),
)


def table(points: Sequence[Record], bandwidth: dict | None = None) -> str:
    """Records as an aligned table for a terminal, its title and its notes.

    Args:
      points: records, a row each; one whose step did not run shows its status and message.
      bandwidth: a document's; without it percentages are left out, for want of their peak.
    """
    columns, rows = _rows(points, bandwidth)
    while True:
        widths = [
            max(len(text) for text in (*column.heading, *(row[i] for row in rows if row[i:])))
            for i, column in enumerate(columns)
        ]
        spare = [i for i, column in enumerate(columns) if column.spare]
        if sum(widths) + 2 * len(widths) - 2 <= WIDTH or not spare:
            break
        del columns[spare[-1]]
        rows = [row[: spare[-1]] + row[spare[-1] + 1 :] for row in rows]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(map(str.rjust, cells, widths))

    text = [*_title(points, bandwidth), ""]
    text += [line([column.heading[i] for column in columns]) for i in (0, 1)]
    for point, row in zip(points, rows, strict=True):
        start = line(row)
        if _ran(point):
            text.append(start.rstrip())
            continue
        indent = " " * (len(start) + 2)
        wrapped = textwrap.wrap(_status(point), max(WIDTH - len(indent), 30)) or [""]
        text += [f"{start}  {wrapped[0]}", *(indent + more for more in wrapped[1:])]
    notes = [part for note in _notes(points) for part in textwrap.wrap(note, WIDTH)]
    return "\n".join(text + [""] * bool(notes) + notes)


def markdown_table(
    points: Sequence[Record], bandwidth: dict | None = None, only: Sequence[str] = ()
) -> str:
    """The same table in Markdown, title above and notes below; of all columns, or `only` those."""
    columns, rows = _rows(points, bandwidth)
    headings = [" ".join(column.heading).strip() for column in columns]
    for point, row in zip(points, rows, strict=True):
        if not _ran(point):
            row.append(_status(point).replace("|", "\\|"))
    headings += ["status"] * (max(map(len, rows), default=0) - len(headings))
    whole = [row + [""] * (len(headings) - len(row)) for row in rows]
    shown = [headings.index(heading) for heading in only or headings]
    lines = ["| " + " | ".join(row[i] for i in shown) + " |" for row in (headings, *whole)]
    lines.insert(1, "|" + "---:|" * len(shown))
    return "\n".join([*_title(points, bandwidth), "", *lines, *(f"\n{n}" for n in _notes(points))])


def _title(points: Sequence[Record], bandwidth: dict | None) -> list[str]:
    kind = ", ".join(_values(points, "device_kind"))
    floor = f"Floor at {bandwidth_words(bandwidth, kind)}" if bandwidth else ""
    return [part for text in (subject(points), floor) for part in textwrap.wrap(text, WIDTH)]


def _rows(points: Sequence[Record], bandwidth: dict | None) -> tuple[list[Column], list[list[str]]]:
    """The columns worth showing and each record's cells; a row cut short holds only its keys."""

    def shown(column: Column, point: Record) -> str:
        if not (_ran(point) or column.key):
            return ""
        ok = point.get("status", "ok") == "ok"
        return column.cell(point) if ok or not column.of_floor else "-"

    columns = [
        column
        for column in COLUMNS
        if any(shown(column, point).strip("-") for point in points)
        and not (column.if_varied and len(_values(points, column.key)) < 2)
        and not (column.percentage and bandwidth is None)
    ]
    keys = [column for column in columns if column.key]

    def row(point: Record) -> list[str]:
        return [shown(column, point) for column in (columns if _ran(point) else keys)]

    return columns, [row(point) for point in points]


def _ran(point: Record) -> bool:
    """Whether its step has numbers to show; the others show their status in place of them."""
    return point.get("status", "ok") == "ok" or "step_s" in point


def _status(point: Record) -> str:
    return ": ".join(filter(None, (point.get("status", ""), point.get("message", ""))))


def _notes(points: Sequence[Record]) -> list[str]:
    """What a reader must know of steps that did run: what the floor leaves out, or got wrong."""
    odd: dict[str, list[Record]] = {}
    for point in points:
        if "step_s" in point and point.get("status", "ok") != "ok":
            odd.setdefault(point["status"], []).append(point)
    notes = [
        f"-  {_status(rows[0])}" + f" (and {several(len(rows) - 1, 'row')} more)" * (len(rows) > 1)
        for rows in odd.values()
    ]
    notes += _unpacked(points)
    if any(point.get("fraction_of_floor", 0) > 1 for point in points):
        notes.append(
            "(!)  error: a step measured below its floor; the bandwidth or the timing is wrong"
        )
    return notes


def _unpacked(points: Sequence[Record]) -> list[str]:
    """Types that the compiler holds in more bits: how much, and in which steps if not all."""
    found: dict[str, list[tuple[int, int]]] = {}
    for point in points:
        held = point.get("bytes_per_chip", {}).get("weights_unpacked", 0)
        found.setdefault(point.get("weight_dtype", ""), []).append((held, point["batch"]))
    notes = []
    for name, steps in found.items():
        if most := max(steps)[0]:
            batches = dict.fromkeys(str(batch) for held, batch in steps if held)
            which = "" if all(held for held, _ in steps) else f" of batch {', '.join(batches)}"
            what = f"unpacks {byte_size(most)} of weights as a whole in each step{which}"
            notes.append(f"-  {name}: the compiler {what}")
    return notes


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, words to the left and numbers to the right."""
    numbers = [all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(head))]
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numbers, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (head, *rows)))
