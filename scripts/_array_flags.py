"""Flags that scripts share about arrays: how they are divided, and their dtypes."""

import _common
from absl import flags

with _common.importing():
    from decode.chunks import CHUNK, check_chunk
    from sharding.catalog import ATTENTION, COLLECTIVES, LAYOUTS
    from sharding.error_types import UsageError
    from sharding.stored_types import (
        CACHE_TYPES,
        COUNTED_TYPES,
        GPU_KERNELS,
        KERNELS_BY_DEFAULT,
        MULTIPLIED_TYPES,
        PLAIN_TYPES,
        QUANTIZED_TYPES,
    )

LAYOUT = flags.DEFINE_string(
    "layout",
    "weight_stationary_1d",
    "Layout of decode steps; auto picks by predicted time and says why. "
    + "; ".join(f"{name}: {LAYOUTS[name].summary}" for name in LAYOUTS),
)
PREFILL_LAYOUT = flags.DEFINE_string(
    "prefill_layout",
    None,
    "Layout of prefills, one of those for --layout, over the same stored weights; auto picks.",
)
_KINDS = [*ATTENTION, "auto"]
ATTENTION_BY = flags.DEFINE_string(
    "attention", "heads", f"What attention and KV cache are divided by: {', '.join(_KINDS)}."
)
flags.register_validator(
    ATTENTION_BY,
    lambda value: {*value.split(",")} <= {*_KINDS},
    f"use one of {', '.join(_KINDS)}",
)
COLLECTIVES_BY = flags.DEFINE_enum(
    "collectives",
    "compiler",
    list(COLLECTIVES),
    "What schedules the collectives of matmuls: the compiler, or loops that overlap the two.",
)
EXPERT_PARALLEL = flags.DEFINE_bool(
    "expert_parallel", False, "Divide experts over the chips instead of each expert's d_ff."
)
DTYPE = flags.DEFINE_list(
    "dtype",
    None,
    f"Dtype of arithmetic, and of arrays that no other flag speaks of: {', '.join(PLAIN_TYPES)}. "
    "By default float32 on a CPU, and bfloat16 on other devices and for chips that are not at "
    "hand. profile_decode.py and estimate.py take a list. Scripts that only estimate, estimate.py, "
    f"plan.py and figures.py, also take {', '.join(MULTIPLIED_TYPES)}: arithmetic at the chip's "
    "peak of that type, with activations in bfloat16.",
)
WEIGHT_DTYPE = flags.DEFINE_list(
    "weight_dtype",
    None,
    f"Dtype of stored weights: {', '.join(PLAIN_TYPES)}; or {', '.join(QUANTIZED_TYPES)}, with "
    "scales, for the matrices of attention, MLPs and experts, and --dtype for the rest. "
    "profile_decode.py, estimate.py and plan.py take a list. Scripts that only count, estimate.py, "
    f"plan.py and inspect_layout.py, also take {' and '.join(COUNTED_TYPES)}.",
)


def leave_open() -> None:
    """Makes ``auto`` the default of ``--layout`` and ``--attention``."""
    for flag in (LAYOUT, ATTENTION_BY):
        flags.set_default(flag, "auto")


def define_step_flags() -> None:
    """Defines the flags of scripts that run steps: ``--kv_dtype`` and ``--round_activations``."""
    flags.DEFINE_enum(
        "kv_dtype",
        None,
        list(CACHE_TYPES),
        "Dtype of the KV cache; int8 and fp8 have a scale for each token and head.",
    )
    flags.DEFINE_bool(
        "round_activations",
        False,
        "With --weight_dtype=int8: also round activations to 8-bit integers, with a scale for each "
        "token, and multiply integers, where the chip can.",
    )


def define_gpu_kernels() -> None:
    """Defines ``--gpu_kernels``, of scripts whose steps are compiled for GPUs."""
    flags.DEFINE_list(
        "gpu_kernels",
        list(KERNELS_BY_DEFAULT),
        f"Kernels of this project that steps on NVIDIA GPUs have, of {', '.join(GPU_KERNELS)}: "
        "attention_step attends and writes the cache; norm adds and norms one token; a stored type "
        "of weights multiplies few tokens with them, and mxfp4 experts with all of theirs. They "
        "are compiled and tested in interpret mode, and have neither been timed nor run on a "
        "device. Without them steps have what ran on an H200: attention behind a cache write, and "
        "XLA's own norms and matmuls, which write out matrices that have scales of groups. Empty "
        "for none.",
    )
    flags.register_validator(
        "gpu_kernels",
        lambda value: {*value} <= {*GPU_KERNELS},
        f"use any of {', '.join(GPU_KERNELS)}",
    )


def define_chunk(meaning: str) -> flags.FlagHolder[int | None]:
    """Defines ``--chunk``.

    Args:
      meaning: the flag's help, which says what its default is.
    """
    return flags.DEFINE_integer("chunk", None, meaning)


def define_tokens_per_dispatch(meaning: str) -> flags.FlagHolder[int]:
    """Defines ``--tokens_per_dispatch``.

    Args:
      meaning: the flag's help, of one script.
    """
    return flags.DEFINE_integer("tokens_per_dispatch", 1, meaning)


def accelerator_chunk(flag: flags.FlagHolder[int | None], phase: str) -> int:
    """Tokens of a prompt that run at once on a TPU or GPU, by ``--chunk`` or by default.

    Args:
      flag: the flag.
      phase: ``decode`` or ``prefill``.

    Raises:
      UsageError: a chunk of a decode step, or one that is no multiple of a tile.
    """
    if flag.value is None:
        return CHUNK
    if phase != "prefill":
        raise UsageError(f"--chunk is {flag.value} of no prompt; give --phase=prefill with it")
    check_chunk(flag.value)
    return flag.value


def define_weight_layout(meaning: str) -> flags.FlagHolder[str]:
    """Defines ``--weight_layout``.

    Args:
      meaning: the flag's help, which says what auto does.
    """
    values = ["default", "auto"]
    return flags.DEFINE_enum("weight_layout", "default", values, meaning)
