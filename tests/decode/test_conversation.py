"""Conversations: the tokens of each turn's whole prompt run anew, of which little is run again."""

import dataclasses
import types

import numpy as np
import pytest

from decode.conversation import Conversation
from decode.engine import Engine
from decode.generate import Completion, PromptError, Request, generate
from model.dtypes import FLOAT32, Dtypes
from sharding.catalog import LAYOUTS, attend_by
from sharding.quantization import QUANTIZATIONS
from tests.engines import FAMILIES, config_of, random_engine

NEW = 6  # tokens of an answer
SAID = np.random.default_rng(0).integers(0, 256, 200).tolist()
MESSAGES = [SAID[:20], SAID[20:29], SAID[29:40]]  # with answers fewer tokens than 64


@pytest.fixture(autouse=True)
def few_slots(monkeypatch):
    """Caches of a conversation that are no larger than those of its prompts alone."""
    monkeypatch.setattr("decode.conversation.FEWEST_SLOTS", 64)


def request_of(prompt: list[int], **changes: object) -> Request:
    return Request(**{"prompts": [prompt], "max_new_tokens": NEW} | changes)


def last_of(steps) -> Completion:
    *_, (completion,) = steps
    return completion


def answer(conversation: Conversation, prompt: list[int], **changes: object) -> list[int]:
    """The answer's tokens, which are those of the whole prompt run anew."""
    request = request_of(prompt, **changes)
    found = last_of(conversation.answer(request))
    anew = last_of(generate(conversation.engine, request))
    assert (found.tokens, found.finish_reason) == (anew.tokens, anew.finish_reason)
    np.testing.assert_allclose(found.logprobs, anew.logprobs, atol=1e-4)
    return found.tokens


def engine_of(mesh: str, attention: str = "heads", cache: str = "", **changes: object) -> Engine:
    config = dataclasses.replace(config_of("grouped"), **changes)
    dtypes = Dtypes("float32", None, QUANTIZATIONS[cache]) if cache else FLOAT32
    layout = attend_by(LAYOUTS["weight_stationary_1d"], attention)
    return random_engine(config, layout, mesh, dtypes)


@pytest.mark.parametrize(
    "case",
    # Tests below have one device and no windows.
    [{"mesh": "1x2x2", "attention": "sequence", "windows": (24,), "layers": 1},
     *(pytest.param(case, marks=pytest.mark.slow)
       for case in ({"mesh": "1x1x1", "cache": "int8", "layers": 1},
                    {"mesh": "1x1x1"} | FAMILIES["delta"],
                    {"mesh": "1x1x1", "windows": (24, None)}, {"mesh": "1x1x1"}, {"mesh": "1x1x2"},
                    {"mesh": "2x1x1", "attention": "batch", "layers": 1}))],
    ids=lambda case: " ".join(map(str, case.values())),
)  # fmt: skip
def test_each_turn_gives_the_tokens_of_its_whole_prompt_and_runs_what_is_new(case):
    conversation = Conversation(engine_of(**case))
    prompt, reused = [], []
    for message in MESSAGES:
        held = max(len(prompt) - 1, 0)  # all but the answer's last token
        prompt = prompt + message
        prompt = prompt + answer(conversation, prompt)
        reused.append(conversation.reused)
        assert conversation.reused == held
    assert reused == [0, 25, 40]


def test_a_state_gives_nothing_back_of_a_prompt_that_departs():
    conversation = Conversation(types.SimpleNamespace(config=config_of("delta")))
    conversation._tokens = [1, 2, 3]
    prompts = [1, 2, 3, 4], [1, 2, 3], [1, 2, 9, 9]
    assert [conversation._reusable(prompt) for prompt in prompts] == [3, 0, 0]


@pytest.mark.parametrize("window", [None, 40, 8])
def test_a_prompt_that_departs_takes_what_is_alike_unless_a_ring_has_forgotten(window):
    config = dataclasses.replace(config_of("grouped", layers=1), windows=(window,))
    conversation = Conversation(types.SimpleNamespace(config=config))
    conversation._tokens = SAID[:26]
    assert conversation._reusable([*SAID[:12], 255, 1]) == (0 if window == 8 else 12)


