"""Shares out the wall time of traced steps over the operations that ran in it.

A device of a GPU or TPU has a plane of its own in a trace, with a line for each stream. All fake
devices of a CPU share one plane, whose lines are threads. On each plane every instant belongs to
the operations that run then, in equal parts if there are several: the innermost of each line, and
loops, branches and calls only where nothing else runs, as they may wait for other threads. So the
operations' times and the time in which none runs add up to the wall time exactly, whatever the
number of streams, threads or devices. Planes are averaged.

What this cannot tell: how many threads work at one operation of a CPU, and, where several fake
devices share its cores, which of them has them.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from profiles.measured.trace import Event, TraceError

STEP = "step"
"""The name of the annotation round the launch of every step."""

NAMELESS = "kernel "
"""What the names of kernels begin with that tell no operation."""

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Seconds per step; those of operations, `launches` and `host` add up to `step_s`.

    Attributes:
      steps: number of steps in the trace.
      step_s: wall time from the first operation to the last, over the steps.
      operations: by name, for one device.
      scopes: each operation's scope, where the trace itself has it.
      launches: in which no operation of a step runs, between the first and the last of it.
      host: in which none runs between the steps.
      platform: cpu, gpu or tpu.
    """

    steps: int
    step_s: float
    operations: Mapping[str, float]
    scopes: Mapping[str, str]
    launches: float
    host: float
    platform: str = "cpu"


def attribute(events: Sequence[Event], is_container: Callable[[str], bool]) -> Attribution:
    """Shares out the time of the traced steps.

    Args:
      events: all events of a trace.
      is_container: whether an operation is a loop, a branch or a call, by its name.

    Raises:
      TraceError: there are no steps, or no operations.
    """
    steps, planes = _steps_and_planes(events)
    start = min(event.start_s for plane in planes for event in plane)
    end = max(_end(event) for plane in planes for event in plane)
    totals: dict[str, float] = collections.defaultdict(float)
    host = 0.0
    for plane in planes:
        instants = list(_instants(plane))
        for (begins, ends), running in instants:
            inner = [name for name in running if not is_container(name)] or running
            for name in inner:
                totals[name] += (ends - begins) / len(inner)
        idle = _gaps([interval for interval, _ in instants], start, end)
        host += _between(idle, _bounds(plane, steps))
    parts = steps * len(planes)
    operations = {name: seconds / parts for name, seconds in totals.items()}
    step_s, host = (end - start) / steps, host / parts
    return Attribution(
        steps=steps,
        step_s=step_s,
        operations=operations,
        scopes={event.operation: event.scope for plane in planes for event in plane if event.scope},
        launches=step_s - host - sum(operations.values()),
        host=host,
        platform=_platform(planes[0][0].plane),
    )


def _platform(plane: str) -> str:
    """The kind of devices that a plane is of."""
    found = re.match(r"/device:(\w+)", plane)
    return found[1].lower() if found else "cpu"


def _steps_and_planes(events: Sequence[Event]) -> tuple[int, list[list[Event]]]:
    starts = [event.start_s for event in events if event.name == STEP and not event.operation]
    planes = _planes(events, min(starts, default=0.0))
    if not starts or not planes:
        what = "operations" if starts else "steps"
        remedy = "take it with scripts/explain_step.py, or with --trace of profile_decode.py"
        raise TraceError(f"number of {what} in the trace is 0; {remedy}")
    return len(starts), planes


def _planes(events: Sequence[Event], start: float) -> list[list[Event]]:
    """The operations of each device, or of all devices of a CPU from the first step on.

    XLA:CPU marks with ``end: `` where an operation has ended. Of a device's lines, those that
    repeat others under other names are left out. What runs on a stream without telling its
    operation, as kernels of CUDA graphs do, has the kernel's name.
    """
    planes: dict[str, list[Event]] = collections.defaultdict(list)
    for event in events:
        on_device = event.plane.startswith("/device:")
        if on_device and event.line.startswith("Stream") and not event.operation:
            event = event._replace(operation=f"{NAMELESS}{event.name}")
        if (
            event.operation
            and not event.name.startswith("end: ")
            and "SparseCore" not in event.plane
            and (on_device or event.start_s >= start)
        ):
            planes[event.plane].append(event)
    devices = {name: plane for name, plane in planes.items() if name.startswith("/device:")}
    return [_own_lines(plane) for plane in (devices or planes).values()]


def _own_lines(plane: list[Event]) -> list[Event]:
    lines = {event.line for event in plane}
    kept = {"XLA Ops"} & lines or {line for line in lines if line.startswith("Stream")} or lines
    return [event for event in plane if event.line in kept]


def _instants(plane: Sequence[Event]) -> Iterator[tuple[Interval, list[str]]]:
    """Intervals in which the same operations run, one at most of each line."""
    edges: list[tuple[float, int, str, str]] = []
    ordered = sorted(plane, key=lambda event: (event.line, event.start_s, -event.duration_s))
    for line, of_line in groupby(ordered, key=lambda event: event.line):
        for start, end, name in _innermost(list(of_line)):
            edges += [(start, 1, line, name), (end, 0, line, name)]
    running: dict[str, str] = {}
    for edge, following in pairwise(sorted(edges)):
        time, begins, line, name = edge
        if begins:
            running[line] = name
        elif running.get(line) == name:
            del running[line]
        if running and following[0] > time:
            yield (time, following[0]), list(running.values())


def _innermost(line: Sequence[Event]) -> Iterator[tuple[float, float, str]]:
    """Parts of a line's time with the operation that runs then and has none inside it."""
    open_events: list[Event] = []
    now = 0.0
    for event in (*line, None):
        until = event.start_s if event else float("inf")
        while open_events and _end(open_events[-1]) <= until:
            done = open_events.pop()
            if _end(done) > now:
                yield now, _end(done), done.operation
                now = _end(done)
        if event:
            if open_events and until > now:
                yield now, until, open_events[-1].operation
            now = max(now, until)
            open_events.append(event)


def _gaps(busy: Sequence[Interval], start: float, end: float) -> Iterator[Interval]:
    """The time between `start` and `end` that is in none of these intervals, which are in order."""
    for interval in (*busy, (end, end)):
        if interval[0] > start:
            yield start, interval[0]
        start = max(start, interval[1])


def _bounds(plane: Sequence[Event], steps: int) -> list[Interval]:
    """Where each step ends and the next one begins, by operations that run once in each.

    Several devices of a plane run an operation once each.
    """
    runs: dict[str, list[Event]] = collections.defaultdict(list)
    for event in plane:
        runs[event.operation].append(event)
    (usual, _), *_ = collections.Counter(map(len, runs.values())).most_common(1)
    if usual % steps:
        return []
    each = usual // steps
    once = [sorted(of, key=lambda event: event.start_s) for of in runs.values() if len(of) == usual]
    parts = [[of[n * each : (n + 1) * each] for of in once] for n in range(steps)]
    starts = [min(event.start_s for of in part for event in of) for part in parts]
    ends = [max(_end(event) for of in part for event in of) for part in parts]
    return list(zip(ends[:-1], starts[1:], strict=True))


def _between(gaps: Iterator[Interval], bounds: Sequence[Interval]) -> float:
    """The part of the gaps that lies between steps."""
    return sum(
        max(0.0, min(gap[1], bound[1]) - max(gap[0], bound[0])) for gap in gaps for bound in bounds
    )


def _end(event: Event) -> float:
    return event.start_s + event.duration_s
