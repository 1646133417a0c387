"""The models, slices, prices and deployments that the flags of estimates ask for."""

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
from profiles.published.engines import engine_of
from profiles.published.fields import stored
from profiles.published.measurement import Measurement
from profiles.report.numbers import exact
from sharding.error_types import UsageError
from sharding.stored_types import MULTIPLIED_TYPES


def model() -> Model:
    """The model that ``--model`` names: a configuration, or a model known by its sizes alone.

    Raises:
      UsageError: there is no such model, or ``--experts`` is given for one without experts.
    """
    named = _model()
    if EXPERTS.present and not named.experts:
        raise UsageError(
            f"--experts is {EXPERTS.value}, but {named.name} has no experts; leave it out"
        )
    return named


def _model() -> Model:
    name = _common.MODEL.value
    if name in CATALOG:
        return _common.lengthened(find_model(name))
    if name in sized_models():
        if _common.MAX_CONTEXT.value is not None:
            raise UsageError(
                f"--max_context is {_common.MAX_CONTEXT.value}, but {name} is known by its sizes "
                "alone, which do not limit its context; leave it out"
            )
        return sized_models()[name]
    return _common.source().config


def slice(topology: str) -> Slice:
    """The slice of a text such as ``v5e:4x4``, its chip with the figures that flags give.

    Raises:
      UsageError: there is no such slice, or a figure is out of range.
    """
    parsed = parse_slice(topology)
    return dataclasses.replace(parsed, chip=overridden(parsed.chip))


def overridden(chip: Chip) -> Chip:
    """The chip with the figures that flags give.

    Raises:
      UsageError: a figure is out of range.
    """
    return chip.override(**{figure: flag.value for figure, flag in FIGURES.items()})


def check_given(slices: Iterable[Slice], remedy: str) -> None:
    """Refuses a figure or a price that would apply to several kinds of chips.

    Args:
      slices: the slices of the run.
      remedy: the flag that names one chip.

    Raises:
      UsageError: a figure or a price is given, and the slices are of several kinds of chips.
    """
    given = _given()
    names = list(dict.fromkeys(each.chip.name for each in slices))
    if given and len(names) > 1:
        raise UsageError(
            f"--{given[0]} is given for several chips alike, {', '.join(names)}; name one with "
            f"{remedy}"
        )


def refuse_given(why: str) -> None:
    """Refuses flags of figures, prices and experts where they would change nothing.

    Raises:
      UsageError: one of them is given.
    """
    others = [flag.name for flag in (EXPERTS, PROVIDER) if flag.present]
    if given := _given() + others:
        raise UsageError(f"--{given[0]} is given, but {why}; leave it out")


def _given() -> list[str]:
    return [flag.name for flag in (*FIGURES.values(), PRICE) if flag.value is not None]


def calibration(chip: Chip) -> Calibration:
    """The constants of expected times, from ``--calibration`` or for this chip.

    Raises:
      UsageError: the file is missing or has other fields, or was measured on another device.
    """
    if CALIBRATION.value is None:
        return calibration_of(chip.name)
    given = read_calibration(CALIBRATION.value)
    given.check_chip(chip.name)
    return given


def deployment(model: Model, slice: Slice, dtypes: Dtypes) -> Deployment:
    """The model on a slice with the calibration, experts and price of the flags, without a layout.

    Raises:
      UsageError: the value of a flag is not allowed.
    """
    return Deployment(
        model=model,
        slice=slice,
        dtypes=dtypes,
        calibration=calibration(slice.chip),
        experts=EXPERTS.value,
        price=price(slice.chip),
    )


def engine_note(deployment: Deployment) -> str:
    """What to do where a calibration's engine multiplies in fewer bits than is counted, or "".

    Args:
      deployment: the model on a slice, with a calibration; its layout makes no difference.
    """
    weights, calibration = deployment.dtypes.quantization, deployment.calibration
    engine = engine_of(calibration.engine or None, "")
    counted = deployment.arithmetic
    if not weights or not engine or deployment.dtypes.multiplied:
        return ""
    case = Measurement(
        source=calibration.source,
        locator="",
        model=deployment.model,
        slice=deployment.slice,
        engine=engine,
        dtype=None,
        weights=stored(weights.name),
        stated_cache=None,
        phase="decode",
    )
    habit = case.multiplied
    if habit not in MULTIPLIED_TYPES or habit == counted:
        return ""
    return (
        f"arithmetic is in {counted}, but calibration {calibration.name} is of {engine.name}, "
        f"which multiplies {weights.name} weights in {habit} on {deployment.slice.chip.name}: use "
        f"--dtype={habit} for floors and expected times of that engine"
    )


def price(chip: Chip) -> Price | None:
    """The price of a chip-hour that a flag gives, else the listed one; None if there is neither.

    Raises:
      UsageError: a price is out of range, or the provider lists no price of any chip.
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
    """The cheapest listed on-demand price, of ``--provider`` if it is given.

    Raises:
      UsageError: the provider lists no price of any chip.
    """
    return chip.price(PROVIDER.value and find_provider(PROVIDER.value))


def whose() -> str:
    """Words about the provider, to follow those about a price that is not listed."""
    return f" by {find_provider(PROVIDER.value)}" if PROVIDER.value else ""


def price_words(chip: Chip) -> str:
    """The price that costs are computed with, in words."""
    if PRICE.value is not None:
        return f"{exact(PRICE.value)} USD per chip-hour (given)"
    if listed := listed_price(chip):
        return str(listed)
    return f"no price of {chip.name} is listed{whose()}; --price_per_chip_hour gives one"
