"""Theoretical figures that others printed, from their own equations, beside this project's counts.

The figures are not measured. Each must follow from its authors' equation digit for digit; then the
same case is counted from the model's own arrays, and the differences are named. Differences of a
step's time are in bytes, so that they add up. Data: `printed_figures.json`.
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
from profiles.published.fields import stored
from profiles.report.numbers import exact
from sharding.catalog import find_layout
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh

_UNITS = {"ms": 1e3, "us": 1e6, "MB": 1e-6}


@dataclasses.dataclass(frozen=True)
class PrintedFigure:
    """One printed figure.

    Attributes:
      line: the entry of the data file that it belongs to.
      at: the batch, context or other size that it was printed for; empty if none.
      printed: its digits.
      derived: the value of the authors' equation; None where they give no equation.
      counted: this project's value; None where the entry names no model.
      with_scales: this project's value with the scales of quantized arrays; None without any.
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
        """Relative difference of `counted` from `derived`."""
        if self.counted is None or self.derived is None:
            return None
        return self.counted / self.derived - 1

    def as_record(self) -> dict[str, object]:
        """The figure as a row of a document."""
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


def figures() -> list[PrintedFigure]:
    """All printed figures of the data file."""
    return [figure for line in _data()["lines"] for figure in _figures(line)]


def check_digits(printed: Sequence[PrintedFigure]) -> None:
    """Refuses figures that do not follow from their own equations.

    Raises:
      FloorlineError: there is such a figure; the message names the first.
    """
    for figure in printed:
        if not figure.agrees:
            line = figure.line
            raise FloorlineError(
                f"{line['what']} is {exact(figure.derived)} {line['unit']} by its equation, where "
                f"{line['source']}, {line['locator']} prints {figure.printed}; the inputs in "
                "profiles/published/printed_figures.json must be wrong"
            )


def not_recomputed() -> list[Mapping[str, str]]:
    """Printed figures without a known equation, each with the reason."""
    return _data()["not_recomputed"]


@functools.cache
def _data() -> dict:
    return json.loads(
        resources.files("profiles.published").joinpath("printed_figures.json").read_text()
    )


def _figures(line: Mapping) -> Iterator[PrintedFigure]:
    scale = _UNITS.get(line["unit"], 1)
    for at, printed in line["printed"].items():
        sizes = {line["over"]: int(at)} if at else {}
        derived = counted = scaled = None
        if "equation" in line:
            derived = EQUATIONS[line["equation"]](**line["inputs"], **sizes) * scale
        if count := line.get("count"):
            counted = counted_value(count, line, sizes) * scale
            if stored(count["weight_dtype"]).few_bits and count["what"] == "step":
                scaled = counted_value(count, line, sizes, for_floor=False) * scale
        yield PrintedFigure(line, at, printed, derived, counted, scaled)


# The authors' equations, in bytes and seconds ----------------------------------------------------


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
      weights: bytes of weights.
      bandwidth: bytes per second of a chip.
      chips: number of chips that everything divides over.
      batch: number of sequences.
      cache: bytes of the cache of each sequence.
      parameters: parameters that each token is multiplied by.
      flops: FLOP/s of a chip.

    Source: Google's scaling book, "All about transformer inference".
    """
    reading = weights / bandwidth
    arithmetic = 2 * batch * parameters / flops
    return (batch * cache / bandwidth + max(reading, arithmetic)) / chips


def throughput(*, batch: int = 1, **inputs: float) -> float:
    """Tokens per second of a `step`."""
    return batch / step(batch=batch, **inputs)


def ratio(*, over: Sequence[float], under: Sequence[float] = (), **sizes: float) -> float:
    """The product of `over` and `sizes`, divided by the product of `under`."""
    return math.prod(over) * math.prod(sizes.values()) / math.prod(under)


def room(*, capacity: float, chips: int, weights: float, cache: float) -> float:
    """Number of caches that fit in memory beside the weights."""
    return (capacity * chips - weights) / cache


EQUATIONS = {"step": step, "throughput": throughput, "ratio": ratio, "room": room}


# This project's own counts -----------------------------------------------------------------------


def counted_value(
    count: Mapping, line: Mapping, sizes: Mapping[str, int], for_floor: bool = True
) -> float:
    """This project's value of a printed figure, in seconds, sequences or as a factor.

    Args:
      count: the entry's field ``count``: the quantity, the model and its dtypes.
      line: the entry of the data file.
      sizes: the batch, context or other size that the figure was printed for.
      for_floor: whether to leave out the scales of quantized arrays.
    """
    estimator = _estimator(json.dumps(count), for_floor)
    chips = sizes.get("chips", line.get("inputs", {}).get("chips", 1))
    if count["what"] == "critical_batch":
        return critical_batch(estimator)
    if count["what"] == "batching_gain":
        return batching_gain(estimator, sizes["context"], every_expert=count["every_expert"])
    if count["what"] == "room":
        kept = counts_of(count, sizes, for_floor)
        free = estimator.peaks.capacity * chips - kept.weights_resident
        return free / kept.kv_resident
    work = counts_of(count, sizes, for_floor)
    peaks = estimator.peaks
    return max(work.memory / peaks.bandwidth, work.flops / peaks.flops) / chips


def counts_of(count: Mapping, sizes: Mapping[str, int], for_floor: bool = True) -> Counts:
    """The work of a step on all chips together."""
    batch = sizes.get("batch", count.get("batch", 1))
    return _estimator(json.dumps(count), for_floor).counter.count(Pass(batch, count["context"]))


@functools.lru_cache(maxsize=64)
def _estimator(text: str, for_floor: bool) -> Estimator:
    """The model on one chip with the authors' figures, as their equations divide evenly."""
    count = json.loads(text)
    name, which = count["model"], "floor" if for_floor else "expected"
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


def left_over(figure: PrintedFigure) -> float | None:
    """The fraction of a step's bytes that the named differences do not explain.

    None for figures that are not times of steps, and for steps that are bound by arithmetic.
    """
    line = figure.line
    if line.get("equation") not in ("step", "throughput") or "count" not in line:
        return None
    inputs, sizes = line["inputs"], {line["over"]: int(figure.at)} if figure.at else {}
    batch = sizes.get("batch", line["count"].get("batch", inputs.get("batch", 1)))
    if 2 * batch * inputs.get("parameters", 0) / inputs.get("flops", math.inf) > (
        inputs["weights"] / inputs["bandwidth"]
    ):
        return None
    named = inputs["weights"] + batch * inputs.get("cache", 0)
    for each in line["differences"]:
        named += each.get("bytes", 0) + batch * each.get("bytes_per_sequence", 0)
    return named / counts_of(line["count"], sizes).memory - 1
