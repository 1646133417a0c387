"""Bodies of HTTP requests: what is understood, and what is refused by name."""

import dataclasses
import json

import pytest

from decode.serving.asked import read_chat, read_completion
from decode.serving.errors import ApiError
from decode.serving.fields import read_json
from tests.serving import TINY, served

VOCABULARY = 49152


@pytest.fixture(scope="module")
def model(smollm2):
    return served(dataclasses.replace(TINY, vocabulary=VOCABULARY), smollm2.tokenizer)


def hello(**fields):
    return {"messages": [{"role": "user", "content": "Hello"}], **fields}


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "body is no JSON"),
        (b"{", "body is no JSON"),
        (b"\xff\xfe{}", "body is no JSON"),
        (b"[" * 100_000, "body is no JSON"),
        (b"[1]", "body is [1]; send one JSON object"),
        (b'{"temperature": NaN}', "NaN is no number of JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body is no JSON"),
    ],
)
def test_what_is_no_object_of_json_is_refused(body, words):
    with pytest.raises(ApiError, match="body is") as refused:
        read_json(body)
    assert words in str(refused.value) and refused.value.status == 400


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({}, "prompt", "prompt is missing; give text"),
        ({"prompt": ""}, "prompt", "give text"),
        ({"prompt": []}, "prompt", "give text"),
        ({"prompt": {"a": 1}}, "prompt", 'prompt is {"a": 1}'),
        ({"prompt": [1, "a"]}, "prompt", "prompt is 1; give text"),
        ({"prompt": [[1], []]}, "prompt", "prompt is []"),
        ({"prompt": [True]}, "prompt", "prompt is true"),
        ({"prompt": [VOCABULARY]}, "prompt", f"use ids from 0 to {VOCABULARY - 1}"),
        ({"prompt": [-1]}, "prompt", "outside the vocabulary"),
        ({"prompt": "a\ud800"}, "prompt", "not Unicode text"),
        ({"prompt": [[1]] * 9}, "prompt", "number of prompts is 9; give at most 8"),
        ({"prompt": [1] * 127, "max_tokens": 2}, "prompt", "127 tokens and its answer up to 2"),
        ({"prompt": [1] * 128}, "prompt", "room for 128 tokens"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "give an integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "give an integer"),
        ({"prompt": "a", "max_tokens": 2**40}, "max_tokens", "give an integer"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", 'temperature is "hot"'),
        ({"prompt": "a", "temperature": -1}, "temperature", "from 0 to 2"),
        ({"prompt": "a", "temperature": 1e-30}, "temperature", "1e-06"),
        ({"prompt": "a", "temperature": 10**400}, "temperature", "from 0 to 2"),
        ({"prompt": "a", "temperature": True}, "temperature", "from 0 to 2"),
        ({"prompt": "a", "top_p": 0}, "top_p", "above 0"),
        ({"prompt": "a", "top_p": 1.1}, "top_p", "from 0 to 1"),
        ({"prompt": "a", "top_k": -2}, "top_k", "from -1"),
        ({"prompt": "a", "min_p": 2}, "min_p", "from 0 to 1"),
        ({"prompt": "a", "seed": 2**63}, "seed", "seed is 9223372036854775808"),
        ({"prompt": "a", "n": 0}, "n", "n is 0"),
        ({"prompt": ["a", "b"], "n": 5}, "n", "8 answers"),
        ({"prompt": "a", "best_of": 3}, "best_of", "give that of n, 1"),
        ({"prompt": "a", "stop": 3}, "stop", "stop is 3"),
        ({"prompt": "a", "stop": ["a", 3]}, "stop", "list of texts"),
        ({"prompt": "a", "stop": ""}, "stop", "1 to 128"),
        ({"prompt": "a", "stop": "x" * 129}, "stop", "129 characters"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "17 stop strings are too many: 16"),
        ({"prompt": "a", "stop_token_ids": [VOCABULARY]}, "stop_token_ids", "token ids from 0"),
        ({"prompt": "a", "ignore_eos": "yes"}, "ignore_eos", "true or false"),
        ({"prompt": "a", "stream": 1}, "stream", "true or false"),
        ({"prompt": "a", "logprobs": 4}, "logprobs", "from 0 to 3"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "from 0 to 3"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "with stream true"),
        (
            {"prompt": "a", "stream": True, "stream_options": {"usage": True}},
            "stream_options.usage",
            "unknown",
        ),
        ({"prompt": "a", "min_tokens": 3}, "min_tokens", "ignore_eos"),
        ({"prompt": "a", "echo": True}, "echo", "not supported"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"prompt": "a", "guided_json": {}}, "guided_json", "unknown"),
        ({"prompt": "a", "messages": []}, "messages", "unknown"),
        ({"messages": []}, "messages", "send messages to /v1/chat/completions"),
    ],
)
def test_a_completion_that_cannot_be_answered_is_refused_by_the_field(model, fields, param, words):
    with pytest.raises(ApiError) as refused:
        read_completion(fields, model)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert set(refused.value.body["error"]) == {"message", "type", "param", "code"}
    json.dumps(refused.value.body)


