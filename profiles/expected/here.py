"""The expected time of a pass on the devices that are here, at rates that were measured on them."""

import dataclasses

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Peaks
from profiles.chips.local_devices import local_devices
from profiles.chips.slices import Slice
from profiles.expected.estimate import Estimator
from profiles.expected.estimate_record import expected_fields
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.report.record import Record
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
    deployment = Deployment(
        model=config,
        slice=slice_here(placement.devices, peaks),
        dtypes=dtypes,
        calibration=calibration,
        layout=placement.layout,
        mesh=placement.mesh,
    )
    return expected_fields(Estimator(deployment).estimate(pass_))


def slice_here(count: int, peaks: Peaks) -> Slice:
    """JAX's first devices as a slice; devices of no chip of the list have the rates of `peaks`."""
    slice = local_devices(count).slice
    if slice.chip.name != "cpu":
        return slice
    chip = slice.chip.override(bandwidth=peaks.bandwidth, flops=peaks.flops)
    return dataclasses.replace(slice, chip=chip)
