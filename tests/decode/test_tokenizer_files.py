"""The tokenizer of a Hugging Face folder: ids, streaming and chat templates."""

import functools
import importlib.util
import json
import random

import pytest

from decode import chat
from decode.tokenizer import Tokenizer, TokenizerError
from tests.tokenizers import (
    CHATML,
    HELLO,
    KINDS,
    LLAMA3,
    TEXTS,
    byte_level,
    parity,
    write_tokenizer,
)


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_tokenizer, tmp_path)


@pytest.fixture
def load(write):
    return lambda *args, **others: Tokenizer.from_folder(write(*args, **others))


def begun(kind, text):
    """A text with the space that some models begin every text with: a continuation keeps it."""
    return " " * (kind == "metaspace" and bool(text)) + text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding_behind_the_begin_token(load, kind, text):
    tokenizer = load(kind)
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
    assert tokenizer.decode(ids) == begun(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_that_of_the_file(load, kind):
    tokenizer, backend = load(kind), KINDS[kind][0]()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        whole = backend.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids) == begun(kind, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_equals_decoding_and_never_shows_half_a_character(load, kind):
    tokenizer = load(kind)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        parts = [stream.push(token) for token in ids]
        assert not any("\ufffd" in part for part in parts) and stream.flush() == ""
        assert "".join(parts) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_any_tokens_equals_their_decoding(load, kind):
    tokenizer, choose = load(kind), random.Random(0)
    for _ in range(200):
        ids = [choose.randrange(tokenizer.vocabulary) for _ in range(8)]
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_an_emoji_waits_for_its_last_byte(load):
    for kind in ("byte_level", "no_strip"):
        tokenizer = load(kind)
        stream = tokenizer.stream()
        assert [stream.push(token) for token in tokenizer.encode("🤗")[1:]] == ["", "", "", "🤗"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [("byte_level", "<|im_end|>"), ("ignore_merges", "<|im_end|>"), ("metaspace", "</s>")],
)
def test_control_tokens_are_read_from_text_only_on_request(load, kind, text):
    tokenizer = load(kind)
    (stop,) = tokenizer.encode(text, special=True)
    assert stop in tokenizer.stop_ids and tokenizer.decode([stop]) == ""
    assert stop not in tokenizer.encode(f"a{text}")
    assert tokenizer.decode(tokenizer.encode(f"a{text}")) == begun(kind, f"a{text}")


def test_text_that_only_a_control_token_can_encode_is_refused(load):
    model = {"type": "BPE", "vocab": {"<": 0, "x": 1, "<x": 2}, "merges": [["<", "x"]]}
    token = {"id": 2, "content": "<x", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    change = {"model": model, "added_tokens": [token], "post_processor": None}
    config = {"bos_token": None, "eos_token": None}
    tokenizer = load(config=config, change=change | {"pre_tokenizer": None})
    assert tokenizer.encode("<x", special=True) == [2]
    with pytest.raises(TokenizerError, match="reads as control token 2; change its text"):
        tokenizer.encode("<x")


def test_a_token_named_only_beside_the_file_is_a_control_token(load):
    entry = {"content": "<tool>", "special": True, "normalized": False}
    tool = byte_level().token_to_id("<tool>")
    assert load().encode("<tool>")[1:] == [tool]
    assert load().decode([tool]) == "<tool>"
    for config in (
        {"added_tokens_decoder": {str(tool): entry}},
        {"additional_special_tokens": ["<tool>"]},
        {"extra_special_tokens": {"tool": entry}},
        {"pad_token": "<tool>"},
    ):
        tokenizer = load(config=config)
        assert tool not in tokenizer.encode("<tool>")
        assert tokenizer.encode("<tool>", special=True) == [tool]
        assert tokenizer.decode([tool]) == ""


def test_the_special_tokens_map_is_read_where_the_configuration_is_silent(load):
    config = {"bos_token": None, "eos_token": None}
    names = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}
    tokenizer = load(config=config, special_tokens_map=names)
    assert tokenizer.bos_id == byte_level().token_to_id("<s>")
    assert byte_level().token_to_id("<|im_end|>") in tokenizer.stop_ids


def test_the_file_and_no_setting_decides_what_is_around_a_text(load):
    ids = load().encode("the")
    for setting in (True, False, None):
        assert load(config={"add_bos_token": setting}).encode("the") == ids
    without = load(config={"add_bos_token": True}, change={"post_processor": None})
    assert without.encode("the") == ids[1:]


def test_a_chat_gets_the_begin_token_of_its_template_once(load):
    tokenizer = load(config={"chat_template": LLAMA3, "add_bos_token": True})
    ids = tokenizer.encode(tokenizer.chat(HELLO), special=True)
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_a_chat_has_the_default_system_prompt_of_its_template(load):
    expected = "<|im_start|>user\nthe rest<|im_end|>\n<|im_start|>assistant\n"
    assert load().chat(HELLO) == "<|im_start|>system\nBe brief.<|im_end|>\n" + expected
    system = [{"role": "system", "content": "x"}]
    assert load().chat(system + HELLO) == "<|im_start|>system\nx<|im_end|>\n" + expected


def test_templates_are_looked_for_in_order(write):
    def text():
        return Tokenizer.from_folder(folder).chat(HELLO)

    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "listed"}]
    folder = write(config={"chat_template": None}, chat_template={"chat_template": "processor"})
    assert text() == "processor"
    write(config={"chat_template": named})
    assert text() == "listed"
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}{{ pad_token }}")
    assert text() == "file <|im_end|>"


