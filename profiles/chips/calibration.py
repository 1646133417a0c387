"""What a step achieves of a chip's recommended figures: the constants of an expected time.

One set for a family of chips and the software on it, each with its source, in `calibrations.json`,
or from a file of one's own with ``--calibration``. A set that was fitted for one chip and lent to
another says so.
"""

import dataclasses
import functools
import json
from importlib import resources
from pathlib import Path

from sharding.error_types import UsageError

_NOT_NUMBERS = ("name", "source", "chips", "hidden")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Achieved rates, as fractions of recommended figures, and fixed times in seconds.

    Attributes:
      name: of the set.
      source: where its numbers are from, or what they were fitted to.
      chips: short names of those that it was fitted for.
      memory: of a memory's bandwidth, reading weights and cache.
      compute: of the arithmetic peak, in the matmuls of a step.
      link: of the rate of links.
      collective_s: of each collective, whatever its size; hops come on top.
      network_s: of each collective between hosts or slices, on top.
      layer_s: of each layer, whatever its size: starting its kernels.
      step_s: of each step.
      hidden: collectives run while memory is read, and add to arithmetic alone.
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

    def said_of(self, chip: str) -> str:
        """The name, and if it was fitted for other chips, which."""
        if chip in self.chips:
            return self.name
        return f"{self.name}, lent to {chip} from {', '.join(self.chips)}"


def calibrations() -> tuple[Calibration, ...]:
    """All shipped sets."""
    return tuple(_shipped()[0].values())


def calibration_of(chip: str) -> Calibration:
    """The set for this chip, its own or lent by the nearest kind that has one.

    Args:
      chip: short name.
    """
    sets, lent = _shipped()
    for found in sets.values():
        if chip in found.chips:
            return found
    return sets[lent[chip]]


def read_calibration(path: str) -> Calibration:
    """A set of one's own: a JSON object with all fields of `Calibration`, as the shipped ones.

    Raises:
      UsageError: there is no such file, or it is not of this form.
    """
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--calibration is {path!r}, which cannot be read: {error}") from None
    return _parse(given, path)


def _parse(given: object, where: str) -> Calibration:
    fields = {field.name: field.type for field in dataclasses.fields(Calibration)}
    if not isinstance(given, dict) or given.keys() - fields.keys() or fields.keys() - given.keys():
        raise UsageError(
            f"calibration in {where} is not of the fields {', '.join(fields)}; give exactly those"
        )
    numbers = {k: v for k, v in given.items() if k not in _NOT_NUMBERS}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{name} of the calibration in {where} is {value!r}; use a number")
    kinds = {"name": str, "source": str, "chips": list, "hidden": bool}
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            words = {str: "text", list: "a list of chips", bool: "true or false"}[kind]
            raise UsageError(
                f"{name} of the calibration in {where} is {given[name]!r}; use {words}"
            )
    return Calibration(**given | {"chips": tuple(map(str, given["chips"]))})


@functools.cache
def _shipped() -> tuple[dict[str, Calibration], dict[str, str]]:
    """The sets by name, and the name of the set that is lent to each other chip."""
    data = json.loads(resources.files("profiles.chips").joinpath("calibrations.json").read_text())
    sets = [_parse(row, "calibrations.json") for row in data["sets"]]
    return {each.name: each for each in sets}, data["lent"]
