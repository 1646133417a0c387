"""The calibration that a microbenchmark tells: achieved fractions and fixed times of these devices.

What no kernel measures is taken from another calibration, and the source says so.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from model.dtypes import PLAIN_DTYPES
from profiles.chips.calibration import Calibration
from profiles.measured.bandwidth import device_name

MOST_OF_COLLECTIVES = 0.5  # of a step, by what its collectives are held to take
LEAST_OF_PRODUCTS = 0.25  # of a pass, whatever attention and collectives seem to take
NEARLY = 0.75  # of the memory's rate: products that read weights so fast are limited by it
LinkCost = Callable[[str, Sequence[str]], tuple[float, float]]
"""Of a kind of collective over mesh axes: seconds of hops, and per byte of payload at the rate of
links that fractions are of."""


@dataclasses.dataclass(frozen=True)
class Basis:
    """What fractions are of, and where the measurement was made.

    Attributes:
      chip: short name of the chip, or JAX's name of a device that is no chip of the list.
      memory: recommended bytes per second of all devices together; None for the best sample of
        the run, of those of the largest size.
      flops: recommended FLOP/s likewise, in the type of arithmetic that is calibrated.
      link_cost: times of collectives at recommended rates.
      published: whether rates of links are; else they are fractions of the best of the run.
      dtype: the type of arithmetic.
      words: the devices and the date, for the source.
    """

    chip: str
    memory: float | None
    flops: float | None
    link_cost: LinkCost
    published: bool
    dtype: str
    words: str


def calibrate(found: Mapping[str, dict], basis: Basis, lent: Calibration) -> Calibration:
    """The calibration of measured devices.

    memory: the median rate of the best read kernel at the largest size. compute: that of passes of
    the most rows, and compute_by_rows that of each, without their collectives and attention.
    attention, on a CPU: what a step takes more with tokens in the cache. On chips it is bound by
    memory, whose fraction tells it. link and collective_s: the medians over kinds and mesh axes of
    fitted rates and fixed costs. step_s: how much later than the call a program ends that hardly
    computes, because calls return while earlier steps run.

    Args:
      found: the parts of a document.
      basis: what fractions are of.
      lent: the calibration to take what was not measured from.
    """
    reads = _largest(found["memory"]["samples"], "bytes")
    products = [row for row in found["matmul"]["samples"] if row["dtype"] == basis.dtype]
    memory_peak = basis.memory or _best_sample(reads, "bytes_per_s")
    links = _links(found["collectives"]["fits"], basis)
    call = min(found["dispatch"]["samples"], key=lambda row: row["arguments"])
    waiting = call["awaited"]["median"] - call["returned"]["median"]
    others = ["network_s", "layer_s", "hidden", *({"link", "collective_s"} - links.keys())]
    memory = _fraction(reads, "bytes_per_s", memory_peak)
    limited = memory * memory_peak if basis.published else None
    attention = None if basis.published else _attention(found["attention"]["fits"], basis)
    if "collective_s" in links:
        links["collective_s"] = min(links["collective_s"], _most_of_collective(products))
    rates = _rates(products, attention, links.get("collective_s", 0.0))
    best = max(_best_sample(products, "flops_per_s"), *(rate.flops_per_s for rate in rates))
    flops_peak = basis.flops or best
    measured = {
        "memory": memory,
        "compute": min(rates[-1].flops_per_s / flops_peak, 1.0),
        "compute_by_rows": _by_rows(rates, flops_peak, limited),
        "attention": attention and min(attention / flops_peak, 1.0),
        "peaks": () if basis.published else (("bandwidth", memory_peak), ("flops", flops_peak)),
        "step_s": max(waiting, 0.0),
        **links,
    }
    of = "recommended figures" if basis.published else "the best rates of the run"
    return dataclasses.replace(
        lent,
        name=f"{basis.chip.replace(' ', '-')}-measured",
        source=f"measured on {basis.words}, fractions of {of}, arithmetic in {basis.dtype}; "
        f"{', '.join(sorted(others))} are those of {lent.name}",
        chips=(basis.chip,),
        measured_on=device_name(basis.chip),
        **measured,
    )


class _Rate(NamedTuple):
    """FLOP/s of products of so many rows, all devices together."""

    rows: int
    dtype: str
    flops_per_s: float


def _attention(fits: Sequence[dict], basis: Basis) -> float | None:
    """FLOP/s where tokens of decode steps meet what is cached; None where no time was seen."""
    return next((fit["flops_per_s"] for fit in fits if fit["dtype"] == basis.dtype), 0.0) or None


def _most_of_collective(products: Sequence[dict]) -> float:
    """Seconds that a collective of these steps can take at most, if most of a step is products."""
    times = [
        MOST_OF_COLLECTIVES * row["seconds"]["median"] / row["collectives"]
        for row in products
        if row["collectives"]
    ]
    return min(times, default=float("inf"))


def _rates(products: Sequence[dict], attention: float | None, collective_s: float) -> list[_Rate]:
    """Rates of products alone, by rising rows: without attention, where that is apart.

    Args:
      products: records of passes of a model.
      attention: FLOP/s of attention; None where it counts as products do.
      collective_s: seconds of each collective.
    """
    found = []
    for row in sorted(products, key=lambda row: row["rows"]):
        seconds, flops = row["seconds"]["median"], row["flops"]
        beside = row["collectives"] * collective_s
        if attention:
            beside += row["attention_flops"] / attention
            flops -= row["attention_flops"]
        alone = max(seconds - beside, LEAST_OF_PRODUCTS * seconds)
        found.append(_Rate(row["rows"], row["dtype"], flops / alone))
    return found


def _by_rows(
    rates: Sequence[_Rate], peak: float, limited: float | None
) -> tuple[tuple[float, float], ...]:
    """Fractions of the peak by rows, such that more rows take no less time, and fall in no rate.

    Args:
      rates: those of products, by rising rows.
      peak: FLOP/s that fractions are of.
      limited: bytes per second that memory achieves; products whose weights come nearly as fast
        tell nothing of arithmetic, and are left out. None to keep all.
    """
    found: list[tuple[float, float]] = []
    for rows, dtype, rate in rates:
        read = rate / (2 * rows) * jnp.dtype(PLAIN_DTYPES[dtype]).itemsize
        if limited and read > NEARLY * limited and rows < rates[-1].rows:
            continue
        fraction = min(rate / peak, 1.0)
        if found:
            fewer, least = found[-1]
            fraction = min(max(fraction, least), least * rows / fewer, 1.0)
        found.append((rows, fraction))
    return tuple(found)


def _largest(rows: Sequence[dict], size: str) -> list[dict]:
    most = max(row[size] for row in rows)
    return [row for row in rows if row[size] == most]


def _fraction(rows: Sequence[dict], rate: str, peak: float) -> float:
    return min(max(row[rate] for row in rows) / peak, 1.0)


def _best_sample(rows: Sequence[dict], rate: str) -> float:
    """The rate of the fastest of all samples, where the rates of rows are those of medians."""
    times = (row["seconds"] for row in rows)
    ratios = (each["median"] / min(each["samples"]) for each in times)
    return max(row[rate] * ratio for row, ratio in zip(rows, ratios, strict=True))


def _links(fits: Sequence[dict], basis: Basis) -> dict[str, float]:
    """`link` and `collective_s`; only what the fits of collectives tell."""
    if not fits:
        return {}
    costs = [basis.link_cost(row["kind"], row["axes"]) for row in fits]
    fixed = [max(row["fixed_s"] - hops, 0.0) for row, (hops, _) in zip(fits, costs, strict=True)]
    found = {"collective_s": statistics.median(fixed)}
    rates = [row["bytes_per_s"] * per_byte for row, (_, per_byte) in zip(fits, costs, strict=True)]
    if rates := [rate for rate in rates if 0 < rate < float("inf")]:
        best = 1.0 if basis.published else max(rates)
        found["link"] = min(statistics.median(rates) / best, 1.0)
    return found
