"""Records that differ in one size alone, as lines: what tells them apart, and a fit of each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from profiles.report.numbers import exact, ms, number, several
from profiles.report.record import LINE_FIELDS, Record
from profiles.report.titles import field_text, text_of
from sharding.error_types import FloorlineError

MULTIPLICATION_SIGN = "\N{MULTIPLICATION SIGN}"


class Axis(NamedTuple):
    """What lines run along.

    Attributes:
      along: the field in which the records of a line differ.
      panel: the field that a picture has a panel for each value of.
      fields: what makes two records points of one line.
    """

    along: str
    panel: str
    fields: tuple[str, ...]


_OF_CHUNKS = tuple(f for f in LINE_FIELDS if f not in ("context", "tokens_per_sequence"))
BY_BATCH = Axis("batch", "context", LINE_FIELDS)
BY_CONTEXT = Axis("context", "batch", (*_OF_CHUNKS, "batch", "prompt_length"))


def axis_of(points: Iterable[Record]) -> Axis:
    """By the tokens before them for the chunks of prompts, else by batch."""
    return BY_CONTEXT if any(point.prompt_length for point in points) else BY_BATCH


def lines(points: Iterable[Record], axis: Axis = BY_BATCH) -> list[list[Record]]:
    """Records grouped so that each group is a line along the axis, and sorted by it."""
    groups: dict[tuple, list[Record]] = {}
    for point in points:
        key = tuple(text_of(point, field) for field in axis.fields)
        groups.setdefault(key, []).append(point)
    return [sorted(group, key=lambda p: getattr(p, axis.along)) for group in groups.values()]


def telling_fields(points: Sequence[Record], axis: Axis = BY_BATCH) -> list[str]:
    """Fields besides devices and the panel's without which two lines would bear the same name."""
    found = []
    for field in axis.fields:
        texts: dict[tuple, set[str]] = {}
        for point in points:
            sizes = (point.devices, getattr(point, axis.panel))
            texts.setdefault(sizes, set()).add(text_of(point, field))
        if any(len(values) > 1 for values in texts.values()):
            found.append(field)
    return found


class Fit(TypedDict, total=False):
    """A line of step time against batch, in seconds, and fields that all of its records share."""

    intercept_s: float  # measured
    slope_s: float
    weight_floor_s: float
    kv_slope_floor_s: float
    mesh: Mapping[str, int]
    devices: int
    context: int
    layout: str
    attention: str
    expert_parallel: bool
    dtype: str
    weight_dtype: str
    kv_dtype: str


_SHARED_FIELDS = tuple(name for name in Fit.__annotations__ if not name.endswith("_s"))
_SIZES = {
    "context": "context",
    "tokens_per_sequence": "tokens",
    "prompt_length": "prompt",
    "batch": "batch",
}
"""Fields that are sizes, by what a row is named by them."""
_NAMING_FIELDS = "layout", "dtype", "weight_dtype", "kv_dtype"
"""What is said of a fit where fits differ in it."""


def fit(points: Sequence[Record]) -> Fit:
    """Least-squares line of measured step time against batch, beside the floor's own line.

    Args:
      points: measured records of one mesh and context, at two batches or more.

    Returns:
      The measured line; the floor's where the records carry it.
    """
    batches = [point.batch for point in points]
    if len(set(batches)) < 2:
        raise FloorlineError(f"batches to fit is {batches}; measure at two different ones or more")
    slope, intercept = np.polyfit(batches, [point.step_s["median"] for point in points], 1)
    found = Fit(intercept_s=float(intercept), slope_s=float(slope))
    if all(point.weight_floor_s is not None for point in points):
        # Touched experts can grow with batch; the least weights are what an intercept compares to.
        found["weight_floor_s"] = min(point.weight_floor_s for point in points)
    if all("kv_cache" in (point.floor_terms_s or {}) for point in points):
        kv_cache = [point.floor_terms_s["kv_cache"] for point in points]
        found["kv_slope_floor_s"] = float(np.polyfit(batches, kv_cache, 1)[0])
    shared = ((field, getattr(points[0], field)) for field in _SHARED_FIELDS)
    return found | {field: value for field, value in shared if value is not None}


