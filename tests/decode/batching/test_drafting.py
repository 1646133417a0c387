"""Drafts in a running batch: each request's own tokens in fewer steps, none written astray."""

import types

import jax
import numpy as np
import pytest

from decode.batching.drafting import DraftingPrograms
from decode.batching.programs import RowText
from decode.batching.shape import Shape, shape_of
from decode.drafts import DraftError, repeated
from model.dtypes import FLOAT32, Dtypes
from sharding.catalog import LAYOUTS, attend_by
from sharding.quantization import QUANTIZATIONS
from tests.decode.batching.test_batcher import (
    Letters,
    ask,
    check_moves,
    check_traffic,
    engine_of,
    service_of,
)
from tests.decode.batching.test_programs import ROWS, rows_of
from tests.decode.batching.test_programs import engine_of as one_layer
from tests.decode.batching.traffic import CONTEXT, Service, alone, check, one_device
from tests.engines import config_of, counted_compilations

CIRCLE = (5, 6, 7, 8) * 4
PROMPTS = CIRCLE, tuple(range(40, 56))


def steps_of(service: Service) -> list:
    """The stats of all steps until nothing is left to do."""
    found = [service.batcher.stats]
    while not service.batcher.idle:
        service.step()
        if service.batcher.stats is not found[-1]:
            found.append(service.batcher.stats)
    return found[1:]


def test_each_request_gets_the_tokens_that_it_gets_alone_in_fewer_steps():
    engine = one_layer("weight_stationary_1d", "heads", "1")
    small = service_of(engine, budget=16, draft_tokens=3)
    drawn = {"temperature": 0.05, "seed": 4}
    with counted_compilations() as compiled:
        tickets = [small.submit(ask(16, 20, prompt=prompt, **drawn)) for prompt in PROMPTS]
        steps = steps_of(small)
    assert not compiled
    for ticket in tickets:
        answer = small.answers[ticket]
        assert (answer.tokens, answer.end.reason) == alone(engine, ticket.request)
    taken = sum(step.active - step.wasted for step in steps)
    accepted = sum(step.accepted for step in steps)
    assert taken + accepted == 2 * 19  # the first token of each comes of its prompt
    assert 0 < accepted <= sum(step.drafted for step in steps) <= 3 * taken


SLOW, LONG = pytest.mark.slow, pytest.mark.long


@pytest.mark.parametrize(
    ("layout", "attention", "mesh", "family", "rows", "drafts"),
    [pytest.param("weight_stationary_1d", "heads", "1", "grouped", 5, 4, marks=LONG),
     pytest.param("weight_stationary_1d", "heads", "1", "biased_windowed", 5, 3, marks=LONG),
     pytest.param("weight_stationary_1d", "heads", "1", "biased_windowed", 5, 20, marks=SLOW),
     pytest.param("weight_stationary_1d", "heads", "1", "latent", 5, 3, marks=SLOW),
     pytest.param("weight_stationary_1d", "heads", "1", "chunks", 5, 3, marks=LONG),
     pytest.param("weight_stationary_1d", "heads", "1", "six_experts", 3, 3, marks=LONG),
     pytest.param("weight_gathered_x", "batch", "2x2x1", "biased_windowed", 2, 2, marks=LONG),
     pytest.param("data_parallel_x_1d", "sequence", "2x1x2", "grouped", 4, 3, marks=SLOW)],
)  # fmt: skip
def test_so_it_is_in_families_layouts_and_steps_of_fewer_rows(
    layout, attention, mesh, family, rows, drafts
):
    engine = engine_of(family, attend_by(LAYOUTS[layout], attention), mesh)
    service = service_of(engine, rows, draft_tokens=drafts)
    check_traffic(service, family, requests=40)
    if rows >= 4:
        check_moves(service, family)


@pytest.mark.slow
def test_alternatives_and_log_probabilities_are_those_of_steps_of_one_token():
    small = service_of(one_device("grouped"), draft_tokens=3, top_logprobs=2)
    asked = ask(16, 12, prompt=CIRCLE, top_logprobs=2)
    ticket = small.batcher.submit(asked)
    small.answers[ticket] = None
    events = []
    while not small.batcher.idle:
        events += small.batcher.step()
    *tokens, end = events
    assert end.reason == "length" and len(tokens) == 12
    text = np.array([[*CIRCLE, *(event.token for event in tokens)]], np.int32)
    logits = np.asarray(one_device("grouped").forward(text), np.float64)[0]
    rows = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[len(CIRCLE) - 1 : -1]
    for event, row in zip(tokens, rows, strict=True):
        assert event.logprob == pytest.approx(row[event.token], abs=1e-4)
        best = np.argsort(-row)[:2]
        assert [token for token, _ in event.alternatives] == best.tolist()


