"""Text to token ids and back, by the tokenizer that a GGUF file carries.

Two kinds: byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen) and SentencePiece BPE with byte fallback
(Llama 1 and 2). Sources: llama.cpp's `src/llama-vocab.cpp` for the meaning of the metadata, and
the `tokenizer.json` files of the models for their pre-tokenizers.
"""

import codecs
import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from decode import chat
from sharding.errors import UsageError


class TokenizerError(UsageError):
    """A tokenizer that is damaged or not supported, or text or ids that it cannot take."""


@dataclasses.dataclass(frozen=True)
class _PreTokenizer:
    """How one family splits text before merging bytes.

    Attributes:
      split: the words; None for GPT-2's own pattern.
      digits: each digit is a word.
      normalizer: applied to the text first.
      ignore_merges: a word that is a token stays whole, whatever the merges say.
      add_bos: whether the begin-of-sequence token comes first when the file does not say.
    """

    split: str | None = None
    digits: bool = False
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    add_bos: bool = False


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = _PreTokenizer()
_LLAMA3 = _PreTokenizer(split=_WORDS % "{1,3}", ignore_merges=True, add_bos=True)

_PRE_TOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _PreTokenizer(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _PreTokenizer(split=_WORDS % "", normalizer=normalizers.NFC()),
}

# Control tokens that end an answer in models whose metadata names only another one.
_STOPS = {
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
}

_PREFIX = "tokenizer.ggml."
_DAMAGED = "the file is damaged, fetch it again"
_SPACE = "▁"  # how SentencePiece writes a space
_LONGEST_PIECE = 256  # characters; splitting a longer one in all ways would take forever


class Tokenizer:
    """A model's tokenizer and chat template; made by `from_gguf`.

    Attributes:
      vocabulary: number of tokens.
      bos_id: begin-of-sequence token, if the model has one.
      stop_ids: tokens that end an answer.
    """

    def __init__(self, tokens: "_Tokens", family: "_Family"):
        self.vocabulary = len(tokens.texts)
        self.bos_id = tokens.special("bos", family.bos_id)
        eos_id = tokens.special("eos", family.eos_id)
        stops = [eos_id, tokens.special("eot"), tokens.special("eom")]
        stops += [tokens.ids[text] for text in tokens.of_type(TokenType.CONTROL) if text in _STOPS]
        self.stop_ids = frozenset(token for token in stops if token is not None)
        add_bos = tokens.get("add_bos_token", bool, family.add_bos)
        self._add_bos = add_bos and self.bos_id is not None
        self._strip_space = family.space_prefix
        self._pieces = tokens.pieces(family.piece)
        self._template = tokens.template()
        self._names = {"bos_token": tokens.text(self.bos_id), "eos_token": tokens.text(eos_id)}
        self._backend = family.backend
        self._backend.add_special_tokens(
            [AddedToken(t, normalized=False) for t in tokens.of_type(TokenType.CONTROL) if t]
        )
        self._backend.add_tokens(
            [AddedToken(t, normalized=False) for t in tokens.of_type(TokenType.USER_DEFINED) if t]
        )
        self._lock = threading.Lock()  # over the backend's one switch for special tokens

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in the metadata of a GGUF file.

        Raises:
          TokenizerError: a model or pre-tokenizer not supported, or metadata that contradicts
            itself.
        """
        tokens = _Tokens(metadata)
        model = tokens.get("model", str)
        if model not in _FAMILIES:
            raise TokenizerError(
                f"{_PREFIX}model is {model!r:.60}; supported are {', '.join(_FAMILIES)}"
            )
        return cls(tokens, _FAMILIES[model](tokens))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, behind the begin-of-sequence token if the model wants one.

        Args:
          text: any text.
          special: read names of control tokens in it as these tokens; for text that `chat` made,
            the messages' own text included.

        Raises:
          TokenizerError: text with lone surrogates, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TokenizerError(f"prompt is {text!r:.60}, not Unicode text; give UTF-8") from None
        with self._lock:
            self._backend.encode_special_tokens = not special
            ids = self._backend.encode(text, add_special_tokens=False).ids
        if self._add_bos and not (special and ids[:1] == [self.bos_id]):  # a template may put one
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens from its beginning, without control tokens.

        Bytes that are no UTF-8 become U+FFFD.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        text = b"".join(map(self._piece, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strip_space else text

    def stream(self) -> "TextStream":
        """Text of tokens as they come, continuing what was before them."""
        return TextStream(self._piece)

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for the assistant's next turn, to be encoded with `special=True`.

        Args:
          messages: each with a "role" and a "content".

        Raises:
          TokenizerError: no chat template, or one that fails with these messages.
        """
        if self._template is None:
            raise TokenizerError(
                "chat template is missing in this model; give a plain prompt, or an instruct model"
            )
        try:
            return chat.render(self._template, messages, **self._names)
        except chat.ChatError as error:
            raise TokenizerError(str(error)) from None

    def _piece(self, token: int) -> bytes:
        if not 0 <= token < len(self._pieces):
            raise TokenizerError(f"token id is {token}; give 0 to {len(self._pieces) - 1}")
        return self._pieces[token]


