"""What an output folder holds of an earlier run, and how an unfinished sweep goes on from it.

A row is finished when it has `MIN_ROUNDS` samples, or a status that says why it has none. Finished
rows of an unfinished sweep are taken over; a finished sweep is measured anew. A folder of another
model, of other versions or of other devices is refused, so that nothing in it is lost.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from profiles.measured.peak_rates import Rates
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.row_records import RowRecords
from profiles.measured.rows import Failure, SweepRow
from profiles.measured.step_record import kernels_of
from profiles.report.document import read_document, versions
from profiles.report.partitioning import partitioning
from profiles.report.record import Record
from profiles.report.titles import text_of
from sharding import processes
from sharding.error_types import UsageError

MIN_ROUNDS = 5
FAILED = "does_not_fit", "out_of_memory", "unsupported"
_VERSIONS = "jax", "jaxlib", "flax", "libtpu", "floorline"  # those that decide a step's time
_KEY = (
    *("phase", "batch", "slots", "prompt_length", "devices", "mesh"),
    *("layout", "attention", "expert_parallel", "collectives", "cache_layout", "cache_attention"),
    *("dtype", "weight_dtype", "kv_dtype", "gpu_kernels"),
)
# What a record has from this run alone; all else that it lacks is taken from the earlier one.
_OF_A_RUN = "status", "message", "price", "usd_per_million_tokens"


class Earlier(NamedTuple):
    """The unfinished sweep that a run goes on with.

    Attributes:
      started: when it began, ISO 8601.
      points: records of its steps and chunks.
      prompts: records of its whole prompts.
      rates: samples of the rates of its devices.
    """

    started: str
    points: list[Record]
    prompts: list[Record]
    rates: Rates

    @property
    def traced(self) -> bool:
        """Whether it may have written traces: it does after the last round of a row's samples."""
        samples = (point.step_s["samples"] for point in self.points if point.ran)
        return max(map(len, samples), default=0) >= MIN_ROUNDS


def earlier_run(folder: Path, settings: dict, device_kind: str) -> Earlier | None:
    """The unfinished sweep in a folder, read by process 0 for all; None to measure every row.

    Args:
      folder: the output folder.
      settings: those of this run, by `Sweep.settings`.
      device_kind: JAX's name of the devices.

    Raises:
      UsageError: what the folder holds must not be overwritten by this run, or cannot be read.
    """
    found = processes.from_first_process(lambda: _unfinished(folder, settings, device_kind))
    if found is None:
        return None
    points, prompts = (list(map(Record.from_json, found[name])) for name in ("points", "prompts"))
    return Earlier(found["started"], points, prompts, found["rates"])


def _unfinished(folder: Path, settings: dict, device_kind: str) -> dict | None:
    path = folder / "profile.json"
    if not path.exists():
        return None
    found, held = _read(path)
    identity = {"model": settings["model"], "weights": settings["weights"] if held else None}
    now = identity | _versions(versions()) | {"device kind": device_kind}
    if other := _differing(found["identity"], now):
        raise UsageError(
            f"output folder is {folder}, whose run has {other}; give another --output_dir, or "
            "remove it"
        )
    if found["complete"]:
        return None
    if other := _differing(held, settings):
        raise UsageError(
            f"output folder is {folder}, whose unfinished sweep has {other}; go on with its "
            "command, give another --output_dir, or remove it"
        )
    return {name: found[name] for name in ("started", "rates", "points", "prompts")}


def _read(path: Path) -> tuple[dict, dict]:
    """What a document holds of its run, as JSON has it, and the run's settings if it has them.

    Raises:
      UsageError: the document is damaged.
    """
    try:
        document = read_document(path)
        held = document.get("settings", {})
        points, prompts = document["points"], document.get("prompts", [])
        model = {"model": held.get("model") or points[0].model, "weights": held.get("weights")}
        versions_then = _versions(document["versions"])
        return {
            "identity": model | versions_then | {"device kind": document["device_kind"]},
            "complete": document.get("complete", True),
            "started": document["started"],
            "rates": document["bandwidth"].get("samples", {}),
            "points": [point.to_json() for point in points],
            "prompts": [prompt.to_json() for prompt in prompts],
        }, held
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:80]
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {why}); remove it, or give another "
            "--output_dir"
        ) from error


