"""The tokenizer that a GGUF file carries.

Three kinds: byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen and most others), SentencePiece BPE with
byte fallback (Llama 1 and 2, Phi-3), and the same with its merges listed (Gemma 4). Source:
llama.cpp's `src/llama-vocab.cpp` for the meaning of the metadata.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from decode.stop_tokens import STOPS_OF_GGUF, stops_among
from decode.tokenizer_parts import Parts, TokenizerError, printed_bytes
from decode.tokenizer_splits import PRE_TOKENIZERS

FILE = "tokenizer_gguf.json"
_PREFIX = "tokenizer.ggml."
_DAMAGED = "the file is damaged, fetch it again"
_SPACE = "▁"  # how SentencePiece writes a space
_LONGEST_PIECE = 256  # characters; splitting a longer one in all ways would take forever


def read_metadata(metadata: Mapping[str, Any]) -> Parts | None:
    """The tokenizer in the metadata of a GGUF file.

    Args:
      metadata: what the file says of itself, by key.

    Returns:
      The parts of a `Tokenizer`; None where the file has no tokenizer.

    Raises:
      TokenizerError: a model or pre-tokenizer not supported, or metadata that contradicts
        itself.
    """
    if not any(key.startswith(_PREFIX) for key in metadata):
        return None
    tokens = _Tokens(metadata)
    model = tokens.get("model", str)
    if model not in _FAMILIES:
        raise TokenizerError(
            f"{_PREFIX}model is {model!r:.60}; supported are {', '.join(_FAMILIES)}"
        )
    family = _FAMILIES[model](tokens)
    controls = tokens.of_type(TokenType.CONTROL)
    defined = tokens.of_type(TokenType.USER_DEFINED)
    backend = family.backend
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in controls if t])
    backend.add_tokens([AddedToken(t, normalized=False) for t in defined if t])
    bos_id = tokens.special("bos", family.bos_id)
    eos_id = tokens.special("eos", family.eos_id)
    stops = [eos_id, tokens.special("eot"), tokens.special("eom")]
    stops += [tokens.ids[t] for t in stops_among(controls, STOPS_OF_GGUF) if t in controls]
    add_bos = tokens.get("add_bos_token", bool, family.add_bos) or family.always_bos
    add_bos = add_bos and bos_id is not None
    add_eos = tokens.get("add_eos_token", bool, False) and eos_id is not None
    return Parts(
        backend=backend,
        vocabulary=len(tokens.texts),
        pieces=dict(enumerate(tokens.pieces(family.piece))),
        controls=frozenset(tokens.ids[text] for text in controls),
        bos_id=bos_id,
        stop_ids=frozenset(token for token in stops if token is not None),
        before=(bos_id,) if add_bos else (),
        after=(eos_id,) if add_eos else (),
        begin_chat=add_bos,
        templates=tokens.templates(),
        names={"bos_token": tokens.text(bos_id), "eos_token": tokens.text(eos_id)},
        notes=tuple(tokens.notes),
    )


def metadata_to_json(metadata: Mapping[str, Any]) -> bytes:
    """The tokenizer's metadata of a GGUF file, to be kept beside weights in another format."""
    tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    return json.dumps(tokenizer, default=lambda value: value.tolist()).encode()


def metadata_from_json(content: str) -> dict[str, Any]:
    """The metadata that `metadata_to_json` wrote.

    Raises:
      TokenizerError: the text is something else.
    """
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{FILE} is not JSON ({error!s:.60}); {_DAMAGED}") from None
    if not isinstance(metadata, dict):
        raise TokenizerError(f"{FILE} is not a JSON object; {_DAMAGED}")
    return metadata


class _Tokens:
    """The tokens of a GGUF file and what its metadata says of them, checked.

    Attributes:
      texts: text of every token, in the order of ids.
      ids: token ids by text.
      types: type of each token. Tokens that are known to end an answer are control tokens, whatever
        the file says, as in llama.cpp.
      notes: metadata that is ignored, as messages for the user.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self.notes: list[str] = []
        self.texts: list[str] = self.get("tokens", list)
        self.ids = {text: token for token, text in enumerate(self.texts)}
        if not self.ids or not all(isinstance(text, str) for text in self.texts):
            raise TokenizerError(f"{_PREFIX}tokens is without text; give a model with tokens")
        if len(self.ids) < len(self.texts):
            twice = next(t for token, t in enumerate(self.texts) if self.ids[t] != token)
            raise TokenizerError(f"{_PREFIX}tokens is {twice!r:.60} twice; {_DAMAGED}")
        self.types = self.numbers("token_type", TokenType.NORMAL)
        for text in STOPS_OF_GGUF & self.ids.keys():
            self.types[self.ids[text]] = TokenType.CONTROL

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
        """The token that the metadata names for a purpose, such as "eos"; else the default."""
        token = self.get(f"{key}_token_id", int, default)
        if token is None or 0 <= token < len(self.texts):
            return token
        instead = "it is left out" if default is None else f"{default} is taken"
        self.notes.append(
            f"{_PREFIX}{key}_token_id is {token}, outside the {len(self.texts)} tokens; {instead}"
        )
        return default

    def text(self, token: int | None) -> str:
        return "" if token is None else self.texts[token]

    def pieces(self, normal: Callable[[str], bytes]) -> list[bytes]:
        """The bytes that each token adds to a text.

        Only ordinary and byte tokens add any: control tokens, tokens that pad the vocabulary
        (UNUSED) and unknown ones add none.

        Args:
          normal: gives the bytes of an ordinary token.
        """
        readers = {
            TokenType.NORMAL: normal,
            TokenType.USER_DEFINED: str.encode,
            TokenType.BYTE: _byte,
        }
        kinds = zip(self.texts, self.types, strict=True)
        return [readers[kind](text) if kind in readers else b"" for text, kind in kinds]

    def templates(self) -> dict[str, str]:
        """Chat templates by name: one is the default, the others' names are in their keys."""
        key = "tokenizer.chat_template"
        found = {
            name.removeprefix(f"{key}.") if name != key else "default": text
            for name, text in self._metadata.items()
            if name == key or name.startswith(f"{key}.")
        }
        return {name: text for name, text in found.items() if isinstance(text, str)}


