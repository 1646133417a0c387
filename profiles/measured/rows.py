"""The rows of a sweep: a held step each, and how it failed if it did."""

import functools
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from decode.engine import Engine
from decode.load import ModelSource
from model.dtypes import Dtypes
from profiles.hlo.unpacked import held_bytes
from profiles.measured.timing import HeldStep, slots_for
from profiles.report.progress import byte_progress
from sharding import processes
from sharding.error_types import FloorlineError
from sharding.layout import Layout
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import Placement

Placing = tuple[Layout, MeshShape, Dtypes]


class Failure(NamedTuple):
    """Why a row has no time.

    Attributes:
      status: its record's.
      message: likewise, one line.
      error: what was raised, if anything was; its frames hold no arrays.
    """

    status: str
    message: str
    error: Exception | None = None


def failure_of(error: Exception) -> Failure:
    """What an error says of a row."""
    text = " ".join(str(error).split("\n")[0].split())
    name = type(error).__name__
    out = is_out_of_memory(error)
    one = error
    while one is not None:  # arrays in them would take the next rows' room
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
    known = isinstance(error, FloorlineError | jax.errors.JaxRuntimeError)
    message = text if known and text else f"{name}: {text}".removesuffix(": ")
    return Failure("out_of_memory" if out else "unsupported", message, error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or this machine had too little memory.

    XLA says so as RESOURCE_EXHAUSTED, and of steps that XLA:CPU dispatched ahead as INTERNAL.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return isinstance(error, MemoryError)


class Row:
    """A mesh, a batch and a context, and how far they came.

    Attributes:
      engine: the model on the mesh; without weights where they do not fit.
      step: at this batch and context.
      failure: why it did not run; None as long as it does.
      held: bytes of weights in few bits that the step holds in more.
    """

    def __init__(self, engine: Engine, batch: int, context: int, failure: Failure | None = None):
        self.engine = engine
        self.step = HeldStep(engine, batch, context)
        self.failure = failure
        self.held = 0

    def __str__(self) -> str:
        devices, step = self.engine.mesh.size, self.step
        layout, dtypes = self.engine.placement.layout.name, self.engine.dtypes
        stored = "" if dtypes == Dtypes(dtypes.dtype) else f", {dtypes}"
        sizes = f"devices {devices}, batch {step.batch}, context {step.context}"
        return f"{layout}{stored}, {sizes}"

    def compile(self) -> None:
        """Makes the step ready, and looks for weights that it unpacks as a whole."""
        self.attempt(self._compile)

    def lengthen(self, seconds: float) -> None:
        """Makes bursts last so long."""
        self.attempt(functools.partial(self.step.lengthen, seconds))

    def sample(self) -> None:
        """Times one more burst."""
        self.attempt(self.step.sample)

    def rehearse(self) -> None:
        """Runs a burst that does not count."""
        self.attempt(self.step.rehearse)

    def attempt(self, work: Callable[[], None]) -> None:
        """Does the work unless the row has failed; a failure is the row's result, not the run's.

        It is the run's where many processes run: one may have failed alone, and the others wait
        for it.
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

    def _compile(self) -> None:
        self.step.compile()
        if self.engine.dtypes.quantization:
            self.held = held_bytes(self.engine, self.step.program())


def load(
    source: ModelSource,
    placing: Placing,
    fitting: Sequence[tuple[int, int]],
    auto_weight_layout: bool,
    report: Callable[[str], None],
) -> tuple[Engine, Failure | None]:
    """The model on a mesh, and why its weights are not there if they could not be loaded.

    Args:
      source: the model.
      placing: its layout, mesh and form.
      fitting: context and batch of the rows that fit; without one no weights are loaded.
      auto_weight_layout: weights lie in memory as the compiler chooses for the largest of those.
      report: told what that changes.

    Raises:
      FloorlineError: the weights are not what they should be.
    """
    (layout, shape, dtypes), failure = placing, None
    try:
        if fitting:
            engine = source.engine(layout, shape, dtypes, progress=byte_progress)
            jax.block_until_ready(engine.parameters)
            if auto_weight_layout:
                context, batch = map(max, zip(*fitting, strict=True))
                report(engine.lay_out_weights(batch, slots_for(context)))
            return engine, None
    except FloorlineError:
        raise
    except Exception as error:
        if processes.count() > 1:
            raise
        failure = failure_of(error)
    placement = Placement.of(layout, source.config.sizes, shape)
    return Engine(source.config, {}, placement, make_mesh(shape), dtypes), failure


def most_samples(rows: Sequence[Row], least: int) -> int:
    """How many samples each row that ran has once a run has ended: so many at least."""
    return max([least, *(len(row.step.samples) for row in rows)])


def kept_words(measured: int, total: int, rows: Sequence[Row], least: int) -> str:
    """How many rows of a run that ended early have samples, and which of its last have fewer."""
    most = most_samples(rows, least)
    fewer = [
        f"{row} ({len(row.step.samples)} of {most})"
        for row in rows
        if not row.failure and len(row.step.samples) < most
    ]
    return f"{measured} of {total} rows" + f"; with fewer samples: {'; '.join(fewer)}" * bool(fewer)
