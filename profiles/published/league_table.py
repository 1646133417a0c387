"""Generates the league of published services: a table of all entries, and lines for the first page.

`python -m profiles.published.league_table` writes both where pages have a place for them, and
prints the lines if the first page has none.
"""

import collections
import functools

from profiles.published.cases import shipped_cases
from profiles.published.comparison import reproduce_all
from profiles.published.league import Entry, address, assumptions, by_engine, league
from profiles.published.reproduced import Reproduced
from profiles.published.services import SERVING
from profiles.report.numbers import several
from profiles.report.pages import Part
from profiles.report.table import Table

PART = Part("profiles/published/README.md", "league", "profiles.published.league_table")
FIRST_PAGE = Part("README.md", "league", "profiles.published.league_table")
HEAD = (
    "engine", "chip", "model", "runs", "of the floor", "best", "expected / published",
    "bound by", "assumed", "sources",
)  # fmt: skip


@functools.cache
def published_services() -> tuple[Reproduced, ...]:
    """The published services beside this project's times for them, which take seconds to find."""
    cases = [case for case in shipped_cases()[0] if case.phase == SERVING]
    return tuple(reproduce_all(cases)[0])


def table(found: list[Reproduced]) -> str:
    """The league in Markdown, and its assumptions by the numbers that it has for them."""
    counted = collections.Counter(each for row in found for each in assumptions(row))
    numbers = {text: number for number, (text, _) in enumerate(counted.most_common(), 1)}
    cells = [
        (
            *entry.names,
            str(len(entry.rows)),
            entry.reached,
            f"{entry.best:.2f}",
            f"{entry.of_expected:.2f}",
            entry.bound,
            " ".join(str(number) for number in sorted(numbers[each] for each in entry.assumptions)),
            " ".join(_link(*each) for each in enumerate(entry.sources, 1)),
        )
        for entry in league(found)
    ]
    notes = "\n".join(f"{number}. {text}" for text, number in numbers.items())
    return f"{Table(HEAD, cells, align='lllrrrrlll').markdown()}\n\nAssumed:\n\n{notes}\n"


def _link(number: int, source: str) -> str:
    link = address(source)
    return f"[{number}]({link})" if link else source


def first_page(found: list[Reproduced]) -> str:
    """A line for each engine, the nearest to the floor first."""
    return "".join(f"- {_line(entry)}\n" for entry in by_engine(found))


def _line(entry: Entry) -> str:
    engine, chips = entry.names
    best = f"{entry.best:.2f} at best; bound by {entry.bound}"
    unknown = "as lengths of prompts and answers are not published"
    return (
        f"**{engine}** on {chips}: {entry.reached}, {best if entry.lengths_known else unknown}; "
        f"expected {entry.off:.0%} off "
        f"([{several(len(entry.rows), 'run')}]({PART.page}#what-engines-reach-of-the-floor))"
    )


def main() -> None:
    """Writes the table and the lines."""
    found = published_services()
    PART.write(table(found))
    try:
        FIRST_PAGE.write(first_page(found))
    except ValueError:
        print(first_page(found), end="")


if __name__ == "__main__":
    main()
