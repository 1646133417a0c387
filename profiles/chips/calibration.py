"""Calibrations: the constants of expected times, such as the achieved fraction of a bandwidth.

`calibrations.json` has one for each family of chips and the software on it, with its source;
``--calibration`` reads one from a file of the user's. Reports say when a calibration that was
fitted for one chip is used for another. One that was measured on a device is refused for others.
"""

import dataclasses
import functools
import json
from importlib import resources
from pathlib import Path

from sharding.error_types import UsageError

_NOT_NUMBERS = ("name", "source", "chips", "hidden", "measured_on")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Achieved rates, as fractions of a chip's recommended figures, and fixed times in seconds.

    Attributes:
      name: name of the calibration.
      source: where its numbers are from, or what they were fitted to.
      chips: short names of the chips that it was fitted for.
      memory: achieved fraction of the memory bandwidth, reading weights and cache.
      compute: achieved fraction of the arithmetic peak, in the matmuls of a step.
      link: achieved fraction of the rate of links.
      collective_s: fixed time of each collective; hops are added to it.
      network_s: fixed time of each collective between hosts or slices, added to `collective_s`.
      layer_s: fixed time of each layer, in which its kernels start.
      step_s: fixed time of each step.
      hidden: whether collectives overlap with reading memory, so that their time only adds to that
        of arithmetic.
      measured_on: short name of the chip, or JAX's name of the device, that all this was measured
        on; empty for a calibration that was fitted, and that other chips may be lent.
    """

    name: str
    source: str
    chips: tuple[str, ...]
    memory: float
    compute: float
    link: float
    collective_s: float
    network_s: float
    layer_s: float
    step_s: float
    hidden: bool
    measured_on: str = ""

    def __post_init__(self) -> None:
        for field in ("memory", "compute", "link"):
            value = getattr(self, field)
            if not 0 < value <= 1:
                raise UsageError(
                    f"{field} of calibration {self.name} is {value}, a fraction of a peak; use a "
                    "number above 0, and 1 at most"
                )
        for field in ("collective_s", "network_s", "layer_s", "step_s"):
            value = getattr(self, field)
            if not 0 <= value < float("inf"):
                raise UsageError(
                    f"{field} of calibration {self.name} is {value}; use seconds, 0 or more"
                )

    def check_chip(self, chip: str) -> None:
        """Refuses a calibration that was measured on one device for another.

        Args:
          chip: the short name of the chip that it is wanted for.

        Raises:
          UsageError: it was measured on another.
        """
        if self.measured_on not in ("", chip):
            raise UsageError(
                f"calibration {self.name} is measured on {self.measured_on}, not on {chip}; give "
                f"one that microbenchmark.py wrote on {chip}, or leave --calibration out"
            )

    def describe(self, chip: str) -> str:
        """The name, for a report on a chip; says which chips it was fitted for if not this one."""
        if chip in self.chips:
            return self.name
        return f"{self.name}, lent to {chip} from {', '.join(self.chips)}"


def calibrations() -> tuple[Calibration, ...]:
    """All calibrations of `calibrations.json`."""
    return tuple(_shipped()[0].values())


def calibration_of(chip: str) -> Calibration:
    """The calibration for a chip: its own, or that of the nearest kind of chip that has one.

    Args:
      chip: the chip's short name.
    """
    sets, lent = _shipped()
    for calibration in sets.values():
        if chip in calibration.chips:
            return calibration
    return sets[lent[chip]]


def read_calibration(path: str) -> Calibration:
    """Reads a calibration from a file: a JSON object with all fields of `Calibration`.

    `measured_on` alone may be missing.

    Raises:
      UsageError: there is no such file, or it is no such object.
    """
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--calibration is {path!r}, which cannot be read: {error}; name a file that "
            "microbenchmark.py wrote"
        ) from None
    return _parse(values, path)


def _parse(values: object, file: str) -> Calibration:
    fields = {field.name: field.type for field in dataclasses.fields(Calibration)}
    if isinstance(values, dict):
        values = {"measured_on": ""} | values
    if not isinstance(values, dict) or values.keys() ^ fields.keys():
        raise UsageError(
            f"calibration in {file} is not of the fields {', '.join(fields)}; give exactly those"
        )
    numbers = {k: v for k, v in values.items() if k not in _NOT_NUMBERS}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{name} of the calibration in {file} is {value!r}; use a number")
    kinds = {"name": str, "source": str, "chips": list, "hidden": bool, "measured_on": str}
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            words = {str: "text", list: "a list of chips", bool: "true or false"}[kind]
            raise UsageError(
                f"{name} of the calibration in {file} is {values[name]!r}; use {words}"
            )
    return Calibration(**values | {"chips": tuple(map(str, values["chips"]))})


@functools.cache
def _shipped() -> tuple[dict[str, Calibration], dict[str, str]]:
    """The calibrations by name, and for each chip without its own the name of the one to use."""
    data = json.loads(resources.files("profiles.chips").joinpath("calibrations.json").read_text())
    sets = [_parse(row, "calibrations.json") for row in data["sets"]]
    return {each.name: each for each in sets}, data["lent"]
