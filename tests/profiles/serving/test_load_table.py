"""Tables of measured loads: what stands in them, with a price and without."""

from profiles.serving.load_table import (
    cost_table,
    departure_table,
    latency_table,
    load_words,
    notes,
    title,
)

TIMES = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
LOAD = {
    "arrivals": "closed",
    "concurrency": 4,
    "requests": 8,
    "first_token_s": TIMES,
    "per_token_s": TIMES,
    "s_per_token": 0.02,
    "tokens_per_s": 50.0,
    "ideal": {"s_per_token": 0.01, "tokens_per_s": 100.0},
    "floor": {"s_per_token": 0.005, "tokens_per_s": 200.0},
    "lost": {"empty_slots": 0.001, "prompts": 0.006, "padding": 0.002, "host": 0.0005,
             "over_floor": 0.0055},
}  # fmt: skip


def test_costs_stand_beside_ideal_and_floor_and_the_parts_that_are_lost():
    (row,) = cost_table([LOAD]).rows
    assert row[:6] == ["4 at once", "20.0", "10.0", "5.00", "50%", "25%"]
    assert row[6:] == ["1.00", "6.00", "2.00", "0.500", "5.50"]


def test_with_a_price_all_costs_are_in_usd():
    priced = LOAD | {"usd_per_million_tokens": 2.0}
    for name in ("ideal", "floor"):
        priced[name] = LOAD[name] | {"usd_per_million_tokens": LOAD[name]["s_per_token"] * 100}
    table = cost_table([priced])
    (row,) = table.rows
    assert row[1:4] == ["2.00", "1.00", "0.500"] and row[7] == "0.600"
    assert "USD/Mtok" in table.head[1]


def test_a_server_elsewhere_has_its_cost_alone():
    known = {name: value for name, value in LOAD.items() if name not in ("ideal", "floor", "lost")}
    assert cost_table([known]).rows == [["4 at once", "20.0"]]
    (row,) = latency_table([known]).rows
    assert row == ["4 at once", "8", "100", "200", "300", "100", "200", "300", "50.0"]
    assert title({"points": [], "subject": "m at http://here"}) == ["m at http://here"]


def test_both_ways_of_departing_are_rows_of_their_own():
    way = {"waiting_s": TIMES | {"mean": 0.15}, "first_token_s": TIMES,
           "total_s": TIMES | {"mean": 1.5}}  # fmt: skip
    both = {"departure_s": 2.0, "arrivals": "poisson", "rate": 0.5, "any_step": way, "train": way}
    rows = departure_table([both]).rows
    assert [row[2] for row in rows] == ["joining at any step", "on schedule"]
    assert rows[0][:2] == ["0.5 per second", "2,000"] and rows[0][3:] == [
        "150", "300", "100", "1,500", "300",
    ]  # fmt: skip


def test_programs_that_were_compiled_after_the_warm_up_are_told():
    assert notes({"load": [LOAD | {"recompilations": 0}], "points": []}) == []
    (note,) = notes({"load": [LOAD | {"recompilations": 3}], "points": []})
    assert note.startswith("4 at once: 3 programs were compiled after the warm-up")


def test_what_drafts_came_to_is_told():
    tally = {"steps": 10, "tokens": 25, "drafted": 40, "accepted": 15}
    (note,) = notes({"load": [LOAD | {"speculation": tally}], "points": []})
    words = "38% of 40 drafted tokens were accepted, 2.50 tokens a step of each sequence"
    assert note == f"4 at once: {words}"


def test_loads_have_names():
    assert load_words({"arrivals": "trace"}) == "trace"
    assert load_words({"arrivals": "poisson", "rate": 2.5}) == "2.5 per second"
