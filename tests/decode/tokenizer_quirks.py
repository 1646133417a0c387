"""Quirks of the folders that people have: tokenizers, chat templates and generation settings.

Each row is a folder made here and what `AutoTokenizer` and `GenerationConfig` of transformers make
of it, kept in `tests/references/tokenizer_quirks.json`; here it gives the same, or is refused by
name. `python -m tests.decode.tokenizer_quirks` writes the table to the page of `decode/`, and with
transformers, sentencepiece and protobuf installed the answers before it.
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decode.ignored_settings import ignored_in_folder
from decode.tokenizer import Tokenizer, TokenizerError
from decode.unreadable_tokenizers import unreadable_file
from profiles.report.pages import ROOT, Part
from tests.sentencepiece_files import (
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    write_model,
)
from tests.tokenizers import HELLO, KINDS

ANSWERS = ROOT / "tests/references/tokenizer_quirks.json"
PART = Part("decode/README.md", "quirks", "tests.decode.tokenizer_quirks")
PLAIN = ["the rest", "  the  rest 2024", "naïve 日本語 🤗 thé", "I'm 42, it's\r\n\nthere!", ""]
SPECIAL = ["<s>the<|im_end|> rest</s> they", "<tool> the<new>rest <x>12", "▁the<|im_start|>\n"]


@dataclasses.dataclass(frozen=True)
class Quirk:
    """A folder that is unlike others.

    Attributes:
      says: what is in it, in words.
      kind: its tokenizer.json before changes, of `tests.tokenizers.KINDS`; "" for none.
      config: changes of tokenizer_config.json.
      change: changes of tokenizer.json.
      model: config.json, whose model type is Llama's where it says none.
      files: other files by name, JSON of what is no text.
      pieces: writes tokenizer.model, given its path.
      asks: "ids", "chat" or "generation": what is compared.
      refused: part of the message with which it is refused here.
    """

    says: str
    kind: str = "byte_level"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pieces: Callable[[Path], Any] | None = None
    asks: str = "ids"
    refused: str = ""

    def write(self, folder: Path) -> Path:
        """Writes the folder."""
        if self.kind:
            settings = KINDS[self.kind][1] | {"chat_template": "{{ messages[0].content }}"}
            document = _document(self.kind) | dict(self.change)
            _write(folder / "tokenizer.json", document)
            _write(folder / "tokenizer_config.json", settings | dict(self.config))
        else:
            _write(folder / "tokenizer_config.json", dict(self.config))
        _write(folder / "config.json", {"model_type": "llama"} | dict(self.model))
        for name, content in self.files.items():
            _write(folder / name, content)
        if self.pieces:
            self.pieces(folder / "tokenizer.model")
        return folder

    def here(self, folder: Path) -> Any:
        """What this project makes of the folder, in the form of the stored answers."""
        if (tokenizer := Tokenizer.from_folder(folder)) is None:
            raise TokenizerError(": ".join(unreadable_file(folder)))
        if self.asks == "chat":
            return tokenizer.chat(HELLO)
        if self.asks == "generation":
            said = " ".join((*tokenizer.notes, *ignored_in_folder(folder)))
            return {"ends": sorted(tokenizer.stop_ids), "said": said}
        plain = [tokenizer.encode(text) for text in PLAIN]
        return [*plain, *(tokenizer.encode(text, special=True) for text in SPECIAL)]

    def there(self, folder: Path) -> Any:
        """What transformers makes of it."""
        transformers = importlib.import_module("transformers")
        if self.asks == "generation":
            return _asked(transformers.GenerationConfig.from_pretrained(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if self.asks == "chat":
            return tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
        plain = [tokenizer(text).input_ids for text in PLAIN]
        special = [tokenizer(text, add_special_tokens=False).input_ids for text in SPECIAL]
        return [*plain, *special]

    def agrees(self, here: Any, there: Any) -> bool:
        """Whether what this project makes is what transformers makes."""
        if self.asks != "generation":
            return here == there
        return {*there["ends"]} <= {*here["ends"]} and all(
            name in here["said"] for name in there["changes"]
        )


def _asked(settings: Any) -> dict[str, Any]:
    """End tokens and the names of what changes the choice of tokens."""
    ends, found = settings.eos_token_id, settings.to_diff_dict()
    sampling = {"temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"}
    sampling |= {"epsilon_cutoff", "eta_cutoff", "do_sample"}
    quiet = {
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "transformers_version",
        "_from_model_c",
    }
    quiet |= set() if settings.do_sample else sampling
    ends = [ends] * isinstance(ends, int) if not isinstance(ends, list) else ends
    return {"ends": sorted(ends), "changes": sorted(found.keys() - quiet)}


@functools.cache
def _text(kind: str) -> str:
    return KINDS[kind][0]().to_str()


def _document(kind: str) -> dict[str, Any]:
    return json.loads(_text(kind))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def answer(quirk: Quirk, of: Callable[[Path], Any]) -> Any:
    """What `of`, a method of the quirk, makes of its folder."""
    with tempfile.TemporaryDirectory() as folder:
        return of(quirk.write(Path(folder)))


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPLIT_DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUT = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
STRIPPED = {"content": "<|im_end|>", "lstrip": True, "rstrip": True, "special": True}
NEW = {"content": "<new>", "special": True, "normalized": False}
TEMPLATES = [{"name": "default", "template": "listed"}, {"name": "rag", "template": "other"}]


def bpe_pieces(*others: tuple[str, float, int]) -> list[tuple[str, float, int]]:
    """Pieces of a BPE model with bytes, as Llama 2's."""
    pieces = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]
    words = ["th", "the", "re", "st", "rest", "▁the", "▁rest", "he", "es", "▁▁", "20", "24"]
    pieces += [(word, -rank, NORMAL) for rank, word in enumerate(words)]
    letters = "▁therswodyia mnv'tI204!,é日"
    kept = [letter for letter in dict.fromkeys(letters) if letter != " "]
    return [*pieces, *((letter, -50 - n, NORMAL) for n, letter in enumerate(kept)), *others]


