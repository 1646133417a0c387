"""What requests wait for on a simulated clock: joining at any step, and a train on schedule."""

import numpy as np
import pytest

from decode.batching.events import Finished
from decode.batching.request import Request
from profiles.serving.arrivals import Asked, Load, closed, poisson
from profiles.serving.traffic import drive
from sharding.error_types import FloorlineError
from tests.profiles.serving.planted_service import PlantedService, SimulatedClock


def answered(load: Load, rows: int, step_s: float, prompt_s: float = 0.0, **how):
    clock = SimulatedClock()
    service = PlantedService(clock, rows, step_s, prompt_s)
    requests = [Request(prompt=[1], max_new_tokens=each.generated_tokens) for each in load.asked]
    return drive(service, load, requests, clock=clock, **how), service


def evenly(count: int, apart: float, tokens: int = 1) -> Load:
    """Requests that come at even distances, half of one after the beginning."""
    times = (np.arange(count) + 0.5) * apart
    return Load("trace", [Asked(1, tokens, float(at)) for at in times])


def test_a_closed_loop_keeps_so_many_in_flight_and_no_more():
    traffic, service = answered(closed([Asked(1, 4)] * 10, 3), rows=8, step_s=1.0)
    assert service.most == 3
    assert traffic.wall_s == 4 * 4  # three at once, four waves
    assert [each.first_token_s for each in traffic.timelines] == [1.0] * 10
    assert {each.per_token_s for each in traffic.timelines} == {1.0}
    assert traffic.tokens == 40 and traffic.paused_s == 0


def test_requests_wait_for_a_row_in_the_order_in_which_they_came():
    load = Load("trace", [Asked(1, 2, 0.0), Asked(1, 2, 0.0), Asked(1, 2, 0.5)])
    traffic, _ = answered(load, rows=1, step_s=1.0)
    assert [each.waiting_s for each in traffic.timelines] == [0.0, 2.0, 3.5]
    assert [each.total_s for each in traffic.timelines] == [2.0, 4.0, 5.5]


def test_times_without_requests_are_told_apart():
    traffic, _ = answered(evenly(4, apart=10.0, tokens=2), rows=1, step_s=1.0)
    assert traffic.wall_s == 37.0
    assert traffic.paused_s == 37.0 - 4 * 2


@pytest.mark.parametrize(("run_s", "period"), [(0.75, 1.0), (1.5, 2.0), (2.25, 3.0)])
def test_a_train_makes_requests_wait_half_a_period_on_average_and_one_at_most(run_s, period):
    """With a run of T and departures D apart a train leaves each ``P = ceil(T / D) D`` seconds.

    Arrivals that are spread evenly wait from 0 to P, P / 2 on average, and are there after T more.
    """
    load = evenly(3000, apart=0.01)
    train, _ = answered(load, rows=5000, step_s=run_s, departure_s=1.0)
    late = [each for each in train.timelines if 1 <= each.arrived < 25]  # whole periods
    waits = np.array([each.waiting_s for each in late])
    assert waits.mean() == pytest.approx(period / 2, rel=0.02)
    assert period - 0.02 < waits.max() <= period
    assert {round(each.total_s - each.waiting_s, 9) for each in late} == {run_s}
    after = {round((each.boarded - 1.0) / period, 9) for each in train.timelines}
    assert all(number == int(number) for number in after)


def test_joining_at_any_step_waits_for_the_rest_of_a_step_alone():
    """Of steps of t seconds the rest is t / 2 on average; the train of equal runs waits longer."""
    load = evenly(3000, apart=0.01, tokens=4)
    free, _ = answered(load, rows=5000, step_s=0.2)
    train, _ = answered(load, rows=5000, step_s=0.2, departure_s=1.0)
    waits = np.array([each.waiting_s for each in free.timelines])
    assert waits.mean() == pytest.approx(0.1, rel=0.05) and waits.max() <= 0.2 + 1e-9
    assert np.mean([each.waiting_s for each in train.timelines]) == pytest.approx(0.5, rel=0.02)


def test_a_train_has_so_many_seats_and_leaves_the_others_for_the_next():
    load = Load("trace", [Asked(1, 1, 0.0)] * 5)
    train, service = answered(load, rows=8, step_s=0.5, departure_s=1.0, seats=2)
    assert [each.boarded for each in train.timelines] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert service.most == 2


def test_poisson_arrivals_below_capacity_are_all_answered():
    load = poisson([Asked(1, 2)] * 200, rate=1.0)
    traffic, _ = answered(load, rows=4, step_s=0.1)
    assert [each.tokens for each in traffic.timelines] == [2] * 200
    assert all(each.waiting_s <= 0.1 + 1e-9 for each in traffic.timelines)


def test_a_request_that_fails_ends_the_measurement():
    clock = SimulatedClock()
    service = PlantedService(clock, 1, 1.0)
    service.step = lambda: [Finished(ticket, "error", "logits are not finite") for ticket in
                            service.queue]  # fmt: skip
    with pytest.raises(FloorlineError, match="request 0 is failing: logits are not finite"):
        drive(service, closed([Asked(1, 1)], 1), [Request(prompt=[1], max_new_tokens=1)])
