"""Measures decode steps or prompts over meshes, batches and lengths, each beside its floor.

Rows that share a memory are all compiled first and then take turns, so that a slow minute of the
machine affects every row alike; peak rates are sampled before, between and after. After every round
the caller gets all results so far, so that a run that ends early loses nothing.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from decode.chunks import check_chunk, default_chunk
from decode.engine import Engine
from decode.load import ModelSource
from model.config import check_length
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.chip import Peaks, published_peaks
from profiles.floor.memory_needed import free_memory, need_of, refusals, shares_memory
from profiles.measured.bandwidth import PeakMeter, cpu_cache
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.row_records import Basis, Expect, row_records
from profiles.measured.rows import (
    Failure,
    Inspect,
    Placing,
    SweepRow,
    describe_interrupted_rows,
    full_sample_count,
    load,
)
from profiles.measured.timing import RepeatedStep, check_slots, slots_for
from profiles.measured.trace import capture
from profiles.report.progress import progress
from profiles.report.record import Record
from sharding import processes
from sharding.devices import default_platform, devices
from sharding.error_types import UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape

MIN_ROUNDS = 5
MAX_ROUNDS = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure.

    Attributes:
      source: the model.
      layouts: the layouts to measure.
      shapes: the meshes, each with every layout.
      batches: numbers of sequences per step.
      contexts: numbers of tokens in the cache when a decode step starts; () to measure prompts.
      prompt_lengths: tokens of prompts, which are measured chunk by chunk in place of decode steps.
      chunk: tokens of a prompt that run at once; the platform's default if None.
      slots: tokens of each sequence that the cache has room for; if None, just enough.
      dtype_sets: how numbers are stored.
      auto_weight_layout: whether the compiler chooses weights' memory layout, for the largest step.
      seconds: time to spend on samples; `MIN_ROUNDS` are taken even if they need longer.
      bandwidth: bytes per second of one chip (on a CPU, of its memory), in place of the published
        or measured figure.
      peak_flops: FLOP/s of one chip, in place of the published or measured figure.
      price: USD per chip-hour, for cost.
      trace: folder for a profiler trace of one burst of every row; None for no trace.
      expect: the expected time of a pass, as fields of its record.
      inspect: tells what the compiled program of a row is like, as fields of its record.
    """

    source: ModelSource
    layouts: Sequence[Layout]
    shapes: Sequence[MeshShape]
    batches: Sequence[int]
    contexts: Sequence[int]
    dtype_sets: Sequence[Dtypes]
    prompt_lengths: Sequence[int] = ()
    chunk: int | None = None
    slots: int | None = None
    auto_weight_layout: bool = False
    seconds: float = 20.0
    bandwidth: float | None = None
    peak_flops: float | None = None
    price: float | None = None
    trace: Path | None = None
    expect: Expect = lambda engine, pass_, peaks: Record()
    inspect: Inspect = lambda row: Record()

    def check(self) -> None:
        """Refuses a sweep that cannot run, before anything is allocated.

        Raises:
          UsageError: a size is not positive or too large, or a layout cannot divide the model.
          WeightsError: a checkpoint is quantized, and other dtypes are asked for.
        """
        kind, new = ("prompt_length", 0) if self.prompt_lengths else ("context", 1)
        for name, values in (("batch", self.batches), (kind, self.lengths)):
            for value in values:
                if value < 1:
                    raise UsageError(f"{name} is {value}; use positive integers")
        longest = max(self.lengths)
        check_length(self.source.config, kind, longest, new)
        if self.chunk is not None:
            check_chunk(self.chunk)
        check_slots(self.slots, kind, longest, new)
        for layout, shape, dtypes in self.placings():
            self.source.check_dtypes(dtypes)
            placement = settle(self.source.config, dtypes, layout, shape)
            for batch in self.batches:
                placement.check_batch(batch)

    @property
    def lengths(self) -> Sequence[int]:
        """Of prompts, or of what is in the cache."""
        return self.prompt_lengths or self.contexts

    def slots_of(self, length: int) -> int:
        """Tokens that the cache has room for, in the rows of one length."""
        return self.slots or slots_for(length)

    def placings(self) -> list[Placing]:
        """Every layout on every mesh with every set of dtypes, without duplicates."""
        distinct: list[Placing] = []
        for placing in itertools.product(self.layouts, self.shapes, self.dtype_sets):
            distinct += [placing] * (placing not in distinct)
        return distinct

    def __len__(self) -> int:
        return len(self.placings()) * len(self.batches) * len(self.lengths)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The results of a sweep so far.

    Attributes:
      points: records of the steps that were measured or that failed: of prompts, each chunk.
      bandwidth: the peak rates that floors divide by, with their samples.
      error: the exception of the first row that failed, if there is one.
      prompts: records of whole prompts, the sums of their chunks.
    """

    points: list[Record]
    bandwidth: dict
    error: Exception | None = None
    prompts: list[Record] = dataclasses.field(default_factory=list)


class Interrupted(KeyboardInterrupt):
    """Raised for Ctrl-C after something was measured; the message says which rows are kept."""


def run(
    sweep: Sweep,
    report: Callable[[str], None],
    keep: Callable[[SweepResult], None] = lambda _: None,
) -> SweepResult:
    """Measures every row.

    Args:
      sweep: what to measure.
      report: called with a line that says what is being done.
      keep: called with the results so far, after every round of samples and on an interrupt.

    Raises:
      UsageError: the sweep cannot run; raised before anything is allocated.
      FloorlineError: the model cannot be loaded, or with several processes a row failed.
      Interrupted: Ctrl-C after something was measured.
    """
    sweep.check()
    if not shares_memory():  # refuses an unknown chip before the long work
        _published(sweep)
    going = _Run(sweep, report, keep)
    # On accelerators one placing at a time has all memory; CPU meshes take turns instead.
    placings = sweep.placings()
    groups = [placings] if shares_memory() else [[placing] for placing in placings]
    for group in groups:
        going.group(group, sweep.seconds / len(groups))
    return going.outcome()


class _Run:
    """State of a running sweep: rows of the current group, and records of earlier groups."""

    def __init__(
        self, sweep: Sweep, report: Callable[[str], None], keep: Callable[[SweepResult], None]
    ):
        self.sweep, self.report, self.keep = sweep, report, keep
        self.points: list[Record] = []
        self.prompts: list[Record] = []
        self.measured = 0  # rows of earlier groups that have samples
        self.rates: dict[str, dict[str, list[float]]] = {}
        self.error: Exception | None = None
        self.rows: list[SweepRow] = []
        self.meters: list[PeakMeter] = []

    def group(self, placings: Sequence[Placing], seconds: float) -> None:
        """Measures the rows of placings whose weights are loaded at the same time."""
        name = self.sweep.source.config.name
        try:
            self.report(f"loading {name} onto {_devices([shape for _, shape, _ in placings])}")
            self.rows = _rows(self.sweep, self.report, placings)
            self.meters = [
                PeakMeter(mesh, self.sweep.dtype_sets[0].dtype)
                for mesh in dict.fromkeys(row.engine.mesh for row in self.rows)
            ]
            self._measure(seconds)
            if self.sweep.trace:
                _trace(self.rows, self.sweep.trace)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        done = self.outcome()
        self.points, self.prompts, self.error = done.points, done.prompts, done.error
        self.measured, self.rates = self._measured(), self._rates()
        self.rows, self.meters = [], []  # frees the weights of these meshes

    def outcome(self) -> SweepResult:
        """All results so far; the current group's floors use the rates measured so far."""
        bandwidth = _bandwidth(self.sweep, self._rates())
        sweep, full_samples = self.sweep, full_sample_count(self.rows, MIN_ROUNDS)
        basis = Basis(full_samples, sweep.price, sweep.auto_weight_layout, sweep.expect)
        found = [
            row_records(row, _peaks(sweep, bandwidth, row.engine), basis)
            for row in self.rows
            if row.failure or row.step.samples
        ]
        errors = (row.failure.error for row in self.rows if row.failure)
        return SweepResult(
            self.points + [record for each in found for record in each.passes],
            bandwidth,
            next(filter(None, [self.error, *errors]), None),
            self.prompts + [record for each in found for record in each.prompts],
        )

    def _measured(self) -> int:
        """How many rows have samples and did not fail, those of earlier groups too."""
        return self.measured + sum(not r.failure and bool(r.step.samples) for r in self.rows)

    def _rates(self) -> dict[str, dict[str, list[float]]]:
        return self.rates | {_devices([m.mesh.shape]): m.rates() for m in self.meters}

    def _measure(self, seconds: float) -> None:
        for row in progress(self.rows, lambda row: f"compiling {row}"):
            row.compile(self.sweep.inspect)
        for row in self.rows:
            row.lengthen(seconds / MIN_ROUNDS / len(self.rows))
        for meter in self.meters:
            meter.sample(repeats=3)
        stop = time.perf_counter() + seconds
        for round_number in progress(
            range(1, MAX_ROUNDS + 1), lambda round_number: f"measuring, round {round_number}"
        ):
            for row in self.rows:
                row.sample()
            self.keep(self.outcome())
            for meter in self.meters:
                meter.sample(repeats=1)
            # All processes must run the same steps, so process 0's clock decides.
            if round_number >= MIN_ROUNDS and processes.from_first_process(
                lambda: time.perf_counter() > stop
            ):
                break
            if all(row.failure for row in self.rows):
                break

    def _interrupted(self) -> None:
        """Keeps the results of the current group, and says which rows are kept.

        Raises:
          Interrupted: something was measured.
        """
        if any(row.step.samples for row in self.rows):
            self.keep(self.outcome())
        if measured := self._measured():
            raise Interrupted(
                describe_interrupted_rows(measured, len(self.sweep), self.rows, MIN_ROUNDS)
            )


