"""Floors and expected times of published services, for each generated token."""

import dataclasses
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
from profiles.floor.serving import ServingWork, most_sequences, serving_work
from profiles.published.estimators import (
    EVENLY,
    EXPERTS,
    assumed_constants,
    assumed_types,
    estimators,
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
    for_floor = _options(case, estimators(case, True, calibration))
    _check_fits(case, for_floor)
    floor_s, least = _least(case, for_floor, _floor_without_links, lambda one: one.floor.seconds)
    bound = least.floor.bound
    assumed = list(_assumed(case, for_floor[0].estimator, calibration))
    if case.shortest is None:
        assumed.append(
            "lengths are at most those stated: the floor is of steps with an empty cache and no "
            f"prompts; at those lengths it would be {ms(floor_s)} ms"
        )
        floor_s, bound = _shortest_floor(case, for_floor, least.concurrency)
    expected_s, _ = fastest_service(case, calibration)
    seconds_of = float(floor_s), float(expected_s)
    return Reproduced(case, *seconds_of, calibration, tuple(assumed), bound, least.concurrency)


def fastest_service(case: ServiceCase, calibration: Calibration) -> tuple[float, ServiceEstimate]:
    """Expected seconds for each token in the layout where they are least, and the estimate there.

    Raises:
      LayoutError: no layout divides the model over the slice.
    """
    options = _options(case, estimators(case, False, calibration))
    fitting = [one for one in options if one.fits] or options
    if case.engine.prompts == "beside":
        seconds = operator.attrgetter("expected_beside_s")
    else:
        seconds = operator.attrgetter("expected_between_s")
    return _least(case, fitting, _expected_without_links, seconds)


def _options(case: ServiceCase, found: Iterable[Estimator]) -> list[Option]:
    """Where the service may have run, with the work there."""
    options = []
    for each in found:
        most = most_sequences(each.deployment, case.service, each.peaks.capacity)
        concurrency = case.concurrency or min(most, case.requests or most) or each.padded(1)
        work = serving_work(each.deployment, case.service, concurrency)
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


def _shortest_floor(
    case: ServiceCase, for_floor: Iterable[Option], concurrency: int
) -> tuple[float, str]:
    """The floor whatever the lengths, without collectives, and what bounds it."""
    empty = Pass(concurrency, 0)
    floors = (
        floor(one.deployment.counter.count(empty, one.deployment.experts), one.peaks)
        for one in (option.estimator for option in for_floor)
    )
    least = min(floors, key=lambda one: one.seconds)
    return _per_token(case, least.seconds, concurrency), least.bound


def _check_fits(case: ServiceCase, found: Iterable[Option]) -> None:
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
        yield f"parallelism {case.parallelism!r} is {words}, on the mesh that is best for each time"
    if case.concurrency is None:
        there = f", {case.requests:,} at most: as many requests were there" if case.requests else ""
        yield f"as many sequences as fit, with caches of a mean length{there}"
    if case.shortest not in (None, 1):
        yield f"lengths spread evenly from {number(case.shortest)} of those stated to these"
    yield f"expected: prompts {case.engine.prompts} steps"
    yield from assumed_types(case)
    yield from assumed_constants(case, calibration)
    if case.model.experts:
        yield EXPERTS


def _layout_words(names: LayoutNames) -> str:
    layout = "any layout" if names.layout == "auto" else names.layout
    attention = "" if names.attention == "auto" else f" with attention by {names.attention}"
    return layout + attention + " and experts divided" * names.expert_parallel
