"""Requests that join and leave a batch: each gets its own tokens, and nothing is compiled anew."""

import dataclasses
import gc
import itertools
from unittest import mock

import jax
import numpy as np
import pytest

from decode.batching.batcher import Batcher, Request
from decode.batching.row_sampling import RowSampling
from decode.engine import Engine
from decode.generate import PromptError
from decode.sampling import SamplingError
from model.dtypes import FLOAT32
from sharding.catalog import ATTENTION, LAYOUTS, attend_by
from sharding.error_types import LayoutError, UsageError
from sharding.layout import Layout
from tests.decode.batching.traffic import (
    CONTEXT,
    LAYERS,
    Service,
    alone,
    check,
    one_device,
    run_traffic,
)
from tests.engines import config_of, counted_compilations, random_engine

SLOW = pytest.mark.slow
# A service of these has programs that are compiled once, whatever its weights are.
SMALL, ROWS = "multi_head_untied", {"rows": 3, "top_logprobs": 3}


def engine_of(family: str, layout: Layout, mesh: str) -> Engine:
    return random_engine(config_of(family, layers=LAYERS), layout, mesh, FLOAT32)


def service_of(engine: Engine, rows: int = 1, context: int = CONTEXT, budget: int = 32, **options):
    """A service of so many rows for each lane, compiled."""
    lanes = engine.placement.multiple("B")
    batcher = Batcher(engine, rows * lanes, context, budget * lanes, **options)
    with counted_compilations() as compiled:
        batcher.warm_up()
    assert len(compiled) == batcher._programs.compiled  # what was compiled beside is found
    return Service(batcher)


def ask(length: int, new: int = 4, **options) -> Request:
    prompt = np.random.default_rng(length).integers(0, 255, length).tolist()
    return Request(**{"prompt": tuple(prompt), "max_new_tokens": new} | options)


@pytest.fixture(scope="module")
def small() -> Service:
    """Three rows on one device, which tests share."""
    return service_of(one_device(SMALL), **ROWS)


def check_traffic(service: Service, family: str, requests: int, seed: int = 0) -> None:
    """Random requests, then one that goes on where an answer has ended."""
    with counted_compilations() as compiled:
        run_traffic(service, requests, seed)
        first = service.submit(ask(20, 9))
        said = service.finish()[first].tokens
        then = service.submit(ask(20, 6, prompt=(*first.request.prompt, *said, 1, 2)))
        service.finish()
    assert not compiled
    check(family, service.answers)
    assert service.answers[then].end.reused_tokens >= 28


def check_moves(service: Service, family: str) -> None:
    """All rows are taken; where only the last of each group are left, these move down."""
    schedule = service.batcher._schedule
    shape, least = schedule.shape, schedule.shape.lanes
    tickets = [service.submit(ask(3 + n, 20, temperature=1.0)) for n in range(shape.rows)]
    while service.batcher.stats.active < shape.rows:
        assert not service.batcher.idle
        service.step()
    left = sorted(schedule.rows, key=lambda row: -shape.within_group(row.number)[1])[:least]
    for row in schedule.rows:
        if row not in left:
            service.batcher.cancel(row.answer.ticket)
    before = {row: row.number for row in left}
    service.step(), service.step()
    assert (service.batcher.stats.rows, service.batcher.stats.active) == (least, least)
    assert all(before[row] != row.number for row in left)
    service.finish()
    assert sum(service.answers[ticket].end.reason == "length" for ticket in tickets) == least
    check(family, {ticket: service.answers[ticket] for ticket in tickets})


