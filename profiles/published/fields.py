"""Fields of published cases: what a JSON object says, checked and in this project's terms."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from model.catalog import CATALOG, find_model
from model.dtypes import Storage
from profiles.floor.deployment import Model
from profiles.floor.sized_models import sized_models
from sharding.error_types import UsageError
from sharding.quantization import COUNTED, QUANTIZATIONS, bits_of

_MOST = 2**24  # largest number of sequences or tokens


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a type's numbers are stored.

    Attributes:
      name: name of the type.
      expected: the storage for expected times, with scales.
      floor: the storage for floors: values without scales.
    """

    name: str
    expected: Storage
    floor: jnp.dtype

    @property
    def few_bits(self) -> bool:
        """Whether arithmetic may be in fewer bits than 16."""
        return self.expected != self.floor

    @property
    def bits(self) -> int:
        """Bits of a value, without scales."""
        return bits_of(self.floor)


_TYPES = {
    each.name: each
    for each in (
        *(Stored(name, jnp.dtype(name), jnp.dtype(name)) for name in ("bfloat16", "float32")),
        Stored("int8", QUANTIZATIONS["int8"], jnp.dtype("int8")),
        Stored("fp8", QUANTIZATIONS["fp8"], jnp.dtype("float8_e4m3fn")),
        # As many bytes as 16 bits each for scale and zero point of 32 values, which engines store.
        Stored("int4", QUANTIZATIONS["int4_symmetric"], jnp.dtype("int4")),
        *(Stored(name, kind, jnp.dtype(kind.dtype)) for name, kind in COUNTED.items()),
    )
}
_SPELLINGS = {
    "bfloat16": r"bf16|bfloat16|f(loat|p)?16|half",
    "float32": r"f(loat|p)?32",
    "int8": r"(u?int|[iw])8.*",
    "fp8": r"f(loat|p)8.*|[ef]4m3.*|e5m2.*",
    "int4": r"(u?int|[iw])4.*|awq|gptq",
    "nvfp4": r"(nv)?f(loat|p)4.*",
    "mxfp4": r"mxf(loat|p)4.*",
}


def stored(name: str, field: str = "type") -> Stored:
    """How numbers of a type are stored; the type's name may have any common spelling.

    Raises:
      UsageError: the type is not known; the message names `field`.
    """
    return _TYPES[_spelled(field, name)]


def arithmetic(name: str | None) -> str | None:
    """The name that chips' figures have for a dtype of arithmetic."""
    return re.sub("^(nv|mx)fp4$", "fp4", _spelled("dtype", name)) if name else None


def bits_in(arithmetic: str) -> int:
    """Bits of a value of a type, by the name that chips' figures have for it."""
    return int(re.search(r"\d+", arithmetic)[0])


def _spelled(field: str, name: str) -> str:
    for known, spelling in _SPELLINGS.items():
        if re.fullmatch(spelling, name.strip().lower()):
            return known
    raise UsageError(f"{field} is {name!r}; use one of {', '.join(_TYPES)}")


def model_of(name: str) -> Model:
    """The model of a name, which may differ from the known one in case and punctuation.

    Raises:
      UsageError: there is none, or several.
    """
    known = [*CATALOG, *sized_models()]
    near = [each for each in known if _letters(each) == _letters(name)]
    if name not in known and len(near) != 1:
        raise UsageError(f"model is {name!r}; use one of {', '.join(known)}")
    name = name if name in known else near[0]
    return find_model(name) if name in CATALOG else sized_models()[name]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def text(fields: Mapping[str, object], name: str) -> str | None:
    """A field of text; None if it is absent.

    Raises:
      UsageError: it is something else.
    """
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{name} is {value!r}; write text")


def integer(fields: Mapping[str, object], name: str, minimum: int) -> int | None:
    """An integer field of tokens or sequences; None if it is absent.

    Raises:
      UsageError: it is something else, or out of range.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not (_is_number(value) and minimum <= value <= _MOST and value == int(value)):
        raise UsageError(f"{name} is {value!r}; use a whole number from {minimum} to {_MOST}")
    return int(value)


def positive(value: object, name: str, unit: str) -> float:
    """A number above 0.

    Raises:
      UsageError: it is something else.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise UsageError(f"{name} is {value!r}; use {unit}, above 0")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def texts(value: object, name: str) -> tuple[str, ...]:
    """A list of texts, or one text.

    Raises:
      UsageError: it is something else.
    """
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"{name} is {value!r}; write a list of texts")
    return tuple(value)


def check_present(fields: Mapping[str, object], required: Sequence[str], hint: str = "") -> None:
    """Refuses a case without some of its fields, or with an empty source or locator.

    Raises:
      UsageError: it names what is missing.
    """
    missing = [name for name in required if fields.get(name) in (None, "")]
    if missing:
        raise UsageError(f"case is without {', '.join(missing)}{hint}; give what the source states")
