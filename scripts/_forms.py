"""Flags that say how a model's numbers are stored, and what they ask for."""

from collections.abc import Sequence

from _array_flags import DTYPE, WEIGHT_DTYPE
from absl import flags

from decode.load import DTYPES, default_dtype
from model.form import Form, Storage, check_platform
from sharding.error_types import UsageError
from sharding.scaled import SCHEMES, Scheme
from sharding.stored_types import CACHE_TYPES

_STORAGE: dict[str, Storage] = {**DTYPES, **SCHEMES}


def form(stored: Scheme | None = None, dtype: str | None = None, here: bool = True) -> Form:
    """How numbers are stored, by the flags; see `forms`.

    Raises:
      UsageError: there is no such form, or several are given.
    """
    check()
    if len(set(WEIGHT_DTYPE.value or ())) > 1:
        raise UsageError(f"--weight_dtype is {','.join(WEIGHT_DTYPE.value)}; give one of them")
    return forms(stored, dtype, here)[0]


def forms(stored: Scheme | None = None, dtype: str | None = None, here: bool = True) -> list[Form]:
    """How numbers are stored, by flags of which ``--weight_dtype`` may name several, each once.

    Asks JAX for its platform, which starts it, if they are to be stored here.

    Args:
      stored: the scheme that a checkpoint is in: the default for weights.
      dtype: the default for ``--dtype``, if not that of JAX's platform.
      here: on JAX's platform, which may not have all; else on chips that are only spoken of, whose
        default is bfloat16.

    Raises:
      UsageError: there is no such form, or this platform has not got it.
    """
    check()
    plain = DTYPES[DTYPE.value or dtype or (default_dtype() if here else "bfloat16")]
    step = {
        "cache": _STORAGE.get(_of("kv_dtype")),
        "round_activations": bool(_of("round_activations")),
    }
    found = [
        Form(plain, _STORAGE[name] if name else stored, **step)
        for name in dict.fromkeys(WEIGHT_DTYPE.value or [None])
    ]
    for kind in {kind for form in found for kind in (form.weights, form.cache)}:
        if here and isinstance(kind, Scheme):
            check_platform(kind)
    for each in found:
        if each.round_activations and each.weights is not SCHEMES["int8"]:
            raise UsageError(
                f"--round_activations is true with weights in {each.weights.name}, whose products "
                "are not of 8-bit integers; use --weight_dtype=int8, or leave it out"
            )
    return found


def combined(caches: Sequence[str]) -> list[Form]:
    """All forms of weights in ``--weight_dtype``, by default bfloat16 and int8, and these caches.

    Of chips that are only spoken of.

    Raises:
      UsageError: an unknown name.
    """
    check()
    for name in caches or [""]:
        if name not in CACHE_TYPES:
            raise UsageError(f"--kv_dtype is {name!r}; use one of {', '.join(CACHE_TYPES)}")
    plain = DTYPES[DTYPE.value or "bfloat16"]
    return list(
        dict.fromkeys(
            Form(plain, _STORAGE[weights], _STORAGE[cache])
            for weights in WEIGHT_DTYPE.value or ["bfloat16", "int8"]
            for cache in caches
        )
    )


def check() -> None:
    """Refuses names that there are no forms of, before JAX starts.

    Raises:
      UsageError: an unknown name.
    """
    for name in WEIGHT_DTYPE.value or ():
        if name not in _STORAGE:
            raise UsageError(f"--weight_dtype is {name!r}; use one of {', '.join(_STORAGE)}")


def _of(name: str):
    """A flag's value, None in a script that has no such flag."""
    return flags.FLAGS[name].value if name in flags.FLAGS else None
