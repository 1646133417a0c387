"""Fields of published cases: what a JSON object says, checked and in this project's terms."""

import dataclasses
import re
import reprlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from model.catalog import CATALOG, find_model
from model.dtypes import Storage
from profiles.floor.deployment import Model
from profiles.floor.sized_models import sized_models
from sharding.error_types import UsageError
from sharding.quantization import COUNTED, QUANTIZATIONS, bits_of

_MOST = 2**24  # largest number of sequences or tokens
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_RANGE = 1e-9, 1e12  # seconds or tokens per second


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
        Stored("mxfp4", QUANTIZATIONS["mxfp4"], jnp.dtype("float4_e2m1fn")),
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
    raise UsageError(f"{field} is {shown(name)}; use one of {', '.join(_TYPES)}")


def model_of(name: str) -> Model:
    """The model of a name, which may differ from the known one in case and punctuation.

    Raises:
      UsageError: there is none, or several.
    """
    known = [*CATALOG, *sized_models()]
    near = [each for each in known if _letters(each) == _letters(name)]
    if name not in known and len(near) != 1:
        raise UsageError(f"model is {shown(name)}; use one of {', '.join(known)}")
    name = name if name in known else near[0]
    return find_model(name) if name in CATALOG else sized_models()[name]


def check_length(model: Model, name: str, tokens: int) -> None:
    """Refuses sequences of more tokens than a model goes to, where that is known.

    Raises:
      UsageError: it names the field, the length and the model.
    """
    longest = getattr(model, "max_context", None)
    if longest and tokens > longest:
        raise UsageError(
            f"{name} is {tokens:,}, beyond the {longest:,} tokens that {model.name} goes to; give "
            "the lengths that were run"
        )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def text(fields: Mapping[str, object], name: str) -> str | None:
    """A field of text in one line; None if it is absent.

    Raises:
      UsageError: it is something else.
    """
    value = fields.get(name)
    if value is None or is_line(value):
        return value
    raise UsageError(f"{name} is {shown(value)}; write text, in one line")


def integer(fields: Mapping[str, object], name: str, minimum: int) -> int | None:
    """An integer field of tokens or sequences; None if it is absent.

    Raises:
      UsageError: it is something else, or out of range.
    """
    value = fields.get(name)
    if value is None:
        return None
    if not (_is_number(value) and minimum <= value <= _MOST and value == int(value)):
        raise UsageError(f"{name} is {shown(value)}; use a whole number from {minimum} to {_MOST}")
    return int(value)


def positive(value: object, name: str, unit: str) -> float:
    """A number above 0 that one can divide by.

    Raises:
      UsageError: it is something else.
    """
    least, most = _RANGE
    if not _is_number(value) or not least <= value <= most:
        raise UsageError(
            f"{name} is {shown(value)}; use {unit}, above 0: from {least:g} to {most:g}"
        )
    return float(value)


def is_line(value: object) -> bool:
    """Whether a value is text that prints in one line, and not blank."""
    if not isinstance(value, str) or _CONTROL.search(value):
        return False
    return not value or bool(value.strip())


def shown(value: object) -> str:
    """A value in an error, which need not have all of it."""
    return _SHORT.repr(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def texts(value: object, name: str) -> tuple[str, ...]:
    """A list of texts, or one text.

    Raises:
      UsageError: it is something else.
    """
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, Sequence) or not all(map(is_line, value)):
        raise UsageError(f"{name} is {shown(value)}; write a list of texts, each in one line")
    return tuple(value)


def check_present(fields: Mapping[str, object], required: Sequence[str], hint: str = "") -> None:
    """Refuses a case without some of its fields, or with an empty source or locator.

    Raises:
      UsageError: it names what is missing.
    """
    missing = [name for name in required if fields.get(name) in (None, "")]
    if missing:
        raise UsageError(f"case is without {', '.join(missing)}{hint}; give what the source states")