def _rows(
    sweep: Sweep, report: Callable[[str], None], placings: Sequence[Placing]
) -> list[SweepRow]:
    """All rows of a group; the weights of rows that fit are loaded."""
    sizes = list(itertools.product(sweep.lengths, sweep.batches))
    refused = _refused(sweep, placings, sizes)
    rows = []
    for number, placing in enumerate(placings):
        reasons = refused[number * len(sizes) :][: len(sizes)]
        fitting = [
            (sweep.slots_of(length), batch)
            for (length, batch), reason in zip(sizes, reasons, strict=True)
            if not reason
        ]
        engine, failure = load(
            sweep.source, placing, fitting, sweep.chunk, sweep.auto_weight_layout, report
        )
        repeated = RepeatedPrompt if sweep.prompt_lengths else RepeatedStep
        for (length, batch), reason in zip(sizes, reasons, strict=True):
            row_failure = Failure("does_not_fit", reason) if reason else failure
            step = repeated(engine, batch, length, sweep.slots_of(length))
            rows.append(SweepRow(step, row_failure))
    return rows


def _refused(
    sweep: Sweep, placings: Sequence[Placing], sizes: Sequence[tuple[int, int]]
) -> list[str]:
    """Why each row of these placings, lengths and batches does not fit; "" for a row that does."""
    config, chunk = sweep.source.config, sweep.chunk or default_chunk(default_platform())
    needs = [
        need_of(
            config,
            placement,
            dtypes,
            batch=batch,
            slots=sweep.slots_of(length),
            prompt=(length, chunk) if sweep.prompt_lengths else None,
            engine=number,
        )
        for number, (layout, shape, dtypes) in enumerate(placings)
        for placement in [settle(config, dtypes, layout, shape)]
        for length, batch in sizes
    ]
    available = (
        processes.from_first_process(free_memory) if shares_memory() else _published(sweep).capacity
    )
    return [""] * len(needs) if available is None else refusals(needs, available)


