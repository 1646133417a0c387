"""What the files beside tokenizer.json say: special and added tokens, end tokens, chat templates.

What each file and key means is as in transformers 5 (`PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`), which also gives new ids to tokens that the vocabulary lacks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from decode.tokenizer_json import DAMAGED, guarded, parse, read_text, typed
from decode.tokenizer_parts import TokenizerError

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
MODEL = "config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
PROCESSOR = "chat_template.json"

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_NAMES = (*_NAMES, "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRAS = ("extra_special_tokens", "additional_special_tokens")
_REFUSED = {
    "split_special_tokens": "spells control tokens as text",
    "fast_tokenizer_files": "names a tokenizer file for each version of transformers",
}
"""Settings of tokenizer_config.json that change ids and are not read."""
_MENDED = (None, "mistral", "mistral3", "voxtral", "ministral", "pixtral")


class Settings:
    """The settings in the files beside tokenizer.json.

    Attributes:
      config: tokenizer_config.json.
      model: config.json.
      names: special tokens by purpose, such as "bos_token"; complete once `take_names` has run.
      notes: settings that are ignored, as messages for the user.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.notes: list[str] = []
        self.config, self.model = self._load(CONFIG), self._load(MODEL)
        # Where tokenizer_config.json lists the added tokens, the older files are not read.
        self._declares = self.config.get("added_tokens_decoder") is not None
        self._map = {} if self._declares else self._load(MAP)
        for key in ("add_bos_token", "add_eos_token"):
            if self.config.get(key) is not None:
                typed(self.config[key], bool, f"{CONFIG} {key}")
        for key, what in _REFUSED.items():
            if self.config.get(key):
                raise TokenizerError(
                    f"{CONFIG} {key} is set, which {what} and is not read; take it out"
                )
        if self.config.get("fix_mistral_regex") is True and self._old_mistral():
            raise TokenizerError(
                f"{CONFIG} fix_mistral_regex is set, which mends how old files split text and is "
                "not read; save the folder again with transformers 5"
            )
        self.names: dict[str, str] = {}
        self._tokens: list[AddedToken] = []  # the tokens of these names

    def _old_mistral(self) -> bool:
        """Whether transformers mends the pre-tokenizer of the file where it is told to."""
        version = str(self.model.get("transformers_version") or 0).partition(".")[0]
        old = not version.isdecimal() or int(version) < 5
        return old and self.model.get("model_type") in _MENDED

    def take_names(self, defaults: Mapping[str, str]) -> None:
        """Reads the special tokens that the files name for a purpose.

        Args:
          defaults: those of the tokenizer's class, where no file names another; a file may also
            say that there is none.
        """
        found: dict[str, tuple[str, Any]] = {key: (CONFIG, text) for key, text in defaults.items()}
        for file, settings in self._both():
            for name, value in settings.items():
                if name in _NAMES or (name.endswith("_token") and _is_token(value, file)):
                    found[name] = file, value
            extra = settings.get("extra_special_tokens")
            for name, value in extra.items() if isinstance(extra, dict) else ():
                found[name] = file, value
        for name in [*_NAMES, *(name for name in found if name not in _NAMES)]:
            file, value = found.get(name, ("", None))
            if value is None:
                continue
            text = self.names[name] = _content(value, f"{file} {name}")
            flags = _flags(value, f"{file} {name}") if isinstance(value, dict) else {}
            token = _token(text, flags | {"special": True}, f"{file} special token")
            self._tokens.append(token)

    def add_tokens(
        self,
        backend: Backend,
        own: Mapping[int, AddedToken],
        pieces: Sequence[AddedToken] | None = None,
        renews: bool = False,
        raw: bool = False,
    ) -> None:
        """Adds the tokens that the files list and name; what they name become control tokens.

        Args:
          backend: takes them.
          own: added tokens of tokenizer.json, which count where no other file lists any.
          pieces: control and user-defined pieces of a SentencePiece model, which count where no
            file lists further special tokens.
          renews: see `TokenizerClass`.
          raw: tokens that tokenizer_config.json lists are looked for in the text as it is given.

        Raises:
          TokenizerError: a token has another id than a file says.
        """
        where, listed = self._listed(own)
        if raw and self._declares:
            listed = {n: _changed(token, normalized=False) for n, token in listed.items()}
        for number in sorted(listed):
            token, name = self._named(listed[number]), f"{where}.{number}"
            self._add(backend, token, name)
            if (found := backend.token_to_id(token.content)) != number:
                raise TokenizerError(f"{name} is {found} by the vocabulary; {DAMAGED}")
        special = [*self._tokens, *(self._extras() if pieces is None else self._or_pieces(pieces))]
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        unlike = {(token.content, *_flags_of(token).values()): token for token in special}
        for token in unlike.values():
            if token.content in known:
                self._promote(backend, token)
            else:  # of two that say different things the later one counts
                self._add(backend, token, f"{CONFIG} special token")
        for text in dict.fromkeys(token.content for token in special) if renews else ():
            self._add(backend, AddedToken(text, special=True), f"{CONFIG} special token")

    def _or_pieces(self, pieces: Sequence[AddedToken]) -> Sequence[AddedToken]:
        """Further special tokens of the files, else those of a SentencePiece model."""
        newer, older = (self.config.get(key) for key in _EXTRAS)
        listed = isinstance(newer, list) or (older is not None and not newer)
        return self._extras() if listed or self._map.get(_EXTRAS[0]) else pieces

    def _listed(self, own: Mapping[int, AddedToken]) -> tuple[str, dict[int, AddedToken]]:
        """The file that lists added tokens, in words, and the tokens by their ids."""
        if not self._declares:
            special = {token.content for token in (*self._tokens, *self._extras())}
            older = {
                typed(number, int, f"{ADDED} {text!r:.60}"): _token(
                    text, {"special": text in special, "normalized": text not in special}, ADDED
                )
                for text, number in self._load(ADDED).items()
            }
            return f"{ADDED} or tokenizer.json added token", older | dict(own)
        where = f"{CONFIG} added_tokens_decoder"
        listed = typed(self.config["added_tokens_decoder"], dict, where)
        if wrong := [number for number in listed if not number.isdecimal()]:
            raise TokenizerError(f"{where} is of token {wrong[0]!r:.60}, no id; {DAMAGED}")
        return where, {
            int(number): added_token(token, f"{where}.{number:.20}")
            for number, token in listed.items()
        }

    def declared_texts(self) -> dict[int, str]:
        """Texts of the tokens that tokenizer_config.json lists, by ids."""
        listed = self._listed({})[1] if self._declares else {}
        return {number: token.content for number, token in listed.items()}

    def _named(self, token: AddedToken) -> AddedToken:
        """The token as a special one, if it is named for a purpose."""
        named = token.content in self.names.values()
        return _changed(token, special=True) if named and not token.special else token

    def _extras(self) -> list[AddedToken]:
        """Further special tokens that the files list.

        Objects in tokenizer_config.json are special only where they say so.
        """
        newer, older = (
            [(f"{file} {key}", settings.get(key)) for file, settings in self._both()]
            for key in _EXTRAS
        )
        lists = [(name, each) for name, each in newer if each and not isinstance(each, dict)]
        lists = lists or [(name, each) for name, each in older if each][:1]
        found = []
        for name, tokens in lists:
            for token in typed(tokens, list, name):
                flags = _flags(token, name) if isinstance(token, dict) else {"special": True}
                if name.startswith(MAP):
                    flags["special"] = True
                found.append(_token(_content(token, name), flags, name))
        return found

    def _both(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The two files that name special tokens, and what is in them."""
        return (CONFIG, self.config), (MAP, self._map)

    @staticmethod
    def _promote(backend: Backend, token: AddedToken) -> None:
        """Makes an added token a control token, and leaves what else is said of it."""
        current = backend.get_added_tokens_decoder()[backend.token_to_id(token.content)]
        if token.special and not current.special:
            backend.add_tokens([_changed(current, special=True)])

    @staticmethod
    def _add(backend: Backend, token: AddedToken, name: str) -> None:
        with guarded(f"{name} is {token.content!r:.60}"):
            known = backend.get_added_tokens_decoder().get(backend.token_to_id(token.content))
            if known is None or _flags_of(known) != _flags_of(token):
                backend.add_tokens([token])  # slow, and files mostly agree

    def token_id(self, name: str, ids: Mapping[str, int]) -> int | None:
        """The token that the files name for a purpose, such as "bos_token"."""
        return ids.get(self.names.get(name, ""))

    def model_size(self) -> int:
        """The number of token ids of the model, which may be more than the tokenizer's."""
        size = self.model.get("vocab_size")
        return size if type(size) is int else 0

    def stop_ids(self, count: int) -> frozenset[int]:
        """Tokens that end an answer by the model's files; ids out of range become notes."""
        stops: set[int] = set()
        for name in (GENERATION, MODEL):
            file = self._load(name)
            nested = file.get("text_config")
            for part in (file, nested if isinstance(nested, dict) else {}):
                value = part.get("eos_token_id")
                tokens = value if isinstance(value, list) else [value] * (value is not None)
                for token in tokens:
                    what = f"{name} eos_token_id is {token!r:.60}"
                    if type(token) is not int:
                        raise TokenizerError(f"{what}, no token id; {DAMAGED}")
                    if 0 <= token < count:
                        stops.add(token)
                    else:
                        self.notes.append(f"{what}, outside the {count} tokens; it is left out")
        return frozenset(stops)

    def templates(self) -> dict[str, str]:
        """Chat templates by name, the one that is taken unasked as "default".

        They are files of their own, else the tokenizer's setting, else the processor's.
        """
        found = {}
        if (text := read_text(self._folder / TEMPLATE)) is not None:
            found["default"] = text
        for path in template_files(self._folder):
            found[path.stem] = read_text(path) or ""
        for name, file in ((CONFIG, self.config), (PROCESSOR, None)):
            file = (self._load(name) if file is None else file) if not found else {}
            if file.get("chat_template") is not None:
                found = _templates(file["chat_template"], f"{name} chat_template")
        return found

    def _load(self, name: str) -> dict[str, Any]:
        text = read_text(self._folder / name)
        return {} if text is None else parse(text, name)


def template_files(folder: Path) -> list[Path]:
    """The files of further chat templates in a model's folder, which are named by their files."""
    return sorted((folder / TEMPLATES).glob("*.jinja"))


def _templates(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": key, "template": text} for key, text in value.items()]
    found = {}
    for entry in typed(value, list, name):
        typed(entry, dict, name)
        key = typed(entry.get("name"), str, f"{name}.name")
        found[key] = typed(entry.get("template"), str, f"{name}.template")
    return found


def _is_token(value: Any, file: str) -> bool:
    """Whether a value beside a purpose that is the model's own is a token, and no switch."""
    tagged = isinstance(value, dict) and (file == MAP or value.get("__type") == "AddedToken")
    return tagged or isinstance(value, str)


def _content(token: Any, name: str) -> str:
    """The text of a token that a file writes as text or as an object with its content."""
    return typed(token.get("content") if isinstance(token, dict) else token, str, name)


def _flags(token: Mapping[str, Any], name: str) -> dict[str, bool]:
    return {flag: typed(token[flag], bool, f"{name}.{flag}") for flag in _FLAGS if flag in token}


def _flags_of(token: AddedToken) -> dict[str, bool]:
    return {flag: getattr(token, flag) for flag in _FLAGS}


def _changed(token: AddedToken, **flags: bool) -> AddedToken:
    return AddedToken(token.content, **_flags_of(token) | flags)


def added_token(token: Any, name: str) -> AddedToken:
    """An added token as a file writes it; `name` is for errors."""
    typed(token, dict, name)
    return _token(_content(token, name), _flags(token, name), name)


def _token(text: str, flags: Mapping[str, bool], name: str) -> AddedToken:
    with guarded(f"{name} is {text!r:.60}"):
        return AddedToken(text, **flags)
