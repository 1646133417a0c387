"""Tokenizers of Hugging Face folders that are damaged or not supported are refused in words."""

import functools
import random

import pytest

from decode import tokenizer_files, tokenizer_json
from decode.tokenizer import Tokenizer, TokenizerError
from tests.decode.tokenizer_quirks import bpe_pieces
from tests.sentencepiece_files import write_model
from tests.tokenizers import HELLO, write_tokenizer


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_tokenizer, tmp_path)


@pytest.fixture
def load(write):
    return lambda *args, **others: Tokenizer.from_folder(write(*args, **others))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "decoder is null; supported are ByteLevel"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, 'decoder is ."WordPiece"'),
        ({"type": "Metaspace"}, 'decoder is ."Metaspace"'),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}, "Fuse"),
        ({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}, "only a string"),
        (
            {
                "type": "Sequence",
                "decoders": [
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 0, "stop": 1},
                ],
            },
            "only one first space",
        ),
    ],
)
def test_decoders_that_need_the_whole_text_are_refused(load, decoder, message):
    with pytest.raises(TokenizerError, match=message):
        load(change={"decoder": decoder})


ADDED = {"id": 9, "content": "<z>", "special": True, "normalized": False, "single_word": False}
ADDED |= {"lstrip": False, "rstrip": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "id 0 is both"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "not a tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "without tok"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "not a tokenizer"),
        ({"model": None}, "not a tokenizer"),
        ({"added_tokens": [ADDED]}, "added token '<z>' is 9, but 291"),
        ({"added_tokens": [3]}, "not a tokenizer"),
        ({"pre_tokenizer": {"type": "Unheard"}}, "not a tokenizer"),
    ],
)
def test_a_contradiction_in_the_tokenizer_is_refused(load, change, message):
    if "model" in change:
        change = {"added_tokens": [], "post_processor": None} | change
    with pytest.raises(TokenizerError, match=message) as error:
        load(change=change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": 3}, "bos_token is int, not str"),
        ({"eos_token": {"content": None}}, "eos_token is null, not str"),
        ({"add_bos_token": "yes"}, "add_bos_token is str, not bool"),
        ({"chat_template": 3}, "chat_template is int, not list"),
        ({"chat_template": [{"name": "default"}]}, "template is null, not str"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is list, not dict"),
        ({"added_tokens_decoder": {"1": {"content": "<s>"}}}, "added_tokens_decoder.1 is 291 by"),
        ({"added_tokens_decoder": {"1": {"content": "a", "special": 1}}}, "special is int"),
        ({"additional_special_tokens": "x"}, "additional_special_tokens is str, not list"),
        ({"pad_token": "\ud800"}, "special token is"),
    ],
)
def test_a_wrong_configuration_is_refused(load, config, message):
    with pytest.raises(TokenizerError, match=message) as error:
        load(config=config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("token", [True, "3", [1, None], 1.5, {}])
def test_a_wrong_stop_id_is_refused(load, token):
    with pytest.raises(TokenizerError, match=r"eos_token_id is .*, no token id; the file is dam"):
        load(generation_config={"eos_token_id": token})


@pytest.mark.parametrize(
    ("tokens", "kept", "wrong"),
    [(-1, [], [-1]), (2**64, [], [2**64]), ([3, -1], [3], [-1]), ([-1, 3, 306], [3], [-1, 306])],
)
def test_a_stop_id_that_no_token_has_is_left_out_with_a_word(load, tokens, kept, wrong):
    plain = load()
    found = load(generation_config={"eos_token_id": tokens})
    assert found.stop_ids == plain.stop_ids | set(kept) and not plain.notes
    assert found.notes == tuple(
        f"generation_config.json eos_token_id is {token}, outside the 296 tokens; it is left out"
        for token in wrong
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "config.json",
        "generation_config.json",
    ],
)
def test_files_that_are_not_json_are_refused(write, name, content):
    folder = write()
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=f"^{name} is .*; ") as error:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(error.value)


def test_files_too_large_or_of_another_kind_are_refused(write, monkeypatch):
    folder = write()
    (folder / "chat_template.jinja").mkdir()
    with pytest.raises(TokenizerError, match="jinja is no regular file"):
        Tokenizer.from_folder(folder)
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(TokenizerError, match="bytes long; at most 100 are read"):
        Tokenizer.from_folder(folder)


def test_a_panic_is_one_line_but_an_interrupt_stays_one():
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(TokenizerError, match=r"x is y \(a b\); "),
        tokenizer_json.guarded("x is y"),
    ):
        raise panic("a\nb")
    with pytest.raises(KeyboardInterrupt), tokenizer_json.guarded("x is y"):
        raise KeyboardInterrupt


def damaged(data, choose):
    """Flips bits, swaps a character for another one of JSON, or cuts a piece out."""
    data = bytearray(data)
    for _ in range(choose.randint(1, 3)):
        data = data or bytearray(b"x")
        start = choose.randrange(len(data))
        way = choose.randrange(4)
        if way == 0:
            data[start] ^= 1 << choose.randrange(8)
        elif way == 1:
            data[start] = choose.choice(b'0123456789"{}[]:,-tfn\\ ')
        elif way == 2:
            del data[start : start + choose.randint(1, 40)]
        else:
            del data[start:]
    return bytes(data)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damage_is_refused_or_leaves_a_working_tokenizer(write, kind, name):
    folder, choose = write(kind), random.Random(7)
    path = folder / name
    data = path.read_bytes()
    refused = worked = 0
    for _ in range(120):
        path.write_bytes(damaged(data, choose))
        try:
            tokenizer = Tokenizer.from_folder(folder)
            ids = tokenizer.encode("the naïve 🤗 rest 42")
            tokenizer.encode("<s>the", special=True)
            assert all(0 <= token < tokenizer.vocabulary for token in ids)
            tokenizer.decode(ids)
            tokenizer.chat(HELLO)
            worked += 1
        except TokenizerError as error:
            assert "\n" not in str(error)
            refused += "chat template" not in str(error)
    assert refused > 10


def test_damage_of_a_sentence_piece_model_is_refused_or_leaves_a_working_tokenizer(tmp_path):
    path, choose = tmp_path / "tokenizer.model", random.Random(3)
    data = write_model(path, bpe_pieces()).read_bytes()
    found = []
    for _ in range(100):
        path.write_bytes(damaged(data, choose))
        try:
            tokenizer = Tokenizer.from_folder(tmp_path)
        except TokenizerError as error:
            assert "\n" not in str(error)
            found.append("refused")
            continue
        found.append("none" if tokenizer is None else "works")
        if tokenizer:
            ids = tokenizer.encode("the the", special=True)
            assert all(0 <= token < tokenizer.vocabulary for token in ids)
    assert {"refused", "works", "none"} >= {*found} >= {"works", "none"}


@pytest.mark.parametrize(
    ("pieces", "fields", "message"),
    [
        (bpe_pieces(), {3: 4}, "model_type is 4; supported are 1, unigram, and 2, BPE"),
        ([*bpe_pieces(), ("the", 0, 1)], {}, "has a piece twice"),
        ([("x" * 1025, 0, 1)], {}, "has a piece of 1025 characters"),
    ],
)
def test_a_sentence_piece_model_that_is_not_supported_is_refused(tmp_path, pieces, fields, message):
    write_model(tmp_path / "tokenizer.model", pieces, trainer=fields)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)