@pytest.mark.parametrize(
    ("layout", "attention", "mesh", "family", "rows"),
    [("weight_stationary_1d", "heads", "1", "biased_windowed", 4),
     ("weight_gathered_x", "batch", "2x2x1", "biased_windowed", 2),
     pytest.param("weight_stationary_1d", "heads", "1", "latent", 5, marks=SLOW),
     pytest.param("weight_stationary_1d", "heads", "1", "chunks", 5, marks=SLOW),
     pytest.param("weight_stationary_1d", "heads", "1", "delta", 5, marks=SLOW),
     pytest.param("data_parallel_x_1d", "sequence", "2x1x2", "grouped", 4, marks=SLOW)],
)  # fmt: skip
def test_each_request_gets_the_tokens_that_it_gets_alone(layout, attention, mesh, family, rows):
    layout = attend_by(LAYOUTS[layout], attention)
    service = service_of(engine_of(family, layout, mesh), rows)
    check_traffic(service, family, requests=8)
    if rows >= 4:
        check_moves(service, family)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_200_requests_get_their_own_tokens_in_layouts_by_turns(turn):
    """Every layout and attention once, with families and meshes by turns; most get 40 requests."""
    family, requests = ("grouped", "biased_windowed", "six_experts")[turn], 200
    cases = itertools.product(enumerate(LAYOUTS.values()), enumerate(ATTENTION))
    for (n, layout), (m, attention) in cases:
        if (n + m) % 3 != turn:
            continue
        mesh = ("2x2x2", "1x2x4", "4x2x1")[n % 3]
        try:
            engine = engine_of(family, attend_by(layout, attention), mesh)
        except LayoutError:
            continue
        check_traffic(service_of(engine, rows=2), family, requests, seed=n)
        requests = 40


@pytest.mark.parametrize("seconds", [200, pytest.param(3600, marks=SLOW)])
def test_neither_programs_nor_arrays_grow_in_random_traffic(small, seconds):
    """An hour of a simulated clock: each step is a second, requests come as they like."""
    draw = np.random.default_rng(1)
    run_traffic(small, 5, seed=2)
    gc.collect()
    before = len(jax.live_arrays())
    with counted_compilations() as compiled:
        for _ in range(seconds):
            for _ in range(draw.poisson(0.2)):
                small.submit(ask(int(draw.integers(1, 50)), int(draw.integers(1, 14))))
            small.step()
        small.finish()
    gc.collect()
    assert not compiled
    assert len(jax.live_arrays()) == before
    assert not small.batcher._answers and small.batcher.running == small.batcher.waiting == 0


def test_draws_depend_on_seed_and_sequence_but_on_no_row_or_neighbour(small):
    requests = [ask(9, 8, temperature=1.0, seed=seed, sequence=n)
                for seed in (0, 3, -(2**40) - 7, 2**62 + 5) for n in (0, 1)]  # fmt: skip
    tickets = [small.submit(request) for request in requests]
    found = [small.finish()[ticket].tokens for ticket in tickets]
    for request, tokens in zip(requests, found, strict=True):
        if request.sequence == 0:
            assert tokens == alone(one_device(SMALL), request)[0]
    assert len({tuple(tokens) for tokens in found}) == len(found)


def test_logprobs_and_alternatives_are_the_models_own(small):
    request = ask(7, 5, temperature=1.0, top_k=50, top_logprobs=2)
    ticket = small.batcher.submit(request)
    small.answers[ticket] = None
    events = []
    while not small.batcher.idle:
        events += small.batcher.step()
    *tokens, end = events
    text = np.array([[*request.prompt, *(event.token for event in tokens)]], np.int32)
    logits = np.asarray(one_device(SMALL).forward(text), np.float64)[0]
    rows = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[6:-1]
    for event, row in zip(tokens, rows, strict=True):
        assert event.logprob == pytest.approx(row[event.token], abs=1e-4)
        best = np.argsort(-row)[:2]
        assert [token for token, _ in event.alternatives] == best.tolist()
        assert [each for _, each in event.alternatives] == pytest.approx(row[best], abs=1e-4)
    assert (end.prompt_tokens, end.generated_tokens, end.reason) == (7, 5, "length")


