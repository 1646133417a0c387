"""Decode steps over meshes, batches and contexts, each held against its floor.

All cases of a memory are compiled first and then take turns, so that a slow minute of the machine
falls on every row alike; peak rates are sampled before, between and after.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from decode.engine import Engine
from decode.load import ModelSource
from model.form import Form
from model.placing import settle
from profiles.bandwidth import PeakMeter
from profiles.dequantized import held_bytes
from profiles.hardware import Peaks, published_peaks
from profiles.numbers import ms
from profiles.progress import byte_progress, progress
from profiles.record import decode_record
from profiles.report import Record
from profiles.timing import HeldStep
from profiles.trace import capture
from sharding import processes
from sharding.errors import FloorlineError, UsageError
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import Layout

LEAST_ROUNDS = 5
MOST_ROUNDS = 25
CPU_CACHES = Path("/sys/devices/system/cpu")

Placing = tuple[Layout, MeshShape, Form]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure.

    Attributes:
      source: the model.
      layouts: its partitionings.
      shapes: meshes to run on, each with every layout.
      batches: sequences per step.
      contexts: tokens in the cache when a step starts.
      forms: how numbers are stored.
      weights_anyhow: weights lie in memory as the compiler would have them for the largest step.
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
    forms: Sequence[Form]
    weights_anyhow: bool = False
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
        longest = self.source.config.max_context - 1
        if max(self.contexts) > longest:
            raise UsageError(
                f"context is {max(self.contexts)}, beyond what {self.source.config.name} holds; "
                f"use at most {longest}, which leaves room for the new token"
            )
        for layout, shape, form in self.placings():
            self.source.check_form(form)
            placement = settle(self.source.config, form, layout, shape)
            for batch in self.batches:
                placement.check_batch(batch)

    def placings(self) -> list[Placing]:
        """Every layout on every mesh, with weights in every form."""
        return list(itertools.product(self.layouts, self.shapes, self.forms))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a sweep found: a record per case, and the rates their floors were taken at."""

    points: list[Record]
    bandwidth: dict


def run(sweep: Sweep, report: Callable[[str], None]) -> Outcome:
    """Measures every case.

    Args:
      sweep: what to measure.
      report: told in a line what goes on.

    Raises:
      UsageError: before anything is allocated.
      FloorlineError: a step failed for another reason than memory.
    """
    sweep.check()
    if not _shares_memory():  # an unknown chip is refused before the long work, not after
        _published(sweep)
    points, rates = [], {}
    # Where each mesh has its own memory, one at a time has all of it; CPU meshes take turns.
    placings = sweep.placings()
    groups = [placings] if _shares_memory() else [[placing] for placing in placings]
    for group in groups:
        report(
            f"loading {sweep.source.config.name} onto {_devices([shape for _, shape, _ in group])}"
        )
        cases = [case for placing in group for case in _cases(sweep, report, *placing)]
        meters = [
            PeakMeter(mesh, sweep.forms[0].dtype)
            for mesh in dict.fromkeys(c.engine.mesh for c in cases)
        ]
        _measure(cases, meters, sweep.seconds / len(groups))
        if sweep.trace:
            _trace(cases, sweep.trace)
        rates |= {_devices([meter.mesh.shape]): meter.rates() for meter in meters}
        bandwidth = _bandwidth(sweep, rates)
        points += [_record(case, sweep, bandwidth) for case in cases]
        del cases, meters  # and with them this mesh's weights
    return Outcome(points, bandwidth)


class _Case:
    """A mesh, a batch and a context, and whether they ran."""

    def __init__(self, engine: Engine, batch: int, context: int):
        self.engine = engine
        self.step = HeldStep(engine, batch, context)
        self.message = ""
        self.held = 0  # bytes of weights in few bits that the step holds in more

    def compile(self) -> None:
        """Makes the step ready, and looks for weights that it unpacks as a whole."""
        self.step.compile()
        if self.engine.form.scheme:
            self.held = held_bytes(self.engine, self.step.program())

    def __str__(self) -> str:
        devices, step = self.engine.mesh.size, self.step
        layout, form = self.engine.placement.layout.name, self.engine.form
        stored = "" if form == Form(form.dtype) else f", {form}"
        sizes = f"devices {devices}, batch {step.batch}, context {step.context}"
        return f"{layout}{stored}, {sizes}"

    def attempt(self, work: Callable[[], None]) -> None:
        """Does the work; running out of memory is a result, not a failure.

        It is one where many processes run: one may have run out alone, and the others wait for it.
        """
        if self.message:
            return
        try:
            work()
        except jax.errors.JaxRuntimeError as error:
            first = str(error).splitlines()[0]
            if "RESOURCE_EXHAUSTED" not in first or processes.count() > 1:
                raise FloorlineError(f"step of {self} is failing: {first}") from error
            self.message = first
            self.step.release()