def _trace(rows: Sequence[SweepRow], directory: Path) -> None:
    with capture(directory) if processes.is_first() else contextlib.nullcontext():
        for row in rows:
            row.rehearse()


def _peaks(sweep: Sweep, bandwidth: dict, engine: Engine) -> Peaks:
    """Peaks of each device; the fake devices of a CPU count as one chip, whose peaks they share."""
    if not shares_memory():
        published = _published(sweep)
        read_rate = bandwidth["measured_bytes_per_s"] / published.devices_per_chip
        return dataclasses.replace(published, read_rate=read_rate)
    devices = engine.mesh.size
    return Peaks(
        bandwidth=bandwidth["bytes_per_s"] / devices,
        flops=bandwidth["peak_flops_per_s"] / devices,
        source=bandwidth["source"],
        on_chip=cpu_cache() / devices,
        devices_per_chip=devices,
    )


def _published(sweep: Sweep) -> Peaks:
    """Published peaks of each device, for the arithmetic that all dtypes of the sweep share."""
    dtype = sweep.dtype_sets[0].arithmetic
    return published_peaks(devices()[0], sweep.bandwidth, sweep.peak_flops, dtype)


def _bandwidth(sweep: Sweep, rates: dict[str, dict[str, list[float]]]) -> dict:
    """The rates of one chip that floors divide by, and all measured samples.

    Args:
      sweep: gives rates to use in place of measured or published ones.
      rates: samples by mesh and kernel, as `PeakMeter.rates` gives them: of all its devices.
    """
    peaks = None if shares_memory() else _published(sweep)
    best = {"read": 0.0, "matmul": 0.0}
    for mesh, kernels in rates.items():
        chips = math.prod(map(int, mesh.split("x"))) / peaks.devices_per_chip if peaks else 1
        for name, samples in kernels.items():
            kind = name if name in best else "read"
            best[kind] = max(best[kind], max(samples) / chips)
    measured = {
        "measured_bytes_per_s": best["read"],
        "measured_flops_per_s": best["matmul"],
        "samples": rates,
    }
    if peaks:
        return {
            "bytes_per_s": peaks.bandwidth * peaks.devices_per_chip,
            "source": peaks.source,
            "peak_flops_per_s": peaks.flops * peaks.devices_per_chip,
            **measured,
        }
    return {
        "bytes_per_s": sweep.bandwidth or measured["measured_bytes_per_s"],
        "source": "given" if sweep.bandwidth else "measured",
        "peak_flops_per_s": sweep.peak_flops or measured["measured_flops_per_s"],
        "shared": "all devices of this CPU mesh share one memory, so its rate is that of the "
        "whole mesh and each device's floor takes its share",
        **measured,
    }


def _devices(shapes: Sequence[MeshShape]) -> str:
    return " and ".join(dict.fromkeys("x".join(map(str, shape.values())) for shape in shapes))
