"""Published figures of chips, from `chips.json`, by short name or by JAX's device kind."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from importlib import resources

import jax

from profiles.report.numbers import exact
from sharding.error_types import UsageError

FLOPS = "_flops"
"""The end of the name of a figure that is a rate of arithmetic, after the type."""
RANGE = (1.0, 1e24)  # allowed figures of a chip; times would overflow far beyond it
_RANGES = {"hop_latency": (1e-12, 1.0)}  # seconds
DEAREST = 1e6  # USD per chip-hour, the highest price that is allowed


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
      highest: the highest credible value, for a floor.
      recommended: the value for an expected time.
      source: source of the recommended value; ``given`` if a flag gave it.
      note: what the figure means or how it was read.
    """

    highest: float
    recommended: float
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How chips are connected, and which slices of them exist.

    Attributes:
      dimensions: number of dimensions of the torus; 0 where a switch connects all chips of a
        domain.
      domain: largest number of chips connected without the network between hosts; None where not
        known.
      shapes: shapes of slices, in addition to those made of cubes; None where not published.
      cube: edge of the cubes that larger slices are built of; only these slices wrap around.
      wraps_at: length at which a dimension wraps around; without it and `cube`, wrapping is not
        known.
    """

    dimensions: int
    domain: int | None = None
    shapes: tuple[str, ...] | None = None
    cube: int | None = None
    wraps_at: int | None = None


@dataclasses.dataclass(frozen=True)
class Price:
    """The price of a chip in USD per hour, with its provider and date.

    Attributes:
      usd: price of one chip for one hour.
      commitment: how long a customer commits to pay, such as ``on-demand``.
      provider: who lists it.
      date: when it was listed.
      source: where it was read. This and the three above are empty for a price that a user gives.
      offer: the provider's machine or tier; empty if it has only one.
      region: region of the price; empty if it names none.
    """

    usd: float
    commitment: str = ""
    provider: str = ""
    date: str = ""
    source: str = ""
    offer: str = ""
    region: str = ""

    @property
    def on_demand(self) -> bool:
        """Whether a chip can be rented by the hour at this price."""
        return "on-demand" in self.commitment

    @property
    def seller(self) -> str:
        """Provider and offer."""
        return " ".join(filter(None, (self.provider, self.offer)))

    def as_record(self) -> dict[str, float | str]:
        """The price as fields of a record, without those that are not known."""
        known = ("provider", "offer", "region", "commitment", "date")
        said = {name: getattr(self, name) for name in known if getattr(self, name)}
        return {"usd_per_chip_hour": self.usd, **said}

    def __str__(self) -> str:
        said = ", ".join(filter(None, (self.commitment, self.seller, self.region, self.date)))
        return f"{exact(self.usd)} USD per chip-hour" + f" ({said})" * bool(said)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip by its highest credible figures, for floors; `recommended` has the others.

    Attributes:
      name: short name, as ``--topology`` spells it.
      device_kinds: JAX's names of its devices.
      devices_per_chip: 2 where a JAX device is half a chip.
      chips_per_host: chips in one machine; None where not known.
      wiring: how several chips are connected.
      prices: listed prices, with region, commitment and date.
      figures: figures with their sources, by the names of properties; rates of arithmetic by names
        such as ``int8_flops``.
      which: the attribute of `Figure` that properties return.
    """

    name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    chips_per_host: int | None
    wiring: Wiring
    prices: tuple[Price, ...]
    figures: Mapping[str, Figure] = dataclasses.field(hash=False, repr=False)
    which: str = "highest"

    @property
    def capacity(self) -> float:
        """Bytes of HBM."""
        return self._rate("capacity")

    @property
    def bandwidth(self) -> float:
        """Bytes per second of HBM."""
        return self._rate("bandwidth")

    @property
    def flops(self) -> dict[str, float]:
        """Dense FLOP/s by type of arithmetic; float32 as bfloat16 where that is how it runs."""
        rates = {name: self._rate(name) for name in self.figures if name.endswith(FLOPS)}
        rates = {name.removesuffix(FLOPS): rate for name, rate in rates.items()}
        return {"float32": rates["bfloat16"], **rates}

    @property
    def on_chip(self) -> float:
        """Bytes of last-level cache or VMEM."""
        return self._rate("on_chip")

    @property
    def ici(self) -> float | None:
        """Bytes per second one way over one link to a neighbour in a torus."""
        return self._rate("ici")

    @property
    def fabric(self) -> float | None:
        """Bytes per second one way between a chip and all others of its domain, as over NVLink."""
        return self._rate("fabric")

    @property
    def pcie(self) -> float | None:
        """Bytes per second one way between a chip and its host."""
        return self._rate("pcie")

    @property
    def network(self) -> float | None:
        """Bytes per second one way between a chip and those of other hosts or slices."""
        return self._rate("network")

    @property
    def hop_latency(self) -> float | None:
        """Seconds from a chip to its neighbour in a torus."""
        return self._rate("hop_latency")

    @property
    def link(self) -> float | None:
        """Bytes per second that a chip can send in a collective over one mesh axis.

        Both directions of one torus axis, all of its fabric, or PCIe if it has no fabric;
        None where not published.
        """
        if self.wiring.dimensions:
            return self.ici and 2 * self.ici
        return self.fabric or self.pcie

    @property
    def source(self) -> str:
        """Where figures are from, as a text to put after them."""
        names = [name for name, figure in self.figures.items() if figure.source == "given"]
        if not names:
            return f"{self.which} published"
        return f"published, but for {', '.join(names)}, given"

    @property
    def recommended(self) -> "Chip":
        """The same chip by its recommended figures, for expected times."""
        return dataclasses.replace(self, which="recommended")

    def price(self, provider: str | None = None) -> Price | None:
        """The cheapest on-demand price that is listed, of one provider if it is named."""
        listed = (price for price in self.prices if price.on_demand)
        wanted = (price for price in listed if provider in (None, price.provider))
        return min(wanted, key=lambda price: price.usd, default=None)

    def peak(self, dtype: str) -> float:
        """FLOP/s of arithmetic in `dtype`, a name of JAX or of the data file.

        Raises:
          UsageError: no such rate is known.
        """
        name = re.sub(r"^float([48])_.*", r"fp\1", dtype.removeprefix("u"))
        if name not in self.flops:
            raise UsageError(
                f"dtype is {dtype}, which {self.name} has no published rate of arithmetic for; "
                f"use one of {', '.join(self.flops)}, or give --peak_flops"
            )
        return self.flops[name]

    def override(self, **values: float | None) -> "Chip":
        """This chip with some figures replaced, in the units of properties; None keeps a figure.

        Args:
          **values: new figures by name; ``flops`` is the rate of every type of arithmetic.

        Raises:
          UsageError: there is no figure of such a name, or a number is out of range.
        """
        values = {name: value for name, value in values.items() if value is not None}
        if "flops" in values:
            every = values.pop("flops")
            values = {dtype + FLOPS: every for dtype in self.flops} | values
        for name, value in values.items():
            if name not in figure_names():
                raise UsageError(
                    f"chip figure is {name!r}; use one of {', '.join(figure_names())} or flops"
                )
            low, high = _RANGES.get(name, RANGE)
            if not low <= value <= high:
                remedy = f"use a positive number, {low:g} to {high:g}"
                raise UsageError(f"{name} of {self.name} is {value}; {remedy}")
        figures = {name: Figure(value, value, "given") for name, value in values.items()}
        return dataclasses.replace(self, figures={**self.figures, **figures})

    def _rate(self, name: str) -> float | None:
        figure = self.figures.get(name)
        return figure and getattr(figure, self.which)


