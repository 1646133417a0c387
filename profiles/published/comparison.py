"""Published figures beside what this project counts for the same case.

Longest contexts are of `contexts.json`; measured steps are cases (`profiles.published.cases`), each
with its floor, its expected time and the expected time's error.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

import jax.numpy as jnp
import numpy as np

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration, calibration_of
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import Estimator
from profiles.floor.bound import floor
from profiles.floor.bytes_and_flops import kv_token_bytes
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.published.cases import Case, Unusable
from profiles.report.numbers import ms, number, several
from sharding.catalog import attend_by, find_layout
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh
from sharding.placement import Placement

TOLERANCE = 0.015
"""Published contexts are rounded to two or three digits, and so is the memory left for them."""


def longest_contexts() -> Iterator[dict]:
    """Each published longest context as a row for a report.

    Yields:
      ``source``, ``locator``, ``assumed``, ``batch``, ``published_context``, ``context`` as counted
      here, and ``error``, the second's distance from the first as a fraction.
    """
    for case in _data()["longest_contexts"]:
        config = find_model(case["model"])
        layout = attend_by(find_layout(case["layout"]), case["attention"])
        placement = Placement.of(layout, config.sizes, parse_mesh(case["mesh"]))
        token = kv_token_bytes(config, placement, Dtypes(jnp.dtype(case["kv_dtype"])))
        for batch, published in case["published"].items():
            context = case["kv_bytes_per_chip"] / (int(batch) * token)
            yield {
                **{key: case[key] for key in ("source", "locator", "assumed")},
                "batch": int(batch),
                "published_context": published,
                "context": context,
                "error": context / published - 1,
            }


def _data() -> dict:
    return json.loads(resources.files("profiles.published").joinpath("contexts.json").read_text())


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """A case beside this project's times for it.

    Attributes:
      case: what was measured.
      floor_s: the least that is consistent with the source.
      expected_s: expected time, on the mesh where it is least if none is stated.
      calibration: the constants of the expected time.
      assumptions: what was assumed for these times beside the case's own assumptions.
    """

    case: Case
    floor_s: float
    expected_s: float
    calibration: Calibration
    assumptions: tuple[str, ...]

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
            "batch": case.batch,
            "use": self.use,
        }


def reproduce(case: Case, calibration: Calibration | None = None) -> Reproduced:
    """This project's times for a case.

    Args:
      case: what was measured.
      calibration: for expected times; those of the chip if None.

    Raises:
      LayoutError: the layout does not go with the model on any mesh of the slice.
      UsageError: the chip has no figure for the arithmetic, or the calibration was measured on
        another device.
    """
    calibration = calibration or calibration_of(case.slice.chip.name)
    calibration.check_chip(case.slice.chip.name)
    for_floor = estimators(case, True, calibration)
    floor_s = min(_floor_seconds(case, each) for each in for_floor)
    _, expected_s = min(_expected(case, each) for each in estimators(case, False, calibration))
    assumed = tuple(_assumed(case, for_floor, calibration))
    return Reproduced(case, floor_s, expected_s, calibration, assumed)


def estimators(case: Case, for_floor: bool, calibration: Calibration) -> list[Estimator]:
    """Estimators of all meshes that a case may have, for its floor or for its expected time."""
    mesh = tuple(case.mesh.items()) if case.mesh else None
    deployment = Deployment(
        model=case.model,
        slice=case.slice_for(for_floor),
        dtypes=case.dtypes(for_floor),
        calibration=calibration,
        experts="least" if for_floor else "coverage",
    )
    return _estimators(deployment, case.names, mesh)


@functools.lru_cache(maxsize=256)
def _estimators(
    deployment: Deployment, names: LayoutNames, mesh: tuple[tuple[str, int], ...] | None
) -> list[Estimator]:
    """Cases of one table share these."""
    layouts = names.layouts(deployment.model)
    return candidates(deployment, layouts, [dict(mesh)] if mesh else None)


def _floor_seconds(case: Case, estimator: Estimator) -> float:
    """The floor of a case in one layout on one mesh."""
    prompt, context = case.prompt_length, first_context(case)
    if case.phase == "decode":
        return _bound(case, estimator, context, 1)
    first = _bound(case, estimator, cached(case), prompt)
    if case.phase == "prefill":
        return first
    # The pass over the prompt makes the first token.
    steps = max(case.generated_tokens - 1, 0)
    return first + steps * _bound(case, estimator, context, 1)


def _bound(case: Case, estimator: Estimator, context: int, tokens: int) -> float:
    """The floor of a pass; a batch is not padded, because another layout need not pad it."""
    pass_, deployment = Pass(case.batch, context, tokens), estimator.deployment
    if deployment.padded(pass_) == pass_:
        return estimator.estimate(pass_).floor.seconds
    counter = deployment.prompt_counter if pass_.over_prompts else deployment.counter
    return floor(counter.count(pass_, deployment.experts), estimator.peaks).seconds


def _expected(case: Case, estimator: Estimator) -> tuple[bool, float]:
    """Whether the case does not fit in one layout on one mesh, and its expected time."""
    passes = [(count, estimator.estimate(pass_)) for count, pass_ in passes_of(case)]
    seconds = sum(count * each.expected.seconds for count, each in passes)
    return not all(each.fits for _, each in passes), seconds


def passes_of(case: Case) -> list[tuple[int, Pass]]:
    """How many passes a case has, of which kinds."""
    prompt = (1, Pass(case.batch, cached(case), case.prompt_length))
    step = Pass(case.batch, mean_context(case))
    if case.phase == "prefill":
        return [prompt]
    return [(1, step)] if case.phase == "decode" else [prompt, (case.generated_tokens, step)]


def cached(case: Case) -> int:
    """Tokens that the cache has before a prompt; a context of the prompt's length is the prompt."""
    return 0 if case.context in (None, case.prompt_length) else case.context


