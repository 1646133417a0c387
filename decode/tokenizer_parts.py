"""The parts of a tokenizer, whichever kind of file it comes from."""

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer as Backend

from sharding.error_types import UsageError


class TokenizerError(UsageError):
    """A tokenizer that is damaged or not supported, or text or ids that it cannot take."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """A tokenizer as its file describes it, checked.

    Attributes:
      backend: encodes text; changed only in whether it reads control tokens from text.
      vocabulary: number of token ids, unused ones included.
      pieces: the bytes that each token adds to a text; a token not in it adds none.
      controls: tokens that plain text must not become.
      bos_id: begin-of-sequence token, if the model has one.
      stop_ids: tokens that end an answer.
      before, after: tokens before and after plain text; the latter also come after a chat.
      post_process: whether the backend itself puts tokens before and after plain text.
      begin_chat: whether a chat's text gets a begin-of-sequence token if it lacks one.
      templates: chat templates by name, the one that is taken unasked as "default".
      names: special tokens by the names that chat templates use for them.
      notes: settings in the files that are ignored, as messages for the user.
    """

    backend: Backend
    vocabulary: int
    pieces: Mapping[int, bytes]
    controls: frozenset[int]
    bos_id: int | None
    stop_ids: frozenset[int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    post_process: bool = False
    begin_chat: bool = False
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _printable() -> dict[str, int]:
    """GPT-2's character for each byte: itself if printable, else one from 256 on, in order."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(b): b for b in themselves} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _printable()


def printed_bytes(text: str) -> bytes:
    """The bytes that a token of a byte-level tokenizer stands for.

    Args:
      text: the token, each character one byte in GPT-2's alphabet; otherwise it is plain text.
    """
    try:
        return bytes(map(_BYTES.__getitem__, text))
    except KeyError:
        return text.encode()
