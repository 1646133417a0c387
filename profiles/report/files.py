"""The files that hold a run's results: written whole or not at all, refused in one line."""

import contextlib
import csv
import io
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from profiles.report.record import CSV_FIELDS, Record
from sharding.error_types import FloorlineError, UsageError


class OutputError(FloorlineError):
    """A file or folder that results cannot be written to."""


def check_writable(directory: str | Path) -> None:
    """Makes a folder and tries a file in it, so that hours of work do not end in a refusal.

    Raises:
      OutputError: the folder cannot be made or written to.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise _refused(directory, error) from error


def check_file(path: str | Path, name: str = "output path") -> Path:
    """Refuses a file that `write_atomically` could not write, so that no work is lost by it.

    Args:
      path: the file; it and its folder need not be there.
      name: what the message calls it, such as a flag.

    Returns:
      The file itself where `path` is a link.

    Raises:
      OutputError: it is a folder or a device, its name is none, or its folder cannot be written to.
      UsageError: it is ``-``, standard output, which takes JSON alone, see `write_json`.
    """
    if str(path) == "-":
        raise UsageError(f"{name} is -, and only JSON goes to standard output; name a file")
    try:
        found = Path(os.path.realpath(path))
        # The file is renamed into its place: a device or a pipe must not be replaced.
        if not stat.S_ISREG(found.stat().st_mode):
            raise OutputError(f"{name} is {path}, not a regular file; name one that is")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _refused(path, error, name) from error
    check_writable(found.parent)
    return found


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a whole file or leaves the old one; creates its folder.

    Through a link, and with the rights of the file that was there.

    Raises:
      OutputError: the file cannot be written.
    """
    found = check_file(path)
    temporary = found.with_name(f".{os.getpid()}.new")  # whatever length the name has
    try:
        temporary.write_bytes(content)
        if found.exists():
            temporary.chmod(stat.S_IMODE(found.stat().st_mode))
        os.replace(temporary, found)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refused(
    path: str | Path, error: OSError | ValueError, name: str = "output path"
) -> OutputError:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OutputError(f"{name} is {path} ({why}); name a place that can be written to")


def to_json(document: object, indent: int | None = None) -> str:
    """A document as JSON that any parser reads.

    JSON has no NaN and no infinity: such a field is left out of its record, as one that is not
    known, and is null in a list, whose other entries keep their places.
    """
    return json.dumps(_plain(document), indent=indent, allow_nan=False)


def remove(path: str | Path) -> None:
    """Removes a file that an earlier run wrote, if it is there.

    Raises:
      OutputError: it cannot be removed.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def write_json(path: str | Path, document: dict) -> None:
    """Writes a document, to standard output if the path is `-`."""
    text = to_json(document, indent=1) + "\n"
    if str(path) != "-":
        return write_atomically(path, text.encode())
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise not_taken(error) from error


def not_taken(error: OSError) -> Exception:
    """What to raise where standard output does not take results: the same if its reader left."""
    if isinstance(error, BrokenPipeError):
        return error
    why = error.strerror or type(error).__name__
    return OutputError(f"standard output takes no more ({why}); make room, or use another")


def _plain(value: object) -> object:
    if isinstance(value, Record):
        value = value.to_json()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if not _unknown(each)}
    if isinstance(value, list | tuple):
        return [None if _unknown(each) else _plain(each) for each in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _unknown(value: object) -> bool:
    return isinstance(value, float | np.floating) and not np.isfinite(value)


def write_csv(path: str | Path, points: Sequence[Record | dict]) -> None:
    """Writes a row per record: nested fields as `step_s.median`, lists as their lengths."""
    rows = [dict(_flatten(_plain(point))) for point in points]
    ranks = {field: rank for rank, field in enumerate(CSV_FIELDS)}
    names = dict.fromkeys(name for row in rows for name in row)
    names = sorted(names, key=lambda name: ranks.get(name.split(".")[0], len(ranks)))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _flatten(fields: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, len(value) if isinstance(value, list | tuple) else value
