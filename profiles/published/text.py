"""Text and document of published figures held against this project's counts."""

import dataclasses
import itertools
import string
from collections.abc import Iterable, Sequence

from profiles.published.measurement import Unusable
from profiles.published.printed_figures import PrintedFigure
from profiles.published.reproduced import Reproduced, Summary, by_source, summarise
from profiles.published.services import SERVING
from profiles.report.numbers import exact, ms, number
from profiles.report.table import Table

_HEAD = (
    "case", "model", "slice", "phase", "batch", "measured ms", "floor ms", "expected ms", "error",
    "floor/measured", "assumed",
)  # fmt: skip


_OF_SERVICES = (
    "case", "model", "slice", "weights", "at once", "measured ms a token", "floor ms",
    "expected ms", "error", "floor/measured", "assumed",
)  # fmt: skip


def rates_text(rows: Iterable[Reproduced]) -> str:
    """Which constants expected times are by, and where those are from."""
    used = {row.calibration.name: row.calibration.source for row in rows}
    return "\n".join(f"expected times by {name}: {source}" for name, source in used.items())


def rows_text(rows: Sequence[Reproduced], unusable: Sequence[Unusable]) -> str:
    """A table for each source, with what was assumed and a summary, and what cannot be used."""
    parts = [_source_text(source, group) for source, group in by_source(rows).items()]
    if unusable:
        lines = [f"  {each.source}, {each.locator}: {each.why}" for each in unusable]
        parts.append("\n".join(["cannot be used:", *lines]))
    return "\n\n".join(parts)


def _source_text(source: str, rows: Sequence[Reproduced]) -> str:
    notes: dict[str, str] = {}
    names = itertools.chain(string.ascii_lowercase, map("".join, itertools.product(
        string.ascii_lowercase, repeat=2)))  # fmt: skip
    tables: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        for note in (*row.case.assumed, *row.assumptions):
            if note not in notes:
                notes[note] = next(names)
        head = _OF_SERVICES if row.case.phase == SERVING else _HEAD
        tables.setdefault(head, []).append(_cells(row, notes))
    assumed = [f"  {name}: {note}" for note, name in notes.items()]
    summary = f"summary: {summarise(rows)}"
    shown = [Table(head, lines).terminal() for head, lines in tables.items()]
    return "\n".join([source, *shown, *assumed, summary])


def _cells(row: Reproduced, notes: dict[str, str]) -> tuple[str, ...]:
    case = row.case
    beats = " BEATS ITS FLOOR" * bool(row.beaten)
    return (
        case.locator + " (held out)" * (row.use == "held_out"),
        case.model.name,
        str(case.slice),
        case.weights.name if case.phase == SERVING else case.phase,
        f"{row.sequences:,}",
        *(ms(seconds) for seconds in (case.published_s, row.floor_s, row.expected_s)),
        f"{row.error:+.1%}",
        f"{row.fraction:.0%}{beats}",
        " ".join(notes[note] for note in (*case.assumed, *row.assumptions)),
    )


def accuracy(rows: Iterable[Reproduced]) -> dict[str, Summary]:
    """Summaries of decode steps that were fitted, of those that were not, and of all others."""
    rows = list(rows)
    steps = [row for row in rows if row.case.phase == "decode"]
    groups = {
        "decode steps": steps,
        "decode steps, fitted": [row for row in steps if row.use == "fit"],
        "decode steps, held out": [row for row in steps if row.use == "held_out"],
        "prefills and runs": [row for row in rows if row.case.phase in ("prefill", "run")],
        "services": [row for row in rows if row.case.phase == SERVING],
    }
    return {name: summarise(group) for name, group in groups.items() if group}


def accuracy_text(rows: Iterable[Reproduced]) -> str:
    """A line for each group of `accuracy`."""
    return "\n".join(f"{name}: {found}" for name, found in accuracy(rows).items())


def contexts_text(rows: Iterable[dict]) -> str:
    """A table of longest contexts."""
    head = "longest context", "batch", "published", "counted", "difference"
    text = [
        (
            f"{row['source'].split(',')[0]}, {row['locator']}",
            f"{row['batch']:,}",
            f"{row['published_context']:,}",
            number(row["context"]),
            f"{row['error']:+.1%}",
        )
        for row in rows
    ]
    return Table(head, text).terminal()


def figures_text(figures: Iterable[PrintedFigure], others: Iterable[dict]) -> str:
    """A table of printed figures for each source, differences named below."""
    head = (
        "figure",
        "at",
        "unit",
        "printed",
        "by its equation",
        "",
        "counted",
        "difference",
        "with scales",
    )
    groups: dict[str, list[PrintedFigure]] = {}
    for figure in figures:
        groups.setdefault(figure.line["source"], []).append(figure)
    parts = []
    for source, group in groups.items():
        lines = [source, Table(head, list(map(_figure_cells, group))).terminal()]
        for line in {id(each.line): each.line for each in group}.values():
            if "differences" in line:
                lines.append(f"  what sets apart {line['locator']}, {line['what']}:")
                lines += [f"    {_difference(each)}" for each in line["differences"]]
        inferred: dict[str, str] = {}
        for line in (each.line for each in group):
            if "inferred" in line:
                inferred[f"{line['locator']}, {line['what']}"] = line["inferred"]
        if inferred:
            lines.append("  inputs that the source as read does not state, but its digits need:")
            lines += [f"    {name}: {text}" for name, text in inferred.items()]
        parts.append("\n".join(lines))
    lines = [f"  {each['source']}, {each['locator']}: {each['why']}" for each in others]
    return "\n\n".join([*parts, "\n".join(["not recomputed:", *lines])])


def _figure_cells(figure: PrintedFigure) -> tuple[str, ...]:
    line = figure.line
    agrees = "" if figure.derived is None else "same digits" if figure.agrees else "OTHER DIGITS"
    return (
        f"{line['locator']}, {line['what']}",
        f"{line['over']} {figure.at}" if figure.at else "",
        line["unit"],
        figure.printed,
        _number(figure.derived),
        agrees,
        _number(figure.counted),
        "" if figure.difference is None else f"{figure.difference:+.2%}",
        _number(figure.with_scales),
    )


def _number(value: float | None) -> str:
    return "" if value is None else exact(value)


def _difference(each: dict) -> str:
    sizes = [
        f"{each[name]:+,} bytes{words}"
        for name, words in (("bytes", ""), ("bytes_per_sequence", " for each sequence"))
        if name in each
    ]
    return each["what"] + (f" ({', '.join(sizes)})" if sizes else "")


def case_records(rows: Sequence[Reproduced], unusable: Sequence[Unusable]) -> dict:
    """The part of a document that is about cases."""
    groups = by_source(rows).items()
    return {
        "rows": [row.as_record() for row in rows],
        "summary": {name: dataclasses.asdict(summarise(group)) for name, group in groups},
        "accuracy": {name: dataclasses.asdict(found) for name, found in accuracy(rows).items()},
        "unusable": [dataclasses.asdict(each) for each in unusable],
    }
