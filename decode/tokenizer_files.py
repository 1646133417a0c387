"""The tokenizer of a model's folder as Hugging Face writes it: tokenizer.json and files beside it.

What each file and key means is as in transformers 5 (`PreTrainedTokenizerFast`).
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from decode.stop_tokens import STOPS
from decode.tokenizer_parts import Parts, TokenizerError, printed_bytes

MAX_TOKENIZER_BYTES = 200_000_000
MAX_OTHER_BYTES = 20_000_000

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_FILES = (_FILE, _CONFIG, _MAP, "chat_template.jinja", "chat_template.json")
_FILES = (*_FILES, "generation_config.json", "config.json")
_DAMAGED = "the file is damaged, fetch it again"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_NAMES = (*_NAMES, "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DECODERS = "supported are ByteLevel, and Replace, ByteFallback, Fuse and Strip in sequence"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a model's folder that its tokenizer and chat template are read from."""
    if not (folder / _FILE).exists():
        return {}
    return {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}


def read_folder(folder: Path) -> Parts | None:
    """The tokenizer of a model's folder.

    Args:
      folder: has tokenizer.json and, if the model has them, the other files.

    Returns:
      The parts of a `Tokenizer`; None where there is no tokenizer.json.

    Raises:
      TokenizerError: a file that is damaged, contradicts another one or asks for something not
        supported.
    """
    text = read_text(folder / _FILE, MAX_TOKENIZER_BYTES)
    if text is None:
        return None
    document = _parse(text, _FILE)
    decoding = _decoding(document.get("decoder"))
    with guarded(f"{_FILE} is not a tokenizer"):
        backend = Backend.from_str(text)
        backend.no_truncation()
        backend.no_padding()
    settings = _Settings(folder)
    _check_added(backend, document)
    settings.add_tokens(backend)
    ids = _token_ids(backend)
    controls = {number for number, token in _added(backend).items() if token.special}
    unknown = ids.get(settings.names.get("unk_token", ""))
    bos_id, eos_id = (settings.token_id(key, ids) for key in ("bos_token", "eos_token"))
    count = max(max(ids.values()) + 1, settings.model_size())
    stops = settings.stop_ids(count) | {ids[t] for t in STOPS if ids.get(t) in controls}
    return Parts(
        backend=backend,
        vocabulary=count,
        pieces=_pieces(backend, ids, controls, decoding),
        controls=frozenset(controls - {unknown}),
        bos_id=bos_id,
        stop_ids=stops | ({eos_id} - {None}),
        post_process=True,
        template=settings.template(),
        names=settings.names,
        notes=tuple(settings.notes),
    )


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns any failure of the `tokenizers` package, its panics included, into a one-line error.

    Args:
      what: the beginning of the message, which says what fails.

    Raises:
      TokenizerError: the block failed.
    """
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        # A panic in Rust arrives as a PanicException, which is no Exception and has no module.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise TokenizerError(f"{what} ({reason}); {_DAMAGED}") from None


def read_text(path: Path, limit: int = MAX_OTHER_BYTES) -> str | None:
    """The text of a file; None if there is no such file."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise TokenizerError(f"{path.name} is no regular file; fetch it again")
        if (size := path.stat().st_size) > limit:
            raise TokenizerError(
                f"{path.name} is {size} bytes long; at most {limit} are read, give a smaller one"
            )
        return path.read_bytes().decode()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenizerError(f"{path.name} is not readable ({reason}); check the file") from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path.name} is not UTF-8; {_DAMAGED}") from None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise TokenizerError(f"{name} is not JSON ({reason}); {_DAMAGED}") from None
    return _typed(document, dict, name)


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        found = "null" if value is None else type(value).__name__
        raise TokenizerError(f"{name} is {found}, not {kind.__name__}; {_DAMAGED}")
    return value


