"""Generates the table of the errors of floors and expected times against published steps.

`python -m profiles.published.accuracy_table` writes the table to this folder's README.
"""

import re

from profiles.published.cases import shipped_cases
from profiles.published.comparison import reproduce_all
from profiles.published.reproduced import Reproduced, by_source, summarise
from profiles.report.pages import Part
from profiles.report.table import Table

PART = Part("profiles/published/README.md", "accuracy", "profiles.published.accuracy_table")


def table() -> str:
    """The table in Markdown: a row for each source, and for fitted and held-out cases."""
    decode, _ = reproduce_all(each for each in shipped_cases()[0] if each.phase == "decode")
    head = (
        "decode steps published by", "on", "rows", "constants fitted to them",
        "error of expected, median", "90th percentile", "floor at most, of measured",
    )  # fmt: skip
    cells = []
    for source, group in by_source(decode).items():
        chips = ", ".join(dict.fromkeys(row.case.slice.chip.name for row in group))
        fitted = "no" if group[0].case.held_out else "yes"
        cells.append(_cells(re.sub(r" [@(\"].*", "", source), chips, group, fitted))
    for name, held in (("all of the above, fitted", False), ("all of the above, held out", True)):
        group = [row for row in decode if bool(row.case.held_out) is held]
        cells.append(_cells(f"**{name}**", "", group, "no" if held else "yes"))
    return Table(head, cells, align="llrcrrr").markdown() + "\n"


def _cells(name: str, chips: str, group: list[Reproduced], fitted: str) -> tuple[str, ...]:
    errors = summarise(group)
    shares = f"{errors.median:.1%}", f"{errors.p90:.1%}", f"{errors.closest:.0%}"
    return (name, chips, str(errors.rows), fitted, *shares)


if __name__ == "__main__":
    PART.write(table())
