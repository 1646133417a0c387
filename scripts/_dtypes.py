"""Flags that say how a model's numbers are stored, and what they ask for."""

from collections.abc import Sequence

from _array_flags import DTYPE, WEIGHT_DTYPE
from absl import flags

from decode.load import PLAIN_DTYPES, default_dtype
from model.dtypes import Dtypes, Storage, check_platform
from sharding.error_types import UsageError
from sharding.quantization import QUANTIZATIONS, Quantization
from sharding.stored_types import CACHE_TYPES

_STORAGE: dict[str, Storage] = {**PLAIN_DTYPES, **QUANTIZATIONS}


def dtypes(
    stored: Quantization | None = None, dtype: str | None = None, here: bool = True
) -> Dtypes:
    """How numbers are stored, by the flags; see `dtype_sets`.

    Raises:
      UsageError: there is no such form, or several are given.
    """
    check()
    if len(set(WEIGHT_DTYPE.value or ())) > 1:
        raise UsageError(f"--weight_dtype is {','.join(WEIGHT_DTYPE.value)}; give one of them")
    return dtype_sets(stored, dtype, here)[0]


def dtype_sets(
    stored: Quantization | None = None, dtype: str | None = None, here: bool = True
) -> list[Dtypes]:
    """How numbers are stored, by flags of which ``--weight_dtype`` may name several, each once.

    Asks JAX for its platform, which starts it, if they are to be stored here.

    Args:
      stored: the quantization that a checkpoint is in: the default for weights.
      dtype: the default for ``--dtype``, if not that of JAX's platform.
      here: on JAX's platform, which may not have all; else on chips that are only spoken of, whose
        default is bfloat16.

    Raises:
      UsageError: there is no such form, or this platform has not got it.
    """
    check()
    plain = PLAIN_DTYPES[DTYPE.value or dtype or (default_dtype() if here else "bfloat16")]
    step = {
        "cache": _STORAGE.get(_of("kv_dtype")),
        "round_activations": bool(_of("round_activations")),
    }
    found = [
        Dtypes(plain, _STORAGE[name] if name else stored, **step)
        for name in dict.fromkeys(WEIGHT_DTYPE.value or [None])
    ]
    for kind in {kind for dtypes in found for kind in (dtypes.weights, dtypes.cache)}:
        if here and isinstance(kind, Quantization):
            check_platform(kind)
    for each in found:
        if each.round_activations and each.weights is not QUANTIZATIONS["int8"]:
            raise UsageError(
                f"--round_activations is true with weights in {each.weights.name}, whose products "
                "are not of 8-bit integers; use --weight_dtype=int8, or leave it out"
            )
    return found


def combined(caches: Sequence[str]) -> list[Dtypes]:
    """All forms of weights in ``--weight_dtype``, by default bfloat16 and int8, and these caches.

    Of chips that are only spoken of.

    Raises:
      UsageError: an unknown name.
    """
    check()
    for name in caches or [""]:
        if name not in CACHE_TYPES:
            raise UsageError(f"--kv_dtype is {name!r}; use one of {', '.join(CACHE_TYPES)}")
    plain = PLAIN_DTYPES[DTYPE.value or "bfloat16"]
    return list(
        dict.fromkeys(
            Dtypes(plain, _STORAGE[weights], _STORAGE[cache])
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