@dataclasses.dataclass(frozen=True)
class _Decoding:
    """How tokens become text.

    Attributes:
      piece: the bytes of an ordinary token.
      byte_level: each character of a token stands for a byte, but in added tokens for itself.
    """

    piece: Callable[[str], bytes]
    byte_level: bool = False


def _decoding(decoder: Any) -> _Decoding:
    """The decoder of tokenizer.json, if it can decode token by token.

    Some decoders remove the first space of a text; that does not concern the continuation of a
    prompt.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _Decoding(printed_bytes, byte_level=True)
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
    return _Decoding(lambda text: _text_bytes(text, replacements, fallback))


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{_FILE} decoder is {_shown(decoder)}; {_DECODERS}")
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = _typed(decoder.get("decoders"), list, f"{_FILE} decoder.decoders")
    for step in steps:
        _typed(step, dict, f"{_FILE} decoder.decoders")
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


def _added(backend: Backend) -> dict[int, AddedToken]:
    return backend.get_added_tokens_decoder()


def _check_added(backend: Backend, document: dict[str, Any]) -> None:
    """Refuses files whose added tokens have other ids than the package gives them."""
    for token in document.get("added_tokens") or []:
        if (found := backend.token_to_id(token["content"])) != token["id"]:
            raise TokenizerError(
                f"{_FILE} added token {token['content']!r:.60} is {token['id']}, but {found} by "
                f"the vocabulary; {_DAMAGED}"
            )


def _token_ids(backend: Backend) -> dict[str, int]:
    """Every token's id, each only once."""
    ids = backend.get_vocab(with_added_tokens=True)
    if not ids:
        raise TokenizerError(f"{_FILE} is without tokens; give a tokenizer with a vocabulary")
    texts: dict[int, str] = {}
    for text, number in ids.items():
        if texts.setdefault(number, text) != text:
            raise TokenizerError(
                f"{_FILE} token id {number} is both {texts[number]!r:.60} and {text!r:.60}; "
                f"{_DAMAGED}"
            )
    return ids


def _pieces(
    backend: Backend, ids: dict[str, int], controls: set[int], decoding: _Decoding
) -> dict[int, bytes]:
    pieces = {number: decoding.piece(text) for text, number in ids.items()}
    for number, token in _added(backend).items():
        if decoding.byte_level:
            pieces[number] = token.content.encode()
        if number in controls:
            pieces[number] = b""
    return pieces


