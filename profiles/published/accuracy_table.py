"""How floors and expected times do against published steps, from the code.

`python -m profiles.published.accuracy_table` writes the table to this folder's page.
"""

import re

from profiles.published.cases import shipped_cases
from profiles.published.rows import by_source, reproduce_all, summarise
from profiles.report.pages import Part

PART = Part("profiles/published/README.md", "accuracy", "profiles.published.accuracy_table")


def table() -> str:
    """A row for each source and use, in Markdown."""
    rows, _ = reproduce_all(shipped_cases()[0])
    head = (
        "| decode steps published by | on | rows | constants fitted to them | error of expected, "
        "median | 90th percentile | floor at most, of measured |"
    )
    lines = [head, "|---|---|---:|:---:|---:|---:|---:|"]
    decode = [row for row in rows if row.case.phase == "decode"]
    for source, group in by_source(decode).items():
        chips = ", ".join(dict.fromkeys(row.case.slice.chip.name for row in group))
        fitted = "no" if group[0].case.held_out else "yes"
        lines.append(_line(re.sub(r" [@(\"].*", "", source), chips, group, fitted))
    for name, held in (("all of the above, fitted", False), ("all of the above, held out", True)):
        group = [row for row in decode if bool(row.case.held_out) is held]
        lines.append(_line(f"**{name}**", "", group, "no" if held else "yes"))
    return "\n".join(lines) + "\n"


def _line(name: str, chips: str, group: list, fitted: str) -> str:
    found = summarise(group)
    return (
        f"| {name} | {chips} | {found.rows} | {fitted} | {found.median:.1%} | {found.p90:.1%} | "
        f"{found.closest:.0%} |"
    )


if __name__ == "__main__":
    PART.write(table())
