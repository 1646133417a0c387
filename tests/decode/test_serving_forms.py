"""Log probabilities of answers: where each token lies in the text, and by which name it goes."""

import dataclasses

import pytest

from decode.batching.events import Finished, Ticket, Token
from decode.serving.asked import read_chat, read_completion
from decode.serving.forms import Form
from decode.text_stops import StoppedText
from decode.tokenizer import Tokenizer
from tests import serving
from tests.tokenizers import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer):
    config = dataclasses.replace(serving.TINY, vocabulary=tokenizer.vocabulary)
    return serving.served(config, tokenizer)


def answered(model, text, stop=(), alternatives=(), stream=False, read=read_completion, **asked):
    """The form after an answer of this text, and its chunks if it is a stream."""
    asked = asked or {"prompt": "a", "logprobs": 3}
    asked = read({"stop": list(stop), "stream": stream, "max_tokens": 30, **asked}, model)
    form, chunks, ticket = Form(asked, model), [], Ticket(0, asked.requests[0])
    stopped = StoppedText(model.tokenizer.stream(), asked.requests[0].stop)
    for token in ids(model.tokenizer, text):
        form.add(0, Token(ticket, token, -1.0, stopped.push(token), tuple(alternatives)))
        chunks += form.chunks(0) if stream else []
        if stopped.found:
            break
    rest = "" if stopped.found else stopped.flush()
    form.add(0, Finished(ticket, "stop" if stopped.found else "length", text=rest))
    return form, chunks + form.chunks(0) if stream else chunks


def ids(tokenizer, text):
    return [token for token in tokenizer.encode(text) if tokenizer.piece(token)]


def scored(form):
    return form.whole()["choices"][0]["logprobs"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [(), ("zq xw vk!",), ("w \u00e9\u2581!",)])
def test_offsets_are_the_tokens_places_in_the_text_whatever_is_kept_back(model, stop, stream):
    text = "zq xw \u00e9\u2581 vk"
    form, chunks = answered(model, text, stop, stream=stream)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks] if stream else [scored(form)]
    offsets = [offset for each in told for offset in each["text_offset"]]
    data = [model.tokenizer.piece(token) for token in ids(model.tokenizer, text)]
    starts = [sum(map(len, data[:n])) for n in range(len(data))]
    whole = text.encode()
    assert offsets == [len(whole[:start].decode(errors="ignore")) for start in starts]


def test_offsets_of_what_a_stop_string_cuts_off_are_the_texts_end(model):
    form, _ = answered(model, "zq xw vk", stop=("q xw v",))
    choice = form.whole()["choices"][0]
    assert choice["text"] == "z"
    assert choice["logprobs"]["text_offset"][:2] == [0, 1]
    assert set(choice["logprobs"]["text_offset"][1:]) == {1}


def test_alternatives_that_are_no_whole_characters_and_control_tokens_have_names(model, tokenizer):
    first, second = (
        next(t for t in range(tokenizer.vocabulary) if tokenizer.piece(t) == bytes([byte]))
        for byte in (0xE2, 0x96)
    )
    control = next(t for t in tokenizer.stop_ids if tokenizer.name(t) == "<|im_end|>")
    alternatives = [(first, -2.0), (second, -3.0), (control, -4.0)]
    top = scored(answered(model, "z", alternatives=alternatives)[0])["top_logprobs"][0]
    assert top == {"bytes:\\xe2": -2.0, "bytes:\\x96": -3.0, "<|im_end|>": -4.0}


def test_of_alternatives_of_one_name_the_most_likely_counts(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "name", lambda token: "a")
    top = scored(answered(model, "z", alternatives=[(1, -2.0), (2, -3.0)])[0])["top_logprobs"]
    assert top == [{"a": -2.0}]


def test_a_token_has_one_log_probability_also_among_its_alternatives(model, tokenizer):
    (token,) = ids(tokenizer, "z")
    near = [(token, -1.00001), (token + 1, -2.0)]
    assert scored(answered(model, "z", alternatives=near)[0])["top_logprobs"][0]["z"] == -1.0
    messages = [{"role": "user", "content": "a"}]
    asked = {"messages": messages, "logprobs": True, "top_logprobs": 2}
    told = scored(answered(model, "z", alternatives=near, read=read_chat, **asked)[0])
    assert told["content"][0]["top_logprobs"][0]["logprob"] == told["content"][0]["logprob"]
    assert told["refusal"] is None
