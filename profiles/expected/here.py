"""The expected time of a pass on the devices that are here."""

import dataclasses
import math

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Chip, Peaks
from profiles.chips.local_devices import local_devices
from profiles.chips.slices import Slice
from profiles.expected.estimate import Estimator
from profiles.expected.estimate_record import expected_fields
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.report.record import Record
from sharding.error_types import UsageError
from sharding.placement import Placement


def expected_here(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    pass_: Pass,
    peaks: Peaks,
    calibration: Calibration,
) -> Record:
    """`expected_s` and its terms, of a pass on JAX's first devices.

    Nothing where there is no such time: of devices that are no whole chip.

    Args:
      config: the model.
      placement: its layout on the mesh, of decode steps.
      dtypes: how its numbers are stored.
      pass_: the pass.
      peaks: peak rates of each device, which stand for published ones where a chip has none.
      calibration: what of them is achieved, or of its own peaks where it has any, and fixed times.
    """
    own = dict(calibration.peaks)
    if own:  # of all devices together
        each = {name: rate / placement.devices for name, rate in own.items()}
        peaks = dataclasses.replace(peaks, **each)
    slice = slice_here(placement.devices, peaks, dtypes)
    if slice.devices != placement.devices:
        return Record()
    deployment = Deployment(
        model=config,
        slice=slice,
        dtypes=dtypes,
        calibration=calibration,
        layout=placement.layout,
        mesh=placement.mesh,
    )
    return expected_fields(Estimator(deployment).estimate(pass_).expected)


def slice_here(count: int, peaks: Peaks, dtypes: Dtypes) -> Slice:
    """JAX's first devices as a slice, whose chip has the rates of `peaks` where it has no others.

    Those are measured ones of devices that are no chip of the list, and given ones of a chip.
    """
    slice = local_devices(count).slice
    chip, parts = slice.chip, slice.chip.devices_per_chip
    rates = {"bandwidth": peaks.bandwidth * parts, "flops": peaks.flops * parts}
    if chip.name != "cpu":
        published = {"bandwidth": chip.bandwidth, "flops": _peak(chip, dtypes)}
        rates = {
            name: rate for name, rate in rates.items() if not math.isclose(rate, published[name])
        }
    return dataclasses.replace(slice, chip=chip.override(**rates))


def _peak(chip: Chip, dtypes: Dtypes) -> float:
    """Published FLOP/s of the arithmetic; 0 where there is no such figure."""
    try:
        return chip.peak(dtypes.arithmetic)
    except UsageError:
        return 0.0
