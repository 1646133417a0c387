"""The peak rates that floors of a sweep divide by: published ones, or the best of the run."""

import dataclasses
import math

import jax.numpy as jnp

from decode.engine import Engine
from model.dtypes import Dtypes
from profiles.chips.chip import Peaks, published_peaks
from profiles.floor.memory_needed import shares_memory
from profiles.measured.bandwidth import PeakMeter, cache_beside_rates
from profiles.measured.sweep_settings import Sweep
from profiles.report.titles import field_text
from sharding.devices import devices

Rates = dict[str, dict[str, list[float]]]
"""By mesh and kernel every sample: bytes per second of reads, FLOP/s of matmuls."""
MATMUL = "matmul"


def sample_rates(rates: Rates, meter: PeakMeter, repeats: int, first: str) -> None:
    """Runs each kernel of a meter on its mesh, and adds the samples to `rates`.

    Args:
      rates: what there is so far.
      meter: on the mesh.
      repeats: samples of each kernel.
      first: dtype whose matmuls need not be named by it.
    """
    meter.sample(repeats)
    kernels = rates.setdefault(field_text(meter.mesh.shape), {})
    for name, samples in meter.rates().items():
        if name == MATMUL:
            name = matmul_name(jnp.dtype(meter.dtype).name, first)
        kernels.setdefault(name, []).extend(samples)


def matmul_name(dtype: str, first: str) -> str:
    """The key of a dtype's matmuls among the kernels of a mesh."""
    return MATMUL if dtype == first else f"{MATMUL} {dtype}"


def peaks_of(sweep: Sweep, bandwidth: dict, engine: Engine) -> Peaks:
    """Peaks of each device; the fake devices of a CPU count as one chip, whose peaks they share."""
    if not shares_memory():
        peaks = published(sweep, engine.dtypes)
        read_rate = bandwidth.get("measured_bytes_per_s")
        read_rate = read_rate and read_rate / peaks.devices_per_chip
        return dataclasses.replace(peaks, read_rate=read_rate)
    count, by_dtype = engine.mesh.size, bandwidth.get("peak_flops_by_dtype", {})
    flops = by_dtype.get(engine.dtypes.dtype.name, bandwidth["peak_flops_per_s"])
    return Peaks(
        bandwidth=bandwidth["bytes_per_s"] / count,
        flops=flops / count,
        source=bandwidth["source"],
        on_chip=cache_beside_rates() / count,
        devices_per_chip=count,
    )


def published(sweep: Sweep, dtypes: Dtypes) -> Peaks:
    """Published peaks of each device, for the arithmetic that a step in these dtypes does."""
    return published_peaks(devices()[0], sweep.bandwidth, sweep.peak_flops, dtypes.arithmetic)


def bandwidth_of(sweep: Sweep, rates: Rates) -> dict:
    """The rates of one chip that floors divide by, and all measured samples.

    Args:
      sweep: gives rates to use in place of measured or published ones.
      rates: the samples of this run, and of the one that it goes on with.

    Returns:
      Its ``peak_flops_per_s`` is of the first dtype; where there are several types of arithmetic,
      ``peak_flops_by_dtype`` has each.
    """
    first = sweep.dtype_sets[0]
    flops = _measured_flops(sweep, rates)
    reads = [
        max(samples) / _chips(sweep, mesh)
        for mesh, kernels in rates.items()
        for name, samples in kernels.items()
        if not name.startswith(MATMUL)
    ]
    measured: dict = {"samples": rates}
    if reads and flops:  # weights may have left no memory to measure them
        best = {"measured_bytes_per_s": max(reads), "measured_flops_per_s": max(flops.values())}
        measured = best | measured
    if shares_memory():
        found = {
            "bytes_per_s": sweep.bandwidth or measured["measured_bytes_per_s"],
            "source": "given" if sweep.bandwidth else "measured",
            "peak_flops_per_s": sweep.peak_flops or flops.get(first.dtype.name),
            "shared": "all devices of this CPU mesh share one memory, so its rate is that of the "
            "whole mesh and each device's floor takes its share",
        }
        by_dtype = flops if sweep.peak_flops is None else {}
    else:
        peaks = published(sweep, first)
        chip = peaks.devices_per_chip
        found = {
            "bytes_per_s": peaks.bandwidth * chip,
            "source": peaks.source,
            "peak_flops_per_s": peaks.flops * chip,
        }
        by_dtype = {
            dtypes.arithmetic: published(sweep, dtypes).flops * chip for dtypes in sweep.dtype_sets
        }
    return found | ({"peak_flops_by_dtype": by_dtype} if len(by_dtype) > 1 else {}) | measured


def _measured_flops(sweep: Sweep, rates: Rates) -> dict[str, float]:
    """The best product of matrices of each dtype that was measured, in FLOP/s."""
    first, best = sweep.dtype_sets[0].dtype.name, {}
    for dtype in dict.fromkeys(dtypes.dtype.name for dtypes in sweep.dtype_sets):
        name = matmul_name(dtype, first)
        found = [
            max(kernels[name]) / _chips(sweep, mesh)
            for mesh, kernels in rates.items()
            if name in kernels
        ]
        best |= {dtype: max(found)} if found else {}
    return best


def _chips(sweep: Sweep, mesh: str) -> float:
    """Chips that a mesh's rates are of; the fake devices of a CPU count as one."""
    if shares_memory():
        return 1.0
    parts = published(sweep, sweep.dtype_sets[0]).devices_per_chip
    return math.prod(map(int, mesh.split("x"))) / parts