def test_a_template_without_the_name_of_the_default_is_taken_by_its_own(load):
    for template in (None, []):
        with pytest.raises(TokenizerError, match="chat template is missing"):
            load(config={"chat_template": template}).chat(HELLO)
    two = [{"name": "tools", "template": "x"}, {"name": "rag", "template": "{{ bos_token }}"}]
    tokenizer = load(config={"chat_template": two})
    with pytest.raises(TokenizerError, match=r"is one of rag, tools, none .*--chat_template=NAME"):
        tokenizer.chat(HELLO)
    assert tokenizer.with_template("rag").chat(HELLO) == "<s>"
    with pytest.raises(TokenizerError, match="is 'default', which is unknown; use rag, tools"):
        tokenizer.with_template("default")


def test_a_template_may_be_a_file_of_any_name(load, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{{ messages[0].role }}{{ eos_token }}")
    assert load().with_template(str(path)).chat(HELLO) == "user<|im_end|>"
    without = load(config={"chat_template": None})
    assert without.with_template(str(path)).chat(HELLO) == "user<|im_end|>"
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"mine\.txt is not UTF-8"):
        load().with_template(str(path))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% generation %}\nx{{ messages[0].role }}{% endgeneration %}", "xuser"),
        ("{{ messages | tojson(indent=1) | length > 9 }}", "True"),
        ("{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true) }}", '{"a": 1, "b": "é"}'),
        ("{% set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}", "2"),
        ("{{ strftime_now('%Y') | length }}{{ unk_token is defined }}", "4False"),
    ],
)
def test_templates_find_what_transformers_gives_them(load, template, expected):
    assert load(config={"chat_template": template}).chat(HELLO) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\nroles') }}", "'no roles'"),
        ("{% generation %}", "stopped by"),
        ("{{ messages | tojson(indent=1000000) }}", "indentation"),
        ("{% for i in r %}{% for i in r %}{% endfor %}{% endfor %}", "more than 0.2 seconds"),
        (
            "{% generation %}{% for i in r %}{% for i in r %}{% endfor %}{% endfor %}"
            "{% endgeneration %}",
            "more than 0.2 seconds",
        ),
    ],
)
def test_a_template_that_fails_or_runs_on_says_so_in_one_line(load, template, message, monkeypatch):
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.2)
    tokenizer = load(config={"chat_template": "{% set r = range(99999) %}" + template})
    with pytest.raises(TokenizerError, match=message) as error:
        tokenizer.chat(HELLO)
    assert "\n" not in str(error.value)


def test_an_answer_ends_at_the_tokens_of_all_files(load):
    ids = byte_level().get_vocab()
    known = {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert load().stop_ids == known
    tokenizer = load(
        generation_config={"eos_token_id": [1, 2]},
        config_={},  # an unknown file is ignored
    )
    assert tokenizer.stop_ids == known | {1, 2}


def test_the_model_says_where_answers_end_and_how_many_tokens_it_has(write):
    folder = write()
    model = {"eos_token_id": 3, "vocab_size": 999, "text_config": {"eos_token_id": [4, 998]}}
    (folder / "config.json").write_text(json.dumps(model))
    tokenizer = Tokenizer.from_folder(folder)
    assert {3, 4, 998} < tokenizer.stop_ids
    assert tokenizer.vocabulary == 999
    assert tokenizer.decode([998]) == ""
    with pytest.raises(TokenizerError, match="token id is 999; give 0 to 998"):
        tokenizer.decode([999])


def test_a_gap_between_ids_is_nothing(load):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}
    change = {"model": model, "added_tokens": [], "post_processor": None, "pre_tokenizer": None}
    tokenizer = load(config={"bos_token": None, "eos_token": None}, change=change)
    assert tokenizer.vocabulary == 8
    assert tokenizer.decode([0, 3, 7]) == "ab"


def test_a_folder_without_tokenizer_has_none(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None


def test_truncation_and_padding_of_the_file_are_not_for_prompts(load):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    text = "the rest of the other 🤗"
    assert load(change={"truncation": cut}).encode(text) == load().encode(text)


def reference(folder):
    """The same folder as transformers reads it."""
    transformers = importlib.import_module("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parity
@parity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}]
)
def test_ids_and_text_are_those_of_transformers(write, kind, config):
    folder = write(kind, config)
    own, peer = Tokenizer.from_folder(folder), reference(folder)
    for text in [*TEXTS, "<tool>the", " the  rest", "12345678", "\n\n"]:
        ids = own.encode(text)
        assert ids == peer(text).input_ids
        assert own.decode(ids) == begun(kind, peer.decode(ids, skip_special_tokens=True))


@pytest.mark.parity
@parity
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize(
    "template", [CHATML, LLAMA3, "{{ bos_token }}{{ pad_token }}{{ messages }}"]
)
def test_chats_are_those_of_transformers(write, kind, template):
    folder = write(kind, {"chat_template": template})
    own, peer = Tokenizer.from_folder(folder), reference(folder)
    for messages in (HELLO, [{"role": "system", "content": " é🤗 "}, *HELLO]):
        text = peer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert own.chat(messages) == text
        assert own.encode(text, special=True) == ids
