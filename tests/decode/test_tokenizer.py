"""Text to tokens and back for each kind of tokenizer, streaming, and chat templates."""

import concurrent.futures
import dataclasses
import random
import threading

import numpy as np
import pytest
from gguf import TokenType

from decode import chat
from decode.tokenizer import Tokenizer, TokenizerError
from tests.gguf_samples import byte_characters, byte_tokenizer
from tests.tokenizers import write_tokenizer

TEXTS = [
    "",
    " ",
    "the rest of the word",
    "  two\n\n\ttabs  ",
    "naïve 日本語 🤗 👩‍👩‍👧 ½²",
    "I'm 42, it's 2024!",
    "\x00\x7f\u0301",
]


def byte_level(pre="smollm", merges=(), extra=(), **metadata):
    """Metadata of a byte-level tokenizer whose merged tokens are those of `merges`."""
    tokens = ["<|im_start|>", "<|im_end|>", "<tool>", *byte_characters()]
    types = [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED] + [TokenType.NORMAL] * 256
    more = [*(merge.replace(" ", "") for merge in merges), *extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + more,
        "tokenizer.ggml.token_type": np.array(types + [TokenType.NORMAL] * len(more), np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    } | with_prefix(metadata)


def sentence_piece(**metadata):
    """Metadata of a SentencePiece tokenizer: 3 special tokens, 256 bytes, scored pieces."""
    pieces = ["▁t", "he", "▁the", "▁a", "at", "▁at", "s>", *"▁theas<>/"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": list(map(int, types)) + [1] * len(pieces),
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(n) for n in range(len(pieces))]),
    } | with_prefix(metadata)


def with_prefix(change):
    return {f"tokenizer.ggml.{key}": value for key, value in change.items()}