def gemma_pieces() -> list[tuple[str, float, int]]:
    """The same with Gemma's control tokens first."""
    first = [("<pad>", 0, CONTROL), ("<eos>", 0, CONTROL), ("<bos>", 0, CONTROL)]
    return [*first, *bpe_pieces()[:1], *bpe_pieces()[3:], ("<mask>", 0, USER_DEFINED)]


def unigram_pieces() -> list[tuple[str, float, int]]:
    """Pieces whose most probable sequence is taken."""
    return [(text, score if kind == NORMAL else 0, kind) for text, score, kind in bpe_pieces()]


BYTES_TOO = {35: 1}  # byte_fallback
Q = Quirk
TOKENIZERS = (
    Q("tokenizer_class LlamaTokenizerFast over bytes, as in Llama 3's kind of file",
      config={"tokenizer_class": "LlamaTokenizerFast"}),
    Q("LlamaTokenizer over pieces", "metaspace", {"tokenizer_class": "LlamaTokenizer"}),
    Q("LlamaTokenizer with legacy true", "metaspace",
      {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    Q("LlamaTokenizer with add_prefix_space false", "metaspace",
      {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False}),
    Q("LlamaTokenizer over a file that puts no space before a text", "no_strip",
      {"tokenizer_class": "LlamaTokenizer"}),
    Q("LlamaTokenizer with unk_token null", "metaspace",
      {"tokenizer_class": "LlamaTokenizer", "unk_token": None}),
    Q("CodeLlamaTokenizer, whose own tokens the vocabulary lacks", "metaspace",
      {"tokenizer_class": "CodeLlamaTokenizer"}),
    Q("Qwen2Tokenizer over a file that splits in another way",
      config={"tokenizer_class": "Qwen2Tokenizer"}, model={"model_type": "qwen3"}),
    Q("Qwen2TokenizerFast with add_prefix_space true",
      config={"tokenizer_class": "Qwen2TokenizerFast", "add_prefix_space": True},
      model={"model_type": "qwen3"}),
    Q("Qwen3_5Tokenizer", config={"tokenizer_class": "Qwen3_5Tokenizer"}),
    Q("GPT2Tokenizer over a file that splits digits",
      config={"tokenizer_class": "GPT2Tokenizer"},
      change={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT_DIGITS, BYTES]}}),
    Q("GPT2TokenizerFast with add_prefix_space true",
      config={"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}),
    Q("GPTNeoXTokenizer, which begins no text whatever the file says",
      config={"tokenizer_class": "GPTNeoXTokenizerFast"}),
    Q("GemmaTokenizer, whose own tokens the vocabulary lacks", "no_strip",
      {"tokenizer_class": "GemmaTokenizer"}, model={"model_type": "gemma2"}),
    Q("a model of Qwen2 with LlamaTokenizerFast, as DeepSeek's distilled ones",
      config={"tokenizer_class": "LlamaTokenizerFast"}, model={"model_type": "qwen2"}),
    Q("a model of Qwen2 with PreTrainedTokenizerFast",
      config={"tokenizer_class": "PreTrainedTokenizerFast"}, model={"model_type": "qwen2"}),
    Q("a model of Qwen3 with PreTrainedTokenizerFast",
      config={"tokenizer_class": "PreTrainedTokenizerFast"}, model={"model_type": "qwen3"}),
    Q("a model of Mistral with LlamaTokenizer", "metaspace",
      {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
      model={"model_type": "mistral"}),
    Q("a model of Qwen3 whose files name no class", model={"model_type": "qwen3"}),
    Q("tokenizer_class in config.json alone", "metaspace",
      model={"tokenizer_class": "LlamaTokenizer"}),
    Q("a class that transformers does not have", config={"tokenizer_class": "MyTokenizer"}),
    Q("a class of a model that is no decoder", config={"tokenizer_class": "T5Tokenizer"},
      refused="tokenizer_class is T5Tokenizer, which is not read"),
    Q("additional_special_tokens that the vocabulary lacks",
      config={"additional_special_tokens": ["<new>", "<|im_end|>", "<x>"]}),
    Q("extra_special_tokens by name",
      config={"extra_special_tokens": {"image_token": "<new>", "x_token": "<x>"}}),
    Q("an eos_token that the vocabulary lacks", config={"eos_token": "<x>"}),
    Q("a token for a purpose of the model's own", config={"image_token": "<new>"}),
    Q("pad_token as an object that takes spaces around it",
      config={"pad_token": {"__type": "AddedToken", "content": "<new>", "lstrip": True,
                            "normalized": False, "rstrip": True, "single_word": False}}),
    Q("pad_token as an object that does not say whether it is normalized", kind="metaspace",
      config={"pad_token": {"__type": "AddedToken", "content": "<new>", "special": False}}),
    Q("additional_special_tokens as objects that are not special", kind="metaspace",
      config={"additional_special_tokens": [{"__type": "AddedToken", "content": "<new>"}]}),
    Q("added_tokens_decoder with a token that tokenizer.json lacks",
      config={"added_tokens_decoder": {"296": NEW}}),
    Q("added_tokens_decoder that takes spaces around a token",
      config={"added_tokens_decoder": {"293": STRIPPED}}),
    Q("added_tokens_decoder with other ids than the vocabulary",
      config={"added_tokens_decoder": {"400": NEW}},
      refused="added_tokens_decoder.400 is 296 by the vocabulary"),
    Q("added_tokens.json", files={"added_tokens.json": {"<new>": 296, "<x>": 297}}),
    Q("special_tokens_map.json against tokenizer_config.json",
      files={"special_tokens_map.json": {"bos_token": "<x>", "pad_token": "<new>"}}),
    Q("special_tokens_map.json beside added_tokens_decoder, where it is not read",
      config={"added_tokens_decoder": {"296": NEW}},
      files={"special_tokens_map.json": {"pad_token": "<x>"}}),
    Q("add_bos_token false and add_eos_token true beside tokenizer.json, where they are not read",
      config={"add_bos_token": False, "add_eos_token": True}),
    Q("add_bos_token true, and nothing around a text in tokenizer.json",
      config={"add_bos_token": True}, change={"post_processor": None}),
    Q("truncation and padding in tokenizer.json", change={"truncation": CUT}),
    Q("split_special_tokens true", config={"split_special_tokens": True},
      refused="split_special_tokens is set"),
    Q("fix_mistral_regex true beside an old version", config={"fix_mistral_regex": True},
      model={"model_type": "mistral", "transformers_version": "4.57.3"},
      refused="fix_mistral_regex is set"),
    Q("fix_mistral_regex true beside a new version, where nothing is mended",
      config={"fix_mistral_regex": True},
      model={"model_type": "mistral", "transformers_version": "5.1.0"}),
    Q("fast_tokenizer_files", config={"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
      files={"tokenizer.4.0.0.json": "{}"}, refused="fast_tokenizer_files is set"),
    Q("tokenizer.model alone, of LlamaTokenizer", "", {"tokenizer_class": "LlamaTokenizer"},
      pieces=lambda path: write_model(path, bpe_pieces(), trainer=BYTES_TOO)),
    Q("tokenizer.model alone, with add_bos_token true", "",
      LLAMA | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True},
      pieces=lambda path: write_model(path, bpe_pieces(), trainer=BYTES_TOO)),
    Q("tokenizer.model alone, of GemmaTokenizer", "",
      {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}, model={"model_type": "gemma2"},
      pieces=lambda path: write_model(path, gemma_pieces(), trainer=BYTES_TOO)),
    Q("tokenizer.model alone, and no class that builds its own", "", {},
      model={"model_type": "mistral"},
      pieces=lambda path: write_model(path, bpe_pieces(), trainer=BYTES_TOO)),
    Q("tokenizer.model with user-defined pieces, spaces squeezed", "", {"add_bos_token": True},
      model={"model_type": "mistral"},
      pieces=lambda path: write_model(
          path, bpe_pieces(("<tool>", 0, USER_DEFINED), ("rest 20", 0, USER_DEFINED)),
          trainer=BYTES_TOO, normalizer={4: 1})),
    Q("tokenizer.model of a unigram model without bytes or a first space", "", {},
      model={"model_type": "mistral"},
      pieces=lambda path: write_model(
          path, unigram_pieces(), UNIGRAM, normalizer={3: 0, 4: 0})),
    Q("tokenizer.model of a unigram model with bytes", "", {"legacy": False},
      model={"model_type": "mistral"},
      pieces=lambda path: write_model(path, unigram_pieces(), UNIGRAM, trainer=BYTES_TOO)),
    Q("tokenizer.model beside tokenizer.json, where it is not read", "metaspace",
      pieces=lambda path: path.write_bytes(b"no model")),
    Q("tokenizer.model that is tiktoken's", "", {"tokenizer_class": "LlamaTokenizer"},
      pieces=lambda path: path.write_text("IQ== 0\nIg== 1\n"),
      refused="tokenizer.model: make tokenizer.json with transformers and"),
    Q("vocab.json and merges.txt alone", "", {"tokenizer_class": "GPT2Tokenizer"},
      files={"vocab.json": {"a": 0, "b": 1}, "merges.txt": "#version: 0.2"},
      refused="vocab.json: make tokenizer.json with transformers"),
)  # fmt: skip
CHATS = (
    Q("a list of chat templates with a default", config={"chat_template": TEMPLATES}, asks="chat"),
    Q("a list of chat templates without a default", config={"chat_template": TEMPLATES[1:]},
      asks="chat", refused="chat template is one of rag, none of them the default"),
    Q("chat_template.jinja against tokenizer_config.json",
      config={"chat_template": "no"}, files={"chat_template.jinja": "{{ eos_token }}"},
      asks="chat"),
    Q("additional_chat_templates beside chat_template.jinja",
      files={"chat_template.jinja": "x", "additional_chat_templates/rag.jinja": "y"}, asks="chat"),
)  # fmt: skip


def _generation(says: str, **settings: Any) -> Quirk:
    return Q(says, files={"generation_config.json": settings}, asks="generation")


GENERATIONS = (
    _generation("a list of end tokens", eos_token_id=[3, 5]),
    _generation("sampling by default", do_sample=True, temperature=0.6, top_k=20, top_p=0.95),
    _generation("a temperature without do_sample", temperature=0.6, top_p=0.9),
    _generation("a repetition penalty", repetition_penalty=1.05, eos_token_id=2),
    _generation("a limit of its own", max_new_tokens=2048),
    _generation("stop strings", stop_strings=["###"]),
    _generation("tokens that are never chosen", suppress_tokens=[4, 5]),
    _generation("typical sampling and cutoffs", do_sample=True, typical_p=0.9, eta_cutoff=0.01),
    _generation("beams", num_beams=4, length_penalty=0.8),
)
QUIRKS = (*TOKENIZERS, *CHATS, *GENERATIONS)


def answers() -> dict[str, Any]:
    """What transformers makes of each folder, or the error that it ends with."""
    found = {}
    for quirk in QUIRKS:
        try:
            found[quirk.says] = answer(quirk, quirk.there)
        except Exception as error:  # any kind
            found[quirk.says] = {
                "error": " ".join(f"{type(error).__name__}: {error}".split())[:120]
            }
    return found


def table() -> str:
    """A row for each quirk: what this project makes of it, in Markdown."""
    lines = ["| what a folder has | here |", "|---|---|"]
    for quirk in QUIRKS:
        here = f"refused: {quirk.refused}" if quirk.refused else "as `transformers`"
        if changes := quirk.asks == "generation" and stored()[quirk.says]["changes"]:
            here = f"said not to be used: {', '.join(changes)}"
        lines.append(f"| {quirk.says} | {here} |")
    return "\n".join(lines) + "\n"


@functools.cache
def stored() -> dict[str, Any]:
    """The stored answers."""
    return json.loads(ANSWERS.read_text())


if __name__ == "__main__":
    if importlib.util.find_spec("transformers"):
        rows = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in answers().items())
        ANSWERS.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    PART.write(table())