class _Settings:
    """The settings in the files beside tokenizer.json.

    Attributes:
      names: special tokens by purpose, such as "bos_token".
      notes: settings that are ignored, as messages for the user.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.notes: list[str] = []
        self._config = self._load(_CONFIG)
        self._map = self._load(_MAP)
        # Only checked: as in transformers, tokenizer.json says which tokens go around a text.
        for key in ("add_bos_token", "add_eos_token"):
            if self._config.get(key) is not None:
                _typed(self._config[key], bool, f"{_CONFIG} {key}")
        self.names: dict[str, str] = {}
        for name in _NAMES:
            for key, file in ((_CONFIG, self._config), (_MAP, self._map)):
                if name not in self.names and file.get(name) is not None:
                    self.names[name] = _content(file[name], f"{key} {name}")

    def _load(self, name: str) -> dict[str, Any]:
        text = read_text(self._folder / name)
        return {} if text is None else _parse(text, name)

    def add_tokens(self, backend: Backend) -> None:
        """Makes the special tokens that the files name control tokens of the backend."""
        declared = _typed(
            self._config.get("added_tokens_decoder") or {}, dict, f"{_CONFIG} added_tokens_decoder"
        )
        for number, token in declared.items():
            name = f"{_CONFIG} added_tokens_decoder.{number:.20}"
            self._add(backend, _added_token(token, name), name)
            if str(found := backend.token_to_id(_content(token, name))) != number:
                raise TokenizerError(f"{name} is {found} in {_FILE}; {_DAMAGED}")
        for name in ("additional_special_tokens", "extra_special_tokens"):
            self._add_named(backend, name)
        for text in self.names.values():
            self._promote(backend, text)

    def _add_named(self, backend: Backend, name: str) -> None:
        tokens = self._config.get(name) or self._map.get(name) or []
        tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
        for token in _typed(tokens, list, f"{_CONFIG} {name}"):
            self._promote(backend, _content(token, f"{_CONFIG} {name}"))

    def _promote(self, backend: Backend, text: str) -> None:
        with guarded(f"{_CONFIG} special token is {text!r:.60}"):
            number = backend.token_to_id(text)
            current = None if number is None else _added(backend).get(number)
            if number is not None and not (current and current.special):
                flags = {flag: getattr(current, flag) for flag in _FLAGS} if current else {}
                flags = {"normalized": False, **flags, "special": True}
                backend.add_special_tokens([AddedToken(text, **flags)])

    @staticmethod
    def _add(backend: Backend, token: AddedToken, name: str) -> None:
        with guarded(f"{name} is {token.content!r:.60}"):
            known = _added(backend).get(backend.token_to_id(token.content))
            if known and all(getattr(known, flag) == getattr(token, flag) for flag in _FLAGS):
                return  # adding is slow, and files mostly agree
            if token.special:
                backend.add_special_tokens([token])
            else:
                backend.add_tokens([token])

    def token_id(self, name: str, ids: dict[str, int]) -> int | None:
        """The token that the files name for a purpose, such as "bos_token"."""
        text = self.names.get(name)
        if text is None:
            return None
        if text not in ids:
            raise TokenizerError(f"{name} is {text!r:.60}, no token of {_FILE}; {_DAMAGED}")
        return ids[text]

    def model_size(self) -> int:
        """The number of token ids of the model, which may be more than the tokenizer's."""
        size = self._load("config.json").get("vocab_size")
        return size if type(size) is int else 0

    def stop_ids(self, count: int) -> frozenset[int]:
        """Tokens that end an answer by the model's files; ids out of range become notes."""
        stops: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            file = self._load(name)
            nested = file.get("text_config")
            for part in (file, nested if isinstance(nested, dict) else {}):
                value = part.get("eos_token_id")
                tokens = value if isinstance(value, list) else [value] * (value is not None)
                for token in tokens:
                    what = f"{name} eos_token_id is {token!r:.60}"
                    if type(token) is not int:
                        raise TokenizerError(f"{what}, no token id; {_DAMAGED}")
                    if 0 <= token < count:
                        stops.add(token)
                    else:
                        self.notes.append(f"{what}, outside the {count} tokens; it is left out")
        return frozenset(stops)

    def template(self) -> str | None:
        """The chat template: its own file, else the tokenizer's setting, else the processor's."""
        text = read_text(self._folder / "chat_template.jinja")
        if text is not None:
            return text
        for name, file in ((_CONFIG, self._config), ("chat_template.json", None)):
            file = self._load(name) if file is None else file
            if file.get("chat_template") is not None:
                return _default_template(file["chat_template"], f"{name} chat_template")
        return None


def _default_template(value: Any, name: str) -> str | None:
    if isinstance(value, str):
        return value
    for entry in _typed(value, list, name):
        _typed(entry, dict, name)
        if _typed(entry.get("name"), str, f"{name}.name") == "default":
            return _typed(entry.get("template"), str, f"{name}.template")
    return None


def _content(token: Any, name: str) -> str:
    """The text of a token that a file writes as text or as an object with its content."""
    return _typed(token.get("content") if isinstance(token, dict) else token, str, name)


def _added_token(token: Any, name: str) -> AddedToken:
    _typed(token, dict, name)
    flags = {flag: _typed(token[flag], bool, f"{name}.{flag}") for flag in _FLAGS if flag in token}
    with guarded(name):
        return AddedToken(_content(token, name), **flags)