@pytest.mark.slow
def test_a_stop_among_accepted_tokens_ends_an_answer_there():
    texts = service_of(one_device("grouped"), rows=1, tokenizer=Letters(), draft_tokens=4)
    free = texts.submit(ask(16, 24, prompt=CIRCLE))
    tokens = texts.finish()[free].tokens
    for place in range(1, 20):
        stop = "".join(chr(0x4E00 + token) for token in tokens[place : place + 2])
        ticket = texts.submit(ask(16, 24, prompt=CIRCLE, stop=(stop,)))
        answer = texts.finish()[ticket]
        whole = "".join(chr(0x4E00 + token) for token in tokens)
        assert answer.text == whole[: whole.index(stop)] and answer.end.stop == stop
    ends = texts.submit(ask(16, 24, prompt=CIRCLE, stop_ids=frozenset(tokens[5:6])))
    check("grouped", {ends: texts.finish()[ends]})


@pytest.mark.slow
def test_a_text_that_fills_its_row_to_the_end_writes_no_further():
    """Neighbours run on while one row ends at the last slot of the cache."""
    service = service_of(one_device("grouped"), rows=3, draft_tokens=6)
    lengths = CONTEXT - 9, 20, 40
    tickets = [service.submit(ask(n, CONTEXT - n, prompt=(1,) * n)) for n in lengths]
    check("grouped", {ticket: service.finish()[ticket] for ticket in tickets})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtypes", "drafted"),
    [(FLOAT32, 3), (FLOAT32, 17), (Dtypes(FLOAT32.dtype, cache=QUANTIZATIONS["int8"]), 3)],
)
def test_a_step_writes_active_rows_alone_and_as_many_tokens_as_they_may_have(dtypes, drafted):
    engine, draw = one_layer("weight_stationary_1d", "heads", "1", dtypes), np.random.default_rng(0)
    shape = Shape(ROWS, 1, 1, (16,), 15, 16, context=40, drafted=drafted)
    programs = DraftingPrograms(engine, shape)
    texts = draw.integers(0, 3, (ROWS, 40)).astype(np.int32)
    before, left = np.full(ROWS, 5, np.int32), np.array([9, 9, 1, 0, 2, 9, 9, 9], np.int32)
    active = np.arange(6) != 1  # a step of six rows of eight
    rows = programs.empty_rows(ROWS)._replace(
        tokens=engine.put(texts[:, 5]),
        lengths=engine.put(before),
        text=programs.put(RowText(texts, left)),
    )
    made = jax.tree.map(
        lambda a: jax.device_put(draw.integers(1, 9, a.shape).astype(a.dtype), a.sharding),
        engine.new_cache(ROWS, 40),
    )
    old = [np.array(array) for array in rows_of(made)]
    cache, after, chosen = programs.decode(made, rows, engine.put(active))
    ran = np.where(np.pad(active, (0, 2)), np.minimum(left, drafted + 1), 0)
    places = np.arange(40)
    for one, other in zip(old, rows_of(cache), strict=True):
        changed = (other != one).reshape(ROWS, one.shape[1], 40, -1).any(axis=(1, 3))
        assert (changed == ((places >= 5) & (places < 5 + ran[:, None]))).all()
    count = np.asarray(chosen.count)
    drafts = np.asarray(repeated(texts, before, drafted))[:6]
    stand = np.cumprod(np.asarray(chosen.tokens)[:, :-1] == drafts, axis=1).sum(1) + 1
    assert count.tolist() == np.minimum(stand, np.where(active, left[:6], 0)).tolist()
    more = np.pad(count, (0, 2))
    assert (np.asarray(after.lengths) - before).tolist() == more.tolist()
    assert (left - np.asarray(after.text.left)).tolist() == more.tolist()
    for row in range(ROWS):
        said = np.asarray(chosen.tokens)[row, : more[row]].tolist() if row < 6 else []
        found = np.asarray(after.text.tokens)[row, : 6 + more[row]].tolist()
        assert found == [*texts[row, :6].tolist(), *said] and after.tokens[row] == found[-1]


def test_a_model_whose_states_take_nothing_back_is_refused():
    placement = types.SimpleNamespace(multiple=lambda axis: 1, check_batch=lambda rows: None)
    engine = types.SimpleNamespace(placement=placement, config=config_of("delta"))
    with pytest.raises(DraftError, match=r"gated delta layers, .*; leave out --draft"):
        shape_of(engine, 2, 64, 64, drafted=3)
