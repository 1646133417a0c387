"""The slice that JAX's devices are, for predictions; CPUs and unknown chips at assumed rates."""

import dataclasses
from collections.abc import Sequence

from profiles.chips.calibration import Calibration, calibration_of
from profiles.chips.chip import Chip, Figure, Wiring, find_chip
from profiles.chips.slices import Slice
from sharding.devices import devices
from sharding.error_types import UsageError

_ASSUMED = {"bandwidth": 3e10, "bfloat16_flops": 2e11, "int8_flops": 2e11, "capacity": float("inf"),
            "on_chip": 3e7}  # fmt: skip
"""Of a whole CPU: its fake devices share one memory and its cores."""
_ASSUMED_LINK = 1e10  # of each device
_START_S = 5e-6
"""Of a collective: about that of a small `ppermute` on TPU v5p and v6e, as measured
(github.com/marin-community/marin/issues/6736)."""


@dataclasses.dataclass(frozen=True)
class Here:
    """Devices to predict for.

    Attributes:
      slice: the slice that they are.
      calibration: what steps achieve there.
      words: what predictions are from.
    """

    slice: Slice
    calibration: Calibration
    words: str


def here(count: int) -> Here:
    """JAX's first devices, so many of them, of assumed rates if there are fewer; starts JAX."""
    found = devices()[:count]
    if found[0].platform != "cpu" and len(found) == count:
        try:
            chip = find_chip(found[0].device_kind)
        except UsageError:
            pass  # a ranking can do with assumed rates; a floor could not
        else:
            slice = Slice(chip, shape_of(chip, [getattr(d, "coords", None) for d in found]))
            calibration = calibration_of(chip.name)
            return Here(slice, calibration, f"calibration {calibration.said_of(chip.name)}")
    return assumed(count)


def shape_of(chip: Chip, coordinates: Sequence[Sequence[int] | None]) -> tuple[int, ...]:
    """Chips along each dimension, from where devices say that they are.

    Args:
      chip: of which all are.
      coordinates: of each device in its torus; None where it has none.

    Returns:
      For devices that fill no box, and where there is no torus, their number.
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


def assumed(count: int) -> Here:
    """Fake devices of a CPU, or of a chip that is not known."""
    shared = {name: rate / count for name, rate in _ASSUMED.items()} | {"fabric": _ASSUMED_LINK}
    figures = {name: Figure(rate, rate, "assumed") for name, rate in shared.items()}
    chip = Chip("cpu", ("cpu",), 1, None, Wiring(dimensions=0), (), figures)
    calibration = Calibration(
        "assumed", "assumed", ("cpu",), 1, 1, 1, _START_S, 0, 0, 0, hidden=False
    )
    return Here(Slice(chip, (count,)), calibration, "assumed rates of a CPU: not a TPU's choice")
