"""Text to token ids and back, by the tokenizer of a GGUF file or of a Hugging Face folder."""

import codecs
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from decode import chat, tokenizer_gguf
from decode.tokenizer_files import read_folder
from decode.tokenizer_gguf import read_metadata
from decode.tokenizer_json import guarded, read_text
from decode.tokenizer_parts import Parts, TokenizerError

__all__ = ["TextStream", "Tokenizer", "TokenizerError"]


class Tokenizer:
    """A model's tokenizer and chat template; made by `from_gguf` or `from_folder`.

    Attributes:
      vocabulary: number of token ids.
      bos_id: begin-of-sequence token, if the model has one.
      stop_ids: tokens that end an answer.
      notes: settings in the model's files that are ignored, as messages for the user.
    """

    def __init__(self, parts: Parts):
        self.notes = parts.notes
        self.vocabulary = parts.vocabulary
        self.bos_id = parts.bos_id
        self.stop_ids = parts.stop_ids
        self._parts = parts
        self._backends: dict[bool, Backend] = {}  # one for each state of their one switch
        self._lock = threading.Lock()  # while they are made; threads encode side by side

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer | None":
        """The tokenizer in the metadata of a GGUF file.

        Args:
          metadata: what the file says of itself, by key.

        Returns:
          The tokenizer; None where the file has none.

        Raises:
          TokenizerError: a model or pre-tokenizer not supported, or metadata that contradicts
            itself.
        """
        parts = read_metadata(metadata)
        return None if parts is None else cls(parts)

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Tokenizer | None":
        """The tokenizer in a model's folder as Hugging Face writes it.

        Args:
          folder: has tokenizer.json or tokenizer.model, and optionally tokenizer_config.json,
            special_tokens_map.json, added_tokens.json, chat_template.jinja or .json,
            generation_config.json and config.json; or the file that
            `tokenizer_gguf.metadata_to_json` made.

        Returns:
          The tokenizer; None where the folder has neither.

        Raises:
          TokenizerError: a file that is damaged, contradicts another one or asks for something
            not supported.
        """
        content = read_text(Path(folder) / tokenizer_gguf.FILE)
        if content is not None:
            return cls.from_gguf(tokenizer_gguf.metadata_from_json(content))
        parts = read_folder(Path(folder))
        return None if parts is None else cls(parts)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, with the tokens that the model expects before and after it.

        Args:
          text: any text.
          special: read names of control tokens in the text as these tokens, as text from `chat`
            needs (the messages' own text included). A token that the text already begins or ends
            with is not added again.

        Raises:
          TokenizerError: text with lone surrogates, which has no UTF-8, or text that the
            tokenizer cannot encode without control tokens.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TokenizerError(f"prompt is {text!r:.60}, not Unicode text; give UTF-8") from None
        parts = self._parts
        with guarded(f"prompt is {text[:60]!r:.60}, which the tokenizer fails on"):
            own = parts.post_process and not special
            encoding = self._backend(special).encode(text, add_special_tokens=own)
        ids = encoding.ids
        if special:
            ids = [parts.bos_id, *ids] if parts.begin_chat and ids[:1] != [parts.bos_id] else ids
            return ids if tuple(ids[-1:]) == parts.after else [*ids, *parts.after]
        for token, added in zip(ids, encoding.special_tokens_mask, strict=True):
            if token in parts.controls and not added:
                raise TokenizerError(
                    f"prompt is {text!r:.60}, which the tokenizer reads as control token {token}; "
                    "change its text"
                )
        return [*parts.before, *ids, *parts.after]

    def _backend(self, special: bool) -> Backend:
        """What encodes, with names of control tokens read as these tokens or as text."""
        with self._lock:
            if special not in self._backends:
                backend = self._parts.backend
                if self._backends:
                    backend = Backend.from_str(backend.to_str())
                backend.encode_special_tokens = not special
                self._backends[special] = backend
            return self._backends[special]

    @functools.cached_property
    def longest(self) -> int:
        """Bytes of a text that a token stands for, at most, where nothing is dropped from it."""
        return max(map(len, self._parts.pieces.values()), default=1)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens that continue a prompt, without control tokens, as `stream` gives it.

        The first space, which some models begin every text with, is kept: it separates a prompt
        from its continuation. Bytes that are not UTF-8 become U+FFFD.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def stream(self) -> "TextStream":
        """A decoder of tokens one at a time, which continue a prompt."""
        return TextStream(self.piece)

    def with_template(self, chosen: str) -> "Tokenizer":
        """The same tokenizer, whose chats take another template.

        Args:
          chosen: the name of one of the model's templates, or the path of a file with one.

        Raises:
          TokenizerError: there is neither, or the file cannot be read, or is no template.
        """
        templates = self._parts.templates
        text = templates.get(chosen)
        if text is None and os.path.isfile(chosen):
            text = read_text(Path(chosen))
        if text is None:
            known = f"{_listed(templates)}, or " * bool(templates)
            raise TokenizerError(
                f"chat template is {chosen!r:.60}, which is unknown; use {known}the path of a file"
            )
        if why := chat.fault(text):
            raise TokenizerError(f"chat template {chosen!r:.60} is {why}; give another one")
        return Tokenizer(dataclasses.replace(self._parts, templates={"default": text}))

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for the assistant's next turn, to be encoded with `special=True`.

        Args:
          messages: each with a "role" and a "content".

        Raises:
          TokenizerError: no chat template, or one that fails with these messages.
        """
        templates = self._parts.templates
        if not templates:
            raise TokenizerError(
                "chat template is missing in this model; give a plain prompt, or an instruct model"
            )
        if "default" not in templates:
            raise TokenizerError(
                f"chat template is one of {_listed(templates)}, none of them the default; "
                "choose with --chat_template=NAME"
            )
        try:
            return chat.render(templates["default"], messages, **self._parts.names)
        except chat.ChatError as error:
            raise TokenizerError(str(error)) from None

    def control(self, text: str) -> int | None:
        """The control token of this name; None where the text is no such name."""
        token = self._parts.backend.token_to_id(text)
        return None if token is None or self.piece(token) else token

    def name(self, token: int) -> str:
        """A name of a token by which it can be told from others.

        It is the token's text; a control token's own; or ``bytes:\\xe2\\x96`` of these bytes, where
        they are no whole characters.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        data = self.piece(token)
        try:
            return data.decode() or self._parts.backend.id_to_token(token) or ""
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a text: none for a control token.

        Raises:
          TokenizerError: an id outside the vocabulary.
        """
        if not 0 <= token < self.vocabulary:
            raise TokenizerError(f"token id is {token}; give 0 to {self.vocabulary - 1}")
        return self._parts.pieces.get(token, b"")


def _listed(templates: Mapping[str, str]) -> str:
    return f"{', '.join(sorted(templates))!s:.200}"


class TextStream:
    """Decodes tokens one at a time; an incomplete character waits for its other bytes."""

    def __init__(self, piece: Callable[[int], bytes]):
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        return self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        """The rest of the text when no token follows: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)
