"""A quick calibration of the devices that are here, for the expected times of one sweep's rows."""

from collections.abc import Callable, Sequence

import jax

from model.catalog import find_model
from model.config import ModelConfig
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.calibration import Calibration, calibration_of
from profiles.chips.local_devices import local_devices
from profiles.floor.memory_needed import free_memory, need_of, refusal
from profiles.measured.kernels import Calls, collective_kernels, groups, read_kernels
from profiles.measured.measured_calibration import Basis, calibrate
from profiles.measured.microbenchmark import MODEL, MOST_ROWS, Kernels, measure, results
from profiles.measured.model_kernels import MOST_SEQUENCES, model_passes, part_of, places_of
from profiles.measured.timing import slots_for
from sharding.catalog import LAYOUTS

PAYLOAD = 1 << 14  # bytes of a collective: those of some sequences
READ_BYTES, WEIGHTS = 1 << 27, 1 << 26  # what is read, and what is multiplied


def calibration_here(
    mesh: jax.sharding.Mesh,
    dtypes: Dtypes,
    rows: Sequence[int],
    seconds: float = 2.0,
    report: Callable[[str], None] = lambda line: None,
    *,
    config: ModelConfig | None = None,
    context: int = 128,
) -> Calibration | None:
    """The calibration of a mesh's devices: that of their chip, or else measured now.

    None where that would take more than half of the memory that is free.

    Measures what the expected times of some rows need: passes of so many rows, attention and
    collectives, by the kernels of the microbenchmark. On two cores that takes `seconds` and
    some 5 more to compile, and memory for a layer and for its largest cache: for the model that is
    profiled by default 1.2 GB, with what the compiler takes.

    Args:
      mesh: the devices of the rows; of each mesh of a sweep there is a calibration of its own.
      dtypes: how numbers are stored.
      rows: tokens that a device multiplies with each matrix: of decode steps the batches. More
        than `MOST_ROWS` have their rate.
      seconds: time for samples; five rounds at least.
      report: called with a line that says what is being done.
      config: the model whose sizes products and attention have; the one that is profiled where
        none is named, if None.
      context: tokens in the cache of each sequence.

    Returns:
      The calibration. One that is measured has the peaks that its fractions are of.
    """
    here = local_devices(mesh.size)
    if here.slice.chip.name != "cpu":
        return calibration_of(here.slice.chip.name)
    config, kind = config or find_model(MODEL), mesh.devices.flat[0].device_kind
    if not _fits(mesh, dtypes, rows, config, context):
        report("expected times are not known: to measure rates takes more memory than is free")
        return None
    report(f"measuring rates of {mesh.size} x {kind} for expected times")
    ready = _kernels(mesh, dtypes, rows, config, context)
    measure(ready, seconds)
    found = results(ready, 0.0)
    basis = Basis(
        chip=kind,
        memory=None,
        flops=None,
        link_cost=lambda kind, axes: (0.0, 0.0),
        published=False,
        dtype=dtypes.dtype.name,
        words=f"{mesh.size} x {kind}",
    )
    starts = [one.seconds for one in ready.collectives]
    links = [{"kind": "", "axes": [], "fixed_s": start, "bytes_per_s": 0.0} for start in starts]
    return calibrate(found | {"collectives": {"fits": links}}, basis, here.calibration)


def _fits(
    mesh: jax.sharding.Mesh, dtypes: Dtypes, rows: Sequence[int], config: ModelConfig, context: int
) -> bool:
    """Whether a part of the model, in all its places, and its largest cache take no more than half
    of what is free.
    """
    available = free_memory()
    if available is None:
        return True
    part = part_of(config, dtypes, WEIGHTS)
    placement = settle(part, dtypes, LAYOUTS["weight_stationary_1d"], dict(mesh.shape))
    batch = max((number for number in rows if number <= MOST_SEQUENCES), default=1)
    need = need_of(part, placement, dtypes, batch=batch, slots=slots_for(context))
    need = need._replace(weights=need.weights * places_of(mesh, need.weights))
    return not refusal(need, available / 2)


def _kernels(
    mesh: jax.sharding.Mesh,
    dtypes: Dtypes,
    rows: Sequence[int],
    config: ModelConfig,
    context: int,
) -> Kernels:
    """What is measured, in the order of a round."""
    most = sorted({min(number, MOST_ROWS) for number in rows})
    passes = model_passes(mesh, [dtypes], most, config, WEIGHTS, context)
    return Kernels(
        memory=list(read_kernels(mesh, [READ_BYTES])),
        matmul=passes.filled,
        collectives=list(collective_kernels(mesh, [PAYLOAD], groups(mesh)[-1:])),
        dispatch=[Calls(mesh, 1)],
        attention=passes.empty,
    )
