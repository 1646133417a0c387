"""Decode steps over meshes, batches and contexts, a row each, held against its floor.

All rows of a memory are compiled first and then take turns, so that a slow minute of the machine
falls on every row alike; peak rates are sampled before, between and after. After every round the
caller is given all that is known, so that a run which ends early has lost nothing.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from decode.engine import Engine
from decode.load import ModelSource
from model.config import check_length
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.chip import Peaks, published_peaks
from profiles.floor.memory import free_memory, need_of, refusals, shares_memory
from profiles.measured.bandwidth import PeakMeter
from profiles.measured.record import decode_record
from profiles.measured.rows import Failure, Placing, Row, kept_words, load, most_samples
from profiles.measured.timing import slots_for
from profiles.measured.trace import capture
from profiles.report.numbers import ms
from profiles.report.progress import progress
from profiles.report.record import BytesPerChip, Record
from sharding import processes
from sharding.devices import devices
from sharding.error_types import UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape

LEAST_ROUNDS = 5
MOST_ROUNDS = 25
CPU_CACHES = Path("/sys/devices/system/cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure.

    Attributes:
      source: the model.
      layouts: its partitionings.
      shapes: meshes to run on, each with every layout.
      batches: sequences per step.
      contexts: tokens in the cache when a step starts.
      dtype_sets: how numbers are stored.
      auto_weight_layout: weights lie in memory as the compiler chooses for the largest step.
      seconds: time to spend on samples, beyond the least number of rounds.
      bandwidth: bytes per second of one chip (of a CPU's whole memory), in place of the published
        or measured figure.
      peak_flops: FLOP/s of one chip, likewise.
      price: USD per chip-hour, for cost.
      trace: folder for a profiler trace of one burst of every case; None for no trace.
    """

    source: ModelSource
    layouts: Sequence[Layout]
    shapes: Sequence[MeshShape]
    batches: Sequence[int]
    contexts: Sequence[int]
    dtype_sets: Sequence[Dtypes]
    auto_weight_layout: bool = False
    seconds: float = 20.0
    bandwidth: float | None = None
    peak_flops: float | None = None
    price: float | None = None
    trace: Path | None = None

    def check(self) -> None:
        """Refuses what cannot run, before anything is allocated.

        Raises:
          UsageError: a size that is not positive or does not fit, or a layout that does not.
          WeightsError: a form that a checkpoint is not in.
        """
        for name, values in (("batch", self.batches), ("context", self.contexts)):
            for value in values:
                if value < 1:
                    raise UsageError(f"{name} is {value}; use positive integers")
        check_length(self.source.config, "context", max(self.contexts), 1)
        for layout, shape, dtypes in self.placings():
            self.source.check_form(dtypes)
            placement = settle(self.source.config, dtypes, layout, shape)
            for batch in self.batches:
                placement.check_batch(batch)

    def placings(self) -> list[Placing]:
        """Every layout on every mesh, with weights in every form; each once."""
        found: list[Placing] = []
        for placing in itertools.product(self.layouts, self.shapes, self.dtype_sets):
            found += [placing] * (placing not in found)
        return found

    def __len__(self) -> int:
        return len(self.placings()) * len(self.batches) * len(self.contexts)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep found so far.

    Attributes:
      points: a record for every row that was measured or that failed.
      bandwidth: the rates that floors were taken at.
      error: what the first row that failed raised, if any did.
    """

    points: list[Record]
    bandwidth: dict
    error: Exception | None = None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C once something was measured; the message says which rows are kept."""


def run(
    sweep: Sweep,
    report: Callable[[str], None],
    keep: Callable[[SweepResult], None] = lambda _: None,
) -> SweepResult:
    """Measures every row.

    Args:
      sweep: what to measure.
      report: told in a line what goes on.
      keep: given what was found so far after every round of samples, and when interrupted.

    Raises:
      UsageError: before anything is allocated.
      FloorlineError: the model cannot be loaded; where many processes run, a row failed.
      Interrupted: by Ctrl-C, once something was measured.
    """
    sweep.check()
    if not shares_memory():  # an unknown chip is refused before the long work, not after
        _published(sweep)
    going = _Run(sweep, report, keep)
    # Where each mesh has its own memory, one at a time has all of it; CPU meshes take turns.
    placings = sweep.placings()
    groups = [placings] if shares_memory() else [[placing] for placing in placings]
    for group in groups:
        going.group(group, sweep.seconds / len(groups))
    return going.outcome()


