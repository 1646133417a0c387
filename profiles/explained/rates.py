"""Peak rates of the devices that are here, for the floors of a trace that was taken before."""

from model.dtypes import Dtypes
from profiles.chips.chip import Peaks, published_peaks
from profiles.floor.memory_needed import shares_memory
from profiles.measured.bandwidth import PeakMeter, cpu_cache
from sharding.devices import devices
from sharding.mesh import MeshShape, make_mesh


def rates_here(
    shape: MeshShape, dtypes: Dtypes, bandwidth: float | None, flops: float | None
) -> tuple[Peaks, dict]:
    """Peak rates as a sweep takes them: published ones, or on a CPU those that are measured now.

    Args:
      shape: the mesh.
      dtypes: how numbers are stored.
      bandwidth: bytes per second of one chip, in place of its figure.
      flops: FLOP/s of one chip, in place of its figure.

    Returns:
      Those of each device, and those of a chip as a document has them.
    """
    if not shares_memory():
        peaks = published_peaks(devices()[0], bandwidth, flops, dtypes.arithmetic)
        return peaks, _fields(peaks.bandwidth, peaks.flops, peaks.devices_per_chip, peaks.source)
    count, source = make_mesh(shape).size, "given"
    if not (bandwidth and flops):
        meter = PeakMeter(make_mesh(shape), dtypes.dtype)
        meter.sample()
        rates = meter.rates()
        source = "measured"
        flops = flops or max(rates.pop("matmul"))
        bandwidth = bandwidth or max(max(rates[name]) for name in rates if name != "matmul")
    peaks = Peaks(
        bandwidth / count, flops / count, source, cpu_cache() / count, devices_per_chip=count
    )
    return peaks, _fields(peaks.bandwidth, peaks.flops, count, source)


def _fields(bandwidth: float, flops: float, devices: int, source: str) -> dict:
    """Rates of a chip, from those of each of its devices."""
    return {
        "bytes_per_s": bandwidth * devices,
        "source": source,
        "peak_flops_per_s": flops * devices,
    }