def first_context(case: Case) -> int:
    """Tokens in the cache as the first step starts."""
    if case.phase == "decode" and case.context is not None:
        return case.context
    return (cached(case) if case.phase == "run" else 0) + case.prompt_length


def mean_context(case: Case) -> int:
    """Tokens in the cache on average over steps."""
    if case.phase == "decode" and case.context is not None:
        return case.context
    return first_context(case) + max(case.generated_tokens - 1, 0) // 2


def _assumed(case: Case, for_floor: Sequence[Estimator], calibration: Calibration) -> Iterator[str]:
    """What the times assume beyond the case."""
    sized = for_floor[0].deployment.layout is None
    if case.phase != "prefill" and first_context(case) != mean_context(case):
        yield (
            f"steps at a mean context of {mean_context(case)}, the floor's at {first_context(case)}"
        )
    if sized:
        yield "divided evenly over chips, whatever the layout"
    elif not case.layout:
        yield "layout not stated: the floor is the least of all, the expected time the best"
    if not sized and not case.attention and case.slice.devices > 1:
        yield "attention not stated: the floor is the least of all, the expected time the best"
    if not case.mesh and len(for_floor) > 1:
        yield "mesh not stated: the floor is the least of all, the expected time the best"
    if case.weights.few_bits or (case.cache and case.cache.few_bits):
        yield "the floor counts values of few bits without scales, and all tables in them"
    if case.weights.few_bits and not case.dtype:
        yield "arithmetic not stated: bfloat16, the floor's as fast as the chip has"
    if not case.cache:
        yield f"kv_dtype not stated: {case.arithmetic}"
    if case.slice.chip.name not in calibration.chips:
        yield f"expected by {calibration.describe(case.slice.chip.name)}"
    if case.model.experts:
        yield "the floor reads one token's experts, the expected time those of evenly spread tokens"


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


def reproduce_all(
    cases: Iterable[Case], calibration: Calibration | None = None
) -> tuple[list[Reproduced], list[Unusable]]:
    """`reproduce` of each, and beside them those that do not go with their slice or calibration.

    Raises:
      UsageError: the calibration was measured on a device that no case is of.
    """
    rows, refused, cases = [], [], list(cases)
    chips = [case.slice.chip.name for case in cases]
    if calibration and chips and calibration.measured_on not in chips:
        calibration.check_chip(chips[0])
    for case in cases:
        try:
            rows.append(reproduce(case, calibration))
        except FloorlineError as error:
            refused.append(Unusable(case.source, case.locator, str(error)))
    return rows, refused


def check_floors(rows: Iterable[Reproduced]) -> None:
    """Refuses measurements that beat their floors.

    Raises:
      FloorlineError: with the first of them.
    """
    if beating := [row for row in rows if row.fraction > 1]:
        row = beating[0]
        case = row.case
        raise FloorlineError(
            f"measured time is {ms(case.published_s)} ms in {case.source}, {case.locator}, "
            f"below its floor of {ms(row.floor_s)} ms ({len(beating)} such); the measurement "
            "is of something else, or the case's assumptions or a peak in "
            "profiles/chips/chips.json are "
            "wrong"
        )


def check_contexts(rows: Iterable[dict]) -> None:
    """Refuses longest contexts that are further off than rounding explains.

    Raises:
      FloorlineError: with the first of them.
    """
    for row in rows:
        if abs(row["error"]) > TOLERANCE:
            raise FloorlineError(
                f"counted context is {number(row['context'])} where {row['locator']} has "
                f"{row['published_context']:,}; the count or the case's assumptions must be wrong"
            )
