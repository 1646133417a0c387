"""Peak rates for the floors of a trace that was taken before: of devices here, or of others."""

from profiles.chips.chip import Peaks, published_peaks
from profiles.compiled.inspection import PassProgram
from profiles.floor.memory_needed import shares_memory
from profiles.measured.bandwidth import PeakMeter, cache_beside_rates
from sharding.devices import default_platform, devices
from sharding.error_types import UsageError
from sharding.mesh import make_mesh

_GPU = ("gpu", "cuda", "rocm")


def platform_here() -> str:
    """The kind of JAX's devices: cpu, gpu or tpu."""
    platform = default_platform()
    return "gpu" if platform in _GPU else platform


def rates_of(
    program: PassProgram, elsewhere: str | None, bandwidth: float | None, flops: float | None
) -> tuple[Peaks, dict]:
    """Peak rates as a sweep takes them: published ones, or on a CPU those that are measured now.

    Args:
      program: the step, whose mesh they are of.
      elsewhere: the kind of devices if they are not those that are here.
      bandwidth: bytes per second of one chip, in place of its figure.
      flops: FLOP/s of one chip, in place of its figure.

    Returns:
      Those of each device, and those of a chip as a document has them.

    Raises:
      UsageError: the devices are not here, and their rates are not given.
    """
    if elsewhere:
        if not (bandwidth and flops):
            raise UsageError(
                f"trace is of a {elsewhere}, whose peak rates are not known here; give "
                "--hbm_bandwidth and --peak_flops"
            )
        peaks = Peaks(bandwidth, flops, "given")
    elif shares_memory():
        peaks = _of_cpu(program, bandwidth, flops)
    else:
        peaks = published_peaks(devices()[0], bandwidth, flops, program.dtypes.arithmetic)
    chip = {"bytes_per_s": peaks.bandwidth, "peak_flops_per_s": peaks.flops}
    parts = peaks.devices_per_chip
    return peaks, {"source": peaks.source} | {name: rate * parts for name, rate in chip.items()}


def _of_cpu(program: PassProgram, bandwidth: float | None, flops: float | None) -> Peaks:
    """Rates of each fake device of a CPU, which share those of one memory and its cores."""
    mesh, source = make_mesh(program.placement.mesh), "given"
    if not (bandwidth and flops):
        meter, source = PeakMeter(mesh, program.dtypes.dtype), "measured"
        meter.sample()
        rates = meter.rates()
        flops = flops or max(rates["matmul"])
        bandwidth = bandwidth or max(max(rates[name]) for name in rates if name != "matmul")
    return Peaks(
        bandwidth / mesh.size,
        flops / mesh.size,
        source,
        on_chip=cache_beside_rates() / mesh.size,
        devices_per_chip=mesh.size,
    )
