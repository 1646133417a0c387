"""The calibration that a microbenchmark tells: achieved fractions and fixed times of these devices.

What no kernel measures is taken from another calibration, and the source says so.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from model.dtypes import PLAIN_DTYPES
from profiles.chips.calibration import Calibration

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

    memory: the median rate of the best read kernel at the largest size. compute: that of the most
    rows, and compute_by_rows that of each. link and collective_s: the medians over kinds and mesh
    axes of fitted rates and fixed costs. layer_s: what a layer adds to a step that has no width,
    without its collectives; attention, on a CPU: what a sequence adds to that. On chips it is bound
    by memory, whose fraction tells it. step_s: how much later than the call a program ends that
    hardly computes, because calls return while earlier steps run.

    Args:
      found: the parts of a document.
      basis: what fractions are of.
      lent: the calibration to take what was not measured from.
    """
    reads = _largest(found["memory"]["samples"], "bytes")
    products = [row for row in found["matmul"]["samples"] if row["dtype"] == basis.dtype]
    memory_peak = basis.memory or _best_sample(reads, "bytes_per_s")
    flops_peak = basis.flops or _best_sample(products, "flops_per_s")
    links = _links(found["collectives"]["fits"], basis)
    call = min(found["dispatch"]["samples"], key=lambda row: row["arguments"])
    waiting = call["awaited"]["median"] - call["returned"]["median"]
    others = ["network_s", "hidden", *({"link", "collective_s"} - links.keys())]
    memory = _fraction(reads, "bytes_per_s", memory_peak)
    limited = memory * memory_peak if basis.published else None
    (layer,) = found["layers"]["fits"]
    starts = links.get("collective_s", 0.0) * layer["collectives"]
    attention = 0.0 if basis.published else layer["attention_flops_per_s"] / flops_peak
    peaks = () if basis.published else (("bandwidth", memory_peak), ("flops", flops_peak))
    measured = {
        "memory": memory,
        "compute": _fraction(_largest(products, "rows"), "flops_per_s", flops_peak),
        "compute_by_rows": _by_rows(products, flops_peak, limited),
        "attention": min(attention, 1.0) or None,
        "peaks": peaks,
        "layer_s": max(layer["layer_s"] - starts, 0.0),
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
        measured_on=basis.chip,
        **measured,
    )


def _by_rows(
    products: Sequence[dict], peak: float, limited: float | None
) -> tuple[tuple[float, float], ...]:
    """Fractions of the peak by rows, such that more rows take no less time, and fall in no rate.

    Args:
      products: records of products.
      peak: FLOP/s that fractions are of.
      limited: bytes per second that memory achieves; products whose weights come nearly as fast
        tell nothing of arithmetic, and are left out. None to keep all.
    """
    found: list[tuple[float, float]] = []
    most = max(row["rows"] for row in products)
    for row in sorted(products, key=lambda row: row["rows"]):
        rows, rate = row["rows"], row["flops_per_s"]
        read = rate / (2 * rows) * jnp.dtype(PLAIN_DTYPES[row["dtype"]]).itemsize
        if limited and read > NEARLY * limited and rows < most:
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
