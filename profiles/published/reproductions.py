"""Printed figures of others, by their own equations and inputs, beside this project's exact counts.

The figures are theoretical: nobody measured them. Each must come out of its equation digit for
digit; then the same case is counted from the model's own arrays, and the differences are named, in
bytes wherever the figure is a step's time, so that they add up. Data: `reproductions.json`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from model.catalog import CATALOG, find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected.balance import batching_gain, critical_batch
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts, Pass
from profiles.floor.sized_models import sized_models
from profiles.published.cases import stored
from profiles.report.numbers import exact
from sharding.catalog import find_layout
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh

_UNITS = {"ms": 1e3, "us": 1e6, "MB": 1e-6}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One printed figure.

    Attributes:
      line: the entry of the data file that it is of.
      at: what it is at, such as a batch; empty if at nothing.
      printed: its digits.
      derived: the same by the authors' equation; None where they give none.
      counted: this project's own; None where the case names no model of it.
      with_scales: the same with the scales that this project stores; None where there are none.
    """

    line: Mapping
    at: str
    printed: str
    derived: float | None
    counted: float | None = None
    with_scales: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the equation gives the printed digits."""
        if self.derived is None:
            return True
        decimals = len(self.printed.partition(".")[2])
        value = self.derived
        if self.line.get("rounded") == "down":
            value = math.floor(value * 10**decimals * (1 + 1e-12)) / 10**decimals
        return f"{value:.{decimals}f}" == self.printed

    @property
    def difference(self) -> float | None:
        """Of the count from the equation's value, as a fraction."""
        if self.counted is None or self.derived is None:
            return None
        return self.counted / self.derived - 1

    def as_record(self) -> dict[str, object]:
        """A row of a document."""
        line = self.line
        row = {name: line[name] for name in ("source", "locator", "what", "unit")}
        row |= {"at": self.at, "printed": self.printed, "agrees": self.agrees}
        values = {
            "derived": self.derived,
            "counted": self.counted,
            "difference": self.difference,
            "with_scales": self.with_scales,
        }
        return row | {name: value for name, value in values.items() if value is not None}


def figures() -> list[Figure]:
    """All printed figures of the data file."""
    return [figure for line in _data()["lines"] for figure in _figures(line)]


def check_digits(found: Sequence[Figure]) -> None:
    """Refuses figures that their own equations do not give.

    Raises:
      FloorlineError: with the first of them.
    """
    for figure in found:
        if not figure.agrees:
            line = figure.line
            raise FloorlineError(
                f"{line['what']} is {exact(figure.derived)} {line['unit']} by its equation, where "
                f"{line['source']}, {line['locator']} prints {figure.printed}; the inputs in "
                "profiles/published/reproductions.json must be wrong"
            )


def not_recomputed() -> list[Mapping[str, str]]:
    """Printed figures that no equation at hand gives, each with the reason."""
    return _data()["not_recomputed"]


@functools.cache
def _data() -> dict:
    return json.loads(
        resources.files("profiles.published").joinpath("reproductions.json").read_text()
    )


def _figures(line: Mapping) -> Iterator[Figure]:
    scale = _UNITS.get(line["unit"], 1)
    for at, printed in line["printed"].items():
        place = {line["over"]: int(at)} if at else {}
        derived = counted = scaled = None
        if "equation" in line:
            derived = EQUATIONS[line["equation"]](**line["inputs"], **place) * scale
        if count := line.get("count"):
            counted = counted_value(count, line, place) * scale
            if stored(count["weight_dtype"]).few_bits and count["what"] == "step":
                scaled = counted_value(count, line, place, least=False) * scale
        yield Figure(line, at, printed, derived, counted, scaled)


# Equations, all in bytes and seconds -------------------------------------------------------------


def step(
    *,
    weights: float,
    bandwidth: float,
    chips: int = 1,
    batch: int = 1,
    cache: float = 0,
    parameters: float = 0,
    flops: float = math.inf,
) -> float:
    """Seconds of a step: reading the cache, and the larger of reading weights and arithmetic.

    Args:
      weights: bytes.
      bandwidth: of a chip.
      chips: over which all divides.
      batch: sequences.
      cache: bytes of each.
      parameters: that each token meets.
      flops: of a chip.

    Source: Google's scaling book, "All about transformer inference".
    """
    reading = weights / bandwidth
    arithmetic = 2 * batch * parameters / flops
    return (batch * cache / bandwidth + max(reading, arithmetic)) / chips


