"""The rows of a sweep: each has a step or a prompt to time, and the failure if it did not run."""

import contextlib
import ctypes
import functools
import gc
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from decode.engine import Engine
from decode.load import ModelSource
from model.dtypes import Dtypes
from profiles.hlo.unpacked import dequantized_bytes
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.timing import RepeatedStep
from profiles.measured.trace import capture
from profiles.report.progress import byte_progress
from profiles.report.record import Record
from profiles.report.titles import field_text
from sharding import processes
from sharding.error_types import FloorlineError
from sharding.layout import Layout
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import Placement

Placing = tuple[Layout, MeshShape, Dtypes]


class Failure(NamedTuple):
    """Why a row could not be measured.

    Attributes:
      status: status for its record.
      message: message for its record, one line.
      error: the exception, if there was one; its stack frames are cleared.
    """

    status: str
    message: str
    error: Exception | None = None


def failure_of(error: Exception) -> Failure:
    """The failure of a row for an exception."""
    text = " ".join(str(error).split("\n")[0].split())
    name = type(error).__name__
    out = is_out_of_memory(error)
    one = error
    while one is not None:  # arrays in stack frames would take memory from the next rows
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    known = isinstance(error, FloorlineError | jax.errors.JaxRuntimeError)
    message = text if known and text else f"{name}: {text}".removesuffix(": ")
    return Failure("out_of_memory" if out else "unsupported", message, error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that a device or this machine had too little memory.

    XLA's status is RESOURCE_EXHAUSTED, or INTERNAL for steps that XLA:CPU dispatched ahead.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return isinstance(error, MemoryError)


Inspect = Callable[["SweepRow"], Record]
"""Tells what the compiled program of a row is like, as fields of its record."""


class SweepRow:
    """What is measured on one mesh at one batch and length, with its samples or its failure.

    Its cache is there only while it is timed, so that rows need not fit in memory side by side.

    Attributes:
      step: the decode step, or the prompts with a step for each chunk.
      placing: its layout, mesh and dtypes.
      failure: why it did not run; None as long as it has not failed.
      compiled: what its compiled program is like, for its record.
      dequantized_bytes: bytes of quantized weights that a decode step keeps dequantized.
      kept: its records by an earlier run, of passes and of prompts; None if it is this run's own.
    """

    def __init__(
        self, step: RepeatedStep | RepeatedPrompt, placing: Placing, failure: Failure | None = None
    ):
        self.step = step
        self.placing = placing
        self.failure = failure
        self.compiled = Record()
        self.dequantized_bytes = 0
        self.kept: tuple[list[Record], list[Record]] | None = None

    def __str__(self) -> str:
        layout, dtypes = self.engine.placement.layout.name, self.engine.dtypes
        stored = "" if dtypes == Dtypes(dtypes.dtype) else f", {dtypes}"
        return f"{layout}{stored}, devices {self.engine.mesh.size}, {self.step}"

    @property
    def name(self) -> str:
        """A name for files: layout, types, mesh and sizes, in letters, digits and underscores."""
        layout, shape, dtypes = self.placing
        words = layout.name, layout.attends, layout.collectives, dtypes, field_text(shape)
        return re.sub(r"\W+", "_", " ".join(map(str, (*words, self.step)))).strip("_")

    @property
    def engine(self) -> Engine:
        """The model on the mesh; with weights only while its placing is measured."""
        return self.step.engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.step.engine = engine

    def compile(self) -> None:
        """Compiles the program of the step, or those of the chunks; needs no cache."""
        self.attempt(lambda: [program.compile() for program in self.step.lower()])

    def set_up(self, inspect: Inspect, seconds: float) -> None:
        """Finds what the program is like, and sets the steps of a burst to last about `seconds`.

        Args:
          inspect: tells what the compiled program is like.
          seconds: of a burst.
        """
        self.attempt(functools.partial(self._inspect, inspect))
        self._with_cache(functools.partial(self.step.lengthen, seconds))

    def sample(self) -> None:
        """Times one more burst, in a new cache that is warm."""
        self._with_cache(self.step.sample)

    def trace(self, directory: Path) -> None:
        """Runs a burst without taking a sample; process 0 writes a trace of it to a folder.

        Raises:
          TraceError: the profiler does not start or stop.
          OutputError: the folder cannot be written to.
        """
        self.step.compile()
        try:
            with capture(directory) if processes.is_first() else contextlib.nullcontext():
                self.step.rehearse()
        finally:
            self.step.release()
            give_back()

    def _with_cache(self, work: Callable[[], None]) -> None:
        self.attempt(self.step.compile)
        self.attempt(work)
        self.step.release()
        give_back()

    def attempt(self, work: Callable[[], object]) -> None:
        """Calls `work` unless the row has failed before; an exception becomes the row's failure.

        With several processes it ends the run instead: it may have happened in one process alone,
        for which the others would wait.
        """
        if self.failure:
            return
        try:
            work()
        except Exception as error:
            failure = failure_of(error)
            if processes.count() > 1:
                text = f"step of {self} is failing: {failure.message}"
                raise FloorlineError(text) from error
            self.failure = failure
            self.step.release()

    def _inspect(self, inspect: Inspect) -> None:
        self.compiled = inspect(self)
        if self.engine.dtypes.quantization and isinstance(self.step, RepeatedStep):
            self.dequantized_bytes = dequantized_bytes(self.engine, self.step.program())


def give_back(collect: bool = False) -> None:
    """Gives freed memory back to the system, where the C library can be told to.

    It would keep a cache's for arrays of the same sizes, and the next row's has others.

    Args:
      collect: first frees what nothing refers to but itself, as an engine and its programs, and
        what JAX keeps of programs that ran.
    """
    if collect:
        gc.collect()
        jax.clear_caches()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def load(
    source: ModelSource,
    placing: Placing,
    fitting: Sequence[tuple[int, int]],
    chunk: int | None,
    auto_weight_layout: bool,
    report: Callable[[str], None],
) -> tuple[Engine, Failure | None]:
    """The model on a mesh, and the failure if its weights could not be loaded.

    Args:
      source: the model.
      placing: its layout, mesh and dtypes.
      fitting: slots and batch of the rows that fit; if there are none, no weights are loaded.
      chunk: tokens of a prompt that run at once; the platform's default if None.
      auto_weight_layout: whether the compiler chooses the memory layout of weights, for the largest
        of these rows.
      report: called with a line that says what that changes.

    Raises:
      FloorlineError: the weights are damaged or do not belong to the model.
    """
    (layout, shape, dtypes), failure = placing, None
    try:
        if fitting:
            engine = source.engine(layout, shape, dtypes, progress=byte_progress)
            jax.block_until_ready(engine.parameters)
            if auto_weight_layout:
                slots, batch = map(max, zip(*fitting, strict=True))
                report(engine.optimize_weight_layout(batch, slots))
            engine.chunk = chunk or engine.chunk
            return engine, None
    except FloorlineError:
        raise
    except Exception as error:
        if processes.count() > 1:
            raise
        failure = failure_of(error)
    return weightless(source, placing, chunk), failure


def weightless(source: ModelSource, placing: Placing, chunk: int | None) -> Engine:
    """The model on a mesh without its weights: all that records ask for."""
    layout, shape, dtypes = placing
    placement = Placement.of(layout, source.config.sizes, shape)
    return Engine(source.config, {}, placement, make_mesh(shape), dtypes, chunk)


def full_sample_count(rows: Sequence[SweepRow], min_samples: int) -> int:
    """Number of samples of each row when a run ends regularly; at least `min_samples`."""
    return max([min_samples, *(len(row.step.samples) for row in rows)])


def describe_interrupted_rows(
    measured: int, total: int, rows: Sequence[SweepRow], min_samples: int
) -> str:
    """Says how many rows of an interrupted run have samples, and which have fewer than others."""
    full_samples = full_sample_count(rows, min_samples)
    fewer = [
        f"{row} ({len(row.step.samples)} of {full_samples})"
        for row in rows
        if not row.failure and len(row.step.samples) < full_samples
    ]
    return f"{measured} of {total} rows" + f"; with fewer samples: {'; '.join(fewer)}" * bool(fewer)
