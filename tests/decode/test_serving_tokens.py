"""A server's tokens are those of `generate`, and its text that of the tokenizer."""

import dataclasses

import numpy as np
import pytest

from decode.generate import Request, generate
from decode.sampling import make_sampler
from tests import serving
from tests.serving import batcher_of, running

VOCABULARY = 49152
DRAWN = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01}


@pytest.fixture(scope="module")
def engine(tiny_engine):
    return tiny_engine(vocabulary=VOCABULARY, layers=1)


@pytest.fixture(scope="module")
def server(engine, smollm2):
    model = serving.served(engine.config, smollm2.tokenizer)
    batcher = batcher_of(engine, 4, 128, smollm2.tokenizer)
    with running(batcher, model, rows=4, most_waiting=20) as server:
        yield server


@pytest.fixture(scope="module")
def alone(engine, smollm2):
    """What `generate` makes of up to three prompts, which run in programs of one size."""

    def run(*prompts, count, seed=0, **sampling):
        stops = smollm2.tokenizer.stop_ids
        filled = [*prompts, *[[9] * 60] * (4 - len(prompts))]
        request = Request(
            prompts=filled,
            max_new_tokens=count,
            sampler=make_sampler(**sampling),
            seed=seed,
            stop_ids=stops,
        )
        *_, completions = generate(engine, request)
        return completions[: len(prompts)]

    return run


@pytest.mark.parametrize("sampling", [{"temperature": 0}, DRAWN], ids=["greedy", "drawn"])
def test_tokens_and_log_probabilities_are_those_of_generate(server, alone, sampling):
    prompts = [[1, 2, 3], [9] * 40, [7, 8]]
    expected = alone(*prompts, count=12, seed=5, **sampling)
    asked = {"max_tokens": 12, "seed": 5, "return_token_ids": True, "logprobs": 2, **sampling}
    said = server.post("completions", prompt=prompts, **asked).json
    for choice, completion in zip(said["choices"], expected, strict=True):
        assert choice["token_ids"] == completion.tokens
        told = choice["logprobs"]
        np.testing.assert_allclose(told["token_logprobs"], completion.logprobs, atol=1e-4)
        assert [len(each) for each in told["top_logprobs"]] == [2] * len(completion.tokens)
    streamed = server.post("completions", prompt=prompts, stream=True, **asked).chunks[:-1]
    for number, completion in enumerate(expected):
        own = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == number]
        assert [t for choice in own for t in choice["token_ids"]] == completion.tokens


def test_answers_to_one_prompt_are_the_sequences_of_a_batch_of_it(server, alone):
    expected = alone([4, 5, 6], [4, 5, 6], count=8, seed=3, **DRAWN)
    asked = {"n": 2, "max_tokens": 8, "seed": 3, "return_token_ids": True, **DRAWN}
    said = server.post("completions", prompt=[4, 5, 6], **asked).json
    assert [c["token_ids"] for c in said["choices"]] == [e.tokens for e in expected]
    assert expected[0].tokens != expected[1].tokens


def test_a_chat_is_in_the_models_template_and_its_stream_has_the_same_text(server, alone, smollm2):
    tokenizer = smollm2.tokenizer
    messages = [{"role": "user", "content": "Say something."}]
    prompt = tokenizer.encode(tokenizer.chat(messages), special=True)
    (expected,) = alone(prompt, count=20)
    asked = {"messages": messages, "max_tokens": 20, "temperature": 0}
    told = {"logprobs": True, "top_logprobs": 1}
    said = server.post("chat/completions", **asked, **told).json
    (choice,) = said["choices"]
    assert said["object"] == "chat.completion" and said["usage"]["prompt_tokens"] == len(prompt)
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == tokenizer.decode(expected.tokens)
    content = choice["logprobs"]["content"]
    data = b"".join(bytes(each["bytes"]) for each in content)
    assert data == b"".join(map(tokenizer.piece, expected.tokens))
    for each in content:
        assert each["top_logprobs"][0]["token"] == each["token"]  # the most likely was taken
    *chunks, done = server.post("chat/completions", **asked, **told, stream=True).chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    streamed = (chunk["choices"][0].get("logprobs") for chunk in chunks)
    assert [scored for each in streamed if each for scored in each["content"]] == content


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string_wherever_it_begins(server, alone, smollm2, stream):
    (expected,) = alone([1, 2, 3], count=20)
    text = smollm2.tokenizer.decode(expected.tokens)
    half = len(text) // 2
    asked = {"prompt": [1, 2, 3], "max_tokens": 20, "temperature": 0, "stream": stream}
    asked["stop"] = ["never in it", text[half : half + 3]]
    answer = server.post("completions", **asked)
    choices = [c["choices"][0] for c in (answer.chunks[:-1] if stream else [answer.json])]
    assert "".join(choice["text"] for choice in choices) == text[: text.find(asked["stop"][1])]
    assert choices[-1]["finish_reason"] == "stop"


def test_a_template_that_refuses_is_a_refusal(server, smollm2, monkeypatch):
    refusing = {"default": "{{ raise_exception('no') }}"}
    parts = dataclasses.replace(smollm2.tokenizer._parts, templates=refusing)
    monkeypatch.setattr(smollm2.tokenizer, "_parts", parts)
    answer = server.post("chat/completions", messages=[{"role": "user", "content": "a"}])
    assert answer.status == 400
    assert "chat template is stopped by 'no'" in answer.json["error"]["message"]


def test_too_long_a_prompt_is_refused_with_both_numbers(server):
    answer = server.post("completions", prompt=[1] * 129)
    assert answer.json["error"]["code"] == "context_length_exceeded"
    assert "prompt is 129 tokens" in answer.json["error"]["message"]
    assert "room for 128 tokens" in answer.json["error"]["message"]
