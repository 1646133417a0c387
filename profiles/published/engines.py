"""Serving engines, from `engines.json`: their types and schedules, and their words for parallelism.

A source names an engine and says ``TP4`` or ``DEP8``. What it leaves open follows from the engine:
the smallest type of the cache, the arithmetic, and whether prompts run beside steps or between.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from importlib import resources

from profiles.chips.slices import Slice
from profiles.expected.candidates import LayoutNames
from profiles.floor.deployment import Model
from profiles.published.fields import Stored, stored
from profiles.report.numbers import several
from sharding.error_types import UsageError

_COUNTED = re.compile(r"(?<![A-Za-z])(DEP|DP|TP|EP|PP)[ =_-]?(\d+)", re.IGNORECASE)
_TPUS = re.compile(r"v(?:5e|6e|5litepod)-(\d+)", re.IGNORECASE)
_SMALLEST = "fp8"


@dataclasses.dataclass(frozen=True)
class Engine:
    """A serving engine.

    Attributes:
      name: its name.
      prompts: ``beside`` or ``between``: where prompts run, of decode steps.
      cache: name of the smallest type of its cache by that of the weights.
      arithmetic: chips' name of the type that it multiplies in, by the type of the weights.
    """

    name: str
    prompts: str = "beside"
    cache: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    arithmetic: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def cache_of(self, weights: Stored) -> Stored | None:
        """The smallest cache beside such weights; None for the type of arithmetic."""
        name = self.cache.get(weights.name, _SMALLEST if weights.few_bits else None)
        return stored(name) if name else None


@functools.cache
def _data() -> dict:
    return json.loads(resources.files("profiles.published").joinpath("engines.json").read_text())


@functools.cache
def _named() -> dict[str, Engine]:
    """Every engine by each of its names, the longest first."""
    found = {}
    for row in _data()["engines"]:
        figures = {key: row[key] for key in ("prompts", "cache", "arithmetic")}
        found |= dict.fromkeys(row["names"], Engine(row["names"][0], **figures))
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def engine_of(stated: str | None, source: str) -> Engine | None:
    """The engine of a case: the stated one, or the one that its source is of.

    Args:
      stated: the engine's name, or None. One that is not listed has no habits of its own.
      source: who published the case.

    Returns:
      The engine; None where neither names one.
    """
    if stated:
        alike = (each for name, each in _named().items() if name.lower() == stated.strip().lower())
        return next(alike, Engine(stated))
    named = (each for name, each in _named().items() if name.lower() in source.lower())
    return next(named, None)


def layout_names(parallelism: str, model: Model, slice: Slice) -> tuple[LayoutNames, ...]:
    """The layouts that a source's word for parallelism stands for; none where it is not known.

    Args:
      parallelism: such as ``TP4``, ``TP8 EP8``, ``DEP4``, ``TP2 (2 devices)`` or ``v5e-8``.
      model: the model; only a mixture has experts to divide.
      slice: the slice. A word for fewer devices stands for no layout of it.

    Raises:
      UsageError: it asks for more devices than the slice has.
    """
    counted = {kind.upper(): int(count) for kind, count in _COUNTED.findall(parallelism)}
    devices = _devices(parallelism, counted)
    if devices > slice.devices:
        raise UsageError(
            f"parallelism is {parallelism!r}, of {several(devices, 'device')}, but {slice} has "
            f"{slice.devices}; use a larger slice, or the source's word for this one"
        )
    if devices < slice.devices:
        return ()
    kinds = {kind for kind, count in counted.items() if count > 1 or len(counted) == 1}
    of = "mixture" if model.experts else "dense"
    for row in _data()["parallelism"]:
        if kinds == set(row["words"]) and of == row["model"]:
            return tuple(LayoutNames(**names) for names in row["layouts"])
    return ()


def _devices(parallelism: str, counted: Mapping[str, int]) -> int:
    """The devices that a word for parallelism asks for at least.

    Data-parallel attention and divided experts share the devices of tensor parallelism, so the
    largest of these counts; stages of a pipeline have such devices each.
    """
    if found := _TPUS.search(parallelism):
        return int(found[1])
    within = max((count for kind, count in counted.items() if kind != "PP"), default=1)
    return math.prod((within, counted.get("PP", 1)))
