"""The `Dtypes` that the flags ask for: how a model's numbers are stored."""

from collections.abc import Sequence

from _array_flags import DTYPE, WEIGHT_DTYPE
from absl import flags

from model.dtypes import PLAIN_DTYPES, Dtypes, Storage, check_platform, default_dtype
from sharding.error_types import UsageError
from sharding.quantization import COUNTED, QUANTIZATIONS, Quantization
from sharding.stored_types import CACHE_TYPES, MULTIPLIED_TYPES

_STORAGE: dict[str, Storage] = {**PLAIN_DTYPES, **QUANTIZATIONS, **COUNTED}


def dtypes(
    stored: Quantization | None = None,
    dtype: str | None = None,
    here: bool = True,
    counted: bool = False,
    estimated: bool = False,
) -> Dtypes:
    """The one set of dtypes that the flags give; see `dtype_sets`.

    Raises:
      UsageError: a name is unknown, or ``--dtype`` or ``--weight_dtype`` has several.
    """
    check(counted, estimated)
    for flag in (DTYPE, WEIGHT_DTYPE):
        only(flag)
    return dtype_sets(stored, dtype, here, counted, estimated)[0]


def dtype_sets(
    stored: Quantization | None = None,
    dtype: str | None = None,
    here: bool = True,
    counted: bool = False,
    estimated: bool = False,
) -> list[Dtypes]:
    """The sets of dtypes that the flags give: each of ``--dtype`` with each of ``--weight_dtype``.

    Args:
      stored: the quantization of a checkpoint, which is the default for weights.
      dtype: the default for ``--dtype``; None for that of the platform.
      here: whether the numbers are stored on JAX's devices. This starts JAX, to ask for its
        platform. Otherwise they are for chips not at hand, whose default is bfloat16.
      counted: whether the script counts alone, and so takes types that do not run.
      estimated: whether it estimates times too, and so takes types of arithmetic that do not run.

    Raises:
      UsageError: a name is unknown, or JAX's platform does not have that dtype.
    """
    check(counted, estimated)
    default = dtype or (default_dtype() if here else "bfloat16")
    step = {
        "cache": _STORAGE.get(_of("kv_dtype")),
        "round_activations": bool(_of("round_activations")),
    }
    if "gpu_kernels" in flags.FLAGS:
        step["gpu_kernels"] = tuple(_of("gpu_kernels"))
    sets = [
        Dtypes(**_multiplied(plain), weights=_STORAGE[name] if name else stored, **step)
        for plain in dict.fromkeys(DTYPE.value or [default])
        for name in dict.fromkeys(WEIGHT_DTYPE.value or [None])
    ]
    for kind in {kind for dtypes in sets for kind in (dtypes.weights, dtypes.cache)}:
        if here and isinstance(kind, Quantization) and kind.name not in COUNTED:
            check_platform(kind)
    for each in sets:
        if each.round_activations and each.multiplied:
            raise UsageError(
                f"--round_activations is true, which is arithmetic in int8, beside --dtype="
                f"{each.multiplied}; give one of them"
            )
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
    check(counted=True, estimated=True)
    for name in caches or [""]:
        if name not in CACHE_TYPES:
            raise UsageError(f"--kv_dtype is {name!r}; use one of {', '.join(CACHE_TYPES)}")
    step = _multiplied(only(DTYPE) or "bfloat16")
    return list(
        dict.fromkeys(
            Dtypes(weights=_STORAGE[weights], cache=_STORAGE[cache], **step)
            for weights in WEIGHT_DTYPE.value or ["bfloat16", "int8"]
            for cache in caches
        )
    )


def _multiplied(name: str) -> dict[str, object]:
    """The fields of `Dtypes` for a value of ``--dtype``; of few bits it is of arithmetic alone."""
    if name in MULTIPLIED_TYPES:
        return {"dtype": PLAIN_DTYPES["bfloat16"], "multiplied": name}
    return {"dtype": PLAIN_DTYPES[name]}


def check(counted: bool = False, estimated: bool = False) -> None:
    """Refuses unknown names in ``--dtype`` and ``--weight_dtype``, before JAX starts.

    Args:
      counted: whether the script counts alone, and so takes types of weights that do not run.
      estimated: whether it estimates times too, and so takes types of arithmetic that do not run.

    Raises:
      UsageError: an unknown name, or a type that does not run.
    """
    arithmetic = (*PLAIN_DTYPES, *MULTIPLIED_TYPES) if estimated else tuple(PLAIN_DTYPES)
    weights = [name for name in _STORAGE if counted or name not in COUNTED]
    counters = "estimate.py, plan.py or inspect_layout.py"
    estimators = "estimate.py, plan.py or figures.py"
    for flag, known, others, elsewhere in (
        (DTYPE, arithmetic, MULTIPLIED_TYPES, estimators),
        (WEIGHT_DTYPE, weights, COUNTED, counters),
    ):
        for name in flag.value if flag.value is not None else ():
            if name in others and name not in known:
                raise UsageError(
                    f"--{flag.name} is {name}, which is counted but does not run; use one of "
                    f"{', '.join(known)}, or count it with {elsewhere}"
                )
            if name not in known:
                raise UsageError(f"--{flag.name} is {name!r}; use one of {', '.join(known)}")
    if DTYPE.value == []:
        raise UsageError(f"--dtype is ''; use one of {', '.join(arithmetic)}")


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