class TextStream:
    """Text of tokens one at a time; half a character waits for its other bytes."""

    def __init__(self, piece: Callable[[int], bytes]):
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that is complete with this token, perhaps none."""
        return self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        """What is left when no token follows: U+FFFD for half a character."""
        return self._decoder.decode(b"", final=True)


class _Tokens:
    """The tokens of a GGUF file and what its metadata says of them, checked."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self.texts: list[str] = self.get("tokens", list)
        self.ids = {text: token for token, text in enumerate(self.texts)}
        if not self.ids or not all(isinstance(text, str) for text in self.texts):
            raise TokenizerError(f"{_PREFIX}tokens is without text; give a model with tokens")
        if len(self.ids) < len(self.texts):
            twice = next(t for token, t in enumerate(self.texts) if self.ids[t] != token)
            raise TokenizerError(f"{_PREFIX}tokens is {twice!r:.60} twice; {_DAMAGED}")
        self.types = self.numbers("token_type", TokenType.NORMAL)

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        value = self._metadata.get(_PREFIX + key, default)
        if value is ...:
            raise TokenizerError(f"{_PREFIX}{key} is missing; give a GGUF file with a tokenizer")
        if value is not default and type(value) is not kind:
            name = type(value).__name__
            raise TokenizerError(f"{_PREFIX}{key} is {name}, not {kind.__name__}; {_DAMAGED}")
        return value

    def numbers(self, key: str, default: float) -> list[float]:
        """One finite number for each token."""
        values = self._metadata.get(_PREFIX + key)
        if values is None:
            return [default] * len(self.texts)
        values = np.asarray(values)
        if (
            values.shape != (len(self.texts),)
            or values.dtype.kind not in "iuf"
            or not np.isfinite(values).all()
        ):
            raise TokenizerError(
                f"{_PREFIX}{key} is not a finite number for each of {len(self.texts)} tokens; "
                f"{_DAMAGED}"
            )
        return values.tolist()

    def of_type(self, *types: TokenType) -> list[str]:
        return [t for t, kind in zip(self.texts, self.types, strict=True) if kind in types]

    def special(self, key: str, default: int | None = None) -> int | None:
        """The token that the metadata names for a purpose, such as "eos"."""
        token = self.get(f"{key}_token_id", int, default)
        if token is not None and not 0 <= token < len(self.texts):
            raise TokenizerError(
                f"{_PREFIX}{key}_token_id is {token}, outside the {len(self.texts)} tokens; "
                f"{_DAMAGED}"
            )
        return token

    def text(self, token: int | None) -> str:
        return "" if token is None else self.texts[token]

    def pieces(self, normal: Callable[[str], bytes]) -> list[bytes]:
        """What each token adds to a text, given how to read an ordinary one."""
        readers = {
            TokenType.CONTROL: lambda text: b"",
            TokenType.UNKNOWN: lambda text: b"",
            TokenType.USER_DEFINED: str.encode,
            TokenType.BYTE: _byte,
        }
        kinds = zip(self.texts, self.types, strict=True)
        return [readers.get(kind, normal)(text) for text, kind in kinds]

    def template(self) -> str | None:
        template = self._metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None


