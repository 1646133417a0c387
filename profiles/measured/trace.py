"""Takes profiler traces, and reads from a trace which operations took the time.

A trace is the `.xplane.pb` file that JAX's profiler writes and xprof (`pip install xprof`) or
TensorBoard opens; it is read here without either.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jax
from jax.profiler import ProfileData, ProfileOptions

from profiles.report.files import check_writable
from sharding.error_types import FloorlineError


class TraceError(FloorlineError):
    """A trace that cannot be taken, found or read."""


class Event(NamedTuple):
    """One event of a trace: its device or thread, name, start and duration in seconds."""

    plane: str
    line: str
    name: str
    start_s: float
    duration_s: float
    operation: str = ""  # name of the XLA instruction; empty for other events
    scope: str = ""  # the `jax.named_scope` path; empty if the trace does not have it


class Operation(NamedTuple):
    """All runs of one XLA instruction; its seconds are without those of operations inside it."""

    name: str
    seconds: float
    count: int
    scope: str = ""


@contextlib.contextmanager
def capture(directory: str | Path) -> Iterator[None]:
    """Traces the block, into a new folder below a directory.

    Compile and warm up first, and wait for results inside the block: compilation would bury the
    steps and unfinished steps would be cut off.

    Raises:
      TraceError: the profiler is already running or refuses to start or stop.
      OutputError: the directory cannot be written to.
    """
    check_writable(directory)
    options = ProfileOptions()
    # Events of Python functions would outnumber operations, and slow down the host.
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    # The profiler names folders by the second, so a second trace could overwrite the first.
    options.session_id = datetime.now().strftime("%Y_%m_%d_%H_%M_%S_%f")
    with _profiler(directory, "started"):
        jax.profiler.start_trace(str(directory), profiler_options=options)
    try:
        yield
    finally:
        with _profiler(directory, "written"):
            jax.profiler.stop_trace()


@contextlib.contextmanager
def _profiler(directory: str | Path, done: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        remedy = "take one trace at a time, with nothing else profiling this process"
        message = f"trace to {directory} is not {done} ({why}); {remedy}"
        raise TraceError(message) from error


def newest(directory: str | Path) -> Path:
    """The trace file below a directory that was written last.

    Raises:
      TraceError: there is no trace.
    """
    files = sorted(Path(directory).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise TraceError(f"trace in {directory} is missing; run with --trace to write one")
    return files[-1]


def read(directory: str | Path) -> list[Event]:
    """All events of the newest trace below a directory.

    Raises:
      TraceError: there is no trace, or it is not one.
    """
    path = newest(directory)
    try:
        return [
            _event(plane.name, line.name, event)
            for plane in ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
        ]
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise TraceError(f"trace {path} is unreadable ({why}); take it again") from error


def _event(plane: str, line: str, event) -> Event:
    stats = {name: value for name, value in event.stats if name in ("hlo_op", "tf_op")}
    operation = str(stats.get("hlo_op", ""))
    if line == "XLA Ops" and not operation:  # on a TPU the name is the text of the instruction
        operation = event.name.split(" = ")[0].removeprefix("%")
    start, duration = event.start_ns * 1e-9, event.duration_ns * 1e-9
    scope = str(stats.get("tf_op", ""))
    scope = scope if "/" in scope else ""  # on a GPU this can be the module's name
    return Event(plane, line, event.name, start, duration, operation, scope)


def scopes(hlo_text: str) -> dict[str, str]:
    """Each instruction's `jax.named_scope` path, from `compiled.as_text()`.

    CPU traces have only names of instructions; the scope tells their part of the model.
    """
    pattern = r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"'
    return dict(re.findall(pattern, hlo_text, re.MULTILINE))


def top_operations(
    directory: str | Path, n: int = 10, scopes: Mapping[str, str] | None = None
) -> list[Operation]:
    """The XLA operations of the newest trace that took longest, over all devices and threads.

    Args:
      directory: the directory that traces were written to.
      n: number of operations to return.
      scopes: scope by instruction, for traces without scopes.

    Returns:
      At most n operations, longest first; their seconds are added up over all devices.
    """
    totals: dict[str, Operation] = {}
    events = [event for event in read(directory) if event.operation]
    for event, seconds in _own_seconds(events):
        scope = event.scope or (scopes or {}).get(event.operation, "")
        so_far = totals.get(event.operation, Operation(event.operation, 0.0, 0, scope))
        totals[event.operation] = so_far._replace(
            seconds=so_far.seconds + seconds, count=so_far.count + 1
        )
    return sorted(totals.values(), key=lambda operation: -operation.seconds)[:n]


def _own_seconds(events: Sequence[Event]) -> list[tuple[Event, float]]:
    """Each event's duration, less the durations of events directly inside it on its line.

    A loop or a call lasts as long as its body, whose operations have events of their own.
    """
    shares: list[list] = []
    ordered = sorted(events, key=lambda e: (e.plane, e.line, e.start_s, -e.duration_s))
    for _, line in groupby(ordered, key=lambda event: (event.plane, event.line)):
        open_events: list[list] = []
        for event in line:
            while open_events and event.start_s >= _end(open_events[-1][0]):
                open_events.pop()
            if open_events:
                open_events[-1][1] -= event.duration_s
            open_events.append([event, event.duration_s])
            shares.append(open_events[-1])
    return [(event, max(seconds, 0.0)) for event, seconds in shares]


def _end(event: Event) -> float:
    return event.start_s + event.duration_s
