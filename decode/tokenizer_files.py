"""The tokenizer of a model's folder as Hugging Face writes it: tokenizer.json and files beside it.

Ids are those of `AutoTokenizer` in transformers 5: a class that the files name may build its own
tokenizer around the vocabulary of tokenizer.json. Without that file, a SentencePiece model is read.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from decode import tokenizer_settings as beside
from decode.stop_tokens import stops_among
from decode.tokenizer_classes import CLASSES, Document, TokenizerClass, class_of
from decode.tokenizer_json import DAMAGED, dump, guarded, parse, read_text
from decode.tokenizer_parts import Parts, TokenizerError
from decode.tokenizer_pieces import Decoding, decoding_of
from decode.tokenizer_sentencepiece import SENTENCE_PIECE, SentencePiece, read_model
from decode.tokenizer_settings import Settings, added_token

MAX_TOKENIZER_BYTES = 200_000_000

_FILE = "tokenizer.json"
_FILES = (_FILE, SENTENCE_PIECE, beside.CONFIG, beside.MAP, beside.ADDED, beside.TEMPLATE)
_FILES = (*_FILES, beside.PROCESSOR, beside.GENERATION, beside.MODEL)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a model's folder that its tokenizer and chat templates are read from."""
    if not any((folder / name).exists() for name in (_FILE, SENTENCE_PIECE)):
        return {}
    templates = [f"{beside.TEMPLATES}/{path.name}" for path in beside.template_files(folder)]
    names = (*_FILES, *templates)
    found = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    if _FILE in found:
        found.pop(SENTENCE_PIECE, None)  # nothing reads it then
    return found


def read_folder(folder: Path) -> Parts | None:
    """The tokenizer of a model's folder.

    Args:
      folder: has tokenizer.json or tokenizer.model and, if the model has them, the other files.

    Returns:
      The parts of a `Tokenizer`; None where there is neither of the two.

    Raises:
      TokenizerError: a file that is damaged, contradicts another one or asks for something not
        supported.
    """
    text = read_text(folder / _FILE, MAX_TOKENIZER_BYTES)
    pieces = None if text is not None else read_model(folder / SENTENCE_PIECE)
    if text is None and pieces is None:
        return None
    settings = Settings(folder)
    name = class_of(settings.config, settings.model, text)
    if pieces:
        return _parts(settings, *_of_pieces(settings, pieces, name))
    return _parts(settings, *_of_file(settings, text, name))


def _of_file(settings: Settings, text: str, name: str) -> tuple[Backend, Decoding]:
    """The tokenizer that a class makes of tokenizer.json, and how its tokens become text."""
    document = parse(text, _FILE)
    own = CLASSES.get(name)
    settings.take_names(own.names if own else {})
    built = own.build(document, settings.config, settings.names) if own else document
    decoding = decoding_of(built.get("decoder"))
    with guarded(f"{_FILE} is not a tokenizer"):
        backend = Backend.from_str(dump(built) if own else text)
        backend.no_truncation()
        backend.no_padding()
        added = {each["id"]: each for each in document.get("added_tokens") or []}
    if not backend.get_vocab_size():
        raise TokenizerError(f"{_FILE} is without tokens; give a tokenizer with a vocabulary")
    if not own:
        _check_added(backend, document)
    elif _changed(document, built):
        settings.notes.append(
            f"tokenizer_class is {name}, which splits text in a way of its own, as in transformers "
            f"5: what {_FILE} says of that is not used"
        )
    labelled = {n: added_token(each, f"{_FILE} added token") for n, each in added.items()}
    settings.add_tokens(backend, labelled, renews=bool(own and own.renews))
    if own and own.begins is not None:
        _surround(backend, settings, own.begins, ends=False)
    return backend, decoding


def _of_pieces(settings: Settings, pieces: SentencePiece, name: str) -> tuple[Backend, Decoding]:
    """The tokenizer that a class makes of a SentencePiece model, and how tokens become text."""
    own = CLASSES.get(name)
    if own and not own.of_pieces:
        raise TokenizerError(
            f"tokenizer_class is {name}, which is not read from {SENTENCE_PIECE}; give a folder "
            f"with {_FILE}, which save_pretrained of transformers writes"
        )
    settings.take_names(own.names if own else pieces.names)
    with guarded(f"{SENTENCE_PIECE} is not a tokenizer"):
        document = _document(settings, pieces, own)
        backend = Backend.from_str(dump(document))
    settings.add_tokens(backend, {}, pieces.added(defined=bool(own)), raw=pieces.prefix and not own)
    begins = settings.config.get("add_bos_token", bool(own and own.begins))
    _surround(backend, settings, bool(begins), bool(settings.config.get("add_eos_token")))
    return backend, decoding_of(document["decoder"])


