"""Flags of arrays that scripts share: how they are divided, and what numbers are stored in."""

import _common
from absl import flags

with _common.importing():
    from sharding.catalog import ATTENTION, COLLECTIVES, LAYOUTS
    from sharding.stored_types import CACHE_TYPES, PLAIN_TYPES, QUANTIZED_TYPES

LAYOUT = flags.DEFINE_string(
    "layout",
    "weight_stationary_1d",
    "Partitioning; auto picks by predicted time and says why. "
    + "; ".join(f"{name}: {LAYOUTS[name].summary}" for name in LAYOUTS),
)
PREFILL_LAYOUT = flags.DEFINE_string(
    "prefill_layout",
    None,
    "Partitioning of prompts, over the same stored weights; auto picks. As --layout.",
)
_KINDS = [*ATTENTION, "auto"]
ATTENTION_BY = flags.DEFINE_string(
    "attention", "heads", f"What divides attention and the KV cache: {', '.join(_KINDS)}."
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
    "Who schedules those beside matmuls: the compiler, or loops that overlap them with products.",
)
EXPERT_PARALLEL = flags.DEFINE_bool(
    "expert_parallel", False, "Divide experts over the chips instead of each expert's d_ff."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    list(PLAIN_TYPES),
    "Of arithmetic, and of what the flags below do not say. float32 on CPU; bfloat16 "
    "elsewhere, and of chips that are only spoken of.",
)
WEIGHT_DTYPE = flags.DEFINE_list(
    "weight_dtype",
    None,
    f"What weights are stored in: {', '.join(PLAIN_TYPES)}; or the matrices of attention, MLPs and "
    f"experts in {', '.join(QUANTIZED_TYPES)}, with scales, and all else in --dtype. "
    "profile_decode.py, estimate.py and plan.py take a list.",
)


def leave_open() -> None:
    """Makes ``auto`` the default of ``--layout`` and ``--attention``, in scripts that compare."""
    for flag in (LAYOUT, ATTENTION_BY):
        flags.set_default(flag, "auto")


def define_step_flags() -> None:
    """Defines the flags of scripts that run steps: ``--kv_dtype`` and ``--round_activations``."""
    flags.DEFINE_enum(
        "kv_dtype",
        None,
        list(CACHE_TYPES),
        "What the KV cache is stored in; int8 and fp8 with a scale for each token and head.",
    )
    flags.DEFINE_bool(
        "round_activations",
        False,
        "With --weight_dtype=int8: multiply 8-bit integers, what weights multiply rounded to them "
        "with a scale for each token, where the chip can.",
    )


def define_weight_layout(meaning: str) -> flags.FlagHolder[str]:
    """Defines ``--weight_layout``.

    Args:
      meaning: what auto does, in the words of ``--help``.
    """
    values = ["default", "auto"]
    return flags.DEFINE_enum("weight_layout", "default", values, meaning)
