"""The `Dtypes` that the flags ask for: how a model's numbers are stored."""

from collections.abc import Sequence

from _array_flags import DTYPE, WEIGHT_DTYPE
from absl import flags

from model.dtypes import PLAIN_DTYPES, Dtypes, Storage, check_platform, default_dtype
from sharding.error_types import UsageError
from sharding.quantization import QUANTIZATIONS, Quantization
from sharding.stored_types import CACHE_TYPES

_STORAGE: dict[str, Storage] = {**PLAIN_DTYPES, **QUANTIZATIONS}


def dtypes(
    stored: Quantization | None = None, dtype: str | None = None, here: bool = True
) -> Dtypes:
    """The one set of dtypes that the flags give; see `dtype_sets`.

    Raises:
      UsageError: a name is unknown, or ``--weight_dtype`` has several.
    """
    check()
    if len(set(WEIGHT_DTYPE.value or ())) > 1:
        raise UsageError(f"--weight_dtype is {','.join(WEIGHT_DTYPE.value)}; give one of them")
    return dtype_sets(stored, dtype, here)[0]


def dtype_sets(
    stored: Quantization | None = None, dtype: str | None = None, here: bool = True
) -> list[Dtypes]:
    """The sets of dtypes that the flags give, one for each name in ``--weight_dtype``.

    Args:
      stored: the quantization of a checkpoint, which is the default for weights.
      dtype: the default for ``--dtype``; None for that of the platform.
      here: whether the numbers are stored on JAX's devices. This starts JAX, to ask for its
        platform. Otherwise they are for chips not at hand, whose default is bfloat16.

    Raises:
      UsageError: a name is unknown, or JAX's platform does not have that dtype.
    """
    check()
    plain = PLAIN_DTYPES[DTYPE.value or dtype or (default_dtype() if here else "bfloat16")]
    step = {
        "cache": _STORAGE.get(_of("kv_dtype")),
        "round_activations": bool(_of("round_activations")),
    }
    sets = [
        Dtypes(plain, _STORAGE[name] if name else stored, **step)
        for name in dict.fromkeys(WEIGHT_DTYPE.value or [None])
    ]
    for kind in {kind for dtypes in sets for kind in (dtypes.weights, dtypes.cache)}:
        if here and isinstance(kind, Quantization):
            check_platform(kind)
    for each in sets:
        if each.round_activations and each.weights is not QUANTIZATIONS["int8"]:
            raise UsageError(
                f"--round_activations is true with weights in {each.weights.name}, whose products "
                "are not of 8-bit integers; use --weight_dtype=int8, or leave it out"
            )
    return sets


def combined(caches: Sequence[str]) -> list[Dtypes]:
    """All combinations of ``--weight_dtype``, by default bfloat16 and int8, with dtypes of caches.

    They are for chips that need not be at hand.

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
    """Refuses unknown names in ``--weight_dtype``, before JAX starts.

    Raises:
      UsageError: an unknown name.
    """
    for name in WEIGHT_DTYPE.value or ():
        if name not in _STORAGE:
            raise UsageError(f"--weight_dtype is {name!r}; use one of {', '.join(_STORAGE)}")


def _of(name: str):
    """A flag's value; None in a script without that flag."""
    return flags.FLAGS[name].value if name in flags.FLAGS else None
