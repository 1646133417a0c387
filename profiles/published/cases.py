"""Published measurements of steps: their data file, and the meaning of its fields.

A case names its model, slice, layout and sizes as the scripts' flags do. A field that the source
does not state is left out; a floor is then the lowest one that is consistent with the source.
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
_MOST = 2**24  # largest number of sequences or tokens


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a type's numbers are stored.

    Attributes:
      expected: the storage for expected times, with scales.
      floor: the storage for floors: values without scales.
    """

    expected: Storage
    floor: jnp.dtype

    @property
    def few_bits(self) -> bool:
        """Whether arithmetic may be in fewer bits than 16."""
        return self.expected != self.floor


_PLAIN = {name: Stored(jnp.dtype(name), jnp.dtype(name)) for name in ("bfloat16", "float32")}
_TYPES = _PLAIN | {
    "int8": Stored(QUANTIZATIONS["int8"], jnp.dtype("int8")),
    "fp8": Stored(QUANTIZATIONS["fp8"], jnp.dtype("float8_e4m3fn")),
    # As many bytes as 16 bits each for scale and zero point of 32 values, which engines store.
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
      locator: where it stands in the source.
      model: a configuration, or a model known by its sizes alone.
      slice: the slice.
      layout: name of the layout; None where it is not stated.
      attention: what attention is divided by; None where it is not stated.
      mesh: sizes of the mesh axes; None where they are not stated.
      dtype: dtype of arithmetic; None where it is not stated.
      weights: how weights are stored.
      cache: how keys and values are stored; None for the dtype of arithmetic.
      phase: ``decode``, ``prefill`` or ``run``.
      batch: number of sequences.
      prompt_length: tokens of each prompt.
      generated_tokens: generated tokens of each sequence.
      context: tokens in the cache before the step, or before the prompt.
      published_s: seconds of a step, of a prefill, or of a run of prefill and all steps.
      assumed: assumptions about what the source leaves open.
      fit: name of the calibration that was fitted to this case and others.
      held_out: why no calibration was fitted to it.
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
        """Names of all layouts that are consistent with the source."""
        return LayoutNames(self.layout or AUTO, self.attention or AUTO)

    @property
    def arithmetic(self) -> str:
        """JAX's name of the dtype of arithmetic: float32 if stated, or if weights are in it."""
        stated = self.dtype or getattr(self.weights.expected, "name", "")
        return "float32" if stated == "float32" else "bfloat16"

    def dtypes(self, for_floor: bool) -> Dtypes:
        """How numbers are stored: for a floor or for an expected time."""
        which = "floor" if for_floor else "expected"
        cache = getattr(self.cache, which) if self.cache else None
        return Dtypes(jnp.dtype(self.arithmetic), getattr(self.weights, which), cache)

    def slice_for(self, for_floor: bool) -> Slice:
        """The slice, with chips whose FLOP/s are those of the case's arithmetic.

        Arithmetic on quantized weights may be in 16 bits or in fewer: where a source does not say,
        a floor takes the fastest rate of the chip.
        """
        chip = self.slice.chip if for_floor else self.slice.chip.recommended
        stated = self.dtype or self.arithmetic
        rate = chip.peak(stated)
        if for_floor and not self.dtype and self.weights.few_bits:
            excluded = () if self.weights.floor == jnp.dtype("int4") else ("int4", "fp4")
            rate = max(each for name, each in chip.flops.items() if name not in excluded)
        if rate == chip.peak(self.arithmetic):
            return self.slice
        return dataclasses.replace(self.slice, chip=self.slice.chip.override(flops=rate))


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A case that cannot be compared with a step.

    Attributes:
      source: who published it.
      locator: where it stands in the source.
      why: the reason, in one line.
    """

    source: str
    locator: str
    why: str


def shipped_cases() -> tuple[list[Case], list[Unusable]]:
    """The cases of `steps.json`, and those that cannot be used."""
    text = resources.files("profiles.published").joinpath("steps.json").read_text()
    data = json.loads(text)
    cases, wrong = read_rows(data["cases"])
    return cases, wrong + [Unusable(**row) for row in data["unusable"]]


def cases_of(path: str) -> tuple[list[Case], list[Unusable]]:
    """The cases of a file: a JSON list of them, or an object with a list ``cases``.

    Raises:
      UsageError: there is no such file, or it has no list of cases.
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
    """The cases in these rows, in their order, and those that cannot be used."""
    cases, wrong = [], []
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, dict) else {}
        try:
            cases.append(parse_case(row))
        except FloorlineError as error:
            source = fields.get("source") or f"case {number}"
            wrong.append(Unusable(str(source), str(fields.get("locator") or ""), str(error)))
    return cases, wrong