def throughput(*, batch: int = 1, **inputs: float) -> float:
    """Tokens per second, of a `step`."""
    return batch / step(batch=batch, **inputs)


def ratio(*, over: Sequence[float], under: Sequence[float] = (), **place: float) -> float:
    """A product over another one."""
    return math.prod(over) * math.prod(place.values()) / math.prod(under)


def room(*, capacity: float, chips: int, weights: float, cache: float) -> float:
    """Caches that fit beside weights."""
    return (capacity * chips - weights) / cache


EQUATIONS = {"step": step, "throughput": throughput, "ratio": ratio, "room": room}


# This project's own counts -----------------------------------------------------------------------


def counted_value(
    count: Mapping, line: Mapping, place: Mapping[str, int], least: bool = True
) -> float:
    """What this project counts for a printed figure, in seconds, sequences or as a factor.

    Args:
      count: what of which model, as the data file has it.
      line: the entry that it is of.
      place: what the figure is at.
      least: values alone, without the scales of few bits.
    """
    estimator = _estimator(json.dumps(count), least)
    chips = place.get("chips", line.get("inputs", {}).get("chips", 1))
    if count["what"] == "critical_batch":
        return critical_batch(estimator)
    if count["what"] == "batching_gain":
        return batching_gain(estimator, place["context"], every_expert=count["every_expert"])
    if count["what"] == "room":
        kept = counts_of(count, place, least)
        free = estimator.peaks.capacity * chips - kept.weights_resident
        return free / kept.kv_resident
    found = counts_of(count, place, least)
    peaks = estimator.peaks
    return max(found.memory / peaks.bandwidth, found.flops / peaks.flops) / chips


def counts_of(count: Mapping, place: Mapping[str, int], least: bool = True) -> Counts:
    """A step's work, of all chips together."""
    batch = place.get("batch", count.get("batch", 1))
    return _estimator(json.dumps(count), least).counter.count(Pass(batch, count["context"]))


@functools.lru_cache(maxsize=64)
def _estimator(text: str, least: bool) -> Estimator:
    """On one chip with the authors' figures: in their equations all divides evenly."""
    count = json.loads(text)
    name, which = count["model"], "least" if least else "usual"
    known = name in CATALOG
    model = find_model(name) if known else sized_models()[name]
    slice = parse_slice(count["topology"])
    slice = dataclasses.replace(slice, chip=slice.chip.override(**count["chip"]))
    weights, cache = (getattr(stored(count[f"{kind}_dtype"]), which) for kind in ("weight", "kv"))
    deployment = Deployment(
        model=dataclasses.replace(model, **count.get("changes", {})),
        slice=slice,
        dtypes=Dtypes("bfloat16", weights, cache),
        calibration=calibration_of(slice.chip.name),
        layout=find_layout("weight_stationary_1d") if known else None,
        mesh=parse_mesh("1x1x1") if known else None,
        experts="all",
    )
    return Estimator(deployment)


def left_over(figure: Figure) -> float | None:
    """The part of a step's bytes that named differences do not account for; None of other figures.

    A step that arithmetic bounds, by the equation or as counted, has no such sum.
    """
    line = figure.line
    if line.get("equation") not in ("step", "throughput") or "count" not in line:
        return None
    inputs, place = line["inputs"], {line["over"]: int(figure.at)} if figure.at else {}
    batch = place.get("batch", line["count"].get("batch", inputs.get("batch", 1)))
    if 2 * batch * inputs.get("parameters", 0) / inputs.get("flops", math.inf) > (
        inputs["weights"] / inputs["bandwidth"]
    ):
        return None
    named = inputs["weights"] + batch * inputs.get("cache", 0)
    for each in line["differences"]:
        named += each.get("bytes", 0) + batch * each.get("bytes_per_sequence", 0)
    return named / counts_of(line["count"], place).memory - 1
