"""Calibrations: the constants of expected times, such as the achieved fraction of a bandwidth.

`calibrations.json` has one for each family of chips and the software on it, with its source;
``--calibration`` reads one from a file of the user's. Reports say when a calibration that was
fitted for one chip is used for another. One that was measured on a device is refused for others.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from sharding.error_types import UsageError

_KINDS = {
    "name": str, "source": str, "chips": list, "hidden": bool, "measured_on": str,
    "engine": str, "adds": bool, "fitted": list, "borrowed": str,
}  # fmt: skip
_TABLES = ("compute_by_rows", "peaks")
_MAYBE = ("attention", "experts")
_UNSAID = {
    "attention": None, "experts": None, "compute_by_rows": {}, "peaks": {}, "engine": "",
    "adds": False, "sequence_s": 0.0, "fitted": [], "borrowed": "",
}  # fmt: skip
_OPTIONAL = {"measured_on": "", **_UNSAID}
PEAKS = ("bandwidth", "flops")
"""Names of peak rates."""


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
      measured_on: short name of the chip, or JAX's name of the device and that of the processor,
        that all this was measured on; empty for a calibration that was fitted, and that other chips
        may be lent.
      attention: achieved fraction of the arithmetic peak where the tokens of a decode step meet
        what is cached; None for that of products.
      compute_by_rows: numbers of rows that a device multiplies with each matrix, rising, and the
        achieved fraction of the arithmetic peak at each, not falling; empty for `compute` at any.
      peaks: rates of all devices together that fractions are of, by the names in `PEAKS`, in bytes
        and FLOPs per second; empty where they are of a chip's recommended figures.
      engine: the software that it was fitted to, whose efficiency is not the chip's; empty where it
        was measured.
      adds: whether reading memory and arithmetic take turns, so that their times add up: kernels
        that are bound by one and by the other run one after another. Otherwise they overlap.
      experts: achieved fraction of the arithmetic peak in products of a mixture's experts, where
        tokens are few for each and not alike; None for that of other products.
      sequence_s: fixed time of each sequence of a step, on any number of devices: the software's
        scheduler and sampler take them one after another.
      fitted: names of the constants that were fitted to published rows; the others are borrowed.
      borrowed: what the rows do not tell, and from where its constants are.
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
    attention: float | None = None
    compute_by_rows: tuple[tuple[float, float], ...] = ()
    peaks: tuple[tuple[str, float], ...] = ()
    engine: str = ""
    adds: bool = False
    experts: float | None = None
    sequence_s: float = 0.0
    fitted: tuple[str, ...] = ()
    borrowed: str = ""

    def __post_init__(self) -> None:
        fractions = {field: getattr(self, field) for field in ("memory", "compute", "link")}
        for field in _MAYBE:
            if getattr(self, field) is not None:
                fractions[field] = getattr(self, field)
        for rows, value in self.compute_by_rows:
            fractions[f"compute_by_rows at {rows:g}"] = value
        for field, value in fractions.items():
            if not 0 < value <= 1:
                raise UsageError(
                    f"{field} of calibration {self.name} is {value}, a fraction of a peak; use a "
                    "number above 0, and 1 at most"
                )
        for field in ("collective_s", "network_s", "layer_s", "step_s", "sequence_s"):
            value = getattr(self, field)
            if not 0 <= value < float("inf"):
                raise UsageError(
                    f"{field} of calibration {self.name} is {value}; use seconds, 0 or more"
                )
        for name, value in self.peaks:
            if name not in PEAKS or not 0 < value < float("inf"):
                raise UsageError(
                    f"peaks of calibration {self.name} have {name} of {value}; use positive rates "
                    f"by the names {', '.join(PEAKS)}"
                )
        self._check_rows()

    def _check_rows(self) -> None:
        """Refuses rows out of order, and fractions that fall: plans need bounds of steps."""
        for rows, _ in self.compute_by_rows[:1]:
            if not 1 <= rows < float("inf"):
                raise UsageError(
                    f"compute_by_rows of calibration {self.name} has {rows:g} rows; use 1 or more"
                )
        for (rows, one), (more, other) in itertools.pairwise(self.compute_by_rows):
            if not (rows < more < float("inf") and one <= other):
                raise UsageError(
                    f"compute_by_rows of calibration {self.name} goes from {one} at {rows:g} rows "
                    f"to {other} at {more:g}; use more rows each time, and no smaller fraction"
                )

    def compute_at(self, rows: float | np.ndarray) -> float | np.ndarray:
        """The achieved fraction of the arithmetic peak in products of so many rows.

        Logarithms are interpolated between the rows that are given; beyond them it is constant.

        Args:
          rows: tokens that a device multiplies with each matrix; one number or an array.
        """
        if not self.compute_by_rows:
            return self.compute
        known, fractions = np.log(np.array(self.compute_by_rows).T)
        found = np.exp(np.interp(np.log(np.maximum(rows, 1)), known, fractions))
        return found if np.ndim(rows) else float(found)

    def compute_s(
        self,
        flops: float | np.ndarray,
        attention: float | np.ndarray,
        rows: float | np.ndarray,
        peak: float,
        experts: float | np.ndarray = 0.0,
    ) -> float | np.ndarray:
        """Seconds of a device's arithmetic.

        Args:
          flops: all its FLOPs.
          attention: those of them in which tokens of decode steps meet what is cached.
          rows: tokens that it multiplies with each matrix.
          peak: its recommended FLOP/s.
          experts: those of the FLOPs in products of experts.
        """
        rate, seconds = peak * self.compute_at(rows), 0.0
        for part, fraction in ((attention, self.attention), (experts, self.experts)):
            if fraction is not None:
                flops, seconds = flops - part, seconds + part / (peak * fraction)
        return flops / rate + seconds

    def together(
        self, memory: float | np.ndarray, compute: float | np.ndarray
    ) -> float | np.ndarray:
        """Seconds of reading memory and of arithmetic, which overlap or take turns."""
        return memory + compute if self.adds else np.maximum(memory, compute)

    def as_record(self) -> dict[str, object]:
        """Its fields as `read_calibration` takes them, without those that say nothing."""
        fields = dataclasses.asdict(self)
        fields["compute_by_rows"] = {f"{rows:g}": each for rows, each in self.compute_by_rows}
        fields["peaks"] = dict(self.peaks)
        fields |= {name: list(fields[name]) for name in ("chips", "fitted")}
        return {k: v for k, v in fields.items() if k not in _UNSAID or v != _UNSAID[k]}

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
        """The name, for a report on a chip; says what software and which other chips it is of."""
        of = f", fitted to {self.engine}" if self.engine else ""
        if chip in self.chips:
            return self.name + of
        return f"{self.name}{of}, lent to {chip} from {', '.join(self.chips)}"


def calibrations() -> tuple[Calibration, ...]:
    """All calibrations of `calibrations.json`."""
    return tuple(_shipped()[0].values())


def calibration_of(chip: str, engine: str | None = None) -> Calibration:
    """The calibration for a chip: its own, or that of the nearest kind of chip that has one.

    A set of two runs of one model stands for its engine alone: such chips, too, are lent another's.

    Args:
      chip: the chip's short name.
      engine: software that has one of its own on some chips, where that is preferred.
    """
    sets, lent = _shipped()
    own = [each for each in sets.values() if chip in each.chips]
    if (engine is None and chip in lent) or not own:
        return sets[lent[chip]]
    return next((each for each in own if each.engine == engine), own[0])


def read_calibration(path: str) -> Calibration:
    """Reads a calibration from a file: a JSON object with all fields of `Calibration`.

    Those that have a default may be missing. `compute_by_rows` and `peaks` are objects: rows as
    text, or names of rates, and numbers.

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
    fields = [field.name for field in dataclasses.fields(Calibration)]
    if isinstance(values, dict):
        values = _OPTIONAL | values
    if not isinstance(values, dict) or values.keys() ^ set(fields):
        raise UsageError(
            f"calibration in {file} is not of the fields {', '.join(fields)}; give exactly those"
        )
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            words = {str: "text", list: "a list of names", bool: "true or false"}[kind]
            raise UsageError(
                f"{name} of the calibration in {file} is {values[name]!r}; use {words}"
            )
    for name in fields:
        missing = name in _MAYBE and values[name] is None
        if name not in (*_KINDS, *_TABLES) and not missing:
            _check_number(name, values[name], file)
    tables = {name: _table(name, values[name], file) for name in _TABLES}
    rows = []
    for text, fraction in tables["compute_by_rows"]:
        try:
            rows.append((float(text), fraction))
        except ValueError:
            raise UsageError(
                f"compute_by_rows of the calibration in {file} has {text!r}; use numbers of rows"
            ) from None
    tables["compute_by_rows"] = tuple(rows)
    names = {name: tuple(map(str, values[name])) for name in ("chips", "fitted")}
    return Calibration(**values | tables | names)


def _table(name: str, value: object, file: str) -> tuple[tuple[str, float], ...]:
    """The items of an object whose values are numbers."""
    if not isinstance(value, Mapping):
        raise UsageError(
            f"{name} of the calibration in {file} is {value!r}; use an object of numbers"
        )
    for key, each in value.items():
        _check_number(f"{name} at {key}", each, file)
    return tuple(value.items())


def _check_number(name: str, value: object, file: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} of the calibration in {file} is {value!r}; use a number")


@functools.cache
def _shipped() -> tuple[dict[str, Calibration], dict[str, str]]:
    """The calibrations by name, and for each chip without its own the name of the one to use."""
    data = json.loads(resources.files("profiles.chips").joinpath("calibrations.json").read_text())
    sets = [_parse(row, "calibrations.json") for row in data["sets"]]
    return {each.name: each for each in sets}, data["lent"]
