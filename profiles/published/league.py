"""The league of published services: what engines reach of the floor, by engine, chip and model.

An entry takes the median over its runs: of the floor over what was published, and of the expected
time over what was published. Bounded by is what bounds the run at the first of these; of an even
number, the one that reaches less. Its assumptions and sources are those of its runs, each named
once. Entries whose lengths of prompts and answers are not known come last: their floors leave out
what depends on them.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from profiles.published.reproduced import Reproduced
from profiles.published.services import SERVING

FEW = 10
"""Runs of an engine's calibration below which they are told together with its others."""
LEAST = 3
"""Runs of an engine below which it has no line of its own."""
_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+) (?:@\w+ )?(?P<path>[\w./-]+\.\w+)")
_COMMIT = re.compile(r"@([0-9a-f]{7,40})\b")
_THREAD = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+) (?P<kind>issue |PR ?)#(?P<number>\d+)")
_NUMBERS = re.compile(r"\d[\d,]*(?:\.\d+)?(?= (?:at most: as many|ms$))")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Runs that are told together.

    Attributes:
      names: engine, chips and models, each as it is printed.
      rows: the runs beside this project's times for them, at least one.
    """

    names: tuple[str, ...]
    rows: Sequence[Reproduced]

    @property
    def of_floor(self) -> float:
        """Median of the floor over what was published."""
        return float(np.median([row.fraction for row in self.rows]))

    @property
    def best(self) -> float:
        """The largest floor over what was published."""
        return max(row.fraction for row in self.rows)

    @property
    def of_expected(self) -> float:
        """Median of the expected time over what was published."""
        return float(np.median([row.expected_s / row.case.published_s for row in self.rows]))

    @property
    def off(self) -> float:
        """Median of how far tokens per second of expected times are from those published."""
        return float(
            np.median([abs(row.case.published_s / row.expected_s - 1) for row in self.rows])
        )

    @property
    def lengths_known(self) -> bool:
        """Whether all sources state how long prompts and answers were."""
        return all(row.case.shortest is not None for row in self.rows)

    @property
    def reached(self) -> str:
        """`of_floor` in words."""
        return "at least " * (not self.lengths_known) + f"{self.of_floor:.2f}"

    @property
    def bound(self) -> str:
        """What bounds the floor of the run at the median; of two there, of the lower one."""
        ordered = sorted(self.rows, key=lambda row: row.fraction)
        return ordered[(len(ordered) - 1) // 2].bound.replace("_", " ")

    @property
    def sources(self) -> list[str]:
        """The sources, in the order of first appearance."""
        return list(dict.fromkeys(row.case.source for row in self.rows))

    @property
    def assumptions(self) -> list[str]:
        """What cases and times assume, without numbers that differ from run to run."""
        return list(dict.fromkeys(each for row in self.rows for each in assumptions(row)))


def assumptions(row: Reproduced) -> list[str]:
    """What a case and its times assume, without numbers that differ from run to run."""
    return [_NUMBERS.sub("N", each) for each in (*row.case.assumed, *row.assumptions)]


def league(rows: Iterable[Reproduced]) -> list[Entry]:
    """An entry for each engine, chip and model, the nearest to the floor first, as far as known.

    Args:
      rows: published cases; those that are not of services are left out.
    """
    groups: dict[tuple[str, ...], list[Reproduced]] = {}
    for row in _services(rows):
        case = row.case
        key = case.engine.name, case.slice.chip.name, case.model.name
        groups.setdefault(key, []).append(row)
    return _sorted(Entry(key, found) for key, found in groups.items())


def by_engine(rows: Iterable[Reproduced]) -> list[Entry]:
    """An entry for each engine of some runs, or for each of its calibrations that have many."""
    groups: dict[tuple[str, str], list[Reproduced]] = {}
    for row in _services(rows):
        groups.setdefault((row.case.engine.name, row.calibration.name), []).append(row)
    joined: dict[tuple[str, str], list[Reproduced]] = {}
    for (engine, calibration), found in groups.items():
        joined.setdefault((engine, calibration if len(found) >= FEW else ""), []).extend(found)
    return _sorted(
        Entry((engine, ", ".join(sorted({row.case.slice.chip.name for row in found}))), found)
        for (engine, _), found in joined.items()
        if len(found) >= LEAST
    )


def address(source: str) -> str | None:
    """The address of a source; None where its words have none."""
    if found := _THREAD.match(source):
        kind = "issues" if found["kind"].startswith("issue") else "pull"
        return f"https://github.com/{found['repository']}/{kind}/{found['number']}"
    if re.match(r"[\w-]+\.[\w.-]+\.\w+/", source):
        return f"https://{source.split(' ')[0]}"
    if found := _FILE.match(source):
        commit = _COMMIT.search(source)
        at = commit[1] if commit else "HEAD"
        return f"https://github.com/{found['repository']}/blob/{at}/{found['path']}"
    return None


def _services(rows: Iterable[Reproduced]) -> Iterable[Reproduced]:
    return (row for row in rows if row.case.phase == SERVING)


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda each: (not each.lengths_known, -each.of_floor, each.names))