@dataclasses.dataclass(frozen=True)
class _Family:
    """What distinguishes one kind of tokenizer.

    Attributes:
      backend: encodes ordinary text.
      piece: the bytes that an ordinary token stands for.
      add_bos: whether the begin-of-sequence token comes first when the file does not say.
      always_bos: it comes first whatever the file says.
      bos_id, eos_id: the defaults where the file does not say.
    """

    backend: Backend
    piece: Callable[[str], bytes]
    add_bos: bool
    always_bos: bool = False
    bos_id: int | None = None
    eos_id: int | None = None


def _byte_level(tokens: _Tokens) -> _Family:
    """Every byte is a printable character, as in GPT-2; merges are listed in the file."""
    name = tokens.get("pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{_PREFIX}pre is {name!r:.60}; supported are {', '.join(PRE_TOKENIZERS)}"
        )
    pre = PRE_TOKENIZERS[name]
    backend = Backend(BPE(tokens.ids, _listed_merges(tokens), ignore_merges=pre.ignore_merges))
    if pre.normalizer:
        backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre.steps()
    return _Family(backend, printed_bytes, pre.add_bos)


def _listed_merges(tokens: _Tokens) -> list[tuple[str, str]]:
    """The pairs of tokens that a file says are merged, in its order."""
    merges = []
    for merge in tokens.get("merges", list):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not (left and right and {left, right, left + right} <= tokens.ids.keys()):
            raise TokenizerError(f"{_PREFIX}merges is {merge!r:.60}, not tokens; {_DAMAGED}")
        merges.append((left, right))
    return merges


def _byte(text: str) -> bytes:
    """The byte of a token such as <0x0A>."""
    try:
        return bytes.fromhex(text.removeprefix("<0x").removesuffix(">"))
    except ValueError:
        raise TokenizerError(f"{_PREFIX}tokens is {text!r:.60} for a byte; {_DAMAGED}") from None


def _sentence_piece(tokens: _Tokens) -> _Family:
    """Spaces are "▁", unknown characters fall back to byte tokens, scores order the merges.

    As in SentencePiece and llama.cpp, a space is put before the text whatever the text
    begins with, and again behind each control token.
    """
    space_prefix = tokens.get("add_space_prefix", bool, True)
    backend = Backend(_with_bytes(tokens, _scored_merges(tokens)))
    steps = [normalizers.Prepend(_SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    return _Family(
        backend,
        _spaced,
        add_bos=True,
        bos_id=1 if len(tokens.texts) > 1 else None,
        eos_id=2 if len(tokens.texts) > 2 else None,
    )


def _listed_pieces(tokens: _Tokens) -> _Family:
    """Spaces are "▁", unknown characters fall back to byte tokens, merges are listed (Gemma 4).

    Line ends are merged with each other alone. Early files say that no `<bos>` comes first, without
    which the models write nonsense.
    """
    backend = Backend(_with_bytes(tokens, _listed_merges(tokens)))
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    return _Family(backend, _spaced, add_bos=True, always_bos=True)


def _with_bytes(tokens: _Tokens, merges: list[tuple[str, str]]) -> BPE:
    """Merges of characters, of which unknown ones fall back to byte tokens."""
    unknown = tokens.text(tokens.special("unknown", 0))
    return BPE(tokens.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _spaced(text: str) -> bytes:
    return text.replace(_SPACE, " ").encode()


def _scored_merges(tokens: _Tokens) -> list[tuple[str, str]]:
    """All pairs of tokens whose concatenation is a token, highest score of the result first."""
    mergeable = set(tokens.of_type(TokenType.NORMAL, TokenType.USER_DEFINED))
    pairs = []
    for text, score in zip(tokens.texts, tokens.numbers("scores", 0.0), strict=True):
        if text not in mergeable:
            continue
        if len(text) > _LONGEST_PIECE:
            raise TokenizerError(f"{_PREFIX}tokens is {len(text)} characters long; {_DAMAGED}")
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                pairs.append((-score, -len(left), -len(right), left, right))
    pairs.sort(key=lambda merge: merge[:3])
    return [merge[3:] for merge in pairs]


_FAMILIES = {"gpt2": _byte_level, "llama": _sentence_piece, "gemma4": _listed_pieces}
