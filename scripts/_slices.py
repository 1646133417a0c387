"""Flags of scripts that speak of chips which need not be there, and what they ask for."""

import dataclasses
from collections.abc import Iterable

import _common
from _slice_flags import CALIBRATION, EXPERTS, FIGURES, PRICE, PROVIDER

from model.catalog import CATALOG, find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration, calibration_of, read_calibration
from profiles.chips.chip import DEAREST, Chip, Price, find_provider
from profiles.chips.slices import Slice, parse_slice
from profiles.floor.deployment import Deployment, Model
from profiles.floor.sized_models import sized_models
from profiles.report.numbers import exact
from sharding.error_types import UsageError


def model() -> Model:
    """The model that ``--model`` names: of the catalogue, by its sizes alone, or a checkpoint's.

    Raises:
      UsageError: there is none of the name, or ``--experts`` is given of one that has none.
    """
    found = _model()
    if EXPERTS.present and not found.experts:
        raise UsageError(
            f"--experts is {EXPERTS.value}, but {found.name} has no experts; leave it out"
        )
    return found


def _model() -> Model:
    name = _common.MODEL.value
    if name in CATALOG:
        return _common.lengthened(find_model(name))
    if name in sized_models():
        if _common.MAX_CONTEXT.value is not None:
            raise UsageError(
                f"--max_context is {_common.MAX_CONTEXT.value}, but {name} is known by its sizes "
                "alone, which say nothing of how far it goes; leave it out"
            )
        return sized_models()[name]
    return _common.source().config


def slice(topology: str) -> Slice:
    """A slice by its text, its chip with the figures that flags give.

    Raises:
      UsageError: there is no such slice, or a figure is not positive.
    """
    found = parse_slice(topology)
    return dataclasses.replace(found, chip=overridden(found.chip))


def overridden(chip: Chip) -> Chip:
    """A chip with the figures that flags give.

    Raises:
      UsageError: one is not positive.
    """
    return chip.override(**{figure: flag.value for figure, flag in FIGURES.items()})


def check_given(slices: Iterable[Slice], remedy: str) -> None:
    """Refuses a figure or a price for several chips alike.

    Args:
      slices: that are spoken of.
      remedy: the flag that names one chip.

    Raises:
      UsageError: one is given, and the slices are of several chips.
    """
    given = _given()
    names = list(dict.fromkeys(each.chip.name for each in slices))
    if given and len(names) > 1:
        raise UsageError(
            f"--{given[0]} is given for several chips alike, {', '.join(names)}; name one with "
            f"{remedy}"
        )


def refuse_given(why: str) -> None:
    """Refuses figures, prices and experts where they would not be heard.

    Raises:
      UsageError: one is given.
    """
    others = [flag.name for flag in (EXPERTS, PROVIDER) if flag.present]
    if given := _given() + others:
        raise UsageError(f"--{given[0]} is given, but {why}; leave it out")


def _given() -> list[str]:
    return [flag.name for flag in (*FIGURES.values(), PRICE) if flag.value is not None]


def calibration(chip: Chip) -> Calibration:
    """What steps achieve, from ``--calibration`` or as shipped.

    Raises:
      UsageError: the file is not of the form.
    """
    if CALIBRATION.value is not None:
        return read_calibration(CALIBRATION.value)
    return calibration_of(chip.name)


def deployment(model: Model, slice: Slice, dtypes: Dtypes) -> Deployment:
    """The model on a slice at what flags say of rates, experts and prices, its layout left open.

    Raises:
      UsageError: a flag's value is no rate, expert or price.
    """
    return Deployment(
        model=model,
        slice=slice,
        dtypes=dtypes,
        calibration=calibration(slice.chip),
        experts=EXPERTS.value,
        price=price(slice.chip),
    )


def price(chip: Chip) -> Price | None:
    """What a chip-hour costs: as given, or as listed; None where it is neither.

    Raises:
      UsageError: one is given that no chip could have, or a provider who lists none of any chip.
    """
    if PRICE.value is None:
        return listed_price(chip)
    if PROVIDER.value is not None:
        raise UsageError(
            f"--provider is {PROVIDER.value}, beside --price_per_chip_hour; give one of them"
        )
    if not 0 <= PRICE.value <= DEAREST:
        raise UsageError(f"--price_per_chip_hour is {PRICE.value}; use USD, 0 to {DEAREST:,.0f}")
    return Price(PRICE.value)


def listed_price(chip: Chip) -> Price | None:
    """The cheapest price that is listed on demand, of ``--provider`` if given.

    Raises:
      UsageError: the provider lists none of any chip.
    """
    return chip.price(PROVIDER.value and find_provider(PROVIDER.value))


def whose() -> str:
    """Words that follow a price which is not listed."""
    return f" by {find_provider(PROVIDER.value)}" if PROVIDER.value else ""


def price_words(chip: Chip) -> str:
    """Which price costs are at."""
    if PRICE.value is not None:
        return f"{exact(PRICE.value)} USD per chip-hour (given)"
    if found := listed_price(chip):
        return str(found)
    return f"no price of {chip.name} is listed{whose()}; --price_per_chip_hour gives one"
