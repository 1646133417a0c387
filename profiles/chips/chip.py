"""Published figures of chips, from `chips.json`, by short name or by what JAX calls a device."""

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
"""Ends the name of a figure that is a rate of arithmetic; before it stands the type."""
RANGE = (1.0, 1e24)  # of figures that a chip may be given; far beyond it times overflow
_RANGES = {"hop_latency": (1e-12, 1.0)}  # seconds
DEAREST = 1e6  # USD per chip-hour that anyone is taken to pay


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
      highest: the highest credible one, for a floor.
      recommended: for an expected time.
      source: of the recommended one, or ``given``.
      note: what it is or how it was read.
    """

    highest: float
    recommended: float
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How chips are joined, and which slices of them there are.

    Attributes:
      dimensions: of the torus; 0 where all chips of a domain reach one another alike.
      domain: the most chips joined without the network between hosts; None where not known.
      shapes: of slices, besides those of whole cubes; None where not published.
      cube: edge of the cubes that larger slices are built of, which alone wrap around.
      wraps_at: length of an axis that wraps around. Without it and `cube`, that is not known.
    """

    dimensions: int
    domain: int | None = None
    shapes: tuple[str, ...] | None = None
    cube: int | None = None
    wraps_at: int | None = None


@dataclasses.dataclass(frozen=True)
class Price:
    """What a chip costs, in USD per hour, where and when.

    Attributes:
      usd: what one chip costs for one hour.
      commitment: for how long it is bought, such as ``on-demand``.
      provider: who lists it.
      date: when it was listed.
      source: where it was read. This and the names above are empty for a price that a user gives.
      offer: the provider's machine or tier; empty where it has but one.
      region: empty where the price names none.
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
        """Whether a chip can be had at it by the hour."""
        return "on-demand" in self.commitment

    @property
    def seller(self) -> str:
        """Provider and offer."""
        return " ".join(filter(None, (self.provider, self.offer)))

    def as_record(self) -> dict[str, float | str]:
        """What programs read, without what is not known."""
        known = ("provider", "offer", "region", "commitment", "date")
        said = {name: getattr(self, name) for name in known if getattr(self, name)}
        return {"usd_per_chip_hour": self.usd, **said}

    def __str__(self) -> str:
        said = ", ".join(filter(None, (self.commitment, self.seller, self.region, self.date)))
        return f"{exact(self.usd)} USD per chip-hour" + f" ({said})" * bool(said)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip by its highest credible figures, those of a floor; `expected` has the recommended.

    Attributes:
      name: short name, as ``--topology`` spells it.
      device_kinds: what JAX calls its devices.
      devices_per_chip: 2 where a JAX device is half a chip.
      chips_per_host: in one machine; None where not known.
      wiring: of many.
      prices: with region, commitment and date, without which they say little.
      figures: with their sources, by the names of properties; of arithmetic as ``int8_flops``.
      which: the attribute of figures that properties give.
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
        """Bytes per second one way between a chip and all others of its domain: NVLink and such."""
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
        """Bytes per second that a chip sends in a collective over one mesh axis.

        Both directions of one torus axis, all of its fabric, or PCIe where that is all there is;
        None where not published.
        """
        if self.wiring.dimensions:
            return self.ici and 2 * self.ici
        return self.fabric or self.pcie

    @property
    def source(self) -> str:
        """Where figures are from, in words that follow them."""
        given = [name for name, figure in self.figures.items() if figure.source == "given"]
        if not given:
            return f"{self.which} published"
        return f"published, but for {', '.join(given)}, given"

    @property
    def expected(self) -> "Chip":
        """The same chip by its recommended figures, those of an expected time."""
        return dataclasses.replace(self, which="recommended")

    def price(self, provider: str | None = None) -> Price | None:
        """The cheapest on-demand price that is listed, of one provider if it is named."""
        listed = (price for price in self.prices if price.on_demand)
        wanted = (price for price in listed if provider in (None, price.provider))
        return min(wanted, key=lambda price: price.usd, default=None)

    def peak(self, dtype: str) -> float:
        """FLOP/s of arithmetic in `dtype`, by JAX's name or the data file's.

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

    def override(self, **given: float | None) -> "Chip":
        """This chip with other figures, in the units of properties; None leaves a figure.

        Args:
          **given: by the names of figures; ``flops`` is of every type.

        Raises:
          UsageError: a name is of no figure, or a number is none that a chip could have.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if "flops" in given:
            every = given.pop("flops")
            given = {dtype + FLOPS: every for dtype in self.flops} | given
        for name, value in given.items():
            if name not in figure_names():
                raise UsageError(
                    f"chip figure is {name!r}; use one of {', '.join(figure_names())} or flops"
                )
            least, most = _RANGES.get(name, RANGE)
            if not least <= value <= most:
                remedy = f"use a positive number, {least:g} to {most:g}"
                raise UsageError(f"{name} of {self.name} is {value}; {remedy}")
        figures = {name: Figure(value, value, "given") for name, value in given.items()}
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
    """The provider of this name, in whatever case.

    Raises:
      UsageError: it lists no on-demand price of any chip.
    """
    prices = (price for chip in chips() for price in chip.prices if price.on_demand)
    known = dict.fromkeys(price.provider for price in prices)
    for provider in known:
        if provider.lower() == name.strip().lower():
            return provider
    raise UsageError(
        f"provider is {name!r}, of whom no on-demand price is listed; use one of {', '.join(known)}"
    )


@functools.cache
def figure_names() -> tuple[str, ...]:
    """Of the figures that any chip has."""
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
    """The chip of this short name, or whose devices JAX calls so.

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
    device: jax.Device,
    bandwidth: float | None = None,
    flops: float | None = None,
    dtype: str = "bfloat16",
) -> Peaks:
    """Peaks of one JAX device from the data file, or those given for one chip.

    Args:
      device: by whose kind the chip is found.
      bandwidth: bytes per second of one chip, in place of the published figure.
      flops: FLOP/s of one chip, likewise.
      dtype: of arithmetic.

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