@functools.cache
def chips() -> tuple[Chip, ...]:
    """Every chip in the data file."""
    data = json.loads(resources.files("profiles.chips").joinpath("chips.json").read_text())
    return tuple(_chip(row, data["sources"]) for row in data["chips"])


def find_provider(name: str) -> str:
    """The provider of this name, in upper or lower case.

    Raises:
      UsageError: no on-demand price of this provider is listed for any chip.
    """
    prices = (price for chip in chips() for price in chip.prices if price.on_demand)
    known = dict.fromkeys(price.provider for price in prices)
    for provider in known:
        if provider.lower() == name.strip().lower():
            return provider
    raise UsageError(
        f"provider is {name!r}, which has no listed on-demand price; use one of {', '.join(known)}"
    )


@functools.cache
def figure_names() -> tuple[str, ...]:
    """Names of the figures that any chip has."""
    return tuple(dict.fromkeys(name for chip in chips() for name in chip.figures))


def _chip(row: dict, sources: dict[str, str]) -> Chip:
    figures = {
        name: Figure(
            figure.get("highest", figure["value"]),
            figure["value"],
            sources[figure["source"]],
            figure.get("note", ""),
        )
        for name, figure in row["figures"].items()
    }
    wiring = {field.name: row["wiring"].get(field.name) for field in dataclasses.fields(Wiring)}
    wiring["shapes"] = wiring["shapes"] and tuple(wiring["shapes"])
    return Chip(
        **{name: row[name] for name in ("name", "devices_per_chip", "chips_per_host")},
        device_kinds=tuple(row["device_kinds"]),
        wiring=Wiring(**wiring),
        prices=tuple(
            Price(**price | {"source": sources[price["source"]]}) for price in row["prices"]
        ),
        figures=figures,
    )


