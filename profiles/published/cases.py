"""Published cases: measured steps in a form that anyone can add to, and what their words stand for.

A case names its model, slice, layout and sizes as the scripts' flags do. What a source leaves open
stays open: a floor then takes the least that is consistent with it, and says so.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import jax.numpy as jnp

from model.catalog import CATALOG, find_model
from model.dtypes import Dtypes, Storage
from profiles.chips.slices import Slice, parse_slice
from profiles.expected.candidates import AUTO, LayoutNames
from profiles.floor.deployment import Model
from profiles.floor.sized_models import sized_models
from profiles.report.numbers import several
from sharding.error_types import FloorlineError, UsageError
from sharding.mesh import MeshShape, parse_mesh
from sharding.quantization import QUANTIZATIONS

PHASES = "decode", "prefill", "run"
_REQUIRED = "source", "locator", "model", "topology", "layout", "weight_dtype", "phase", "batch"
_LENGTHS = {"decode": ("prompt_length",), "prefill": ("prompt_length",),
            "run": ("prompt_length", "generated_tokens")}  # fmt: skip
_MOST = 2**24  # sequences or tokens


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a type's numbers are stored.

    Attributes:
      usual: with scales, for an expected time.
      least: values alone, tables included, for a floor.
    """

    usual: Storage
    least: jnp.dtype

    @property
    def few_bits(self) -> bool:
        """Whether arithmetic may be in fewer bits than 16."""
        return self.usual != self.least


_PLAIN = {name: Stored(jnp.dtype(name), jnp.dtype(name)) for name in ("bfloat16", "float32")}
_TYPES = _PLAIN | {
    "int8": Stored(QUANTIZATIONS["int8"], jnp.dtype("int8")),
    "fp8": Stored(QUANTIZATIONS["fp8"], jnp.dtype("float8_e4m3fn")),
    # As many bytes as a scale and a zero point of 16 bits for 32 values, as engines keep them.
    "int4": Stored(QUANTIZATIONS["int4_symmetric"], jnp.dtype("int4")),
}
_SPELLINGS = {
    "bfloat16": r"bf16|bfloat16|f(loat|p)?16|half",
    "float32": r"f(loat|p)?32",
    "int8": r"(u?int|[iw])8.*",
    "fp8": r"f(loat|p)8.*|[ef]4m3.*|e5m2.*",
    "int4": r"(u?int|[iw])4.*|awq|gptq",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A published measurement.

    Attributes:
      source: who published it.
      locator: where in the source.
      model: by its arrays, or by its sizes.
      slice: the slice.
      layout: the layout that expected times take; None where it is not stated.
      attention: likewise.
      mesh: sizes of its axes; None where they are not stated.
      dtype: of arithmetic; None where it is not stated.
      weights: how they are stored.
      cache: how keys and values are; None as arithmetic.
      phase: ``decode``, ``prefill`` or ``run``.
      batch: sequences.
      prompt_length: tokens of each prompt.
      generated_tokens: of each sequence.
      context: tokens in the cache before the step; for a prompt, before its first.
      published_s: seconds of a step, of a prefill, or of a whole run.
      assumed: what was read into the source.
      fit: the calibration that was fitted to it among others.
      held_out: why none was.
    """

    source: str
    locator: str
    model: Model
    slice: Slice
    layout: str | None
    attention: str | None
    mesh: MeshShape | None = dataclasses.field(hash=False)
    dtype: str | None
    weights: Stored
    cache: Stored | None
    phase: str
    batch: int
    prompt_length: int
    generated_tokens: int
    context: int | None
    published_s: float
    assumed: tuple[str, ...] = ()
    fit: str | None = None
    held_out: str | None = None

    @property
    def names(self) -> LayoutNames:
        """Of all layouts that are consistent with the source."""
        return LayoutNames(self.layout or AUTO, self.attention or AUTO)

    @property
    def arithmetic(self) -> str:
        """As JAX calls the type, where it is stated or follows."""
        stated = self.dtype or getattr(self.weights.usual, "name", "")
        return "float32" if stated == "float32" else "bfloat16"

    def dtypes(self, least: bool) -> Dtypes:
        """How numbers are stored: for a floor, or as usual."""
        which = "least" if least else "usual"
        cache = getattr(self.cache, which) if self.cache else None
        return Dtypes(jnp.dtype(self.arithmetic), getattr(self.weights, which), cache)

    def slice_for(self, least: bool) -> Slice:
        """The slice, its chips with the rate of the arithmetic that the case has.

        Arithmetic on weights of few bits may be in 16 bits or in fewer: where a source does not
        say, a floor takes the fastest that the chip has.
        """
        chip = self.slice.chip if least else self.slice.chip.expected
        stated = self.dtype or self.arithmetic
        rate = chip.peak(stated)
        if least and not self.dtype and self.weights.few_bits:
            left = () if self.weights.least == jnp.dtype("int4") else ("int4", "fp4")
            rate = max(each for name, each in chip.flops.items() if name not in left)
        if rate == chip.peak(self.arithmetic):
            return self.slice
        return dataclasses.replace(self.slice, chip=self.slice.chip.override(flops=rate))


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A case that no step stands for.

    Attributes:
      source: who published it.
      locator: where in the source.
      why: in a line.
    """

    source: str
    locator: str
    why: str


def shipped_cases() -> tuple[list[Case], list[Unusable]]:
    """Those of `published_steps.json`."""
    text = resources.files("profiles.published").joinpath("steps.json").read_text()
    data = json.loads(text)
    cases, wrong = read_rows(data["cases"])
    return cases, wrong + [Unusable(**row) for row in data["unusable"]]


def cases_of(path: str) -> tuple[list[Case], list[Unusable]]:
    """Those of a file: a JSON list of cases, or an object whose ``cases`` is one.

    Raises:
      UsageError: there is no such file, or it is not of this form.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--cases is {path!r}, which cannot be read: {error}") from None
    rows = data.get("cases") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows:
        raise UsageError(
            f"--cases is {path!r}, which holds no list of cases, or an empty one; write "
            'a JSON list of them, or an object {"cases": [...]}'
        )
    return read_rows(rows)


def read_rows(rows: Iterable[object]) -> tuple[list[Case], list[Unusable]]:
    """Cases in the order given, and beside them those that cannot be used."""
    cases, wrong = [], []
    for number, row in enumerate(rows, 1):
        given = row if isinstance(row, dict) else {}
        try:
            cases.append(parse_case(row))
        except FloorlineError as error:
            source = given.get("source") or f"case {number}"
            wrong.append(Unusable(str(source), str(given.get("locator") or ""), str(error)))
    return cases, wrong


def parse_case(row: object) -> Case:
    """A case by its fields; those that are null count as absent, and others than these are left.

    Raises:
      UsageError: a field is missing or stands for nothing known.
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"case is {row!r}; write an object of {', '.join(_REQUIRED)} and more")
    given = {name: value for name, value in row.items() if value is not None}
    layout = row.get("layout", AUTO)
    _check_fields(given | ({"layout": AUTO} if layout is None else {}))
    texts = {name: _text(given, name) for name in ("source", "locator", "fit", "held_out")}
    sizes = ("prompt_length", "generated_tokens", "context")
    cache = _text(given, "kv_dtype")
    mesh = _text(given, "mesh")
    found = Case(
        **texts,
        model=_model(str(given["model"])),
        slice=parse_slice(str(given["topology"])),
        layout=_open(_text(given, "layout")),
        attention=_open(_text(given, "attention")),
        mesh=parse_mesh(mesh) if mesh else None,
        dtype=_arithmetic(_text(given, "dtype")),
        weights=stored(str(given["weight_dtype"]), "weight_dtype"),
        cache=stored(cache, "kv_dtype") if cache else None,
        phase=given["phase"],
        batch=_whole(given, "batch", 1),
        **{name: _whole(given, name, 0) for name in sizes},
        published_s=_seconds(given["published_s"]),
        assumed=_words(given.get("assumed", ())),
    )
    if found.phase != "decode" and found.prompt_length < 2:
        raise UsageError(f"prompt_length is {found.prompt_length}; a prompt has 2 tokens or more")
    if mesh and math.prod(found.mesh.values()) != found.slice.devices:
        raise UsageError(
            f"mesh is {mesh}, but {found.slice} has {several(found.slice.devices, 'device')}; "
            "use as many"
        )
    found.names.layouts(found.model), found.slice_for(False)  # unknown names are refused here
    return found


