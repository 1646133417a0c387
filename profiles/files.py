"""The files that hold a run's results: written whole or not at all, refused in one line."""

import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sharding.errors import FloorlineError

# The order in which a CSV file's columns stand.
FIELDS = (
    "model parameters phase batch context tokens_per_sequence device_kind topology chips devices "
    "mesh layout attention collectives dtype weight_dtype kv_dtype experts experts_touched "
    "bytes_per_chip flops_per_chip flops_per_byte floor_s floor_terms_s weight_floor_s bound "
    "no_overlap_s expected_s step_s steps_per_sample device_s host_s fraction_of_floor "
    "fraction_of_weight_floor mfu mbu tokens_per_s tokens_per_s_per_chip usd_per_million_tokens "
    "critical_batch critical_context batching_gain fits status message"
)


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


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a whole file or leaves the old one; creates its folder.

    Raises:
      OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe must not be replaced
        raise OutputError(f"output path is {path}, which is no plain file; name one that is")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        # A path below something that is not a folder cannot hold a temporary file either.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refused(path: str | Path, error: OSError) -> OutputError:
    why = error.strerror or type(error).__name__
    return OutputError(f"output path is {path} ({why}); name a place that can be written to")


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
    text = json.dumps(document, indent=1, default=lambda array: array.tolist()) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_atomically(path, text.encode())


def write_csv(path: str | Path, points: Sequence[dict]) -> None:
    """Writes a row per record: nested fields as `step_s.median`, lists as their lengths."""
    rows = [dict(_flatten(point)) for point in points]
    ranks = {field: rank for rank, field in enumerate(FIELDS.split())}
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
