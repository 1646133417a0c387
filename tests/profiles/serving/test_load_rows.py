"""Percentiles, the parts of what is lost, and the fields that programs read."""

import numpy as np
import pytest

from decode.batching.stats import StepStats
from profiles.report.document import summarise
from profiles.report.record import Record
from profiles.serving.arrivals import Asked, closed
from profiles.serving.load_rows import cost, load_row, percentiles
from profiles.serving.lost import lost
from profiles.serving.traffic import Timeline, Traffic

LOST = ["empty_slots", "prompts", "padding", "host", "over_floor"]


def test_percentiles_are_times_that_some_request_had():
    assert percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles([]) == {}


def test_a_cost_is_the_price_of_the_seconds():
    assert cost(0.002, 3.6 / 3600) == pytest.approx(
        {"s_per_token": 0.002, "tokens_per_s": 500, "usd_per_million_tokens": 2.0}
    )
    assert "usd_per_million_tokens" not in cost(0.002, None)


def test_each_part_of_what_is_lost_is_what_was_planted():
    steps = [
        StepStats(4, active=4, decode_seconds=1.0),
        StepStats(4, active=3, wasted=1, decode_seconds=1.0),  # two rows are taken
        StepStats(4, prompt_tokens=30, padding=10, prompt_seconds=2.0),
    ]
    found = lost(steps, wall_s=7.5, paused_s=3.0, tokens=10, batch=4, step_s={4: 1.0}, floor_s=0.4)
    assert found.empty_slots == pytest.approx((0.5 + 3.0) / 10)
    assert found.prompts == pytest.approx(1.5 / 10)
    assert found.padding == pytest.approx(0.5 / 10)
    assert found.host == pytest.approx(0.5 / 10)
    assert found.over_floor == pytest.approx(1.5 / 10 - 0.4 / 4)


def test_rows_beyond_those_in_flight_are_empty_slots_at_what_a_fixed_batch_of_them_takes():
    steps = [StepStats(8, active=2, decode_seconds=1.0)] * 5
    found = lost(
        steps, wall_s=5.0, paused_s=0, tokens=10, batch=2, step_s={2: 0.6, 8: 1.0}, floor_s=1.0
    )
    assert found.empty_slots == pytest.approx(0.4 * 5 / 10)
    assert found.over_floor == pytest.approx(0.6 * 5 / 10 - 1.0 / 2)
    more = lost(
        steps, wall_s=5.0, paused_s=0, tokens=10, batch=2, step_s={2: 1.3, 8: 1.0}, floor_s=1.0
    )
    assert more.empty_slots == 0


def test_a_step_of_fewer_rows_is_held_against_a_fixed_batch_of_so_many():
    """A step of one row takes what one takes alone; four at once would pay half of it each."""
    steps = [StepStats(1, active=1, decode_seconds=1.0)] * 5
    given = {"wall_s": 5.0, "paused_s": 0, "tokens": 5, "floor_s": 0.4}
    found = lost(steps, batch=1, step_s={1: 1.0, 8: 4.0}, **given)
    assert found.empty_slots == 0 and found.over_floor == pytest.approx(1 - 0.4)
    found = lost(steps, batch=4, step_s={1: 1.0, 4: 2.0, 8: 4.0}, **given)
    assert found.empty_slots == pytest.approx(0.5)
    assert found.over_floor == pytest.approx(0.5 - 0.1)


