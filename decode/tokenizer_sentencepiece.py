"""A SentencePiece model, `tokenizer.model`, as the document of a tokenizer.json.

The file is a protocol buffer: `sentencepiece_model.proto` of github.com/google/sentencepiece names
its fields and their defaults. What it becomes is what transformers 5 makes of it
(`SentencePieceExtractor` and `SpmConverter.build_tokenizer_from_spm_proto`).
"""

import base64
import dataclasses
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from decode.tokenizer_classes import Document, metaspace, spaces_decoder
from decode.tokenizer_json import DAMAGED
from decode.tokenizer_parts import TokenizerError

SENTENCE_PIECE = "tokenizer.model"
MAX_BYTES = 50_000_000
_LONGEST = 1024  # characters of a piece; splitting a longer one in all ways would take forever
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of pieces
_UNIGRAM, _BPE = 1, 2  # types of models

Fields = Mapping[int, list[Any]]
"""Values of a message by the numbers of their fields: ints, or bytes."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token: its text, its score and its type."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model.

    Attributes:
      pieces: in the order of ids.
      unigram: pieces are chosen by their scores; else merged, the highest score first.
      byte_fallback: characters without a piece become bytes.
      unknown: id of the unknown piece.
      names: special tokens by purpose.
      charsmap: how characters are replaced first, in SentencePiece's own form.
      prefix: a space is put before the text.
      squeeze: spaces at both ends go, and of several in a row all but one.
      escape: spaces become "▁".
    """

    pieces: tuple[Piece, ...]
    unigram: bool
    byte_fallback: bool
    unknown: int
    names: Mapping[str, str]
    charsmap: bytes
    prefix: bool
    squeeze: bool
    escape: bool

    @property
    def ids(self) -> dict[str, int]:
        """Token ids by text."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}

    def added(self, defined: bool) -> list[AddedToken]:
        """Control pieces as special tokens, and with `defined` user-defined ones as added."""
        kinds = {_CONTROL, _USER_DEFINED} if defined else {_CONTROL}
        return [
            AddedToken(piece.text, normalized=False, special=piece.kind == _CONTROL)
            for piece in self.pieces
            if piece.kind in kinds
        ]

    def vocabulary(self) -> Document:
        """Vocabulary and merges alone, for a class that builds the rest.

        A merge is any pair of tokens whose concatenation is a token; the one of the lowest id comes
        first.
        """
        ids = self.ids
        merges = []
        for text, number in ids.items():
            pairs = [pair for pair in _splits(text) if pair[0] in ids and pair[1] in ids]
            pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
            merges += [(number, len(left), len(right), left, right) for left, right in pairs]
        merges.sort(key=lambda merge: merge[:3])
        model = {"type": "BPE", "vocab": ids, "merges": [merge[3:] for merge in merges]}
        return _document(model=model)

    def document(self, legacy: bool, renamed: Mapping[int, str]) -> Document:
        """The whole tokenizer, for folders whose files name no class that builds its own.

        Args:
          legacy: a space is put before each text between added tokens, not before the first alone.
          renamed: texts of tokens that other files give, by ids.
        """
        kept = {piece.text for n, piece in enumerate(self.pieces) if n not in renamed}
        texts = [
            renamed[n] if n in renamed and renamed[n] not in kept else piece.text
            for n, piece in enumerate(self.pieces)
        ]
        defined = [t for t, p in zip(texts, self.pieces, strict=True) if p.kind == _USER_DEFINED]
        return _document(
            model=self._unigram() if self.unigram else self._merged(texts, bool(defined)),
            normalizer={"type": "Sequence", "normalizers": [*self._normalizers(legacy)]},
            pre_tokenizer=self._pre_tokenizer(legacy, defined),
            decoder=self._decoder(),
        )

    def _unigram(self) -> Document:
        return {
            "type": "Unigram",
            "unk_id": self.unknown,
            "vocab": [[piece.text, piece.score] for piece in self.pieces],
            "byte_fallback": self.byte_fallback,
        }

    def _merged(self, texts: list[str], whole: bool) -> Document:
        ranks = {
            text: (-piece.score, number)
            for number, (text, piece) in enumerate(zip(texts, self.pieces, strict=True))
            if piece.kind == _NORMAL
        }
        merges = [
            (*rank, left, right)
            for text, rank in ranks.items()
            for left, right in _splits(text)
            if left in ranks and right in ranks
        ]
        return {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(texts)},
            "merges": [merge[2:] for merge in sorted(merges)],
            "unk_token": self.names["unk_token"],
            "fuse_unk": True,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": whole,
        }

    def _normalizers(self, legacy: bool) -> Iterator[Document]:
        if self.charsmap:
            charsmap = base64.b64encode(self.charsmap).decode()
            yield {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if self.squeeze:
            yield _replace({"Regex": r"\A +| +\z"}, "")
            yield _replace({"Regex": " {2,}"}, " ")
        if self.escape:
            yield _replace({"String": " "}, "▁")
        if self.prefix and legacy:
            yield _replace({"Regex": r"\A▁"}, "▁▁")

    def _pre_tokenizer(self, legacy: bool, defined: list[str]) -> Document | None:
        steps = [metaspace("always" if legacy else "first")] if self.prefix else []
        if defined:
            longest_first = sorted(defined, key=len, reverse=True)
            pattern = {"Regex": "|".join(re.escape(text) for text in longest_first)}
            split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            steps.append(split)
        return {"type": "Sequence", "pretokenizers": steps} if steps else None

    def _decoder(self) -> Document:
        decoder = spaces_decoder(self.prefix)
        if not self.byte_fallback:
            kept = [each for each in decoder["decoders"] if each["type"] != "ByteFallback"]
            decoder = decoder | {"decoders": kept}
        return decoder


def read_model(path: Path) -> SentencePiece | None:
    """The model in a file; None if there is no such file, or if it is of another kind.

    Raises:
      TokenizerError: the file is too large, not readable, or of a type that is not supported.
    """
    if not path.is_file():
        return None
    if (size := path.stat().st_size) > MAX_BYTES:
        raise TokenizerError(
            f"{path.name} is {size} bytes long; at most {MAX_BYTES} are read, give a smaller one"
        )
    try:
        return _model(_fields(path.read_bytes()))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenizerError(f"{path.name} is not readable ({reason}); check the file") from None
    except (ValueError, IndexError, struct.error, TypeError, AttributeError):
        return None  # as tiktoken's files of the same name


def _model(fields: Fields) -> SentencePiece:
    trainer, normalizer = (_fields(fields.get(number, [b""])[-1]) for number in (2, 3))
    kind = trainer.get(3, [_UNIGRAM])[-1]
    if kind not in (_UNIGRAM, _BPE):
        raise TokenizerError(
            f"{SENTENCE_PIECE} model_type is {kind}; supported are 1, unigram, and 2, BPE"
        )
    texts = {}
    for name, number, piece, default, at in (
        ("unk_token", 40, 45, "<unk>", 0),
        ("bos_token", 41, 46, "<s>", 1),
        ("eos_token", 42, 47, "</s>", 2),
    ):
        if _signed(trainer.get(number, [at])[-1]) >= 0:
            texts[name] = trainer.get(piece, [default.encode()])[-1].decode() or default
    pieces = tuple(map(_piece, fields.get(1, [])))
    if not pieces:
        raise ValueError("no pieces")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise TokenizerError(f"{SENTENCE_PIECE} has a piece twice; {DAMAGED}")
    return SentencePiece(
        pieces=pieces,
        unigram=kind == _UNIGRAM,
        byte_fallback=bool(trainer.get(35, [0])[-1]),
        unknown=trainer.get(40, [0])[-1],
        names=texts,
        charsmap=normalizer.get(2, [b""])[-1],
        prefix=bool(normalizer.get(3, [1])[-1]),
        squeeze=bool(normalizer.get(4, [1])[-1]),
        escape=bool(normalizer.get(5, [1])[-1]),
    )


def _piece(content: bytes) -> Piece:
    fields = _fields(content)
    text = fields[1][-1].decode() if 1 in fields else ""
    if len(text) > _LONGEST:
        raise TokenizerError(f"{SENTENCE_PIECE} has a piece of {len(text)} characters; {DAMAGED}")
    score = struct.unpack("<f", fields[2][-1])[0] if 2 in fields else 0.0
    return Piece(text, score, fields.get(3, [_NORMAL])[-1])


def _fields(content: bytes) -> Fields:
    """The fields of a message: varints as ints, all others as their bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if (wire := key & 7) == 0:
            value, at = _varint(content, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _varint(content, at)
            if size is None or at + size > len(content):
                raise ValueError(f"wire type {wire}")
            value, at = content[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("varint of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _splits(text: str) -> Iterator[tuple[str, str]]:
    return ((text[:cut], text[cut:]) for cut in range(1, len(text)))


def _replace(pattern: Document, content: str) -> Document:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _document(**parts: Any) -> Document:
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", "added_tokens": [], **empty, **parts}
