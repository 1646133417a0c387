"""Sets of compiler options to try on a step: data in `option_candidates.json`, or given as text.

Each candidate has what it does in a line, and where it is recommended or described.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from sharding.error_types import UsageError

CANDIDATES = Path(__file__).with_name("option_candidates.json")
_FORM = '{"set": {"NAME": "VALUE"}, "does": "...", "source": "..."}'


@dataclasses.dataclass(frozen=True)
class OptionSet:
    """Compiler options that are tried together.

    Attributes:
      options: pairs of name and value, in the order of names; none for what the engine uses anyway.
      does: what they do, in a line.
      source: where they are recommended or described.
    """

    options: tuple[tuple[str, str], ...] = ()
    does: str = dataclasses.field(default="", compare=False)
    source: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.options) or "default"

    def as_dict(self) -> dict[str, str]:
        """Values by name."""
        return dict(self.options)

    def joined(self, other: "OptionSet") -> "OptionSet | None":
        """Both sets together; None where they give one option two values, or add nothing."""
        own, more = self.as_dict(), other.as_dict()
        if any(own.get(name, value) != value for name, value in more.items()):
            return None
        both = tuple((own | more).items())
        return OptionSet(both) if len(both) > len(self.options) else None


DEFAULT = OptionSet(does="the options that the engine uses")


def parse_sets(text: str) -> list[OptionSet]:
    """Reads sets such as ``NAME=VALUE,NAME=VALUE;NAME=VALUE``.

    Raises:
      UsageError: a set is empty or has a part that is no NAME=VALUE, or an option twice.
    """
    sets = []
    for one in text.split(";"):
        pairs = [part.partition("=") for part in one.split(",")]
        wrong = next((name for name, is_, _ in pairs if not is_ or not _is_name(name)), None)
        if wrong is not None:
            raise UsageError(
                f"--options is {text!r}, in which {wrong!r} is no NAME=VALUE; write sets as "
                "NAME=VALUE,NAME=VALUE;NAME=VALUE, and values with commas in a file of --candidates"
            )
        names = [name.strip() for name, _, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"--options gives {twice} twice in one set; give it one value")
        stripped = ((name.strip(), value.strip()) for name, _, value in pairs)
        sets.append(OptionSet(tuple(stripped)))
    return list(dict.fromkeys(sets))


def _is_name(text: str) -> bool:
    return text.strip().isidentifier()


def read_sets(path: Path, compiler: str) -> list[OptionSet]:
    """The candidates of a file for one compiler, in the form of `option_candidates.json`.

    Args:
      path: the file.
      compiler: ``tpu`` or ``gpu``.

    Raises:
      UsageError: the file cannot be read, has another form, or has none for this compiler.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"candidates are in {path}, which cannot be read: {error}") from error
    listed = found.get(compiler) if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UsageError(
            f"candidates are in {path}, which has none for {compiler}; give it a list "
            f'"{compiler}" of {_FORM}'
        )
    return list(dict.fromkeys(_read(one, path) for one in listed))


def _read(one: object, path: Path) -> OptionSet:
    options = one.get("set") if isinstance(one, Mapping) else None
    if not isinstance(options, dict) or not options or not _plain(options):
        raise UsageError(
            f"candidates are in {path}, in which {json.dumps(one)[:80]} is no set; write {_FORM}"
        )
    return OptionSet(tuple(options.items()), str(one.get("does", "")), str(one.get("source", "")))


def _plain(options: dict) -> bool:
    """Whether all names are words, and all values text."""
    return all(_is_name(name) and isinstance(value, str) for name, value in options.items())