def _check_fields(given: Mapping[str, object]) -> None:
    """Names what is missing, and refuses a phase that there is not."""
    missing = [name for name in (*_REQUIRED, "published_s") if name not in given]
    phase = given.get("phase")
    if phase is not None and phase not in PHASES:
        raise UsageError(f"phase is {phase!r}; use one of {', '.join(PHASES)}")
    if not (phase == "decode" and "context" in given):
        missing += [name for name in _LENGTHS.get(phase, ()) if name not in given]
    if missing:
        hint = " (or context)" * (phase == "decode" and "prompt_length" in missing)
        raise UsageError(f"case is without {', '.join(missing)}{hint}; give what the source states")


def _model(name: str) -> Model:
    """By its name, or by one that differs in capitals and marks alone."""
    known = [*CATALOG, *sized_models()]
    near = [each for each in known if _letters(each) == _letters(name)]
    if name not in known and len(near) != 1:
        raise UsageError(f"model is {name!r}; use one of {', '.join(known)}")
    name = name if name in known else near[0]
    return find_model(name) if name in CATALOG else sized_models()[name]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _open(name: str | None) -> str | None:
    return None if name == AUTO else name


def _arithmetic(name: str | None) -> str | None:
    """A type of arithmetic, as chips' figures call it."""
    return _spelled("dtype", name) if name else None


def stored(name: str, field: str = "type") -> Stored:
    """How numbers of a type are stored, by any common spelling of it.

    Raises:
      UsageError: the type is not known; the message calls it by `field`.
    """
    return _TYPES[_spelled(field, name)]


def _spelled(field: str, name: str) -> str:
    for known, spelling in _SPELLINGS.items():
        if re.fullmatch(spelling, name.strip().lower()):
            return known
    raise UsageError(f"{field} is {name!r}; use one of {', '.join(_TYPES)}")


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{name} is {value!r}; write text")


def _whole(given: Mapping[str, object], name: str, least: int) -> int | None:
    """A number of tokens or sequences; absent lengths are 0, an absent context None."""
    value = given.get(name, None if name == "context" else 0)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= _MOST and value == int(value)):
        raise UsageError(f"{name} is {value!r}; use a whole number from {least} to {_MOST}")
    return int(value)


def _seconds(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise UsageError(f"published_s is {value!r}; use seconds, above 0")
    return float(value)


def _words(value: object) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"assumed is {value!r}; write a list of texts")
    return tuple(value)
