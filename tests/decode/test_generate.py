"""Generation: stops, ragged batches, refusals, and a host that never waits."""

import codecs
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from decode.carry import Emitted
from decode.engine import Engine
from decode.generate import (
    Completion,
    PromptError,
    Request,
    _collect,
    generate,
    generate_without_cache,
)
from sharding.error_types import FloorlineError

PROMPTS = [[5, 6, 7], list(range(40, 63)), [9]]


def finish(steps):
    *_, last = steps
    return last


def test_a_prompt_decodes_the_same_alone_and_in_a_ragged_batch(tiny_engine):
    engine = tiny_engine("1x1x2")
    together = finish(generate(engine, Request(prompts=PROMPTS, max_new_tokens=16)))
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = finish(generate(engine, Request(prompts=[prompt], max_new_tokens=16)))[0]
        assert alone.tokens == completion.tokens
        np.testing.assert_allclose(alone.logprobs, completion.logprobs, atol=1e-4)


def test_greedy_tokens_are_the_most_likely_and_logprobs_the_models_own(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    done = finish(generate(engine, Request(prompts=PROMPTS[:1], max_new_tokens=8)))[0]
    sequence = PROMPTS[0] + done.tokens
    logits = np.asarray(engine.forward(np.array([sequence], np.int32)), np.float64)[0]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = logprobs[len(PROMPTS[0]) - 1 : -1]
    assert rows.argmax(-1).tolist() == done.tokens
    np.testing.assert_allclose(done.logprobs, rows.max(-1), atol=1e-4)


def test_without_a_cache_the_text_is_the_same(tiny_engine):
    engine, request = tiny_engine("1x1x1", layers=1), Request(prompts=PROMPTS, max_new_tokens=10)
    fast, slow = finish(generate(engine, request)), finish(generate_without_cache(engine, request))
    assert [c.tokens for c in slow] == [c.tokens for c in fast]
    assert [c.finish_reason for c in slow] == ["length"] * 3


def test_sequences_end_at_stop_tokens_each_at_its_own_time(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    free = finish(generate(engine, Request(prompts=PROMPTS, max_new_tokens=16)))
    stop = free[1].tokens[5]
    request = Request(prompts=PROMPTS, max_new_tokens=16, stop_ids=frozenset({stop}))
    for unstopped, stopped in zip(free, finish(generate(engine, request)), strict=True):
        if stop in unstopped.tokens:
            end = unstopped.tokens.index(stop)
            assert stopped.finish_reason == "stop" and stopped.tokens == unstopped.tokens[:end]
        else:
            assert stopped.finish_reason == "length" and stopped.tokens == unstopped.tokens
        assert len(stopped.logprobs) == len(stopped.tokens)


class Letters:
    """A stream in which tokens are letters, and every third one is half of a character."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        half = "é".encode()
        return self.decoder.decode([bytes([97 + token % 26]), half[:1], half[1:]][token % 3])

    def flush(self):
        return self.decoder.decode(b"", final=True)


@pytest.mark.parametrize("several", [1, 4])
def test_sequences_end_before_a_stop_string_whatever_tokens_it_comes_in(tiny_engine, several):
    engine = tiny_engine("1x1x1", layers=1)
    request = Request(
        prompts=PROMPTS, max_new_tokens=16, stream=Letters, tokens_per_dispatch=several
    )
    free = finish(generate(engine, request))
    texts = []
    for completion in free:
        stream = Letters()
        text = "".join(map(stream.push, completion.tokens)) + stream.flush()
        assert completion.text == text and completion.finish_reason == "length"
        texts.append(text)
    stop = texts[1][3:6]  # of several tokens
    shown = [[], [], []]
    for completions in generate(engine, dataclasses.replace(request, stop=[stop, "nowhere"])):
        for each, completion in zip(shown, completions, strict=True):
            each.append(completion.text)
    for text, each, completion, unstopped in zip(texts, shown, completions, free, strict=True):
        assert completion.finish_reason == ("stop" if stop in text else "length")
        assert completion.text == text.split(stop)[0]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(each))
        assert completion.tokens == unstopped.tokens[: len(completion.tokens)]
    assert completions[1].text == texts[1][:3]


@pytest.mark.parametrize("run", [generate, generate_without_cache])
def test_logits_that_are_not_finite_end_the_run_and_name_the_step(tiny_engine, run):
    whole = tiny_engine("1x1x1", layers=1)
    final = whole.parameters["final_norm"]
    bad = whole.parameters | {"final_norm": jax.tree.map(lambda scale: scale * np.nan, final)}
    engine = Engine(whole.config, bad, whole.placement, whole.mesh, whole.dtypes)
    with pytest.raises(FloorlineError, match=r"logits of step 1 are not finite; .* fetch"):
        finish(run(engine, Request(prompts=PROMPTS, max_new_tokens=4)))


def test_what_a_row_that_has_ended_goes_on_to_give_is_not_looked_at():
    ended, running = Completion([5], [-1.0], "stop"), Completion()
    request = Request(prompts=PROMPTS[:2], max_new_tokens=4)
    tokens = np.array([1, 2])
    _collect([ended, running], Emitted(tokens, np.array([np.nan, -2.0])), request)
    assert (ended.logprobs, running.logprobs) == ([-1.0], [-2.0])
    with pytest.raises(FloorlineError, match="logits of step 2"):
        _collect([ended, running], Emitted(tokens, np.array([-1.0, np.inf])), request)


def test_generation_ends_with_the_last_sequence(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    first = finish(generate(engine, Request(prompts=PROMPTS[:1], max_new_tokens=4)))[0].tokens[1]
    request = Request(prompts=PROMPTS[:1], max_new_tokens=200, stop_ids=frozenset({first}))
    assert len(list(generate(engine, request))) <= 2


def test_every_step_is_seen_as_it_comes(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    steps = generate(engine, Request(prompts=PROMPTS, max_new_tokens=6))
    assert [len(completions[0].tokens) for completions in steps] == [1, 2, 3, 4, 5, 6]


def test_the_next_step_is_launched_before_a_token_is_read(tiny_engine, monkeypatch):
    engine = tiny_engine("1x1x1", layers=1)
    order: list[str] = []
    launch = Engine.advance

    class Watched:
        """A device array that says when the host waits for it."""

        def __init__(self, array):
            self.array = array

        def copy_to_host_async(self):
            self.array.copy_to_host_async()

        def __array__(self, dtype=None, copy=None):
            order.append("read")
            return np.asarray(self.array)

    def watched(emitted):
        return type(emitted)(*map(Watched, emitted))

    def advance(self, cache, carry, sampler, steps):
        order.append("launch")
        cache, carry, emitted = launch(self, cache, carry, sampler, steps)
        return cache, carry, watched(emitted)

    choose = Engine.choose
    monkeypatch.setattr(Engine, "advance", advance)
    monkeypatch.setattr(
        Engine,
        "choose",
        lambda self, *args: (lambda carry, emitted: (carry, watched(emitted)))(
            *choose(self, *args)
        ),
    )
    list(generate(engine, Request(prompts=PROMPTS[:1], max_new_tokens=4)))
    # A step's two arrays (tokens, log probabilities) are read only after the next is launched.
    assert order == ["launch", "read", "read"] * 3 + ["read", "read"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "number of prompts is 0"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[256]]}, "token 256 of prompt 0 is outside the vocabulary; use ids from 0"),
        ({"prompts": [[-1]]}, "token -1 of prompt 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            {"prompts": [[1] * 510]},
            "max_context of tiny is 512; shorten one of them, or pass --max_context=513",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(tiny_engine, monkeypatch, changes, message):
    engine = tiny_engine("1x1x1", layers=1)
    monkeypatch.setattr(Engine, "new_cache", lambda *_: pytest.fail("memory was allocated"))
    with pytest.raises(PromptError) as refusal:
        generate(engine, Request(**{"prompts": [[1]], "max_new_tokens": 3} | changes))
    assert message in str(refusal.value)


def test_a_prompt_may_fill_the_cache_to_its_last_slot(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    prompt = np.random.default_rng(0).integers(0, 256, 509).tolist()
    done = finish(generate(engine, Request(prompts=[prompt], max_new_tokens=3)))[0]
    full = np.asarray(engine.forward(np.array([prompt + done.tokens], np.int32)))[0]
    assert full.argmax(-1)[508:511].tolist() == done.tokens