class _Run:
    """A sweep as it goes: rows of the group that is measured now, records of those before it."""

    def __init__(
        self, sweep: Sweep, report: Callable[[str], None], keep: Callable[[SweepResult], None]
    ):
        self.sweep, self.report, self.keep = sweep, report, keep
        self.points: list[Record] = []
        self.rates: dict[str, dict[str, list[float]]] = {}
        self.error: Exception | None = None
        self.rows: list[Row] = []
        self.meters: list[PeakMeter] = []

    def group(self, placings: Sequence[Placing], seconds: float) -> None:
        """Measures the rows of layouts, meshes and forms whose weights are loaded at once."""
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
        self.points, self.error, self.rates = done.points, done.error, self._rates()
        self.rows, self.meters = [], []  # and with them these meshes' weights

    def outcome(self) -> SweepResult:
        """All records so far, those of this group at the rates so far."""
        bandwidth = _bandwidth(self.sweep, self._rates())
        most = most_samples(self.rows, LEAST_ROUNDS)
        known = [row for row in self.rows if row.failure or row.step.samples]
        records = [_record(row, self.sweep, bandwidth, most) for row in known]
        errors = (row.failure.error for row in self.rows if row.failure)
        return SweepResult(
            self.points + records, bandwidth, next(filter(None, [self.error, *errors]), None)
        )

    def _rates(self) -> dict[str, dict[str, list[float]]]:
        return self.rates | {_devices([m.mesh.shape]): m.rates() for m in self.meters}

    def _measure(self, seconds: float) -> None:
        for row in progress(self.rows, lambda row: f"compiling {row}"):
            row.compile()
        for row in self.rows:
            row.lengthen(seconds / LEAST_ROUNDS / len(self.rows))
        for meter in self.meters:
            meter.sample(repeats=3)
        stop = time.perf_counter() + seconds
        for turn in progress(range(1, MOST_ROUNDS + 1), lambda turn: f"measuring, round {turn}"):
            for row in self.rows:
                row.sample()
            self.keep(self.outcome())
            for meter in self.meters:
                meter.sample(repeats=1)
            # One clock for all processes: they must run the same steps.
            if turn >= LEAST_ROUNDS and processes.agree(lambda: time.perf_counter() > stop):
                break
            if all(row.failure for row in self.rows):
                break

    def _interrupted(self) -> None:
        """Keeps what this group has, and says which rows are kept.

        Raises:
          Interrupted: something was measured.
        """
        if any(row.step.samples for row in self.rows):
            self.keep(self.outcome())
        measured = sum(point.ran for point in self.points)
        measured += sum(not row.failure and bool(row.step.samples) for row in self.rows)
        if measured:
            raise Interrupted(kept_words(measured, len(self.sweep), self.rows, LEAST_ROUNDS))


def _rows(sweep: Sweep, report: Callable[[str], None], placings: Sequence[Placing]) -> list[Row]:
    """All rows of a group, their weights loaded where they fit."""
    sizes = list(itertools.product(sweep.contexts, sweep.batches))
    refused = _refused(sweep, placings, sizes)
    rows = []
    for number, placing in enumerate(placings):
        mine = refused[number * len(sizes) :][: len(sizes)]
        fitting = [size for size, why in zip(sizes, mine, strict=True) if not why]
        engine, failure = load(sweep.source, placing, fitting, sweep.auto_weight_layout, report)
        for (context, batch), why in zip(sizes, mine, strict=True):
            left_out = Failure("does_not_fit", why) if why else failure
            rows.append(Row(engine, batch, context, left_out))
    return rows