def _document(settings: Settings, pieces: SentencePiece, own: TokenizerClass | None) -> Document:
    if own is None:
        return pieces.document(settings.config.get("legacy", True), settings.declared_texts())
    return own.build(pieces.vocabulary(), settings.config, settings.names)


def _surround(backend: Backend, settings: Settings, begins: bool, ends: bool) -> None:
    """Puts the special tokens for begin and end around every text, where they are wanted."""
    texts = [settings.names.get(name) for name in ("bos_token", "eos_token")]
    wanted = [text if want else None for text, want in zip(texts, (begins, ends), strict=True)]
    single = [wanted[0], "$A", wanted[1]]
    tokens = [(text, backend.token_to_id(text)) for text in wanted if text]
    backend.post_processor = processors.TemplateProcessing(
        single=[each for each in single if each], special_tokens=tokens
    )


def _parts(settings: Settings, backend: Backend, decoding: Decoding) -> Parts:
    """The tokenizer of a backend, with all that other files say."""
    ids = _token_ids(backend)
    controls = {number for number, token in _added(backend).items() if token.special}
    unknown = ids.get(settings.names.get("unk_token", ""))
    bos_id, eos_id = (settings.token_id(key, ids) for key in ("bos_token", "eos_token"))
    size = settings.model_size()
    count = max(max(ids.values()) + 1, size)
    if eos_id is not None and 0 < size <= eos_id:
        settings.notes.append(
            f"eos_token is {settings.names['eos_token']!r:.60}, none of the model's {size} tokens: "
            "no answer ends with it"
        )
    ends = stops_among([text for text, number in ids.items() if number in controls])
    stops = settings.stop_ids(count) | {ids[t] for t in ends if ids.get(t) in controls}
    return Parts(
        backend=backend,
        vocabulary=count,
        pieces=_pieces(backend, ids, controls, decoding),
        controls=frozenset(controls - {unknown}),
        bos_id=bos_id,
        stop_ids=stops | ({eos_id} - {None}),
        post_process=True,
        templates=settings.templates(),
        names=settings.names,
        notes=tuple(settings.notes),
    )


def _changed(document: Document, built: Document) -> bool:
    """Whether a class splits text in another way than tokenizer.json says."""
    parts = ("normalizer", "pre_tokenizer")
    return any(_plain(document.get(part)) != _plain(built[part]) for part in parts)


def _plain(part: Any) -> Any:
    """A normalizer or pre-tokenizer without what makes no difference to ids."""
    if isinstance(part, dict):
        return {key: _plain(value) for key, value in part.items() if key != "trim_offsets"}
    return [_plain(each) for each in part] if isinstance(part, list) else part


def _added(backend: Backend) -> dict[int, AddedToken]:
    return backend.get_added_tokens_decoder()


def _check_added(backend: Backend, document: dict[str, Any]) -> None:
    """Refuses files whose added tokens have other ids than the package gives them."""
    for token in document.get("added_tokens") or []:
        if (found := backend.token_to_id(token["content"])) != token["id"]:
            raise TokenizerError(
                f"{_FILE} added token {token['content']!r:.60} is {token['id']}, but {found} by "
                f"the vocabulary; {DAMAGED}"
            )


def _token_ids(backend: Backend) -> dict[str, int]:
    """Every token's id, each only once."""
    ids = backend.get_vocab(with_added_tokens=True)
    texts: dict[int, str] = {}
    for text, number in ids.items():
        if texts.setdefault(number, text) != text:
            raise TokenizerError(
                f"{_FILE} token id {number} is both {texts[number]!r:.60} and {text!r:.60}; "
                f"{DAMAGED}"
            )
    return ids


def _pieces(
    backend: Backend, ids: dict[str, int], controls: set[int], decoding: Decoding
) -> dict[int, bytes]:
    pieces = {number: decoding.piece(text) for text, number in ids.items()}
    for number, token in _added(backend).items():
        if decoding.byte_level:
            pieces[number] = token.content.encode()
        if number in controls:
            pieces[number] = b""
    return pieces