@pytest.mark.parametrize(
    ("window", "reused"),
    # By default the same prompt again is one that a ring has forgotten, see below.
    [(None, 12), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((40, 12), (8, 0)))],
    ids=["whole", "remembered", "forgotten"],
)
def test_a_prompt_that_departs_goes_on_where_it_does_unless_a_ring_has_forgotten(
    tiny_engine, window, reused
):
    conversation = Conversation(tiny_engine("1x1x1", layers=1, windows=(window,)))
    answer(conversation, MESSAGES[0])
    answer(conversation, [*MESSAGES[0][:12], 255, *MESSAGES[1]])
    assert conversation.reused == reused


@pytest.mark.parametrize("window", [None, 8])
def test_the_same_prompt_again_runs_its_last_token_alone_unless_a_ring_has_forgotten(
    tiny_engine, window
):
    conversation = Conversation(tiny_engine("1x1x1", layers=1, windows=(window,)))
    answer(conversation, MESSAGES[0])
    answer(conversation, MESSAGES[0])
    assert conversation.reused == (0 if window else len(MESSAGES[0]) - 1)
    answer(conversation, SAID[100:110])
    assert conversation.reused == 0


def test_a_cache_too_small_grows_and_the_conversation_runs_whole_in_it(tiny_engine):
    conversation = Conversation(tiny_engine("1x1x1", layers=1))
    prompt = MESSAGES[0] + answer(conversation, MESSAGES[0])
    assert conversation.slots == 64
    prompt = prompt + SAID[60:100]
    prompt = prompt + answer(conversation, prompt)
    assert (conversation.slots, conversation.reused) == (128, 0)
    answer(conversation, [*prompt, 7])
    assert (conversation.slots, conversation.reused) == (128, len(prompt) - 1)


@pytest.mark.parametrize("window", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_an_answer_that_a_stop_token_ends_is_held_with_that_token(tiny_engine, window):
    engine = tiny_engine("1x1x1", layers=1, windows=(window,))
    conversation = Conversation(engine)
    free = last_of(generate(engine, request_of(MESSAGES[0]))).tokens
    stop = max(free, key=free.index)  # the one that comes last for the first time
    assert free.index(stop) > 0
    end = {"stop_ids": frozenset({stop}), "max_new_tokens": NEW + 2}
    tokens = answer(conversation, MESSAGES[0], **end)
    assert tokens == free[: free.index(stop)]
    prompt = [*MESSAGES[0], *tokens, stop]
    answer(conversation, prompt + MESSAGES[1])
    assert conversation.reused == len(prompt)


@pytest.mark.parametrize("ends", [True, False], ids=["closed", "left alone"])
def test_a_conversation_goes_on_after_a_turn_that_was_broken_off(tiny_engine, ends):
    conversation = Conversation(tiny_engine("1x1x1", layers=1))
    prompt = MESSAGES[0] + answer(conversation, MESSAGES[0]) + MESSAGES[1]
    steps = conversation.answer(request_of(prompt))  # as a consumer that raises leaves it
    next(steps), next(steps)
    if ends:
        steps.close()
    prompt = prompt + answer(conversation, prompt)
    answer(conversation, prompt + MESSAGES[2])
    assert conversation.reused == len(prompt) - 1


def test_a_conversation_goes_on_after_a_prompt_that_failed(tiny_engine, monkeypatch):
    engine = tiny_engine("1x1x1", layers=1)
    conversation = Conversation(engine)
    prompt = MESSAGES[0] + answer(conversation, MESSAGES[0]) + MESSAGES[1]
    with monkeypatch.context() as broken:
        broken.setattr(engine, "prefill", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            next(conversation.answer(request_of(prompt)))
    answer(conversation, prompt)


def test_what_cannot_run_is_refused_and_the_conversation_can_go_on(tiny_engine):
    conversation = Conversation(tiny_engine("1x1x1", layers=1, max_context=64))
    prompt = MESSAGES[0] + answer(conversation, MESSAGES[0])
    with pytest.raises(PromptError) as refusal:
        conversation.answer(request_of(SAID[:70]))
    assert str(refusal.value) == (
        "conversation is 70 tokens and max_new_tokens is 6, but max_context of tiny is 64; begin a "
        "new one, or let answers be shorter"
    )
    with pytest.raises(PromptError, match="number of prompts is 2; a conversation takes one"):
        conversation.answer(request_of([], prompts=[[1], [2]]))
    with pytest.raises(PromptError, match="prompt 0 is empty"):
        conversation.answer(request_of([]))
    answer(conversation, [*prompt, 7])
    assert conversation.reused == len(prompt) - 1
