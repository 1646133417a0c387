"""Writes a run's numbers as TensorBoard events, so that several runs can be compared there."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from profiles.report.files import OutputError, check_writable, remove, write_atomically
from profiles.report.lines import axis_of, telling_fields
from profiles.report.record import Record
from profiles.report.step_table import markdown_table
from profiles.report.titles import text_of


def remove_events(directory: str | Path) -> None:
    """Removes an earlier run's events, which TensorBoard would merge with new ones.

    Raises:
      OutputError: they cannot be removed.
    """
    for path in Path(directory).glob("events.out.tfevents.*"):
        remove(path)


def write_events(directory: str | Path, document: dict, figures: Iterable[str | Path] = ()) -> None:
    """Writes one event file: scalars against batch, the table as text, and plots.

    Scalars are tagged like `measured_step_ms/devices_2/context_128` and stepped by batch, so that
    TensorBoard's horizontal axis reads as batch. Those of chunks of prompts are tagged by batch and
    stepped by the tokens before them; those of whole prompts begin with `prompt_`, and are stepped
    by their lengths.

    Args:
      directory: the folder for the event file.
      document: a run's document.
      figures: PNG files to show as images, each under its name without suffix.

    Raises:
      OutputError: the folder cannot be written to, or a figure cannot be read.
    """
    from tensorboardX import SummaryWriter

    check_writable(directory)
    points = document["points"]
    table = markdown_table(points, document.get("bandwidth"), document.get("calibration"))
    axis = axis_of(points)
    telling = telling_fields(points, axis)
    # On a full disk, its thread prints a stack trace and may never end, so it writes elsewhere.
    with tempfile.TemporaryDirectory() as own:
        with SummaryWriter(own) as writer:
            tags = "devices", axis.panel, *telling
            for point in points:
                step = getattr(point, axis.along)
                for name, value in scalars(point).items():
                    writer.add_scalar(name + _suffix(point, tags), value, global_step=step)
            tags = [field for field in tags if field != "prompt_length"]
            for point in document.get("prompts", ()):
                for name, value in scalars(point).items():
                    name = f"prompt_{name}{_suffix(point, tags)}"
                    writer.add_scalar(name, value, global_step=point.prompt_length)
            writer.add_text("table", table)
            for path in map(Path, figures):
                writer.add_image(path.stem, _pixels(path), dataformats="HWC")
        (written,) = Path(own).iterdir()
        remove_events(directory)
        write_atomically(Path(directory) / written.name, written.read_bytes())


def _suffix(point: Record, fields: Iterable[str]) -> str:
    known = ((field, text_of(point, field)) for field in fields)
    return "".join(f"/{field}_{text}" for field, text in known if text)


def scalars(point: Record) -> dict[str, float]:
    """The numbers of a record to draw as curves; the floor's only if the row has one.

    Floor, expected, compiled, measured and host are told apart by the first word of their names;
    terms of a time bear its name and theirs, such as `floor_kv_cache_ms`.
    """
    numbers = {}
    if point.ran:
        median = point.step_s["median"]
        tokens = point.batch * (point.tokens_per_sequence or 1)
        numbers["measured_step_ms"] = median * 1e3
        numbers["measured_time_per_token_ms"] = median * 1e3 / tokens
        numbers |= _in_ms("expected", point.expected_s, point.expected_terms_s)
        if point.host_s:
            numbers["host_call_ms"] = point.host_s["median"] * 1e3
        for name in ("resident_bytes", "temporary_bytes"):
            if name in (point.compiled or {}):
                numbers[f"compiled_{name}"] = float(point.compiled[name])
    if point.ok:
        numbers |= _in_ms("floor", point.floor_s, point.floor_terms_s)
        numbers |= _in_ms("floor_at_read_rate", point.read_floor_s, {})
        for name in ("fraction_of_floor", "fraction_of_read_floor"):
            if getattr(point, name) is not None:
                numbers[name] = getattr(point, name)
    return numbers


def _in_ms(name: str, seconds: float | None, terms: Mapping[str, float] | None) -> dict[str, float]:
    """A time and its terms; of a step without it none."""
    if seconds is None:
        return {}
    found = {f"{name}_{term}_ms": value * 1e3 for term, value in (terms or {}).items()}
    return {f"{name}_ms": seconds * 1e3} | found


def _pixels(path: Path) -> np.ndarray:
    """A PNG file's pixels, [height, width, 3] bytes."""
    from matplotlib.image import imread

    try:
        return (imread(path)[..., :3] * 255).astype("uint8")
    except OSError as error:
        raise OutputError(f"figure is {path} ({error.strerror}); draw it first") from error