def _versions(found: Mapping[str, str]) -> dict[str, str | None]:
    return {name: found.get(name) for name in _VERSIONS}


def _differing(earlier: Mapping, now: Mapping) -> str:
    """The first entry that differs, with both values; empty if none does."""
    for name in dict.fromkeys((*now, *earlier)):
        values = [each.get(name) for each in (earlier, now)]
        if values[0] != values[1] and name == "config":
            return "another configuration of the model, such as of --max_context"
        if values[0] != values[1]:
            was, is_now = (_words(value) for value in values)
            return f"{name.replace('_', ' ')} {was}, not {is_now}"
    return ""


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def take_over(rows: Sequence[SweepRow], earlier: Earlier, trace: Path | None) -> int:
    """Gives rows what an earlier run found of them, those that were finished.

    Args:
      rows: all of the sweep.
      earlier: what it found.
      trace: the folder of traces, one for each finished row that ran; None for a sweep without.

    Returns:
      How many.
    """
    untraced = set(processes.from_first_process(lambda: _untraced(rows, trace)))
    points: dict[tuple, list[Record]] = {}
    for point in earlier.points:
        points.setdefault(_key(point), []).append(point)
    prompts = {_key(prompt): [prompt] for prompt in earlier.prompts}
    for row in rows:
        key = _key(_described(row))
        found = RowRecords(points.get(key, []), prompts.get(key, []))
        if not found.passes or not _finished(row, found):
            continue
        if row.name not in untraced or found.passes[0].status in FAILED:
            _restore(row, found)
    return sum(row.kept is not None for row in rows)


def _untraced(rows: Sequence[SweepRow], trace: Path | None) -> list[str]:
    """Names of the rows whose traces are wanted and not there."""
    if trace is None:
        return []
    return [row.name for row in rows if not any((trace / row.name).rglob("*.xplane.pb"))]


def merged(kept: RowRecords | None, now: RowRecords) -> RowRecords:
    """Records of a row whose floors are taken anew, with what else an earlier run knew of it."""
    if kept is None:
        return now
    pairs = (zip(*both, strict=True) for both in zip(kept, now, strict=True))
    return RowRecords(*([_merge(*pair) for pair in each] for each in pairs))


def _merge(was: Record, now: Record) -> Record:
    known = {name: value for name, value in was.to_json().items() if name not in _OF_A_RUN}
    return Record(**known) | now


def _described(row: SweepRow) -> Record:
    """The part of a row's records that tells it from others of its sweep."""
    step, prompts = row.step, isinstance(row.step, RepeatedPrompt)
    size = {"prompt_length": step.length} if prompts else {"context": step.context}
    return Record(
        phase="prefill" if prompts else "decode",
        batch=step.batch,
        slots=step.slots,
        devices=row.engine.mesh.size,
        **size,
        **partitioning(row.engine.config, row.engine.placement, prompts).to_json(),
        **row.engine.dtypes.names(),
        gpu_kernels=kernels_of(row.engine),
    )


def _key(record: Record) -> tuple:
    """Alike for all chunks of a prompt and for their sum."""
    context = record.context if record.prompt_length is None else None
    return (context, *(text_of(record, field) for field in _KEY))


def _finished(row: SweepRow, found: RowRecords) -> bool:
    if found.passes[0].status in FAILED:
        return True
    records = found.passes
    if isinstance(row.step, RepeatedPrompt):
        if len(found.prompts) != 1 or len(found.passes) != len(row.step.chunks):
            return False
        records = [*found.passes, *found.prompts]
    return all(record.ran and len(record.step_s["samples"]) >= MIN_ROUNDS for record in records)


def _restore(row: SweepRow, found: RowRecords) -> None:
    row.kept, first = found, found.passes[0]
    if first.status in FAILED:
        row.failure = Failure(first.status, first.message)
    elif isinstance(row.step, RepeatedPrompt):
        row.step.samples = found.prompts[0].step_s["samples"]
        for chunk, record in zip(row.step.chunks, found.passes, strict=True):
            chunk.samples, chunk.burst = record.step_s["samples"], record.steps_per_sample
    else:
        row.step.samples, row.step.burst = first.step_s["samples"], first.steps_per_sample
        touched = (first.experts_touched or {}).get("measured")
        row.step.touched = [] if touched is None else [touched]
        row.dequantized_bytes = first.bytes_per_chip.get("weights_unpacked", 0)
