"""Calibrations of the devices that are here: one that is given, the chip's own, or measured now."""

import dataclasses
import math
from collections.abc import Mapping

import _common

from decode.chunks import chunk_sizes, default_chunk
from decode.engine import Engine
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration, calibration_of
from profiles.chips.chip import Peaks
from profiles.chips.local_devices import local_devices
from profiles.expected.here import expected_here
from profiles.floor.passes import Pass
from profiles.measured.bandwidth import device_name
from profiles.measured.calibration_here import calibration_here
from profiles.measured.rows import give_back
from profiles.measured.sweep import Sweep
from profiles.report.record import Record
from profiles.report.titles import field_text
from sharding.devices import default_platform, devices
from sharding.mesh import MeshShape, make_mesh

_NO_CHIP = "cpu"  # what predictions call devices that are no chip of the list
_PART = 10  # the samples of a calibration take so many times less time than those of the rows
_LONGEST = 1024  # tokens in a cache of which attention is measured; more take as long each


@dataclasses.dataclass(frozen=True)
class Calibrations:
    """The calibrations of a sweep.

    Attributes:
      shared: the one of all its rows; None where each mesh and set of dtypes has its own.
      measured: those that were measured in this run, by mesh and dtypes.
    """

    shared: Calibration | None
    measured: Mapping[str, Calibration]

    def expect(self, engine: Engine, pass_: Pass, peaks: Peaks) -> Record:
        """The expected time of a pass of a model on its mesh, as `Sweep.expect` wants it."""
        placement, dtypes = engine.placement, engine.dtypes
        calibration = self.shared or self.measured.get(_place(placement.mesh, dtypes))
        if calibration is None:
            return Record()
        return expected_here(engine.config, placement, dtypes, pass_, peaks, calibration)

    def as_fields(self) -> dict:
        """What a document has of them; `words` are for its title.

        `calibration` is the shared one or that of the last mesh; `calibrations` are all, by mesh
        and dtypes, where there are several.
        """
        if self.shared:
            words = self.shared.describe(_name_here())
            return {"calibration": self.shared.as_record() | {"words": words}}
        if not self.measured:
            return {}
        *_, last = self.measured.values()
        found = {"calibration": last.as_record() | {"words": f"{last.name}, of this run"}}
        several = {place: each.as_record() for place, each in self.measured.items()}
        return found | ({"calibrations": several} if len(several) > 1 else {})


def given_or_own(given: Calibration | None) -> Calibration | None:
    """The calibration that is given, or else the chip's own; None if these devices have none.

    Raises:
      UsageError: it was measured on another device.
    """
    chip = local_devices(1).slice.chip.name
    if given:
        kind = _name_here()
        full = device_name(kind)
        given.check_chip(kind if given.measured_on == kind else full)
        return given
    return None if chip == _NO_CHIP else calibration_of(chip)


def calibrations(sweep: Sweep, shared: Calibration | None) -> Calibrations:
    """The shared calibration, or one of each mesh and set of dtypes that is measured for its rows.

    Args:
      sweep: its rows.
      shared: what `given_or_own` gave.
    """
    measured: dict[str, Calibration] = {}
    chunk = sweep.chunk or default_chunk(default_platform())
    sizes = sweep.sizes()
    rows = {each.batch for each in sizes if not each.prompts}
    for each in sizes:
        if each.prompts:
            rows |= {each.batch * size for size in chunk_sizes(each.length, chunk)}
    contexts = [min(each.length, _LONGEST) for each in sizes if not each.prompts]
    shapes = sorted(sweep.shapes, key=lambda shape: math.prod(shape.values()))
    for shape in [] if shared else shapes:
        for dtypes in sweep.dtype_sets:
            found = calibration_here(
                make_mesh(shape),
                dtypes,
                sorted(rows),
                sweep.seconds / _PART,
                _common.say,
                config=sweep.source.config,
                context=max(contexts, default=0),
            )
            if found:
                measured[_place(shape, dtypes)] = found
    give_back(collect=True)
    return Calibrations(shared, measured)


def _place(shape: MeshShape, dtypes: Dtypes) -> str:
    return f"{field_text(shape)} {', '.join(dtypes.names().values())}"


def _name_here() -> str:
    """The chip's short name, or JAX's name of devices that are no chip of the list."""
    name = local_devices(1).slice.chip.name
    return devices()[0].device_kind if name == _NO_CHIP else name
