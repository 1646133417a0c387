"""Several decode steps in one program: the tokens of single steps, with the cache in place."""

import dataclasses

import jax
import numpy as np
import pytest

from decode.conversation import Conversation
from decode.generate import PromptError, Request, generate
from decode.sampling import GREEDY, make_sampler
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from tests.engines import FAMILIES, config_of, counted_compilations, random_engine

PROMPTS = [[5, 6, 7], list(range(40, 63)), [9]]
SAMPLED = make_sampler(1.0, top_k=50, top_p=0.95, min_p=0.001)


def run(engine, **changes):
    """All completions, and how many tokens of the first prompt had come after each dispatch."""
    request = Request(**{"prompts": PROMPTS, "max_new_tokens": 12, "seed": 7} | changes)
    came, done = [], []
    for done in generate(engine, request):
        came.append(len(done[0].tokens))
    return done, came


def same(several, single):
    assert [c.tokens for c in several] == [c.tokens for c in single]
    assert [c.finish_reason for c in several] == [c.finish_reason for c in single]
    for one, other in zip(several, single, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "family", "layout", "sampler"),
    [("1x1x1", "two_norms_and_caps", "weight_stationary_1d", SAMPLED),
     *(pytest.param("2x2x2", *case, marks=pytest.mark.slow)
       for case in (("biased_windowed", "weight_stationary_1d", GREEDY),
                    ("biased_windowed", "weight_stationary_2d", SAMPLED),
                    ("biased_windowed", "weight_gathered_xyz", GREEDY),
                    ("six_experts", "weight_stationary_1d", SAMPLED),
                    ("six_experts", "weight_stationary_2d", GREEDY),
                    ("six_experts", "weight_gathered_xyz", SAMPLED)))],
)  # fmt: skip
def test_texts_are_those_of_single_steps(mesh, family, layout, sampler):
    engine = random_engine(config_of(family, layers=1), LAYOUTS[layout], mesh, FLOAT32)
    single, came = run(engine, sampler=sampler)
    assert came == list(range(1, 13))
    done, came = run(engine, sampler=sampler, tokens_per_dispatch=4)
    same(done, single)
    assert came == [1, 5, 9, 12]  # so many tokens at a time, and no more than asked for


def test_generation_stops_in_the_dispatch_of_the_last_end(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    free, _ = run(engine, max_new_tokens=40)
    stops = frozenset(completion.tokens[5] for completion in free)
    single, _ = run(engine, max_new_tokens=40, stop_ids=stops)
    done, came = run(engine, max_new_tokens=40, stop_ids=stops, tokens_per_dispatch=4)
    same(done, single)
    assert {completion.finish_reason for completion in done} == {"stop"}
    assert len(came) == 3  # tokens 1, 2 to 5 and 6 to 9


def test_one_program_serves_every_limit(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    run(engine, tokens_per_dispatch=4)
    with counted_compilations() as compiled:
        for limit in (5, 6, 7, 8, 9):
            done, _ = run(engine, max_new_tokens=limit, tokens_per_dispatch=4)
            assert [len(completion.tokens) for completion in done] == [limit] * 3
    assert not compiled


def test_the_last_dispatch_has_room_even_beyond_the_models_context(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1, max_context=64)
    prompts = [list(range(60)), [3]]
    single, _ = run(engine, prompts=prompts, max_new_tokens=4)
    slots, made = [], engine.new_cache
    engine.new_cache = lambda batch, size, *rest: slots.append(size) or made(batch, size, *rest)
    done, _ = run(engine, prompts=prompts, max_new_tokens=4, tokens_per_dispatch=4)
    del engine.new_cache
    same(done, single)
    assert slots == [65]  # 60, the first token and a whole dispatch


def test_experts_are_counted_for_every_step(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1, **FAMILIES["six_experts"])
    alone, together = (engine.start(np.array([0, 3], np.int32)) for _ in range(2))
    cache, counts = engine.new_cache(2, 64), []
    for _ in range(3):
        cache, alone, emitted = engine.advance(cache, alone, GREEDY)
        counts.append(np.asarray(emitted.experts_touched))
    _, _, emitted = engine.advance(engine.new_cache(2, 64), together, GREEDY, 3)
    assert emitted.tokens.shape == emitted.logprobs.shape == (3, 2)
    np.testing.assert_array_equal(emitted.experts_touched, counts)


@pytest.mark.parametrize("mesh", ["1x1x1", pytest.param("2x2x2", marks=pytest.mark.slow)])
def test_the_program_updates_the_cache_in_place_and_copies_no_weights(tiny_engine, mesh):
    engine = tiny_engine(mesh, layers=2)
    single, several = (
        engine.lower_decode(8, 512, steps=steps).compile().memory_analysis() for steps in (1, 4)
    )
    cache = engine.cache_bytes(8, 512) // engine.mesh.size
    assert several.alias_size_in_bytes == single.alias_size_in_bytes == cache
    weights = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(engine.parameters)
    )
    more = several.temp_size_in_bytes - single.temp_size_in_bytes
    assert more < min(cache, weights) / 10


@pytest.mark.parametrize("window", [None, pytest.param(24, marks=pytest.mark.slow)])
def test_a_conversation_goes_on_behind_what_a_dispatch_left_in_the_cache(tiny_engine, window):
    engine = tiny_engine("1x1x1", layers=1, **({"windows": (window,)} if window else {}))
    said = np.random.default_rng(0).integers(0, 256, 60).tolist()
    single, several = Conversation(engine), Conversation(engine)
    request = Request(prompts=[said[:20]], max_new_tokens=9)
    (free,) = list(generate(engine, request))[-1]
    answers, prompt = [], said[:20]
    for conversation, steps in ((single, 1), (several, 4)):
        prompt, texts = said[:20], []
        for message in (said[20:30], said[30:40], []):
            turn = dataclasses.replace(
                request, prompts=[prompt], stop_ids=frozenset({free.tokens[6]}),
                tokens_per_dispatch=steps,
            )  # fmt: skip
            (done,) = list(conversation.answer(turn))[-1]
            texts.append(done.tokens)
            prompt = prompt + done.tokens + message
        answers.append(texts)
    assert answers[0] == answers[1]
    assert several.reused >= 20 or window


@pytest.mark.parametrize("value", [0, -1, 13])
def test_a_number_of_tokens_that_no_dispatch_can_have_is_refused(tiny_engine, value):
    with pytest.raises(PromptError, match=f"tokens_per_dispatch is {value}; use a positive int"):
        generate(tiny_engine("1x1x1", layers=1), Request(
            prompts=PROMPTS, max_new_tokens=12, tokens_per_dispatch=value
        ))  # fmt: skip
