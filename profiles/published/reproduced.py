"""Published measurements beside this project's times for them: rows, and summaries of rows."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from profiles.chips.calibration import Calibration
from profiles.published.cases import Case
from profiles.published.services import SERVING, ServiceCase
from profiles.report.numbers import ms, several
from sharding.error_types import FloorlineError


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """A case beside this project's times for it.

    Times of a service are those of its `published_s`: for each generated token.

    Attributes:
      case: what was measured.
      floor_s: the least that is consistent with the source.
      expected_s: expected time, on the mesh where it is least if none is stated.
      calibration: the constants of the expected time.
      assumptions: what was assumed for these times beside the case's own assumptions.
      bound: name of the term that bounds the floor; None for a run, which has several passes.
      concurrency: sequences at once in the floor of a service: those of the case, or as many as
        fit.
      floors: floors in seconds of other published figures of a service, by their names.
    """

    case: Case | ServiceCase
    floor_s: float
    expected_s: float
    calibration: Calibration
    assumptions: tuple[str, ...]
    bound: str | None = None
    concurrency: int | None = None
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def beaten(self) -> dict[str, tuple[float, float]]:
        """Published seconds that are below their floors, and these, by what is published."""
        pairs = {"measured time": (self.case.published_s, self.floor_s)}
        pairs |= {name: (self.case.published[name], least) for name, least in self.floors.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] < pair[1]}

    @property
    def sequences(self) -> int:
        """Sequences at once."""
        return self.case.batch if self.concurrency is None else self.concurrency

    @property
    def error(self) -> float:
        """The expected time's distance from the measured one, as a fraction of it."""
        return self.expected_s / self.case.published_s - 1

    @property
    def fraction(self) -> float:
        """Floor over measured; above 1, one of the two is wrong."""
        return self.floor_s / self.case.published_s

    @property
    def use(self) -> str:
        """``fit``, ``held_out``, or ``given`` for a case of no calibration's."""
        return "fit" if self.case.fit else "held_out" if self.case.held_out else "given"

    def as_record(self) -> dict[str, object]:
        """A row of a document."""
        case = self.case
        served = {}
        if case.phase == SERVING:
            served = {
                "concurrency": self.concurrency,
                "prompt_length": case.prompt_length,
                "generated_tokens": case.generated_tokens,
                "parallelism": case.parallelism,
                "prompts": case.engine.prompts,
                "of": "one sequence" if case.of_one_sequence else "the whole service",
                "floors": dict(self.floors),
            }
        named = {"engine": case.engine and case.engine.name, "bound": self.bound}
        batch = {} if case.phase == SERVING else {"batch": case.batch}
        return {
            "source": case.source,
            "locator": case.locator,
            "assumed": [*case.assumed, *self.assumptions],
            "published_s": case.published_s,
            "floor_s": self.floor_s,
            "expected_s": self.expected_s,
            "error": self.error,
            "fraction_of_floor": self.fraction,
            "model": case.model.name,
            "topology": str(case.slice),
            "phase": case.phase,
            **batch,
            **served,
            **{name: value for name, value in named.items() if value},
            "calibration": self.calibration.name,
            "use": self.use,
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """How times of many rows compare.

    Attributes:
      rows: how many.
      median: median of the errors' sizes.
      p90: the size that nine in ten stay below.
      closest: the largest part of a measured time that its floor is.
    """

    rows: int
    median: float
    p90: float
    closest: float

    def __str__(self) -> str:
        return (
            f"{several(self.rows, 'row')}: |error| median {self.median:.1%}, p90 {self.p90:.1%}; "
            f"floor at most {self.closest:.0%} of measured"
        )


def summarise(rows: Iterable[Reproduced]) -> Summary | None:
    """A summary; None of no rows."""
    found = list(rows)
    if not found:
        return None
    errors = [abs(row.error) for row in found]
    median, p90 = (float(value) for value in np.percentile(errors, (50, 90)))
    return Summary(len(found), median, p90, max(row.fraction for row in found))


def by_source(rows: Iterable[Reproduced]) -> dict[str, list[Reproduced]]:
    """Rows in groups of one source each, in the order of first appearance."""
    groups: dict[str, list[Reproduced]] = {}
    for row in rows:
        groups.setdefault(row.case.source, []).append(row)
    return groups


def check_floors(rows: Iterable[Reproduced]) -> None:
    """Refuses measurements that beat their floors.

    Raises:
      FloorlineError: with the first of them.
    """
    beating = [(row.case, *each) for row in rows for each in row.beaten.items()]
    for case, name, (published, least) in beating[:1]:
        raise FloorlineError(
            f"{name} is {ms(published)} ms in {case.source}, {case.locator}, below its floor of "
            f"{ms(least)} ms ({len(beating)} such); the measurement is of something else, or the "
            "case's assumptions or a peak in profiles/chips/chips.json are wrong"
        )