@pytest.mark.parametrize(
    "messages, param, words",
    [
        (None, "messages", "one message at least"),
        ([], "messages", "one message at least"),
        ("Hello", "messages", "one message at least"),
        (["Hello"], "messages[0]", "give an object"),
        ([{"content": "a"}], "messages[0].role", "give one of system, developer, user, assistant"),
        ([{"role": "tool", "content": "a"}], "messages[0].role", 'role is "tool"'),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "give one of"),
        ([{"role": "user"}], "messages[0].content", "content is missing"),
        ([{"role": "user", "content": 5}], "messages[0].content", "content is 5"),
        ([{"role": "user", "content": []}], "messages[0].content", "content is []"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
            'type is "image_url"; parts of type text alone',
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "give text",
        ),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
            "messages[0].tool_calls",
            "unknown",
        ),
        ([{"role": "user", "content": "word " * 200}], "messages", "there is room for 128 tokens"),
    ],
)
def test_messages_that_make_no_prompt_are_refused(model, messages, param, words):
    with pytest.raises(ApiError) as refused:
        read_chat({"messages": messages}, model)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 4}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"prompt": "a", "messages": None}, "prompt"),
    ],
)
def test_a_chat_that_cannot_be_answered_is_refused_by_the_field(model, fields, param):
    with pytest.raises(ApiError) as refused:
        read_chat(hello(**fields), model)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_model_that_is_not_served_is_not_found(model):
    with pytest.raises(ApiError, match='which is not served; use "tiny"') as refused:
        read_chat(hello(model="gpt-5"), model)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_text_and_messages_need_a_tokenizer_and_a_template(model):
    for read, body in ((read_completion, {"prompt": "a"}), (read_chat, hello())):
        with pytest.raises(ApiError, match="has no tokenizer; give token ids"):
            read(body, served())


def test_fields_that_ask_for_nothing_are_taken(model):
    nothing = {"presence_penalty": 0, "logit_bias": {}, "tools": [], "user": "me", "seed": None}
    nothing |= {"response_format": {"type": "text"}, "tool_choice": "none", "store": False}
    assert read_chat(hello(**nothing, model="tiny"), model).each == 1


def test_values_that_filter_nothing_are_no_filters(model):
    off = {"top_k": -1, "top_p": 1, "min_p": 0.0}
    for body in (off | {"temperature": 0.5}, {"temperature": 0, "top_p": 0.5, "top_k": 3}):
        (request,) = read_completion({"prompt": "a", **body}, model).requests
        assert (request.top_k, request.top_p, request.min_p) == (None, None, None)
    asked = {"prompt": "a", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 9}
    (request,) = read_completion(asked, model).requests
    assert (request.top_k, request.top_p, request.min_p, request.seed) == (7, 0.9, 0.1, 9)


def test_a_request_without_seed_gets_one_of_its_own_and_temperature_one(model):
    first, second = (read_completion({"prompt": "a"}, model).requests[0] for _ in range(2))
    assert first.temperature == 1 and first.seed != second.seed


def test_each_answer_of_each_prompt_has_draws_of_its_own(model):
    asked = read_completion({"prompt": [[1, 2], [3]], "n": 3, "seed": 5}, model)
    assert [(r.prompt, r.sequence) for r in asked.requests] == [
        *(((1, 2), n) for n in range(3)),
        *(((3,), n) for n in range(3, 6)),
    ]
    assert {request.seed for request in asked.requests} == {5}


def test_limits_are_sixteen_tokens_for_completions_and_all_that_fits_for_chats(model):
    limits = [read_completion({"prompt": [1] * n}, model).requests[0] for n in (1, 120, 127)]
    assert [request.max_new_tokens for request in limits] == [16, 8, 1]
    (request,) = read_chat(hello(), model).requests
    assert len(request.prompt) + request.max_new_tokens == 128
    (request,) = read_chat(hello(max_completion_tokens=4), model).requests
    assert request.max_new_tokens == 4


def test_stops_are_texts_tokens_and_the_models_own(model):
    own = model.tokenizer.stop_ids
    (request,) = read_completion(
        {"prompt": "a", "stop": "\n", "stop_token_ids": [3]}, model
    ).requests
    assert (request.stop, request.stop_ids) == (("\n",), own | {3})
    asked = {"prompt": "a", "stop": ["a", "b"], "ignore_eos": True}
    (request,) = read_completion(asked, model).requests
    assert (request.stop, request.stop_ids) == (("a", "b"), frozenset())
    exact = {"prompt": "a", "max_tokens": 5, "min_tokens": 5, "ignore_eos": True}
    assert read_completion(exact, model).requests[0].max_new_tokens == 5


def test_parts_of_a_content_are_joined_and_developers_speak_as_the_system(model):
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    (request,) = read_chat({"messages": messages}, model).requests
    tokenizer = model.tokenizer
    text = tokenizer.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One\nTwo"}]
    )
    assert list(request.prompt) == tokenizer.encode(text, special=True)


class Untouched:
    """A tokenizer that must not be asked to encode."""

    longest = 4

    def chat(self, messages):
        return messages[0]["content"]


@pytest.mark.parametrize("read", [read_completion, read_chat])
def test_a_text_that_is_far_too_long_is_refused_before_it_is_encoded(read):
    text = "a" * 10_000
    body = {"prompt": text} if read is read_completion else {
        "messages": [{"role": "user", "content": text}]
    }  # fmt: skip
    with pytest.raises(ApiError, match="10000 bytes of text") as refused:
        read(body, served(tokenizer=Untouched()))
    assert refused.value.code == "context_length_exceeded"
