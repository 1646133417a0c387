"""A quick calibration of the devices that are here, for the expected times of one sweep."""

import statistics
from collections.abc import Callable, Sequence

import jax

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.measured.bandwidth import PeakMeter

REPEATS = 5  # samples of each kernel, at most as many as fit the time


def calibration_here(
    mesh: jax.sharding.Mesh,
    dtypes: Dtypes,
    rows: Sequence[int],
    seconds: float = 3.0,
    report: Callable[[str], None] = lambda line: None,
    *,
    config: ModelConfig | None = None,
    context: int = 128,
) -> Calibration:
    """What these devices achieve of the best rates that they reach, as medians over bests.

    Args:
      mesh: the devices, which are measured together.
      dtypes: how numbers are stored.
      rows: numbers of tokens that products are wanted for; the rate of many stands for all.
      seconds: time to spend, which the samples of a small machine may exceed.
      report: called with a line that says what is being done.
      config: the model, whose sizes are not measured apart.
      context: tokens in the cache of each sequence, likewise.
    """
    kind = mesh.devices.flat[0].device_kind
    report(f"measuring what {kind} achieves, for expected times")
    meter = PeakMeter(mesh, dtypes.dtype)
    meter.sample(REPEATS if seconds >= 1 else 2)
    reads = max(meter.read_rates.values(), key=statistics.median)
    return Calibration(
        name=f"{kind.replace(' ', '-')}-measured",
        source=f"measured on {mesh.size} x {kind} in the same run, medians over the best samples",
        chips=(kind,),
        memory=statistics.median(reads) / max(map(max, meter.read_rates.values())),
        compute=statistics.median(meter.flop_rates) / max(meter.flop_rates),
        link=1.0,
        collective_s=0.0,
        network_s=0.0,
        layer_s=0.0,
        step_s=0.0,
        hidden=False,
        measured_on=kind,
    )
