"""Times one decode step on the devices that are here, traces it, and explains it; or reads a trace.

The step is timed as it runs, and traced apart: a profiler slows it, and the names of kernels in
CUDA graphs are not in its traces, so that on a GPU the traced step is compiled without them.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from decode.compiler_options import NO_GRAPHS
from decode.compiler_options import known as known_to_xla
from decode.engine import Engine
from profiles.chips.chip import Peaks
from profiles.compiled.inspection import PassProgram
from profiles.explained.attribution import Attribution, attribute
from profiles.explained.explanation import Explanation, explain
from profiles.explained.operations import UNKNOWN, Operations, operations
from profiles.explained.rates import platform_here, rates_of
from profiles.explained.same_step import check_facts, check_program, step_facts
from profiles.floor.block_counts import block_counts
from profiles.floor.passes import Pass
from profiles.hlo.program import parse
from profiles.measured.rows import SweepRow
from profiles.measured.step_record import step_record
from profiles.measured.sweep import Sweep, run
from profiles.measured.timing import RepeatedStep
from profiles.measured.trace import capture, read
from profiles.report.record import Record
from sharding import processes
from sharding.error_types import FloorlineError

TRACED = 8  # steps of a trace
UNIT = Peaks(bandwidth=1.0, flops=1.0, source="given")


@dataclasses.dataclass
class _Seen:
    """What the hooks of a sweep are told of its only row."""

    engine: Engine | None = None
    known: Operations | None = None
    peaks: Peaks | None = None


def explain_live(
    sweep: Sweep, directory: Path, report: Callable[[str], None]
) -> tuple[Explanation, dict] | None:
    """Runs a sweep of one row, with a trace of some of its steps.

    Args:
      sweep: one model in one layout, of one batch and context.
      directory: where the trace is written.
      report: called with a line that says what is being done.

    Returns:
      The explained step and the peak rates as the document has them; None in a process that is not
      the first of several.

    Raises:
      FloorlineError: the step did not run, or the trace cannot be taken or read.
    """
    seen = _Seen()

    def inspect(row: SweepRow) -> Record:
        report(f"tracing {TRACED} steps")
        seen.engine = row.engine
        seen.known = _trace(row.step, directory)
        return sweep.inspect(row)

    def expect(engine: Engine, pass_: Pass, peaks: Peaks) -> Record:
        seen.peaks = peaks
        return sweep.expect(engine, pass_, peaks)

    outcome = run(dataclasses.replace(sweep, inspect=inspect, expect=expect), report)
    if not processes.is_first():
        return None
    record = outcome.points[0]
    if not record.ran:
        raise FloorlineError(f"step is not measured ({record.status}: {record.message})")
    found = attribute(read(directory), seen.known.containers.__contains__)
    return _explained(seen.engine, record, found, seen.known, seen.peaks), outcome.bandwidth


def explain_trace(
    program: PassProgram, directory: Path, bandwidth: float | None, flops: float | None
) -> tuple[Explanation, dict]:
    """Explains the steps of a trace that was taken before, here or on other devices.

    A program for other devices is not at hand: there the trace alone tells the blocks, which those
    of GPUs and TPUs do.

    Args:
      program: the decode step that was traced.
      directory: where the trace is, or a folder above it; the newest one there is read.
      bandwidth: peak bytes per second of one chip, in place of that of the devices here.
      flops: peak FLOP/s of one chip, likewise.

    Returns:
      The explained step, and the peak rates as the document has them.

    Raises:
      TraceError: there is no trace, or none of steps, or it is of another program.
      UsageError: it is of other devices, and their peak rates are not given.
    """
    events = read(directory)
    platform = attribute(events, _is_container).platform
    here = platform_here()
    engine = program.engine()
    check_facts(step_record(engine, UNIT, program.pass_), step_facts(directory))
    peaks, rates = rates_of(program, platform if platform != here else None, bandwidth, flops)
    known = UNKNOWN
    if platform == here:
        known = known_operations(without_graphs(engine), program.pass_)
        check_program(attribute(events, _is_container), known)
    found = attribute(events, lambda name: name in known.containers or _is_container(name))
    record = step_record(
        engine, peaks, program.pass_, samples=[found.step_s], steps_per_sample=found.steps
    )
    if platform != here:
        record |= Record(device_kind=platform)
    return _explained(engine, record, found, known, peaks), rates


def _is_container(operation: str) -> bool:
    """Whether an operation is a loop, a branch or a call, by the name that XLA gives those."""
    return bool(re.fullmatch(r"(while|conditional|call)(\.\d+)*", operation))


def known_operations(engine: Engine, pass_: Pass) -> Operations:
    """The operations of a decode step's program, which is compiled for it."""
    text = engine.lower_decode(pass_.batch, pass_.cache_slots).compile().as_text()
    return operations(parse(text), engine.config)


def without_graphs(engine: Engine) -> Engine:
    """On a GPU the same engine, whose decode steps are compiled without CUDA graphs."""
    if platform_here() != "gpu":
        return engine
    options = dict(each for each in NO_GRAPHS.items() if known_to_xla(engine.mesh, each))
    return Engine(
        engine.config,
        engine.parameters,
        engine.placement,
        engine.mesh,
        engine.dtypes,
        engine.chunk,
        options=options,
    )


def _trace(step: RepeatedStep, directory: Path) -> Operations:
    """Writes a trace of some steps, and tells their operations."""
    engine = without_graphs(step.engine)
    traced = dataclasses.replace(step, engine=engine, samples=[], calls=[], touched=[])
    traced.compile()
    with capture(directory) if processes.is_first() else contextlib.nullcontext():
        traced.rehearse(TRACED)
    traced.release()
    return known_operations(engine, Pass(step.batch, step.context, slots=step.slots))


def _explained(
    engine: Engine, record: Record, found: Attribution, known: Operations, peaks: Peaks
) -> Explanation:
    pass_ = Pass(record.batch, record.context, slots=record.slots)
    touched = (record.experts_touched or {}).get("measured")
    counts = block_counts(engine.config, engine.placement, engine.dtypes, pass_, touched)
    return explain(record, found, known, counts, peaks)