def _cases(
    sweep: Sweep, report: Callable[[str], None], layout: Layout, shape: MeshShape, form: Form
) -> list[_Case]:
    sizes = itertools.product(sweep.contexts, sweep.batches)
    try:
        engine = sweep.source.engine(layout, shape, form, progress=byte_progress)
        jax.block_until_ready(engine.parameters)
        if sweep.weights_anyhow:
            largest = HeldStep(engine, max(sweep.batches), max(sweep.contexts))
            report(engine.lay_out_weights(largest.batch, largest.slots))
        message = ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or processes.count() > 1:
            raise
        config, message = sweep.source.config, str(error).splitlines()[0]
        placement = layout.check(config.sizes, shape)
        engine = Engine(config, {}, placement, make_mesh(shape), form)
    cases = [_Case(engine, batch, context) for context, batch in sizes]
    for case in cases:
        case.message = message
    return cases


def _measure(cases: list[_Case], meters: list[PeakMeter], seconds: float) -> None:
    for case in progress(cases, lambda case: f"compiling {case}"):
        case.attempt(case.compile)
    share = seconds / LEAST_ROUNDS / len(cases)
    for case in cases:
        case.attempt(functools.partial(case.step.lengthen, share))
    for meter in meters:
        meter.sample(repeats=3)
    stop = time.perf_counter() + seconds
    for turn in progress(range(1, MOST_ROUNDS + 1), lambda turn: f"measuring, round {turn}"):
        for case in cases:
            case.attempt(case.step.sample)
        for meter in meters:
            meter.sample(repeats=1)
        # One clock for all processes: they must run the same steps.
        if turn >= LEAST_ROUNDS and processes.agree(lambda: time.perf_counter() > stop):
            break


def _trace(cases: list[_Case], directory: Path) -> None:
    with capture(directory) if processes.first() else contextlib.nullcontext():
        for case in cases:
            case.attempt(case.step.rehearse)


def _record(case: _Case, sweep: Sweep, bandwidth: dict) -> Record:
    step, devices = case.step, case.engine.mesh.size
    sizes = {"batch": step.batch, "context": step.context, "slots": step.slots}
    peaks = _peaks(sweep, bandwidth, case.engine)
    if case.message:
        record = decode_record(case.engine, peaks, **sizes)
        return record | {"status": "out_of_memory", "message": case.message}
    record = decode_record(
        case.engine,
        peaks,
        **sizes,
        samples=step.samples,
        steps_per_sample=step.burst,
        experts_touched=step.experts_touched,
        price_per_chip_hour=sweep.price,
    )
    if sweep.weights_anyhow:
        record["weight_layout"] = "auto"
    if case.engine.form.scheme:
        record["bytes_per_chip"]["weights_unpacked"] = case.held
    if record.get("fraction_of_floor", 0) > 1:
        record["message"] = (
            f"measured step is {ms(record['step_s']['median'])} ms on {devices} "
            "devices, below its floor; the rates that the floor was taken at must be wrong"
        )
    return record


def _peaks(sweep: Sweep, bandwidth: dict, engine: Engine) -> Peaks:
    """Peaks of each device; all fake devices of a CPU are one chip and share its."""
    if not _shares_memory():
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
    dtype = sweep.forms[0].arithmetic
    return published_peaks(jax.devices()[0], sweep.bandwidth, sweep.peak_flops, dtype)


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
    if not _shares_memory():
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


def _shares_memory() -> bool:
    return jax.default_backend() == "cpu"


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
