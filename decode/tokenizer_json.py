"""JSON files of a model's folder, read with bounds, and failures in them as one-line errors."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decode.tokenizer_parts import TokenizerError

MAX_OTHER_BYTES = 20_000_000
DAMAGED = "the file is damaged, fetch it again"


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
        raise TokenizerError(f"{what} ({reason}); {DAMAGED}") from None


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
        raise TokenizerError(f"{path.name} is not UTF-8; {DAMAGED}") from None


def parse(text: str, name: str) -> dict[str, Any]:
    """The object in a JSON text; `name` is the file's, for errors."""
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise TokenizerError(f"{name} is not JSON ({reason}); {DAMAGED}") from None
    return typed(document, dict, name)


def typed(value: Any, kind: type, name: str) -> Any:
    """The value, refused if it is not exactly of this type."""
    if type(value) is not kind:
        found = "null" if value is None else type(value).__name__
        raise TokenizerError(f"{name} is {found}, not {kind.__name__}; {DAMAGED}")
    return value


def dump(document: dict[str, Any]) -> str:
    """The document as JSON that the `tokenizers` package reads."""
    return json.dumps(document, ensure_ascii=False)
