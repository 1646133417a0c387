"""Published peaks of chips, from `chips.json`, found by the name JAX gives a device."""

import dataclasses
import functools
import json
from importlib import resources

import jax

from sharding.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip: bytes, bytes per second, dense FLOP/s.

    Attributes:
      name: short name, as ``--topology`` spells it.
      device_kinds: what JAX calls its devices.
      devices_per_chip: 2 where a JAX device is half a chip.
      capacity: bytes of HBM.
      bandwidth: bytes per second of HBM.
      flops: bfloat16 FLOP/s of the chip; float32 runs at most at this rate on matrix units.
      on_chip: bytes of last-level cache or VMEM.
      link: bytes per second that one chip sends to others in a collective over one mesh axis; None
        where not published.
    """

    name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    capacity: float
    bandwidth: float
    flops: float
    on_chip: float
    link: float | None = None


@functools.cache
def chips() -> tuple[Chip, ...]:
    """Every chip in the data file."""
    rows = json.loads(resources.files("profiles").joinpath("chips.json").read_text())["chips"]
    return tuple(
        Chip(
            name=row["name"],
            device_kinds=tuple(row["device_kinds"]),
            devices_per_chip=row["devices_per_chip"],
            capacity=row["capacity_bytes"]["value"],
            bandwidth=row["bandwidth_bytes_per_s"]["value"],
            flops=row["bfloat16_flops_per_s"]["value"],
            on_chip=row["on_chip_bytes"]["value"],
            link=row.get("link_bytes_per_s", {}).get("value"),
        )
        for row in rows
    )


def find_chip(device_kind: str) -> Chip:
    """The chip whose devices JAX calls `device_kind`.

    Raises:
      UsageError: the chip is not in the data file.
    """
    for chip in chips():
        if device_kind in chip.device_kinds:
            return chip
    known = ", ".join(chip.name for chip in chips())
    raise UsageError(
        f"device kind is {device_kind!r}, whose peaks are not known (known: {known}); "
        "add a row to profiles/chips.json, or give --hbm_bandwidth and --peak_flops"
    )


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a floor divides by, per JAX device.

    Attributes:
      bandwidth: bytes per second. On a CPU mesh, where devices share one memory, the whole
        memory's over the number of devices.
      flops: FLOP/s, shared in the same way.
      source: ``measured`` in this run, ``published``, or ``given`` by a flag.
      on_chip: bytes of last-level cache or VMEM, None where not known.
      capacity: bytes of memory, None where not known.
      link: bytes per second to other devices, None where not known.
      devices_per_chip: 2 where a JAX device is half a chip.
    """

    bandwidth: float
    flops: float
    source: str
    on_chip: float | None = None
    capacity: float | None = None
    link: float | None = None
    devices_per_chip: int = 1


def published_peaks(
    device: jax.Device, bandwidth: float | None = None, flops: float | None = None
) -> Peaks:
    """Peaks of one JAX device from the data file, or those given for one chip.

    Raises:
      UsageError: the chip is unknown and not both figures are given.
    """
    try:
        chip = find_chip(device.device_kind)
    except UsageError:
        if not (bandwidth and flops):
            raise
        return Peaks(bandwidth, flops, "given")
    parts = chip.devices_per_chip
    return Peaks(
        bandwidth=(bandwidth or chip.bandwidth) / parts,
        flops=(flops or chip.flops) / parts,
        source="given" if bandwidth or flops else "published",
        on_chip=chip.on_chip / parts,
        capacity=chip.capacity / parts,
        link=chip.link and chip.link / parts,
        devices_per_chip=parts,
    )
