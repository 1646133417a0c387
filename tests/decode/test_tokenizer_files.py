"""The tokenizer of a Hugging Face folder: ids, streaming, chat templates and damaged files."""

import importlib.util
import json
import random

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from decode import chat, tokenizer_files
from decode.tokenizer import Tokenizer, TokenizerError

SENTENCES = ["the rest of the word and the other", "they rest there, 2024 times", "naïve thé"]
TEXTS = [
    "",
    " ",
    "the rest",
    "  two\n\n\ttabs  ",
    "naïve 日本語 🤗 👩‍👩‍👧 ½²",
    "I'm 42, it's 2024!",
    "a\r\nb \n c",
    "\x00\x7f\u0301é",
]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n\n' }}"
    "{{ message.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "the rest"}]
parity = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="needs extra `parity`"
)


def control(*texts):
    return [AddedToken(text, normalized=False, special=True) for text in texts]


def begins_with(backend, token):
    pair = (token, backend.token_to_id(token))
    backend.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[pair])


def byte_level(ignore_merges=False):
    """As Llama 3 and Qwen: bytes as characters, control tokens behind the vocabulary."""
    backend = Backend(models.BPE(ignore_merges=ignore_merges))
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens(control("<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    backend.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    begins_with(backend, "<s>")
    return backend


def metaspace(strip=True):
    """As Llama 2 and Mistral: spaces as "▁", unknown characters as byte tokens."""
    control_texts = ["<unk>", "<s>", "</s>"]
    texts = control_texts + [f"<0x{byte:02X}>" for byte in range(256)]
    texts += ["▁", *"therswod", "th", "the", "▁the", "re", "st", "rest", "▁rest"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("r", "e"), ("s", "t"), ("re", "st")]
    vocabulary = {text: number for number, text in enumerate(texts)}
    backend = Backend(
        models.BPE(
            vocabulary,
            [*merges, ("▁", "rest")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Prepend("▁")] if strip else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    backend.add_special_tokens(control(*control_texts))
    begins_with(backend, "<s>")
    return backend


BYTE_CONFIG = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML}
SPACE_CONFIG = {
    "bos_token": {"content": "<s>", "lstrip": False, "special": True, "__type": "AddedToken"},
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
KINDS = {
    "byte_level": (byte_level, BYTE_CONFIG),
    "ignore_merges": (lambda: byte_level(ignore_merges=True), BYTE_CONFIG),
    "metaspace": (metaspace, SPACE_CONFIG),
    "no_strip": (lambda: metaspace(strip=False), SPACE_CONFIG),
}


@pytest.fixture
def write(tmp_path):
    """Writes a folder: its kind, changes of tokenizer_config, other files by name."""

    def files(kind="byte_level", config=None, change=None, **others):
        make, settings = KINDS[kind]
        document = json.loads(make().to_str())
        for key, value in (change or {}).items():
            document[key] = value
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        settings = settings | (config or {})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        for name, value in others.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return tmp_path

    return files


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


def test_no_default_template_is_no_template(load):
    for template in (None, [], [{"name": "tools", "template": "x"}]):
        with pytest.raises(TokenizerError, match="chat template is missing"):
            load(config={"chat_template": template}).chat(HELLO)


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
        ({"bos_token": "<none>"}, "bos_token is '<none>', no token of tokenizer.json"),
        ({"add_bos_token": "yes"}, "add_bos_token is str, not bool"),
        ({"chat_template": 3}, "chat_template is int, not list"),
        ({"chat_template": [{"name": "default"}]}, "template is null, not str"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is list, not dict"),
        ({"added_tokens_decoder": {"1": {"content": "<s>"}}}, "added_tokens_decoder.1 is 291 in"),
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
        tokenizer_files.guarded("x is y"),
    ):
        raise panic("a\nb")
    with pytest.raises(KeyboardInterrupt), tokenizer_files.guarded("x is y"):
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
