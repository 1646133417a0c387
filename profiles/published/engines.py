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
from profiles.published.fields import Stored, shown, stored
from profiles.report.numbers import several
from sharding.error_types import UsageError
from sharding.mesh import MeshShape

_COUNTED = re.compile(r"(?<![A-Za-z])(DEP|DP|TP|EP|PP|SP|CP)[ =_-]?(\d+)", re.IGNORECASE)
_TPUS = re.compile(r"v(?:5e|6e|5litepod)-(\d+)", re.IGNORECASE)
_DIGITS = 6  # of the largest count
_SMALLEST = "fp8"


@dataclasses.dataclass(frozen=True)
class Engine:
    """A serving engine.

    Attributes:
      name: its name.
      prompts: ``beside`` or ``between``: where prompts run, of decode steps.
      known: whether `engines.json` has it.
      cache: name of the smallest type of its cache by that of the weights.
      arithmetic: chips' name of the type that it multiplies in, by the type of the weights.
    """

    name: str
    prompts: str = "beside"
    known: bool = True
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
        return next(alike, Engine(stated.strip(), known=False))
    named = (each for name, each in _named().items() if name.lower() in source.lower())
    return next(named, None)


def layout_names(parallelism: str, model: Model, slice: Slice) -> tuple[LayoutNames, ...]:
    """The layouts that a source's word for parallelism stands for; none where it is not known.

    Args:
      parallelism: such as ``TP4``, ``TP8 EP8``, ``DEP4``, ``TP2 (2 devices)`` or ``v5e-8``.
      model: the model; only a mixture has experts to divide.
      slice: the slice. A word for fewer devices stands for no layout of it.

    Raises:
      UsageError: it counts one kind twice, or asks for more devices than the slice has.
    """
    row = _words(parallelism, model, slice)
    return tuple(LayoutNames(**names) for names in row["layouts"]) if row else ()


def mesh_of(parallelism: str, model: Model, slice: Slice) -> MeshShape | None:
    """The mesh that a word for parallelism stands for; None for any on which its layouts divide.

    The arguments and errors are those of `layout_names`.
    """
    row = _words(parallelism, model, slice)
    if not row or "axis" not in row:
        return None
    return dict.fromkeys("xyz", 1) | {row["axis"]: slice.devices}


def _words(parallelism: str, model: Model, slice: Slice) -> dict | None:
    """The entry of `engines.json` for a word for parallelism."""
    counted: dict[str, int] = {}
    for kind, count in _COUNTED.findall(parallelism):
        if kind.upper() in counted:
            raise UsageError(
                f"parallelism is {shown(parallelism)}, which counts {kind.upper()} twice; use one "
                "count of each kind"
            )
        counted[kind.upper()] = _count(parallelism, count)
    devices = _devices(parallelism, counted, bool(model.experts))
    if devices > slice.devices:
        raise UsageError(
            f"parallelism is {shown(parallelism)}, of {several(devices, 'device')}, but {slice} "
            f"has {slice.devices}; use a larger slice, or the source's word for this one"
        )
    if devices < slice.devices:
        return None
    kinds = {kind for kind, count in counted.items() if count > 1 or len(counted) == 1}
    of = "mixture" if model.experts else "dense"
    alike = (
        row for row in _data()["parallelism"] if kinds == set(row["words"]) and of == row["model"]
    )
    return next(alike, None)


def _count(parallelism: str, digits: str) -> int:
    """A count of devices."""
    if len(digits) > _DIGITS:  # Python does not convert any number of them
        raise UsageError(
            f"parallelism is {shown(parallelism)}, with a count of {len(digits):,} digits; use "
            "the source's word for so many devices as the slice has"
        )
    return int(digits)


def _devices(parallelism: str, counted: Mapping[str, int], mixture: bool) -> int:
    """The devices that a word for parallelism asks for at least.

    Stages of a pipeline and parts of a context have devices of their own, and so have copies of a
    dense model. In a mixture data-parallel attention and divided experts share the devices of
    tensor parallelism, so the largest of these counts; parts of a sequence always share them.
    """
    if found := _TPUS.search(parallelism):
        return _count(parallelism, found[1])
    multiplied = {"PP", "CP"} | (set() if mixture else {"DP"})
    shared = max((count for kind, count in counted.items() if kind not in multiplied), default=1)
    return math.prod((shared, *(counted[kind] for kind in multiplied & counted.keys())))