def texts_of(metadata, text, **choices):
    """The tokens of a text, as the file writes them."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return [tokens[token] for token in Tokenizer.from_gguf(metadata).encode(text, **choices)]


@pytest.fixture
def tokenizer():
    return Tokenizer.from_gguf(byte_tokenizer())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", ["default", "smollm", "llama-bpe", "qwen2", "qwen35"])
def test_byte_level_text_survives_encoding(pre, text):
    tokenizer = Tokenizer.from_gguf(byte_tokenizer() | {"tokenizer.ggml.pre": pre})
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentence_piece_text_survives_encoding(text, add_space_prefix):
    tokenizer = Tokenizer.from_gguf(sentence_piece(add_space_prefix=add_space_prefix))
    prefix = " " * (add_space_prefix and bool(text))  # which a continuation keeps
    assert tokenizer.decode(tokenizer.encode(text)) == prefix + text


def test_merges_apply_in_the_order_of_the_file():
    merges = ["h e", "t h", "Ġ t", "Ġt he"]
    assert texts_of(byte_level(merges=merges), "the the") == ["t", "he", "Ġthe"]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", "Ġ", "1234", "5"]),
        ("smollm", ["a", "Ġ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["<|im_start|>", "a", "Ġ", "12", "3", "4", "5"]),
        ("qwen2", ["a", "Ġ", "1", "2", "3", "4", "5"]),
    ],
)
def test_digits_are_grouped_as_the_pre_tokenizer_says(pre, expected):
    merges = ["1 2", "3 4", "12 34", "34 5"]
    assert texts_of(byte_level(pre, merges), "a 12345") == expected


@pytest.mark.parametrize(("pre", "whole"), [("llama-v3", 1), ("llama4", 1), ("smollm", 0)])
def test_only_llama_3_and_4_keep_a_word_that_is_a_token_against_the_merges(pre, whole):
    metadata = byte_level(pre, merges=["a b"], extra=["abc"], add_bos_token=False)
    assert texts_of(metadata, "abc") == (["abc"] if whole else ["ab", "c"])


def test_sentence_piece_merges_the_highest_score_first():
    assert texts_of(sentence_piece(), "the at") == ["<s>", "▁the", "▁at"]
    # "at" scores higher than "▁at" can begin with; without a prefix there is no space to merge.
    metadata = sentence_piece(add_space_prefix=False, add_bos_token=False)
    assert texts_of(metadata, "the") == ["t", "he"]


def test_sentence_piece_falls_back_to_bytes():
    metadata = sentence_piece(add_bos_token=False)
    assert texts_of(metadata, "é\n") == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (byte_level(), "<|im_end|>"),
        (byte_level("llama3"), "<|im_end|>"),
        (sentence_piece(add_space_prefix=False), "</s>"),
    ],
)
def test_control_tokens_are_read_from_text_only_on_request(metadata, text):
    tokenizer = Tokenizer.from_gguf(metadata)
    control = metadata["tokenizer.ggml.tokens"].index(text)
    assert control in tokenizer.encode(f"a{text}", special=True)
    assert control not in tokenizer.encode(f"a{text}")
    assert tokenizer.decode(tokenizer.encode(f"a{text}")) == f"a{text}"
    assert tokenizer.decode(tokenizer.encode(f"a{text}", special=True)) == "a"


def test_user_defined_tokens_are_read_and_shown():
    tokenizer = Tokenizer.from_gguf(byte_level())
    assert tokenizer.encode("<tool>") == [2]
    assert tokenizer.decode([2]) == "<tool>"


@pytest.mark.parametrize(
    ("metadata", "first"),
    [
        (byte_level(), False),
        (byte_level(add_bos_token=True), True),
        (byte_level("llama-bpe"), True),
        (byte_level("llama-bpe", add_bos_token=False), False),
        (sentence_piece(), True),
        (sentence_piece(add_bos_token=False), False),
    ],
)
def test_the_begin_token_comes_first_where_the_model_wants_it(metadata, first):
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.encode("a")[0] == tokenizer.bos_id) is first


def test_a_begin_token_of_the_chat_template_is_not_doubled():
    tokenizer = Tokenizer.from_gguf(byte_level(add_bos_token=True))
    assert tokenizer.encode("<|im_start|>a", special=True).count(0) == 1
    assert tokenizer.encode("<|im_start|>a")[0] == 0  # here it is only text


def test_an_answer_ends_at_the_tokens_of_the_metadata_and_known_names():
    metadata = byte_tokenizer()
    assert Tokenizer.from_gguf(metadata).stop_ids == {0, 2}
    metadata |= {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7}
    assert Tokenizer.from_gguf(metadata).stop_ids == {0, 2, 5, 7}
    assert Tokenizer.from_gguf(sentence_piece()).stop_ids == {2}


def test_a_stream_gives_the_same_text_without_half_characters(tokenizer):
    text = "the naïve 日本語 🤗 end"
    stream = tokenizer.stream()
    parts = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)
    assert stream.flush() == ""


def test_half_a_character_is_replaced_when_a_stream_ends(tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("🤗")[:2]
    assert [stream.push(token) for token in ids] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_a_stream_of_any_tokens_equals_their_decoding(tokenizer):
    choose = random.Random(0)
    for _ in range(200):
        ids = [choose.randrange(tokenizer.vocabulary) for _ in range(8)]
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_the_space_between_prompt_and_continuation_is_kept():
    tokenizer = Tokenizer.from_gguf(sentence_piece())
    the = tokenizer.encode("the")[-1]
    assert tokenizer.stream().push(the) == tokenizer.decode([the]) == " the"


def test_tokens_that_fill_the_vocabulary_or_are_of_no_known_type_have_no_text():
    metadata = byte_level(extra=["[PAD259]", "[PAD260]"])
    metadata["tokenizer.ggml.token_type"][-2:] = TokenType.UNUSED, 0
    assert Tokenizer.from_gguf(metadata).decode([259, 3 + ord("B"), 260]) == "B"


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED])
@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "_<EOT>", "<|return|>"]
)
def test_a_known_end_token_ends_an_answer_whatever_its_type(text, kind):
    """As llama.cpp, which overrides the type: files with the wrong one are common."""
    metadata = byte_level(extra=["<end>"], eos_token_id=259)
    metadata["tokenizer.ggml.tokens"][1] = text
    metadata["tokenizer.ggml.token_type"][1] = kind
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.stop_ids == {1, 259} and tokenizer.decode([1]) == ""
    assert tokenizer.encode(text, special=True) == [1] and 1 not in tokenizer.encode(text)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_end_token_comes_last_where_the_file_wants_it(make):
    plain, ended = (Tokenizer.from_gguf(make(add_eos_token=wish)) for wish in (False, True))
    (eos,) = ended.stop_ids
    for special in (False, True):
        assert ended.encode("the", special) == [*plain.encode("the", special), eos]
    text = make()["tokenizer.ggml.tokens"][eos]
    assert ended.encode(f"the{text}", special=True).count(eos) == 1  # as a chat template may end


@pytest.mark.parametrize("token", [4_294_967_295, -1, 5000])
def test_a_token_that_the_file_does_not_have_is_left_out_with_a_word(token):
    change = with_prefix({f"{key}_token_id": token for key in ("bos", "eos", "eot", "eom")})
    change |= with_prefix({"add_bos_token": True, "add_eos_token": True})
    tokenizer = Tokenizer.from_gguf(byte_level() | change)
    assert tokenizer.stop_ids == {1}  # <|im_end|>, by its name
    assert tokenizer.encode("a") == Tokenizer.from_gguf(byte_level()).encode("a")
    assert f"tokenizer.ggml.eos_token_id is {token}, outside the 259 tokens; it is left out" in (
        tokenizer.notes
    )
    assert len(tokenizer.notes) == 4
    pieces = Tokenizer.from_gguf(sentence_piece(eos_token_id=token))
    assert pieces.stop_ids == {2} and pieces.notes[0].endswith("outside the 275 tokens; 2 is taken")


def test_a_chat_is_rendered_by_the_template_of_the_file(tokenizer):
    messages = [{"role": "user", "content": "the <b>"}]
    text = tokenizer.chat(messages)
    assert text == "<|im_start|>user\nthe <b><|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text, special=True).count(1) == 2


def with_template(template):
    return Tokenizer.from_gguf(byte_tokenizer() | {"tokenizer.chat_template": template})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<|im_start|>|<|im_end|>"),
        ("{% if true %}\n  {% if tools is none %}\nx\n{% endif %}\n{% endif %}", "x\n"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "é<"}]'),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ '-' * 3 }}{{ 2 * 3 }}", "---6"),
    ],
)
def test_templates_find_what_hugging_face_gives_them(template, expected):
    assert with_template(template).chat([{"role": "user", "content": "é<"}]) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "'roles must alternate'"),
        ("{% for", "stopped by"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages.append(1) }}", "append. .* is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ 'x' * 10**9 }}", "product too large"),
        ("{{ 'x' * 1000000000 }}", "product too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "more than 1000000 characters"),
        ("{% for i in range(99999999) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_fails_says_so_in_one_line(template, message):
    with pytest.raises(TokenizerError, match=message) as error:
        with_template(template).chat([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in r %}{% for i in r %}{% for i in r %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for i in r %}{% for i in r %}{% endfor %}{% endfor %}{% endmacro %}"
        "{% set text = f() %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(99) }}",
    ],
)
def test_a_template_that_runs_on_is_stopped(template, monkeypatch):
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.2)
    with pytest.raises(TokenizerError, match=r"more than 0.2 seconds"):
        with_template("{% set r = range(99999) %}" + template).chat([])


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": 3}, "hi"])
def test_a_message_without_text_is_refused(tokenizer, message):
    with pytest.raises(TokenizerError, match="chat message is"):
        tokenizer.chat([message])


def test_a_model_without_chat_template_says_so():
    with pytest.raises(TokenizerError, match="chat template is missing"):
        Tokenizer.from_gguf(sentence_piece()).chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "model is 'bert'; supported are gpt2, llama"),
        ({"pre": "tekken"}, "pre is 'tekken'; supported are default, gpt-2, smollm"),
        ({"tokens": ["a", "b", "a"]}, "tokens is 'a' twice"),
        ({"tokens": []}, "tokens is without text"),
        ({"tokens": np.arange(3)}, "tokens is ndarray, not list"),
        ({"token_type": [1, 2]}, "token_type is not a finite number for each of 259"),
        ({"merges": ["a"]}, "merges is 'a', not tokens"),
        ({"merges": ["a b"]}, "merges is 'a b', not tokens"),
        ({"add_bos_token": 1}, "add_bos_token is int, not bool"),
    ],
)
def test_metadata_that_makes_no_tokenizer_is_refused(change, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(byte_level() | with_prefix(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.full(275, np.nan)}, "scores is not a finite number for each of 275"),
        ({"tokens": ["<unk>", "x" * 1000], "scores": [0, 0], "token_type": [2, 1]}, "1000 char"),
        ({"tokens": ["<unk>", "<0xZZ>"], "scores": [0, 0], "token_type": [2, 6]}, "for a byte"),
    ],
)
def test_scores_and_pieces_that_make_no_tokenizer_are_refused(change, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(sentence_piece() | with_prefix(change))


def test_a_file_without_a_tokenizer_has_none_and_one_with_half_of_it_is_refused():
    assert Tokenizer.from_gguf({"general.name": "x"}) is None
    with pytest.raises(TokenizerError, match="missing; give a GGUF file with a tokenizer"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "gpt2"})


@pytest.mark.parametrize("token", [-1, 288])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, token):
    with pytest.raises(TokenizerError, match=f"token id is {token}; give 0 to 287"):
        tokenizer.decode([0, token])


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="not Unicode text"):
        tokenizer.encode("a\udc80")


def test_threads_encode_side_by_side(tmp_path):
    meeting = threading.Barrier(2)

    class Meeting:
        def __init__(self, backend):
            self.backend = backend

        def encode(self, *arguments, **named):
            meeting.wait(60)
            return self.backend.encode(*arguments, **named)

    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path))
    expected = tokenizer.encode("the <s> rest")
    meets = Meeting(tokenizer._parts.backend)
    tokenizer = Tokenizer(dataclasses.replace(tokenizer._parts, backend=meets))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(tokenizer.encode, ["the <s> rest"] * 2)) == [expected] * 2


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_names_of_control_tokens_are_text_or_tokens_in_any_order(tmp_path, order):
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path))
    found = {special: tokenizer.encode("a<|im_end|>", special) for special in (*order, *order)}
    assert tokenizer.stop_ids & set(found[True]) and not tokenizer.stop_ids & set(found[False])
    assert tokenizer.decode(found[False]).endswith("a<|im_end|>")