def test_steps_of_rows_that_were_not_timed_lie_on_a_straight_line():
    steps = [StepStats(3, active=2, decode_seconds=1.0)]
    found = lost(
        steps, wall_s=1.0, paused_s=0, tokens=2, batch=2, step_s={2: 1.0, 4: 3.0}, floor_s=0.2
    )
    assert found.empty_slots == pytest.approx(0.5 / 2)  # three rows would take 2 s


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_add_up_to_all_that_is_lost(seed):
    random = np.random.default_rng(seed)
    rows, batch = 16, int(random.integers(1, 17))
    steps = []
    for _ in range(50):
        active = int(random.integers(0, batch + 1))
        steps.append(
            StepStats(
                int(random.integers(active, rows + 1)),
                active=active,
                wasted=int(random.integers(0, active + 1)),
                prompt_tokens=int(random.integers(0, 3)) * 100,
                padding=int(random.integers(0, 3)) * 7,
                prompt_seconds=float(random.exponential()),
                decode_seconds=float(random.exponential()) * bool(active),
                idle_seconds=float(random.exponential()),
            )
        )
    wall, paused = float(random.uniform(200, 300)), float(random.uniform(0, 20))
    tokens, floor = int(random.integers(1, 999)), 0.3
    step_s = {1: 0.5, batch: float(random.uniform(0.2, 1.4)), rows: 1.0}
    found = lost(
        steps, wall_s=wall, paused_s=paused, tokens=tokens, batch=batch, step_s=step_s,
        floor_s=floor,
    )  # fmt: skip
    assert found.seconds == pytest.approx(wall / tokens - floor / batch, rel=1e-12)
    assert all(part >= 0 for part in found[:4])


def traffic() -> Traffic:
    timelines = [Timeline(0.0, 128, 0.1 * n, 1.0 + n, 3.0 + n, 5) for n in range(4)]
    steps = [StepStats(4, active=4, decode_seconds=1.0)] * 5
    return Traffic(closed([Asked(128, 5)] * 4, 4), timelines, 6.0, steps=steps, compiled=0)


def test_a_row_has_the_fields_that_programs_read():
    full = Record(batch=4, context=130, floor_s=0.4, step_s=summarise([0.8]))
    row = load_row(traffic(), full, 4, {4: 0.8}, 0.2, usd_per_s=1e-3)
    assert row["arrivals"] == "closed" and row["concurrency"] == 4 and "rate" not in row
    assert row["first_token_s"] == {"p50": 2.0, "p90": 4.0, "p99": 4.0}
    assert row["per_token_s"]["p50"] == pytest.approx(0.5)
    assert row["tokens_per_s"] == pytest.approx(20 / 6)
    assert row["usd_per_million_tokens"] == pytest.approx(1e-3 * 6 / 20 * 1e6)
    assert row["ideal"]["tokens_per_s"] == pytest.approx(4 / 0.8)
    assert row["floor"]["tokens_per_s"] == pytest.approx(4 / 0.4)
    assert row["floor"]["with_prompts"]["s_per_token"] == 0.2
    assert row["fraction_of_ideal"] == pytest.approx((20 / 6) / (4 / 0.8))
    assert list(row["lost"]) == LOST and row["recompilations"] == 0
    assert sum(row["lost"].values()) == pytest.approx(row["s_per_token"] - 0.1)


def test_with_drafts_the_floor_is_that_of_verifying_over_the_tokens_that_came_of_it():
    full = Record(batch=4, context=130, floor_s=0.4, step_s=summarise([0.8]))
    answered = traffic()
    answered.steps = [
        StepStats(4, active=4, drafted=12, accepted=5, decode_seconds=1.0),
        StepStats(4, active=4, wasted=2, drafted=3, accepted=1, decode_seconds=1.0),
    ]
    row = load_row(answered, full, 4, {4: 0.8}, verification_floor_s=0.6)
    assert row["speculation"] == {"steps": 6, "tokens": 12, "drafted": 15, "accepted": 6}
    assert row["floor"] == {"step_s": 0.6, **cost(0.6 / 2 / 4, None)}  # 2 tokens a step
    assert row["ideal"]["step_s"] == 0.8 and "speculation" not in load_row(
        answered, full, 4, {4: 1.0}
    )
    assert sum(row["lost"].values()) == pytest.approx(row["s_per_token"] - 0.6 / 2 / 4)


def test_a_service_elsewhere_has_neither_ideal_nor_floor_nor_a_price_that_nobody_gave():
    row = load_row(traffic())
    assert not {"ideal", "floor", "lost", "rows", "usd_per_million_tokens"} & set(row)
    assert row["waiting_s"]["mean"] == pytest.approx(0.15)
