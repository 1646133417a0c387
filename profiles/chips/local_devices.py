"""JAX's devices in this run as a slice, for predictions; assumed rates if the chip is unknown."""

import dataclasses
from collections.abc import Sequence

from profiles.chips.calibration import Calibration, calibration_of
from profiles.chips.chip import Chip, Figure, Wiring, find_chip
from profiles.chips.slices import Slice
from sharding.devices import devices
from sharding.error_types import UsageError

_ASSUMED = {"bandwidth": 3e10, "bfloat16_flops": 2e11, "int8_flops": 2e11, "capacity": float("inf"),
            "on_chip": 3e7}  # fmt: skip
"""Rates of one CPU, whose memory and cores all its fake devices share."""
_ASSUMED_LINK = 1e10  # bytes per second between a device and the others
_START_S = 5e-6
"""Fixed time of a collective: about that of a small `ppermute` on TPU v5p and v6e, as measured
(github.com/marin-community/marin/issues/6736)."""


@dataclasses.dataclass(frozen=True)
class LocalDevices:
    """Devices to predict for.

    Attributes:
      slice: the devices as a slice.
      calibration: the constants of expected times on them.
      source: the source of predictions, for reports.
    """

    slice: Slice
    calibration: Calibration
    source: str


def local_devices(count: int) -> LocalDevices:
    """JAX's first `count` devices; fake ones at assumed rates if there are fewer; starts JAX."""
    first = devices()[:count]
    if first[0].platform != "cpu" and len(first) == count:
        try:
            chip = find_chip(first[0].device_kind)
        except UsageError:
            pass  # assumed rates are good enough to rank layouts, though not for a floor
        else:
            slice = Slice(chip, shape_of(chip, [getattr(d, "coords", None) for d in first]))
            calibration = calibration_of(chip.name)
            return LocalDevices(
                slice, calibration, f"calibration {calibration.describe(chip.name)}"
            )
    return assumed_devices(count)


def shape_of(chip: Chip, coordinates: Sequence[Sequence[int] | None]) -> tuple[int, ...]:
    """Chips along each dimension of a slice, from the coordinates of its devices.

    Args:
      chip: the kind of all these chips.
      coordinates: coordinates of each device in its torus; None for a device without any.

    Returns:
      The shape; the number of chips alone if there is no torus, and along the first dimension if
      the devices do not fill a box.
    """
    chips = max(len(coordinates) // chip.devices_per_chip, 1)
    if not chip.wiring.dimensions:
        return (chips,)
    alone = (chips, *(1,) * (chip.wiring.dimensions - 1))
    if None in coordinates:
        return alone
    sides = [len(set(along)) for along in zip(*coordinates, strict=True)]
    shape = tuple(sides[: chip.wiring.dimensions])
    product = 1
    for side in shape:
        product *= side
    return shape if product == chips else alone


def assumed_devices(count: int) -> LocalDevices:
    """Fake devices of a CPU, or devices of an unknown chip, at assumed rates."""
    shared = {name: rate / count for name, rate in _ASSUMED.items()} | {"fabric": _ASSUMED_LINK}
    figures = {name: Figure(rate, rate, "assumed") for name, rate in shared.items()}
    chip = Chip("cpu", ("cpu",), 1, None, Wiring(dimensions=0), (), figures)
    calibration = Calibration(
        "assumed", "assumed", ("cpu",), 1, 1, 1, _START_S, 0, 0, 0, hidden=False
    )
    return LocalDevices(
        Slice(chip, (count,)), calibration, "assumed rates of a CPU: not a TPU's choice"
    )
