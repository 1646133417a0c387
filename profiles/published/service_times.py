"""Floors and expected times of published services, for each generated token."""

from collections.abc import Iterator, Sequence

from profiles.chips.calibration import Calibration
from profiles.expected.estimate import Estimator
from profiles.expected.serving import ServiceEstimate, estimate_service
from profiles.expected.time import Expected
from profiles.floor.passes import Pass
from profiles.published.estimators import (
    EVENLY,
    EXPERTS,
    assumed_types,
    estimators,
    unpadded_floor,
)
from profiles.published.reproduced import Reproduced
from profiles.published.services import ServiceCase
from profiles.report.numbers import ms, number
from sharding.error_types import UsageError


def reproduce_service(case: ServiceCase, calibration: Calibration) -> Reproduced:
    """This project's times for a service, for each generated token.

    Raises:
      LayoutError: no layout divides the model over the slice.
      UsageError: the concurrency does not fit.
    """
    for_floor = estimators(case, True, calibration)
    found = [estimate_service(each, case.service) for each in for_floor]
    _check_fits(case, found)
    least = min(found, key=lambda one: _per_token(case, one, one.floor.seconds))
    floor_s, bound = _per_token(case, least, least.floor.seconds), least.floor.bound
    assumed = list(_assumed(case, for_floor, calibration))
    if case.shortest is None:
        assumed.append(
            "lengths are at most those stated: the floor is of steps with an empty cache and no "
            f"prompts; at those lengths it would be {ms(floor_s)} ms"
        )
        floor_s, bound = _shortest_floor(case, for_floor, least.concurrency)
    expected = [
        estimate_service(each, case.service) for each in estimators(case, False, calibration)
    ]
    _, expected_s = min((not one.fits, _expected(case, one)) for one in expected)
    return Reproduced(
        case, floor_s, expected_s, calibration, tuple(assumed), bound, least.concurrency
    )


def _per_token(case: ServiceCase, one: ServiceEstimate, step_s: float) -> float:
    """Seconds for each token in the sense of the case, of a step of so many seconds."""
    return step_s if case.of_one_sequence else step_s / one.concurrency


def service_parts(case: ServiceCase, one: ServiceEstimate) -> list[tuple[float, Expected]]:
    """The expected times that each token takes, and how many of each: prompts where they run."""
    steps = _per_token(case, one, 1.0)
    if case.engine.prompts == "beside":
        return [(steps, one.beside)]
    return [(steps, one.steps), (steps * one.prefills, one.prompts.expected)]


def _expected(case: ServiceCase, one: ServiceEstimate) -> float:
    """Expected seconds for each token, with prompts where the engine runs them."""
    return sum(count * each.seconds for count, each in service_parts(case, one))


def _shortest_floor(
    case: ServiceCase, for_floor: Sequence[Estimator], concurrency: int
) -> tuple[float, str]:
    """The floor whatever the lengths, and what bounds it."""
    floors = (unpadded_floor(each, Pass(concurrency, 0)) for each in for_floor)
    least = min(floors, key=lambda one: one.seconds)
    return least.seconds / (1 if case.of_one_sequence else concurrency), least.bound


def _check_fits(case: ServiceCase, found: Sequence[ServiceEstimate]) -> None:
    """Refuses a concurrency beyond what fits in any layout, at mean lengths of smallest types.

    Raises:
      UsageError: with the number that fits.
    """
    most = max(one.most for one in found)
    if case.concurrency is None and not most:
        raise UsageError(
            f"concurrency is as many as fit, but {case.slice} has no room for {case.model.name} in "
            f"{case.weights.name} and a cache; use a larger slice"
        )
    if case.shortest is not None and case.concurrency and case.concurrency > most:
        raise UsageError(
            f"concurrency is {case.concurrency:,}, but {most:,} fit on {case.slice}, with caches "
            "of a mean length; give those that run at once, or null for as many as fit"
        )


def _assumed(
    case: ServiceCase, for_floor: Sequence[Estimator], calibration: Calibration
) -> Iterator[str]:
    """What the times assume beyond the case."""
    if for_floor[0].deployment.layout is None:
        yield EVENLY
    elif not case.divisions and case.slice.devices > 1:
        yield (
            f"parallelism {case.parallelism!r} stands for no layout here: the floor is the least "
            "of all layouts, the expected time the best"
        )
    elif case.slice.devices > 1:
        words = " or ".join(map(_layout_words, case.divisions))
        yield f"parallelism {case.parallelism!r} is {words}, on the mesh that is best for each time"
    if case.concurrency is None:
        yield "as many sequences as fit, with caches of a mean length"
    if case.shortest not in (None, 1):
        yield f"lengths spread evenly from {number(case.shortest)} of those stated to these"
    yield f"expected: prompts {case.engine.prompts} steps"
    yield from assumed_types(case)
    if case.slice.chip.name not in calibration.chips:
        yield f"expected by {calibration.describe(case.slice.chip.name)}"
    if case.model.experts:
        yield EXPERTS


def _layout_words(names) -> str:
    layout = "any layout" if names.layout == "auto" else names.layout
    attention = "" if names.attention == "auto" else f" with attention by {names.attention}"
    return layout + attention + " and experts divided" * names.expert_parallel