def test_rows_that_do_not_decode_ask_for_nothing():
    """So that a step pays for no filter, draw or alternative of a request that has ended."""
    drawn = ask(3, temperature=1.0, top_k=5, top_p=0.5, min_p=0.1, top_logprobs=2, seed=7)
    both = RowSampling.of([drawn, drawn]).where(np.array([True, False]))
    expected = RowSampling.of([drawn, None])
    for found, wanted in zip(jax.tree.leaves(both), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_cancelled_request_ends_at_once_and_the_next_has_its_row(small):
    tickets = [small.submit(ask(20 + n, 30)) for n in range(4)]
    small.step(), small.step(), small.step()
    assert (small.batcher.running, small.batcher.waiting) == (3, 1)
    small.batcher.cancel(tickets[1])
    assert small.batcher.running == 2
    small.step()
    assert small.answers[tickets[1]].end.reason == "cancelled"
    assert (small.batcher.running, small.batcher.waiting) == (3, 0)
    small.batcher.cancel(tickets[1])  # again: it has ended
    small.batcher.cancel(tickets[3])
    answers = small.finish()
    check(SMALL, {ticket: answers[ticket] for ticket in tickets})


def test_what_rows_hold_is_not_run_again(small):
    first = small.submit(ask(40, 6))
    said = small.finish()[first].tokens
    asked = dataclasses.replace(first.request, prompt=(*first.request.prompt, *said, 3, 4))
    second = small.submit(asked)
    small.step()
    small.step()
    assert small.batcher.stats.reused_tokens == 45  # the last token of the answer was never fed
    assert small.batcher.stats.prompt_tokens == 3
    answers = small.finish()
    assert answers[second].end.reused_tokens == 45
    check(SMALL, {ticket: answers[ticket] for ticket in (first, second)})


def test_stats_count_what_steps_do(small):
    assert small.batcher.idle
    small.submit(ask(39, 3))
    small.submit(ask(5, 9, stop_ids=frozenset(range(256))))
    found = [small.batcher.stats]
    while not small.batcher.idle:
        small.step()
        if small.batcher.stats is not found[-1]:
            found.append(small.batcher.stats)
    found = found[1:]
    assert [s.prompt_tokens for s in found][:2] == [32, 12]
    assert sum(s.padding for s in found) == 9 + 11
    assert sum(s.active for s in found) == 2 + 2 and sum(s.wasted for s in found) == 2
    assert all(s.decode_seconds > 0 for s in found if s.active)
    assert all(s.prompt_seconds > 0 for s in found if s.chunks)
    assert all(0 < s.host_seconds < 10 and s.idle_seconds >= 0 for s in found)


class Letters:
    """A tokenizer whose token is a letter."""

    def stream(self):
        return self

    def push(self, token: int) -> str:
        return chr(0x4E00 + token)

    def flush(self) -> str:
        return ""


def test_stop_strings_end_an_answer_before_them(small, monkeypatch):
    monkeypatch.setattr(small.batcher, "_tokenizer", Letters())
    free = small.submit(ask(6, 12))
    text = small.finish()[free].text
    assert len(text) == 12
    stop = text[5:8]
    stopped = small.submit(ask(6, 12, stop=("none of it", stop)))
    answer = small.finish()[stopped]
    assert answer.text == text[: text.index(stop)]
    assert (answer.end.reason, answer.end.stop) == ("stop", stop)
    assert len(answer.tokens) == text.index(stop) + 3
    kept = small.submit(ask(6, 7, stop=(text[5:7] + "x",)))
    answer = small.finish()[kept]
    assert (answer.text, answer.end.reason, answer.end.text) == (text[:7], "length", text[5:7])


@pytest.mark.parametrize("family", [SMALL, pytest.param("experts", marks=SLOW)])
def test_numbers_that_are_not_finite_end_one_request_and_touch_no_other(family):
    whole = one_device(family)
    if whole.config.tied_embedding:
        config = dataclasses.replace(whole.config, tied_embedding=False)
        whole = random_engine(config, LAYOUTS["weight_stationary_1d"], "1", FLOAT32)
    table = whole.parameters["embedding"]["weight"].at[255].set(np.nan)
    bad = whole.parameters | {"embedding": {"weight": table}}
    engine = Engine(whole.config, bad, whole.placement, whole.mesh, whole.dtypes)
    service = service_of(engine, **ROWS)
    fine = [service.submit(ask(length, 8)) for length in (18, 33)]
    poison = dataclasses.replace(ask(20), prompt=(*fine[0].request.prompt[:17], 255, 7))
    failed = [service.submit(poison) for _ in range(3)]
    fine += [service.submit(ask(length, 8)) for length in (18, 25, 33)]
    answers = service.finish()
    for ticket in failed:
        assert answers[ticket].end.reason == "error" and not answers[ticket].tokens
        assert "logits of token 1 are not finite; the weights hold" in answers[ticket].end.message
    for ticket in fine:
        assert (answers[ticket].tokens, answers[ticket].end.reason) == alone(whole, ticket.request)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [(ask(60, 5), PromptError, "60 tokens and max_new_tokens is 5, but a row has room for 64"),
     (Request(prompt=[], max_new_tokens=1), PromptError, "prompt 0 is empty"),
     (Request(prompt=[256], max_new_tokens=1), PromptError, "outside the vocabulary"),
     (ask(5, 0), PromptError, "max_new_tokens is 0"),
     (ask(5, temperature=-1.0), SamplingError, "temperature is -1"),
     (ask(5, seed=2**63), SamplingError, "use an integer of 64 bits"),
     (ask(5, sequence=2**31), SamplingError, "sequence is 2147483648; use an integer from 0 to"),
     (ask(5, sequence=-1), SamplingError, "sequence is -1"),
     (ask(5, prompt=(10**4000,)), PromptError, "token of more than 20 digits of prompt 0 is"),
     (ask(5, top_logprobs=4), SamplingError, "top_logprobs is 4; use a number from 0 to 3"),
     (ask(5, stop=("a",)), PromptError, "no tokenizer to find them with; use stop_ids")],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_it_waits(small, request_, error, message):
    with pytest.raises(error, match=message):
        small.batcher.submit(request_)
    assert small.batcher.idle


@pytest.mark.parametrize(
    ("rows", "context", "budget", "error", "message"),
    [(3, 64, 32, LayoutError, "batch is 3, .* use 2 or 4"),
     (0, 64, 32, UsageError, "slots_of_sequences is 0; use a positive"),
     (2, 0, 32, UsageError, "context is 0"),
     (2, 64, 31, UsageError, "token_budget is 31, .* of 2 prompts each; use at least 32")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(rows, context, budget, error, message):
    engine = engine_of("grouped", LAYOUTS["data_parallel_x_1d"], "2x1x1")
    with pytest.raises(error, match=message):
        Batcher(engine, rows, context, budget)


def test_a_first_token_that_is_dropped_is_no_decode_step_wasted(small):
    begun = small.batcher.submit(ask(5, 1))
    small.batcher.step()
    small.batcher.cancel(begun)
    (end,) = small.batcher.step()
    assert end.reason == "cancelled"
    assert (small.batcher.stats.active, small.batcher.stats.wasted) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "chunks", "steps"),
    [
        (1, ["16", "64", "128"], ["1 row"]),
        (4, ["16", "64", "128", "4 x 32"], ["1 row", "4 rows"]),
    ],
)
def test_a_warm_up_tells_of_each_program_and_compiles_few_sizes_on_a_cpu(rows, chunks, steps):
    batcher, told = Batcher(one_device("grouped"), rows, 256, 128), []
    batcher._programs = PretendedPrograms()
    batcher.warm_up(lambda name, seconds: told.append(name) or seconds)
    assert told == [
        *(f"a chunk of {tokens} tokens" for tokens in chunks),
        *(f"a decode step of {rows}" for rows in steps),
        *["an exchange of rows"] * (rows > 1),
        "the choice of first tokens",
        "the choice of first tokens, once more",
    ]


class PretendedPrograms:
    """Programs that give nothing, at once."""

    lowered = mock.MagicMock()

    def put(self, values):
        return values

    def chunk(self, cache, lanes):
        return None, cache

    def join(self, rows, logits, joining):
        return rows, None

    def decode(self, cache, rows, active):
        return cache, rows, None

    def exchange(self, cache, rows, places):
        return cache, rows
