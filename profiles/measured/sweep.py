"""Measures decode steps or prompts over meshes, batches and lengths, each beside its floor.

Placings (a layout, a mesh and types) are measured one after the other, so that only one has its
weights in memory. The rows of a placing are all compiled first and then take turns, each with a
cache of its own while it is timed, so that a slow minute of the machine affects all of them alike;
peak rates are sampled before and between. After every round the caller gets all results so far, so
that a run that ends early loses nothing, and a later one can go on from there.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from decode.chunks import default_chunk
from model.layout_check import settle
from profiles.floor.memory_needed import free_memory, need_of, refusal, shares_memory
from profiles.measured.bandwidth import PeakMeter
from profiles.measured.compiling import compile_together
from profiles.measured.peak_rates import Rates, bandwidth_of, peaks_of, published, sample_rates
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.resume import MIN_ROUNDS, Earlier, merged, take_over
from profiles.measured.row_records import Basis, RowRecords, row_records
from profiles.measured.rows import (
    Failure,
    Placing,
    SweepRow,
    describe_interrupted_rows,
    full_sample_count,
    give_back,
    is_out_of_memory,
    load,
    weightless,
)
from profiles.measured.sweep_settings import Sweep
from profiles.measured.timing import RepeatedStep
from profiles.report.progress import progress
from profiles.report.record import Record
from profiles.report.titles import field_text
from sharding import processes
from sharding.devices import default_platform
from sharding.error_types import FloorlineError

MAX_ROUNDS = 25


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
    earlier: Earlier | None = None,
) -> SweepResult:
    """Measures every row.

    Args:
      sweep: what to measure.
      report: called with a line that says what is being done.
      keep: called with the results so far, after every round of samples and on an interrupt.
      earlier: the unfinished sweep whose finished rows are taken over.

    Raises:
      UsageError: the sweep cannot run; raised before anything is allocated.
      FloorlineError: the model cannot be loaded, or with several processes a row failed.
      Interrupted: Ctrl-C after something was measured.
    """
    sweep.check()
    if not shares_memory():  # refuses an unknown chip before the long work
        for dtypes in sweep.dtype_sets:
            published(sweep, dtypes)
    going = _Run(sweep, report, keep)
    if earlier:
        going.go_on(earlier)
    placings = sweep.placings()
    for placing in placings:
        going.measure(placing, sweep.seconds / len(placings))
    return going.outcome()


class _Run:
    """State of a running sweep: its rows, which come to have samples, and the rates so far."""

    def __init__(
        self, sweep: Sweep, report: Callable[[str], None], keep: Callable[[SweepResult], None]
    ):
        self.sweep, self.report, self.keep = sweep, report, keep
        self.rows = [row for placing in sweep.placings() for row in _rows(sweep, placing)]
        self.turns: list[SweepRow] = []  # those of the placing that is measured now
        self.rates: Rates = {}
        self.records: dict[SweepRow, tuple[tuple, RowRecords]] = {}

    def go_on(self, earlier: Earlier) -> None:
        """Takes over the finished rows of an unfinished sweep, and the rates of its devices."""
        count = take_over(self.rows, earlier, self.sweep.trace)
        rows = f"{count} of {len(self.rows)} rows"
        self.report(f"{rows} are kept from {earlier.started}; going on")
        self.rates = earlier.rates if count else {}

    def measure(self, placing: Placing, seconds: float) -> None:
        """Measures those rows of a placing that no earlier run has measured."""
        rows = [row for row in self.rows if row.placing == placing and row.kept is None]
        if not rows:
            return
        name = self.sweep.source.config.name
        try:
            self.turns = rows
            self.report(f"loading {name} onto {field_text(placing[1])}")
            self._load(placing)
            self._take_turns(seconds)
            for row in rows if self.sweep.trace else ():
                if not row.failure:
                    self._trace(row)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        light = weightless(self.sweep.source, placing, self.sweep.chunk)
        for row in rows:
            row.engine = light
        give_back(collect=True)

    def outcome(self) -> SweepResult:
        """All results so far, with floors by the best rates so far."""
        bandwidth = bandwidth_of(self.sweep, self.rates)
        full_samples = full_sample_count(self.turns, MIN_ROUNDS)
        found = [
            self._records(row, bandwidth, full_samples if row in self.turns else MIN_ROUNDS)
            for row in self.rows
            if row.failure or row.step.samples
        ]
        errors = (row.failure.error for row in self.rows if row.failure)
        return SweepResult(
            [record for each in found for record in each.passes],
            bandwidth,
            next(filter(None, errors), None),
            [record for each in found for record in each.prompts],
        )

    def _records(self, row: SweepRow, bandwidth: dict, full_samples: int) -> RowRecords:
        """Records of a row, made anew only where what they are of has changed."""
        sweep, peaks = self.sweep, peaks_of(self.sweep, bandwidth, row.engine)
        state = peaks, full_samples, len(row.step.samples), row.failure is None
        if row not in self.records or self.records[row][0] != state:
            basis = Basis(full_samples, sweep.price, sweep.auto_weight_layout, sweep.expect)
            found = merged(row.kept, row_records(row, peaks, basis))
            self.records[row] = state, found
        return self.records[row][1]

    def _load(self, placing: Placing) -> None:
        """Loads the weights, if a row fits beside them; says of the others why they do not."""
        sweep, rows = self.sweep, self.turns
        for row, reason in zip(rows, _refused(sweep, placing, rows), strict=True):
            row.failure = Failure("does_not_fit", reason) if reason else None
        fitting = [(row.step.slots, row.step.batch) for row in rows if not row.failure]
        kept = (row for row in self.rows if row.placing == placing and row.kept is not None)
        fitting += [(row.step.slots, row.step.batch) for row in kept if not row.failure and fitting]
        chunk, auto = sweep.chunk, sweep.auto_weight_layout
        engine, failure = load(sweep.source, placing, fitting, chunk, auto, self.report)
        for row in rows:
            row.engine = engine
            row.failure = row.failure or failure

    def _take_turns(self, seconds: float) -> None:
        rows = self.turns
        compile_together(rows)
        give_back()
        for row in rows:
            row.set_up(self.sweep.inspect, seconds / MIN_ROUNDS / len(rows))
        self._sample_rates(repeats=3)
        stop = time.perf_counter() + seconds
        for round_number in progress(
            range(1, MAX_ROUNDS + 1), lambda round_number: f"measuring, round {round_number}"
        ):
            for row in rows:
                row.sample()
            self.keep(self.outcome())
            self._sample_rates(repeats=1)
            # All processes must run the same steps, so process 0's clock decides.
            if round_number >= MIN_ROUNDS and processes.from_first_process(
                lambda: time.perf_counter() > stop
            ):
                break
            if all(row.failure for row in rows):
                break

    def _trace(self, row: SweepRow) -> None:
        """Traces a row that is measured; without its trace it stays so."""
        try:
            row.trace(self.sweep.trace / row.name)
        except FloorlineError as error:
            self.report(f"trace of {row} is missing: {error}")

    def _sample_rates(self, repeats: int) -> None:
        """Measures the devices of the placing, which have no cache in memory now.

        Weights may leave too little for it on an accelerator, whose floors need no measured rate.
        """
        engine, first = self.turns[0].engine, self.sweep.dtype_sets[0].dtype
        try:
            meter = PeakMeter(engine.mesh, engine.dtypes.dtype)
            sample_rates(self.rates, meter, repeats, first.name)
            del meter
        except jax.errors.JaxRuntimeError as error:
            if shares_memory() or not is_out_of_memory(error) or processes.count() > 1:
                raise
        give_back()

    def _interrupted(self) -> None:
        """Keeps the results so far, and says which rows are kept.

        Raises:
          Interrupted: something was measured.
        """
        if any(row.step.samples for row in self.turns):
            self.keep(self.outcome())
        measured = sum(not row.failure and bool(row.step.samples) for row in self.rows)
        if measured:
            raise Interrupted(
                describe_interrupted_rows(measured, len(self.rows), self.turns, MIN_ROUNDS)
            )


def _rows(sweep: Sweep, placing: Placing) -> list[SweepRow]:
    """All rows of a placing, without its weights."""
    engine = weightless(sweep.source, placing, sweep.chunk)
    return [
        SweepRow(
            RepeatedPrompt(engine, *size[1:])
            if size.prompts
            else RepeatedStep(engine, *size[1:], sweep.tokens_per_dispatch),
            placing,
        )
        for size in sweep.sizes()
    ]


def _refused(sweep: Sweep, placing: Placing, rows: Sequence[SweepRow]) -> list[str]:
    """Why each row of a placing does not fit, itself alone; "" for a row that does."""
    (layout, shape, dtypes), config = placing, sweep.source.config
    chunk = sweep.chunk or default_chunk(default_platform())
    placement = settle(config, dtypes, layout, shape)
    needs = [
        need_of(
            config,
            placement,
            dtypes,
            batch=row.step.batch,
            slots=row.step.slots,
            prompt=(row.step.length, chunk) if isinstance(row.step, RepeatedPrompt) else None,
        )
        for row in rows
    ]
    available = (
        processes.from_first_process(free_memory)
        if shares_memory()
        else published(sweep, dtypes).capacity
    )
    return ["" if available is None else refusal(need, available) for need in needs]