def _refused(
    sweep: Sweep, placings: Sequence[Placing], sizes: Sequence[tuple[int, int]]
) -> list[str]:
    """Why rows of these placings, each at these contexts and batches, do not fit; "" if they do."""
    config = sweep.source.config
    needs = [
        need_of(config, placement, dtypes, batch=batch, slots=slots_for(context), engine=number)
        for number, (layout, shape, dtypes) in enumerate(placings)
        for placement in [settle(config, dtypes, layout, shape)]
        for context, batch in sizes
    ]
    there = processes.agree(free_memory) if shares_memory() else _published(sweep).capacity
    return [""] * len(needs) if there is None else refusals(needs, there)


def _trace(rows: Sequence[Row], directory: Path) -> None:
    with capture(directory) if processes.first() else contextlib.nullcontext():
        for row in rows:
            row.rehearse()


def _record(row: Row, sweep: Sweep, bandwidth: dict, most: int) -> Record:
    """A row's record; one with fewer than so many samples says so."""
    step, devices = row.step, row.engine.mesh.size
    sizes = {"batch": step.batch, "context": step.context, "slots": step.slots}
    peaks = _peaks(sweep, bandwidth, row.engine)
    if row.failure:
        failed = Record(status=row.failure.status, message=row.failure.message)
        return decode_record(row.engine, peaks, **sizes) | failed
    record = decode_record(
        row.engine,
        peaks,
        **sizes,
        samples=step.samples,
        steps_per_sample=step.burst,
        experts_touched=step.experts_touched,
        price_per_chip_hour=sweep.price,
    )
    if sweep.auto_weight_layout:
        record |= Record(weight_layout="auto")
    if row.engine.dtypes.quantization:
        counted = BytesPerChip(**record.bytes_per_chip, weights_unpacked=row.held)
        record |= Record(bytes_per_chip=counted)
    if (record.fraction_of_floor or 0) > 1:
        record |= Record(
            message=f"measured step is {ms(record.step_s['median'])} ms on {devices} "
            "devices, below its floor; the rates that the floor was taken at must be wrong"
        )
    if len(step.samples) < most:
        few = f"{len(step.samples)} of {most} samples: the run ended early"
        record |= Record(message="; ".join(filter(None, (record.message, few))))
    return record


def _peaks(sweep: Sweep, bandwidth: dict, engine: Engine) -> Peaks:
    """Peaks of each device; all fake devices of a CPU are one chip and share its."""
    if not shares_memory():
        return _published(sweep)
    devices = engine.mesh.size
    return Peaks(
        bandwidth=bandwidth["bytes_per_s"] / devices,
        flops=bandwidth["peak_flops_per_s"] / devices,
        source=bandwidth["source"],
        on_chip=_cpu_cache() / devices,
        devices_per_chip=devices,
    )


def _published(sweep: Sweep) -> Peaks:
    """Peaks of each device in the fastest arithmetic of a step, which is that of all forms."""
    dtype = sweep.dtype_sets[0].arithmetic
    return published_peaks(devices()[0], sweep.bandwidth, sweep.peak_flops, dtype)


def _bandwidth(sweep: Sweep, rates: dict[str, dict[str, list[float]]]) -> dict:
    """The rates of one chip that floors divide by, and every sample measured beside them.

    Args:
      sweep: may give rates of its own.
      rates: samples by mesh and kernel, as `PeakMeter.rates` gives them.
    """
    reads = [kernels[name] for kernels in rates.values() for name in kernels if name != "matmul"]
    measured = {
        "measured_bytes_per_s": max(map(max, reads)),
        "measured_flops_per_s": max(max(kernels["matmul"]) for kernels in rates.values()),
        "samples": rates,
    }
    if not shares_memory():
        peaks = _published(sweep)
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


def _cpu_cache() -> float:
    """Bytes of the CPU's last-level caches together; 32 MiB where the system does not say."""
    domains = {}
    try:
        for cache in CPU_CACHES.glob("cpu[0-9]*/cache/index3"):
            cores = (cache / "shared_cpu_list").read_text()
            domains[cores] = int((cache / "size").read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        domains.clear()
    return sum(domains.values()) or 32 << 20


def _devices(shapes: Sequence[MeshShape]) -> str:
    return " and ".join(dict.fromkeys("x".join(map(str, shape.values())) for shape in shapes))
