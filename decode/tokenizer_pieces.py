"""The bytes that each token of a tokenizer.json adds to a text, by the decoder of the file."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from decode.tokenizer_json import typed
from decode.tokenizer_parts import TokenizerError, printed_bytes

_FILE = "tokenizer.json"
_DECODERS = "supported are ByteLevel, and Replace, ByteFallback, Fuse and Strip in sequence"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How tokens become text.

    Attributes:
      piece: the bytes of an ordinary token.
      byte_level: each character of a token stands for a byte, but in added tokens for itself.
    """

    piece: Callable[[str], bytes]
    byte_level: bool = False


def decoding_of(decoder: Any) -> Decoding:
    """The decoder of tokenizer.json, if it can decode token by token.

    Some decoders remove the first space of a text; that does not concern the continuation of a
    prompt.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Decoding(printed_bytes, byte_level=True)
    replacements: list[tuple[str, str]] = []
    fallback = fused = stripped = False
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Replace" and not fused and not fallback:
            replacements.append(_replacement(step))
        elif kind == "ByteFallback" and not fused:
            fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not stripped:
            _check_strip(step)
            stripped = True
        else:
            raise TokenizerError(f"{_FILE} decoder is {_shown(kinds)}; {_DECODERS}")
    return Decoding(lambda text: _text_bytes(text, replacements, fallback))


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{_FILE} decoder is {_shown(decoder)}; {_DECODERS}")
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = typed(decoder.get("decoders"), list, f"{_FILE} decoder.decoders")
    for step in steps:
        typed(step, dict, f"{_FILE} decoder.decoders")
    return steps


def _replacement(step: dict[str, Any]) -> tuple[str, str]:
    pattern, content = step.get("pattern"), step.get("content")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    if not (isinstance(old, str) and old and isinstance(content, str)):
        raise TokenizerError(f"{_FILE} decoder is {_shown(step)}; only a string is replaced")
    return old, content


def _check_strip(step: dict[str, Any]) -> None:
    settings = [step.get(key) for key in ("content", "start", "stop")]
    if settings not in ([" ", 1, 0], [" ", 0, 0]):
        raise TokenizerError(f"{_FILE} decoder is {_shown(step)}; only one first space goes")


def _shown(value: Any) -> str:
    return f"{json.dumps(value)!s:.100}"


def _text_bytes(text: str, replacements: list[tuple[str, str]], fallback: bool) -> bytes:
    for old, new in replacements:
        text = text.replace(old, new)
    if fallback and (match := _BYTE.fullmatch(text)):
        return bytes.fromhex(match[1])
    return text.encode()