def find_chip(name: str) -> Chip:
    """The chip with this short name or JAX device kind.

    Raises:
      UsageError: the chip is not in the data file.
    """
    for chip in chips():
        if name in (chip.name, *chip.device_kinds):
            return chip
    known = ", ".join(chip.name for chip in chips())
    raise UsageError(
        f"chip or device kind is {name!r}, which is not known (known: {known}); "
        "add its row to profiles/chips/chips.json"
    )


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The peak rates of one JAX device that a floor divides by.

    Attributes:
      bandwidth: bytes per second. On a CPU mesh, where devices share one memory, that memory's
        rate divided by the number of devices.
      flops: FLOP/s, divided in the same way.
      source: ``measured`` in this run, ``published``, or ``given`` by a flag.
      on_chip: bytes of last-level cache or VMEM, None where not known.
      capacity: bytes of memory, None where not known.
      link: bytes per second to other devices, None where not known.
      devices_per_chip: 2 where a JAX device is half a chip.
      read_rate: bytes per second that read kernels reached in this run, where `bandwidth` is not
        that itself.
    """

    bandwidth: float
    flops: float
    source: str
    on_chip: float | None = None
    capacity: float | None = None
    link: float | None = None
    devices_per_chip: int = 1
    read_rate: float | None = None


def published_peaks(
    device: jax.Device,
    bandwidth: float | None = None,
    flops: float | None = None,
    dtype: str = "bfloat16",
) -> Peaks:
    """Peaks of one JAX device from the data file, or from the rates of one chip if they are given.

    Args:
      device: the device, whose kind names the chip.
      bandwidth: bytes per second of one chip, in place of the published figure.
      flops: FLOP/s of one chip, in place of the published figure.
      dtype: dtype of the arithmetic.

    Raises:
      UsageError: the chip is unknown and not both figures are given, or it has no figure for the
        arithmetic and none is given.
    """
    try:
        chip = find_chip(device.device_kind)
    except UsageError as error:
        if not (bandwidth and flops):
            raise UsageError(f"{error}, or give --hbm_bandwidth and --peak_flops") from None
        return Peaks(bandwidth, flops, "given")
    parts = chip.devices_per_chip
    return Peaks(
        bandwidth=(bandwidth or chip.bandwidth) / parts,
        flops=(flops or chip.peak(dtype)) / parts,
        source="given" if bandwidth or flops else "published",
        on_chip=chip.on_chip / parts,
        capacity=chip.capacity / parts,
        link=chip.link and chip.link / parts,
        devices_per_chip=parts,
    )