@dataclasses.dataclass(frozen=True)
class _Family:
    """What distinguishes one kind of tokenizer.

    Attributes:
      backend: encodes ordinary text.
      piece: the bytes that an ordinary token stands for.
      add_bos: whether the begin-of-sequence token comes first when the file does not say.
      space_prefix: text is encoded with a space before it.
      bos_id, eos_id: where the file does not say.
    """

    backend: Backend
    piece: Callable[[str], bytes]
    add_bos: bool
    space_prefix: bool = False
    bos_id: int | None = None
    eos_id: int | None = None


def _byte_level(tokens: _Tokens) -> _Family:
    """Every byte is a printable character, as in GPT-2; merges are listed in the file."""
    name = tokens.get("pre", str, "default")
    if name not in _PRE_TOKENIZERS:
        raise TokenizerError(
            f"{_PREFIX}pre is {name!r:.60}; supported are {', '.join(_PRE_TOKENIZERS)}"
        )
    pre = _PRE_TOKENIZERS[name]
    merges = []
    for merge in tokens.get("merges", list):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not (left and right and {left, right, left + right} <= tokens.ids.keys()):
            raise TokenizerError(f"{_PREFIX}merges is {merge!r:.60}, not tokens; {_DAMAGED}")
        merges.append((left, right))
    backend = Backend(BPE(tokens.ids, merges, ignore_merges=pre.ignore_merges))
    if pre.normalizer:
        backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(_steps(pre))
    return _Family(backend, _printed_bytes, pre.add_bos)


def _steps(pre: _PreTokenizer) -> list[pre_tokenizers.PreTokenizer]:
    steps = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.split:
        steps.append(pre_tokenizers.Split(Regex(pre.split), "isolated"))
    gpt2 = pre.split is None
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)]


def _printable() -> dict[str, int]:
    """GPT-2's character for each byte: itself if printable, else one from 256 on, in order."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(b): b for b in themselves} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _printable()


def _byte(text: str) -> bytes:
    """The byte of a token such as <0x0A>."""
    try:
        return bytes.fromhex(text.removeprefix("<0x").removesuffix(">"))
    except ValueError:
        raise TokenizerError(f"{_PREFIX}tokens is {text!r:.60} for a byte; {_DAMAGED}") from None


def _printed_bytes(text: str) -> bytes:
    try:
        return bytes(map(_BYTES.__getitem__, text))
    except KeyError:
        return text.encode()


def _sentence_piece(tokens: _Tokens) -> _Family:
    """Spaces are "▁", unknown characters fall back to byte tokens, scores order the merges.

    As in SentencePiece and llama.cpp, the space before a text is put there whatever the text
    begins with, and again behind each control token.
    """
    space_prefix = tokens.get("add_space_prefix", bool, True)
    unknown = tokens.text(tokens.special("unknown", 0))
    backend = Backend(
        BPE(tokens.ids, _merges(tokens), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend(_SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    return _Family(
        backend,
        lambda text: text.replace(_SPACE, " ").encode(),
        add_bos=True,
        space_prefix=space_prefix,
        bos_id=1 if len(tokens.texts) > 1 else None,
        eos_id=2 if len(tokens.texts) > 2 else None,
    )


def _merges(tokens: _Tokens) -> list[tuple[str, str]]:
    """All ways to make a token of two others, the tokens with the highest score first."""
    mergeable = set(tokens.of_type(TokenType.NORMAL, TokenType.USER_DEFINED))
    found = []
    for text, score in zip(tokens.texts, tokens.numbers("scores", 0.0), strict=True):
        if text not in mergeable:
            continue
        if len(text) > _LONGEST_PIECE:
            raise TokenizerError(f"{_PREFIX}tokens is {len(text)} characters long; {_DAMAGED}")
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                found.append((-score, -len(left), -len(right), left, right))
    found.sort(key=lambda merge: merge[:3])
    return [merge[3:] for merge in found]


_FAMILIES = {"gpt2": _byte_level, "llama": _sentence_piece}
