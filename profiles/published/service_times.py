"""Floors and expected times of published services, for each generated token."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from profiles.chips.calibration import Calibration
from profiles.expected.candidates import LayoutNames
from profiles.expected.estimate import Estimator
from profiles.expected.serving import ServiceEstimate, estimate_service
from profiles.expected.time import NO_COMMUNICATION, Expected
from profiles.floor.bound import floor
from profiles.floor.passes import Pass
from profiles.floor.serving import Service, ServingWork, most_sequences, serving_work
from profiles.published.estimators import (
    EVENLY,
    EXPERTS,
    assumed_constants,
    assumed_types,
    estimators,
    unpadded_floor,
)
from profiles.published.reproduced import Reproduced
from profiles.published.services import ServiceCase
from profiles.report.numbers import ms, number
from sharding.error_types import UsageError


class Option(NamedTuple):
    """A layout on a mesh that a service may have run in, without the times of its collectives.

    Attributes:
      estimator: of the deployment.
      most: sequences that fit with what their caches fill on average.
      concurrency: sequences at once.
      work: what each device has to do.
    """

    estimator: Estimator
    most: int
    concurrency: int
    work: ServingWork

    @property
    def fits(self) -> bool:
        """Whether as many fit."""
        return self.concurrency <= self.most


def reproduce_service(case: ServiceCase, calibration: Calibration) -> Reproduced:
    """This project's times for a service, for each generated token.

    Raises:
      LayoutError: no layout divides the model over the slice.
      UsageError: the concurrency does not fit.
    """
    found = estimators(case, True, calibration)
    for_floor = _options(case, found, case.service, for_floor=True)
    floor_s, least = _least(case, for_floor, _floor_without_links, lambda one: one.floor.seconds)
    bound, concurrency = least.floor.bound, least.concurrency
    assumed = list(_assumed(case, for_floor[0].estimator, calibration))
    if case.shortest is None:
        assumed.append(
            "lengths are at most those stated: the floor is of steps with an empty cache and no "
            f"prompts; at those lengths it would be {ms(floor_s)} ms"
        )
        for_floor = _options(case, found, Service(case.concurrency, 1, 1), for_floor=True)
        floor_s, bound, concurrency = _shortest_floor(case, for_floor)
    _check_fits(case, for_floor)
    expected_s, _ = fastest_service(case, calibration)
    return Reproduced(
        case,
        float(floor_s),
        float(expected_s),
        calibration,
        tuple(assumed),
        bound,
        concurrency,
        _floors_of_others(case, for_floor),
    )


def fastest_service(case: ServiceCase, calibration: Calibration) -> tuple[float, ServiceEstimate]:
    """Expected seconds for each token in the layout where they are least, and the estimate there.

    Raises:
      LayoutError: no layout divides the model over the slice.
    """
    options = _options(case, estimators(case, False, calibration), case.service, for_floor=False)
    fitting = [one for one in options if one.fits] or options
    if case.engine.prompts == "beside":
        seconds = operator.attrgetter("expected_beside_s")
    else:
        seconds = operator.attrgetter("expected_between_s")
    return _least(case, fitting, _expected_without_links, seconds)


def _options(
    case: ServiceCase, found: Iterable[Estimator], service: Service, for_floor: bool
) -> list[Option]:
    """Where the service may have run, with the work there.

    As many sequences as fit take least time for each token of the service; for a token of one
    sequence a single one does.

    Args:
      case: what was published.
      found: estimators of the layouts on meshes.
      service: its lengths, or the shortest that it may have had.
      for_floor: whether to take the least time that is consistent with the source.
    """
    options = []
    for each in found:
        most = most_sequences(each.deployment, service, each.peaks.capacity)
        alone = for_floor and case.of_one_sequence
        there = 1 if alone else min(most, case.requests or most) or each.padded(1)
        concurrency = case.concurrency or there
        work = serving_work(each.deployment, service, concurrency)
        options.append(Option(each, most, concurrency, work))
    return options


def _floor_without_links(option: Option) -> float:
    return floor(option.work.beside, option.estimator.peaks).seconds


def _expected_without_links(option: Option) -> float:
    """At most the seconds of a step: prompts between steps are left out too."""
    return option.estimator.expect(option.work.steps, NO_COMMUNICATION).seconds


def _least(
    case: ServiceCase,
    options: Iterable[Option],
    bound: Callable[[Option], float],
    seconds: Callable[[ServiceEstimate], float],
) -> tuple[float, ServiceEstimate]:
    """The least seconds for each token among the options, and the estimate that has them.

    Listing collectives is most of the work. So options are tried in the order of their times
    without them, until that time alone is longer than the complete time of another.
    """
    tried = []
    bounds = [(_per_token(case, bound(one), one.concurrency), one) for one in options]
    for least, option in sorted(bounds, key=operator.itemgetter(0)):
        if tried and least >= min(tried, key=operator.itemgetter(0))[0]:
            break
        service = dataclasses.replace(case.service, concurrency=option.concurrency)
        found = estimate_service(option.estimator, service)
        tried.append((_per_token(case, seconds(found), found.concurrency), found))
    return min(tried, key=operator.itemgetter(0))


def _per_token(case: ServiceCase, step_s: float, concurrency: int) -> float:
    """Seconds for each token in the sense of the case, of a step of so many seconds."""
    return step_s if case.of_one_sequence else step_s / concurrency


def service_times(case: ServiceCase, one: ServiceEstimate) -> list[tuple[float, Expected]]:
    """The expected times that each token takes, and how many of each: prompts where they run."""
    steps = _per_token(case, 1.0, one.concurrency)
    if case.engine.prompts == "beside":
        return [(steps, one.beside)]
    return [(steps, one.steps), (steps * one.prefills, one.prompts.expected)]


def _shortest_floor(case: ServiceCase, options: Iterable[Option]) -> tuple[float, str, int]:
    """The floor whatever the lengths, without collectives; what bounds it, and sequences there."""
    floors = []
    for one in options:
        step = unpadded_floor(one.estimator, Pass(one.concurrency, 0), links=False)
        seconds = _per_token(case, step.seconds, one.concurrency)
        floors.append((seconds, step.bound, one.concurrency))
    return min(floors, key=operator.itemgetter(0))


def _floors_of_others(case: ServiceCase, options: Iterable[Option]) -> dict[str, float]:
    """Floors in seconds of the published figures beside `published_s`, without collectives.

    A step is of the sequences that were in flight by Little's law, tokens per second times seconds
    for each token, with their prompts alone in the cache; a first token needs a pass over the
    shortest prompt.
    """
    figures, passes = case.published, {}
    shortest = math.floor(case.prompt_length * (case.shortest or 0))
    if not case.of_one_sequence and "per_token_s" in figures:
        flying = max(math.floor(case.in_flight), 1)
        passes["per_token_s"] = Pass(min(flying, case.concurrency or flying), shortest)
    if "first_token_s" in figures:
        passes["first_token_s"] = Pass(1, 0, max(shortest, 1))
    return {
        name: float(
            min(unpadded_floor(one.estimator, pass_, links=False).seconds for one in options)
        )
        for name, pass_ in passes.items()
    }


def _check_fits(case: ServiceCase, found: Iterable[Option]) -> None:
    """Refuses a concurrency beyond what fits in any layout, at mean lengths of smallest types.

    Where the largest lengths alone are known, caches are of the shortest.

    Raises:
      UsageError: with the number that fits.
    """
    most = max(one.most for one in found)
    if not most:
        raise UsageError(
            f"topology is {case.slice}, which has no room for {case.model.name} in "
            f"{case.weights.name} and a cache; use a larger slice"
        )
    if case.concurrency and case.concurrency > most:
        caches = "caches of a mean length" if case.shortest is not None else "empty caches"
        raise UsageError(
            f"concurrency is {case.concurrency:,}, but {most:,} fit on {case.slice}, with {caches};"
            " give those that run at once, or null for as many as fit"
        )
    case.check_in_flight(most)


def _assumed(case: ServiceCase, estimator: Estimator, calibration: Calibration) -> Iterator[str]:
    """What the times assume beyond the case."""
    if estimator.deployment.layout is None:
        yield EVENLY
    elif not case.divisions and case.slice.devices > 1:
        yield (
            f"parallelism {case.parallelism!r} stands for no layout here: the floor is the least "
            "of all layouts, the expected time the best"
        )
    elif case.slice.devices > 1:
        words = " or ".join(map(_layout_words, case.divisions))
        mesh = "the mesh that is best for each time"
        if case.mesh:
            mesh = ", ".join(f"{axis}={size}" for axis, size in case.mesh.items())
        yield f"parallelism {case.parallelism!r} is {words}, on {mesh}"
    if case.concurrency is None:
        there = f", {case.requests:,} at most: as many requests were there" if case.requests else ""
        yield f"as many sequences as fit, with caches of a mean length{there}"
        if case.of_one_sequence:
            yield "the floor is of one sequence at once, as seconds are of one sequence"
        elif case.shortest is None:
            yield "the floor is of as many sequences as fit with empty caches"
    if case.shortest not in (None, 1):
        yield f"lengths spread evenly from {number(case.shortest)} of those stated to these"
    habit = f"expected: prompts {case.engine.prompts} steps"
    yield habit if case.engine.known else f"{habit}, as nothing is known here of {case.engine.name}"
    yield from assumed_types(case)
    yield from assumed_constants(case, calibration)
    if case.model.experts:
        yield EXPERTS


def _layout_words(names: LayoutNames) -> str:
    layout = "any layout" if names.layout == "auto" else names.layout
    attention = "" if names.attention == "auto" else f" with attention by {names.attention}"
    return layout + attention + " and experts divided" * names.expert_parallel
