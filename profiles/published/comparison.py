"""Published figures beside what this project counts for the same case.

Longest contexts are of `contexts.json`; measured steps and services are cases
(`profiles.published.cases`), each with its floor, its expected time and the expected time's error.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources

import jax.numpy as jnp

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration, calibration_of
from profiles.expected.estimate import Estimator
from profiles.expected.serving import estimate_service
from profiles.expected.time import Expected
from profiles.floor.alike_layers import kv_token_bytes
from profiles.floor.passes import Pass
from profiles.published.cases import Case
from profiles.published.estimators import (
    EVENLY,
    EXPERTS,
    assumed_constants,
    assumed_types,
    estimators,
    unpadded_floor,
)
from profiles.published.measurement import Unusable
from profiles.published.reproduced import Reproduced
from profiles.published.service_times import fastest_service, reproduce_service, service_times
from profiles.published.services import ServiceCase
from profiles.report.numbers import number
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


@functools.lru_cache(maxsize=1024)
def reproduce(case: Case | ServiceCase, calibration: Calibration | None = None) -> Reproduced:
    """This project's times for a case; several tables ask for those of the same.

    Args:
      case: what was measured.
      calibration: for expected times; that of the engine on the chip if None, or of the chip.

    Raises:
      LayoutError: the layout does not go with the model on any mesh of the slice.
      UsageError: the chip has no figure for the arithmetic, the calibration was measured on
        another device, or a service's concurrency does not fit.
    """
    named = case.engine and case.engine.name
    calibration = calibration or calibration_of(case.slice.chip.name, named)
    calibration.check_chip(case.slice.chip.name)
    if isinstance(case, ServiceCase):
        return reproduce_service(case, calibration)
    for_floor = estimators(case, True, calibration)
    floor_s, bound = min((_floor_seconds(case, each) for each in for_floor), key=lambda one: one[0])
    _, expected_s = min(_expected(case, each) for each in estimators(case, False, calibration))
    assumed = tuple(_assumed(case, for_floor, calibration))
    return Reproduced(case, floor_s, expected_s, calibration, assumed, bound)


def _floor_seconds(case: Case, estimator: Estimator) -> tuple[float, str | None]:
    """The floor of a case in one layout on one mesh, and what bounds it if it is one pass."""
    step = Pass(case.batch, first_context(case))
    if case.phase == "decode":
        found = unpadded_floor(estimator, step)
        return found.seconds, found.bound
    first = unpadded_floor(estimator, Pass(case.batch, cached(case), case.prompt_length))
    if case.phase == "prefill":
        return first.seconds, first.bound
    # The pass over the prompt makes the first token.
    steps = max(case.generated_tokens - 1, 0)
    return first.seconds + steps * unpadded_floor(estimator, step).seconds, None


def _expected(case: Case, estimator: Estimator) -> tuple[bool, float]:
    """Whether the case does not fit in one layout on one mesh, and its expected time."""
    passes = [(count, estimator.estimate(pass_)) for count, pass_ in passes_of(case)]
    seconds = sum(count * each.expected.seconds for count, each in passes)
    return not all(each.fits for _, each in passes), seconds


def times_where_fastest(
    case: Case | ServiceCase, calibration: Calibration
) -> Callable[[Calibration], list[tuple[float, Expected]]]:
    """Gives the times that a case's expected time is the sum of, and how many of each there are.

    Args:
      case: what was measured.
      calibration: chooses the layout on a mesh, and how many sequences of a service run at once:
        those in which it expects the least time.

    Returns:
      A function of other constants.

    Raises:
      LayoutError: no layout divides the model over the slice.
    """
    served = None
    if isinstance(case, ServiceCase):
        served = fastest_service(case, calibration)[1]
        deployment = served.deployment
    else:
        found = estimators(case, False, calibration)
        deployment = min(found, key=lambda each: _expected(case, each)).deployment

    def times(constants: Calibration) -> list[tuple[float, Expected]]:
        estimator = Estimator(dataclasses.replace(deployment, calibration=constants))
        if served:
            return service_times(case, estimate_service(estimator, served.service))
        return [(count, estimator.estimate(pass_).expected) for count, pass_ in passes_of(case)]

    return times


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
    if case.phase != "prefill" and first_context(case) != mean_context(case):
        yield (
            f"steps at a mean context of {mean_context(case)}, the floor's at {first_context(case)}"
        )
    if for_floor[0].deployment.layout is None:
        yield EVENLY
    elif not case.layout:
        yield "layout not stated: the floor is the least of all, the expected time the best"
    if for_floor[0].deployment.layout and not case.attention and case.slice.devices > 1:
        yield "attention not stated: the floor is the least of all, the expected time the best"
    if not case.mesh and len(for_floor) > 1:
        yield "mesh not stated: the floor is the least of all, the expected time the best"
    yield from assumed_types(case)
    yield from assumed_constants(case, calibration)
    if case.model.experts:
        yield EXPERTS


def reproduce_all(
    cases: Iterable[Case | ServiceCase], calibration: Calibration | None = None
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