def fits(points: Iterable[Record]) -> list[Fit]:
    """A fit per mesh and context, of the records with status ok at two batches or more."""
    usable = (point for point in points if point.ok and point.ran)
    return [fit(line) for line in lines(usable) if len({point.batch for point in line}) > 1]


def fit_lines(fits: Sequence[Fit]) -> list[str]:
    """Each fit as a line of text, measured first and its floor in brackets."""
    texts = []
    telling = [
        field
        for field in _NAMING_FIELDS
        if len({line[field] for line in fits if field in line}) > 1
    ]
    for line in fits:
        name = devices_words(line.get("devices"), line.get("mesh"))
        name += f", context {line['context']}" if "context" in line else ""
        name = ", ".join([*(str(line.get(field)) for field in telling), name])
        sign = "-" if line["slope_s"] < 0 else "+"
        text = f"{name}: measured step = {ms(line['intercept_s'])} ms {sign} "
        text += f"{ms(abs(line['slope_s']))} ms {MULTIPLICATION_SIGN} batch"
        named = (
            ("weight_floor_s", "weight floor {} ms"),
            ("kv_slope_floor_s", f"KV floor {{}} ms {MULTIPLICATION_SIGN} batch"),
        )
        floor = "; ".join(words.format(ms(line[f])) for f, words in named if f in line)
        texts.append(text + f"   ({floor})" * bool(floor))
    return texts


def prompt_lines(prompts: Sequence[Record]) -> list[str]:
    """Each whole prompt as a line of text, measured first, floor and expected time in brackets.

    Args:
      prompts: the sums of their chunks, expected times too; the floor is that of the whole as one
        pass.
    """
    texts, telling = [], telling_fields(prompts, BY_CONTEXT)
    telling = [field for field in telling if field not in ("mesh", "prompt_length")]
    for point in prompts:
        seconds = point.step_s["median"]
        told = [text_of(point, field) for field in telling]
        name = ", ".join([*told, devices_words(point.devices, point.mesh)])
        name += f", batch {exact(point.batch)}, prompt {exact(point.prompt_length)}"
        text = f"{name}: {ms(seconds)} ms in {several(point.chunks, 'chunk')}, "
        text += f"{number(point.tokens_per_s)} tokens/s, "
        text += f"{number(point.flops_per_chip * point.chips / seconds / 1e12)} TFLOP/s"
        beside = []
        if point.ok:
            share = point.fraction_of_floor or 0
            beside.append(f"floor as one pass {ms(point.floor_s)} ms, {share:.0%}")
        if point.expected_s is not None:
            beside.append(f"expected {ms(point.expected_s)} ms, {point.expected_s / seconds:.0%}")
        texts.append(text + f"   ({'; '.join(beside)})" * bool(beside))
    return texts


def rows_in_words(some: Sequence[Record], among: Sequence[Record]) -> str:
    """Some records by what tells them from others: `1 device (1x1x1), batch 1, 4`, or `all`."""
    if len(some) == len(among):
        return "all rows"
    fields = dict.fromkeys(["layout", *LINE_FIELDS, "prompt_length", "batch"])
    varied = [f for f in fields if len({text_of(point, f) for point in among}) > 1]
    if "devices" in varied or "mesh" in varied:
        varied = ["mesh", *(f for f in varied if f not in ("devices", "mesh"))]
    groups: dict[tuple[str, ...], list[str]] = {}
    for point in some:
        *others, last = (_named(point, field) for field in varied or ["batch"])
        groups.setdefault(tuple(others), []).append(last)
    found = []
    for others, last in groups.items():
        first, *rest = dict.fromkeys(last)
        word = f"{_SIZES[varied[-1]]} " if varied and varied[-1] in _SIZES else ""
        shown = [*others, first, *(each.removeprefix(word) for each in rest)]
        found.append(", ".join(filter(None, shown)))
    return "; ".join(found)


def _named(point: Record, field: str) -> str:
    """A record's field in words that say which it is."""
    if field == "mesh":
        return devices_words(point.devices, point.mesh)
    word = _SIZES.get(field)
    return f"{word} {exact(getattr(point, field) or 0)}" if word else text_of(point, field)


def devices_words(devices: int | None, mesh: Mapping[str, int] | None) -> str:
    """Devices and their mesh, `2 devices (1x1x2)`."""
    return several(devices or 1, "device") + (f" ({field_text(mesh)})" if mesh else "")
