"""Generates the tables of the errors of floors and expected times against published figures.

`python -m profiles.published.accuracy_table` writes both to this folder's README: that of decode
steps by source, and that of serving engines by chip.
"""

import re

import numpy as np

from profiles.published.cases import shipped_cases
from profiles.published.comparison import reproduce_all
from profiles.published.reproduced import Reproduced, by_source, summarise
from profiles.published.services import SERVING
from profiles.report.pages import Part
from profiles.report.table import Table

PART = Part("profiles/published/README.md", "accuracy", "profiles.published.accuracy_table")
ENGINES = PART._replace(name="accuracy-of-engines")


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


def engines_table() -> str:
    """The table of serving engines: a row for each on each chip, of services or static batches.

    Errors are of tokens per second, of which a longer expected time has fewer.
    """
    found, _ = reproduce_all(each for each in shipped_cases()[0] if each.engine)
    groups: dict[tuple[str, ...], list[Reproduced]] = {}
    for row in found:
        kind = "services" if row.case.phase == SERVING else "static batches"
        key = kind, row.case.engine.name, row.case.slice.chip.name, row.calibration.name
        groups.setdefault(key, []).append(row)
    head = (
        "of", "engine", "on", "constants", "runs", "error of expected tokens/s, median",
        "90th percentile", "floor at most, of published",
    )  # fmt: skip
    cells = []
    for key, group in sorted(groups.items()):
        errors = [abs(row.case.published_s / row.expected_s - 1) for row in group]
        median, p90 = np.percentile(errors, (50, 90))
        most = max(row.fraction for row in group)
        fitted = "" if group[0].case.fit else ", not fitted to it"
        shares = f"{median:.1%}", f"{p90:.1%}", f"{most:.0%}"
        cells.append((*key[:3], key[3] + fitted, str(len(group)), *shares))
    return Table(head, cells, align="llllrrrr").markdown() + "\n"


def _cells(name: str, chips: str, group: list[Reproduced], fitted: str) -> tuple[str, ...]:
    errors = summarise(group)
    shares = f"{errors.median:.1%}", f"{errors.p90:.1%}", f"{errors.closest:.0%}"
    return (name, chips, str(errors.rows), fitted, *shares)


if __name__ == "__main__":
    PART.write(table())
    ENGINES.write(engines_table())
