"""The `Dtypes` that the flags ask for: how a model's numbers are stored."""

from collections.abc import Sequence

from _array_flags import DTYPE, WEIGHT_DTYPE
from absl import flags

from model.dtypes import PLAIN_DTYPES, Dtypes, Storage, check_platform, default_dtype
from sharding.error_types import UsageError
from sharding.quantization import COUNTED, QUANTIZATIONS, Quantization
from sharding.stored_types import CACHE_TYPES

_STORAGE: dict[str, Storage] = {**PLAIN_DTYPES, **QUANTIZATIONS, **COUNTED}


def dtypes(
    stored: Quantization | None = None,
    dtype: str | None = None,
    here: bool = True,
    counted: bool = False,
) -> Dtypes:
    """The one set of dtypes that the flags give; see `dtype_sets`.

    Raises:
      UsageError: a name is unknown, or ``--dtype`` or ``--weight_dtype`` has several.
    """
    check(counted)
    for flag in (DTYPE, WEIGHT_DTYPE):
        only(flag)
    return dtype_sets(stored, dtype, here, counted)[0]


def dtype_sets(
    stored: Quantization | None = None,
    dtype: str | None = None,
    here: bool = True,
    counted: bool = False,
) -> list[Dtypes]:
    """The sets of dtypes that the flags give: each of ``--dtype`` with each of ``--weight_dtype``.

    Args:
      stored: the quantization of a checkpoint, which is the default for weights.
      dtype: the default for ``--dtype``; None for that of the platform.
      here: whether the numbers are stored on JAX's devices. This starts JAX, to ask for its
        platform. Otherwise they are for chips not at hand, whose default is bfloat16.
      counted: whether the script counts alone, and so takes types that do not run.

    Raises:
      UsageError: a name is unknown, or JAX's platform does not have that dtype.
    """
    check(counted)
    default = dtype or (default_dtype() if here else "bfloat16")
    step = {
        "cache": _STORAGE.get(_of("kv_dtype")),
        "round_activations": bool(_of("round_activations")),
    }
    sets = [
        Dtypes(PLAIN_DTYPES[plain], _STORAGE[name] if name else stored, **step)
        for plain in dict.fromkeys(DTYPE.value or [default])
        for name in dict.fromkeys(WEIGHT_DTYPE.value or [None])
    ]
    for kind in {kind for dtypes in sets for kind in (dtypes.weights, dtypes.cache)}:
        if here and isinstance(kind, Quantization) and kind.name not in COUNTED:
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
    check(counted=True)
    for name in caches or [""]:
        if name not in CACHE_TYPES:
            raise UsageError(f"--kv_dtype is {name!r}; use one of {', '.join(CACHE_TYPES)}")
    plain = PLAIN_DTYPES[only(DTYPE) or "bfloat16"]
    return list(
        dict.fromkeys(
            Dtypes(plain, _STORAGE[weights], _STORAGE[cache])
            for weights in WEIGHT_DTYPE.value or ["bfloat16", "int8"]
            for cache in caches
        )
    )


def check(counted: bool = False) -> None:
    """Refuses unknown names in ``--dtype`` and ``--weight_dtype``, before JAX starts.

    Args:
      counted: whether the script counts alone, and so takes types of weights that do not run.

    Raises:
      UsageError: an unknown name, or a type that does not run.
    """
    weights = {name: kind for name, kind in _STORAGE.items() if counted or name not in COUNTED}
    for flag, known in ((DTYPE, PLAIN_DTYPES), (WEIGHT_DTYPE, weights)):
        for name in flag.value if flag.value is not None else ():
            if flag is WEIGHT_DTYPE and name in COUNTED and not counted:
                raise UsageError(
                    f"--weight_dtype is {name}, which is counted but does not run; use one of "
                    f"{', '.join(known)}, or count it with estimate.py, plan.py or "
                    "inspect_layout.py"
                )
            if name not in known:
                raise UsageError(f"--{flag.name} is {name!r}; use one of {', '.join(known)}")
    if DTYPE.value == []:
        raise UsageError(f"--dtype is ''; use one of {', '.join(PLAIN_DTYPES)}")


def runs() -> bool:
    """Whether models run with all types of ``--weight_dtype``, rather than being counted alone."""
    return not any(name in COUNTED for name in WEIGHT_DTYPE.value or ())


def only(flag: flags.FlagHolder) -> str | None:
    """The one value of a list flag; None if it is not given.

    Raises:
      UsageError: it has several.
    """
    if len(set(flag.value or ())) > 1:
        raise UsageError(f"--{flag.name} is {','.join(flag.value)}; give one of them")
    return flag.value[0] if flag.value else None


def _of(name: str):
    """A flag's value; None in a script without that flag."""
    return flags.FLAGS[name].value if name in flags.FLAGS else None
