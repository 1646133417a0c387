"""Decode steps over meshes, batches and contexts, each held against its floor.

All cases of a memory are compiled first and then take turns, so that a slow minute of the machine
falls on every row alike; peak rates are sampled before, between and after.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from decode.engine import Engine
from decode.load import ModelSource
from profiles.bandwidth import PeakMeter
from profiles.hardware import Peaks, published_peaks
from profiles.progress import progress
from profiles.record import decode_record
from profiles.report import Record
from profiles.timing import HeldStep
from profiles.trace import capture
from sharding.errors import FloorlineError, UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape

LEAST_ROUNDS = 5
MOST_ROUNDS = 25
CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure.

    Attributes:
      source: the model.
      layout: its partitioning.
      shapes: meshes to run on.
      batches: sequences per step.
      contexts: tokens in the cache when a step starts.
      dtype: of weights, cache and arithmetic.
      seconds: time to spend on samples, beyond the least number of rounds.
      bandwidth: bytes per second of one chip, in place of the published figure.
      peak_flops: FLOP/s of one chip, likewise.
      price: USD per chip-hour, for cost.
      trace: folder for a profiler trace of one burst of every case; None for no trace.
    """

    source: ModelSource
    layout: Layout
    shapes: Sequence[MeshShape]
    batches: Sequence[int]
    contexts: Sequence[int]
    dtype: jnp.dtype
    seconds: float = 20.0
    bandwidth: float | None = None
    peak_flops: float | None = None
    price: float | None = None
    trace: Path | None = None

    def check(self) -> None:
        """Refuses what cannot run, before anything is allocated.

        Raises:
          UsageError: a size that is not positive or does not fit, or a layout that does not.
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
        for shape in self.shapes:
            self.layout.check(self.source.config.sizes, shape)


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
        published_peaks(jax.devices()[0], sweep.bandwidth, sweep.peak_flops)
    cases, meters = [], []
    # Where each mesh has its own memory, one at a time has all of it.
    groups = [sweep.shapes] if _shares_memory() else [[shape] for shape in sweep.shapes]
    for shapes in groups:
        report(f"loading {sweep.source.config.name} onto {_devices(shapes)}")
        group = _cases(sweep, shapes)
        own = [PeakMeter(mesh) for mesh in dict.fromkeys(case.engine.mesh for case in group)]
        _measure(group, own, sweep.seconds / len(groups))
        if sweep.trace:
            _trace(group, sweep.trace)
        for case in group:
            case.step.release()
        cases += group
        meters += own
    bandwidth = _bandwidth(sweep, meters)
    return Outcome([_record(case, sweep, bandwidth) for case in cases], bandwidth)


class _Case:
    """A mesh, a batch and a context, and whether they ran."""

    def __init__(self, engine: Engine, batch: int, context: int):
        self.engine = engine
        self.step = HeldStep(engine, batch, context)
        self.message = ""

    def __str__(self) -> str:
        devices, step = self.engine.mesh.size, self.step
        return f"devices {devices}, batch {step.batch}, context {step.context}"

    def attempt(self, work: Callable[[], None]) -> None:
        """Does the work; running out of memory is a result, not a failure."""
        if self.message:
            return
        try:
            work()
        except jax.errors.JaxRuntimeError as error:
            first = str(error).splitlines()[0]
            if "RESOURCE_EXHAUSTED" not in first:
                raise FloorlineError(f"step of {self} is failing: {first}") from error
            self.message = first
            self.step.release()


def _cases(sweep: Sweep, shapes: Sequence[MeshShape]) -> list[_Case]:
    engines = [sweep.source.engine(sweep.layout, shape, sweep.dtype) for shape in shapes]
    sizes = itertools.product(engines, sweep.contexts, sweep.batches)
    return [_Case(engine, batch, context) for engine, context, batch in sizes]


def _measure(cases: list[_Case], meters: list[PeakMeter], seconds: float) -> None:
    for case in progress(cases, lambda case: f"compiling {case}"):
        case.attempt(case.step.compile)
    for meter in meters:
        meter.sample(repeats=3)
    started = time.perf_counter()
    for turn in progress(range(1, MOST_ROUNDS + 1), lambda turn: f"measuring, round {turn}"):
        for case in cases:
            case.attempt(case.step.sample)
        for meter in meters:
            meter.sample(repeats=1)
        if turn >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break


def _trace(cases: list[_Case], directory: Path) -> None:
    with capture(directory):
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
        case.engine, peaks, **sizes, samples=step.samples, price_per_chip_hour=sweep.price
    )
    if record.get("fraction_of_floor", 0) > 1:
        record["message"] = (
            f"measured {step.samples and record['step_s']['median'] * 1e3:.3g} ms on {devices} "
            "devices is below the floor; the bandwidth it was taken at must be wrong"
        )
    return record


def _peaks(sweep: Sweep, bandwidth: dict, engine: Engine) -> Peaks:
    if not _shares_memory():
        device = engine.mesh.devices.flat[0]
        return published_peaks(device, sweep.bandwidth, sweep.peak_flops)
    devices = engine.mesh.size
    return Peaks(
        bandwidth=bandwidth["bytes_per_s"] / devices,
        flops=(sweep.peak_flops or bandwidth["peak_flops_per_s"]) / devices,
        source=bandwidth["source"],
        on_chip=_cpu_cache() / devices,
    )


def _bandwidth(sweep: Sweep, meters: list[PeakMeter]) -> dict:
    """The rates that floors divide by, and every sample of what was measured beside them."""
    measured = max(meter.bandwidth for meter in meters)
    samples = {f"{meter.mesh.size} devices": meter.read_rates for meter in meters}
    document = {
        "measured_bytes_per_s": measured,
        "measured_flops_per_s": max(max(meter.flop_rates) for meter in meters),
        "samples": samples,
    }
    if not _shares_memory():
        peaks = published_peaks(jax.devices()[0], sweep.bandwidth, sweep.peak_flops)
        return {
            "bytes_per_s": peaks.bandwidth,
            "source": peaks.source,
            "peak_flops_per_s": peaks.flops,
            **document,
        }
    return {
        "bytes_per_s": sweep.bandwidth or measured,
        "source": "given" if sweep.bandwidth else "measured",
        "peak_flops_per_s": sweep.peak_flops or document["measured_flops_per_s"],
        "shared": "all devices of this CPU mesh share one memory, so its rate is that of the "
        "whole mesh and each device's floor takes its share",
        **document,
    }


def _shares_memory() -> bool:
    return jax.default_backend() == "cpu"


def _cpu_cache() -> float:
    """Bytes of the CPU's last-level cache; 32 MiB where the system does not say."""
    try:
        return int(CPU_CACHE.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 << 20


def _devices(shapes: Sequence[MeshShape]) -> str:
    return " and ".join("x".join(map(str, shape.values())) for shape in shapes) + " devices"