def parse_case(row: object) -> Case:
    """The case in an object of fields; null counts as absent, and unknown fields are ignored.

    Raises:
      UsageError: a field is missing, or its value is not known.
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"case is {row!r}; write an object of {', '.join(_REQUIRED)} and more")
    fields = {name: value for name, value in row.items() if value is not None}
    layout = row.get("layout", AUTO)
    _check_fields(fields | ({"layout": AUTO} if layout is None else {}))
    texts = {name: _text(fields, name) for name in ("source", "locator", "fit", "held_out")}
    sizes = ("prompt_length", "generated_tokens", "context")
    cache = _text(fields, "kv_dtype")
    mesh = _text(fields, "mesh")
    case = Case(
        **texts,
        model=_model(str(fields["model"])),
        slice=parse_slice(str(fields["topology"])),
        layout=_open(_text(fields, "layout")),
        attention=_open(_text(fields, "attention")),
        mesh=parse_mesh(mesh) if mesh else None,
        dtype=_arithmetic(_text(fields, "dtype")),
        weights=stored(str(fields["weight_dtype"]), "weight_dtype"),
        cache=stored(cache, "kv_dtype") if cache else None,
        phase=fields["phase"],
        batch=_integer(fields, "batch", 1),
        **{name: _integer(fields, name, 0) for name in sizes},
        published_s=_seconds(fields["published_s"]),
        assumed=_words(fields.get("assumed", ())),
    )
    if case.phase != "decode" and case.prompt_length < 2:
        raise UsageError(f"prompt_length is {case.prompt_length}; a prompt has 2 tokens or more")
    if mesh and math.prod(case.mesh.values()) != case.slice.devices:
        raise UsageError(
            f"mesh is {mesh}, but {case.slice} has {several(case.slice.devices, 'device')}; "
            "use as many"
        )
    case.names.layouts(case.model), case.slice_for(False)  # refuse unknown names
    return case


def _check_fields(fields: Mapping[str, object]) -> None:
    """Refuses missing fields and unknown phases."""
    missing = [name for name in (*_REQUIRED, "published_s") if name not in fields]
    phase = fields.get("phase")
    if phase is not None and phase not in PHASES:
        raise UsageError(f"phase is {phase!r}; use one of {', '.join(PHASES)}")
    if not (phase == "decode" and "context" in fields):
        missing += [name for name in _LENGTHS.get(phase, ()) if name not in fields]
    if missing:
        hint = " (or context)" * (phase == "decode" and "prompt_length" in missing)
        raise UsageError(f"case is without {', '.join(missing)}{hint}; give what the source states")


def _model(name: str) -> Model:
    """The model of a name, which may differ from the known one in case and punctuation."""
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
    """The name that chips' figures have for a dtype of arithmetic."""
    return _spelled("dtype", name) if name else None


def stored(name: str, field: str = "type") -> Stored:
    """How numbers of a type are stored; the type's name may have any common spelling.

    Raises:
      UsageError: the type is not known; the message names `field`.
    """
    return _TYPES[_spelled(field, name)]


def _spelled(field: str, name: str) -> str:
    for known, spelling in _SPELLINGS.items():
        if re.fullmatch(spelling, name.strip().lower()):
            return known
    raise UsageError(f"{field} is {name!r}; use one of {', '.join(_TYPES)}")


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{name} is {value!r}; write text")


def _integer(fields: Mapping[str, object], name: str, minimum: int) -> int | None:
    """An integer field of tokens or sequences; 0 if it is absent, but None for the context."""
    value = fields.get(name, None if name == "context" else 0)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and minimum <= value <= _MOST and value == int(value)):
        raise UsageError(f"{name} is {value!r}; use a whole number from {minimum} to {_MOST}")
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
