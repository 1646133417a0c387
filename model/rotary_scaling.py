"""Rotary scaling: how models extend positions beyond the length that they were first trained for.

Each kind gives divisors of the unscaled frequencies ``base ** (-2 i / h)``, and a factor of cosines
and sines. Names and defaults as in `modeling_rope_utils.py` of
https://github.com/huggingface/transformers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_ORIGINAL = "original_max_position_embeddings"
_LENGTHS = ("short", "long")


class Scaling(NamedTuple):
    """Changes to the unscaled frequencies.

    Attributes:
      factors: divisors of the h / 2 frequencies; None for all 1.
      scale: multiplies cosines and sines.
      reach: tokens that sequences go to, where `max_position_embeddings` says fewer or more.
      limit: tokens of the longest sequence that the frequencies hold for; None for any.
      long_factors: the divisors for longer sequences; None where these are refused.
      scores: multiplies the scores of latent attention, beside what `scale` does.
    """

    factors: tuple[float, ...] | None = None
    scale: float = 1.0
    reach: int | None = None
    limit: int | None = None
    long_factors: tuple[float, ...] | None = None
    scores: float = 1.0


def scaling(parameters: Mapping[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """The scaling that `rope_parameters` (or the older `rope_scaling`) asks for.

    Args:
      parameters: its fields; empty for no scaling.
      base: base of the frequencies.
      head_size: dimensions of a head that are rotated.
      longest: `max_position_embeddings`.

    Raises:
      ValueError: an unknown kind or field, or a value out of range.
      KeyError: a field that is missing.
    """
    left = dict(parameters)
    old = left.pop("type", None)
    kind = left.pop("rope_type", old or "default")
    if "su" in (kind, old):  # as early files of Phi-3 call it
        old, kind = None, "longrope"
    if old is not None and old != kind:
        raise ValueError(f"type {old!r:.40} contradicts rope_type {kind!r:.40}")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"rope_type {kind!r:.40} is not one of {', '.join(_KINDS)}")
    with np.errstate(all="ignore"):  # factors that come of it are refused below
        result = _KINDS[kind](left, base, head_size, longest)
    if left:
        raise ValueError(f"{kind} has no field {sorted(map(str, left))[0]!r:.40}")
    factors = (*(result.factors or ()), *(result.long_factors or ()))
    if not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"{kind} gives factors that are not positive")
    return result


def _default(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """No scaling, of which a factor of 1 and the length before it say nothing."""
    parameters.pop(_ORIGINAL, None)
    if parameters.get("factor") == 1:
        del parameters["factor"]
    return Scaling()


def _linear(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Divides all positions by one factor; no field says if `longest` already includes it."""
    return Scaling((_number(parameters, "factor"),) * (head_size // 2))


def _dynamic(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """No scaling up to the trained length; longer sequences, which would have some, are refused."""
    _number(parameters, "factor")
    return Scaling(limit=longest)


def _llama3(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Llama 3.1: high frequencies stay, low ones are divided, those between are interpolated."""
    factor, low = _number(parameters, "factor"), _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    parameters.setdefault(_ORIGINAL, longest)
    original = _number(parameters, _ORIGINAL)
    if not 0 < low <= high:
        raise ValueError(f"low_freq_factor {low} is above high_freq_factor {high}")
    turns = original * _plain(base, head_size) / (2 * math.pi)  # within the trained length
    unscaled = np.clip((turns - low) / (high - low), 0, 1) if low < high else turns >= low
    return Scaling(tuple((1 / ((1 - unscaled) / factor + unscaled)).tolist()))


def _yarn(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """YaRN (Peng et al. 2023, section 3)."""
    factor = _number(parameters, "factor")
    if not factor >= 1:
        raise ValueError(f"factor {factor} is below 1")
    original = float(parameters.pop(_ORIGINAL, None) or longest)
    fast = float(parameters.pop("beta_fast", None) or 32)
    slow = float(parameters.pop("beta_slow", None) or 1)
    truncate = parameters.pop("truncate", True)
    attention = parameters.pop("attention_factor", None)
    some, all_dim = parameters.pop("mscale", None), parameters.pop("mscale_all_dim", None)

    def magnitude(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if attention is None:
        ratio = bool(some and all_dim)
        attention = magnitude(some) / magnitude(all_dim) if ratio else magnitude()

    def dimension(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return head_size * math.log(turns) / (2 * math.log(base))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    high = high + 0.001 if low == high else high
    stretched = np.clip((np.arange(head_size // 2) - low) / (high - low), 0, 1)
    factors = 1 / (stretched / factor + (1 - stretched))
    # Those who add YaRN to a Qwen model leave `max_position_embeddings` at its value before.
    reach = max(longest, int(original * factor))
    # As `yarn_apply_mscale` of DeepSeek's modules in transformers.
    scores = magnitude(all_dim) ** 2 if all_dim else 1.0
    return Scaling(tuple(factors.tolist()), float(attention), reach, scores=scores)


def _longrope(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """LongRoPE (Ding et al. 2024), which has two sets of divisors, one for long sequences.

    Sequences go to the length that the short ones hold for, since a cache holds keys rotated by
    one of the two: whoever asks for more gets the long ones from the first token on.
    """
    parameters.setdefault(_ORIGINAL, longest)
    original = _number(parameters, _ORIGINAL)
    short, long = (_numbers(parameters, f"{kind}_factor", head_size // 2) for kind in _LENGTHS)
    factor = longest / original
    if "factor" in parameters:
        factor = _number(parameters, "factor")
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if "attention_factor" in parameters:
        scale = _number(parameters, "attention_factor")
    if original >= longest:
        return Scaling(short, scale)
    return Scaling(short, scale, int(original), int(original), long)


def _numbers(parameters: dict[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = parameters.pop(name)
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} must be a list of {count} numbers")
    return tuple(_number({name: value}, name) for value in values)


def _number(parameters: dict[str, Any], name: str) -> float:
    value = parameters.pop(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} {value!r:.40} is no number")
    return float(value)


def _plain(base: float, head_size: int) -> np.ndarray:
    return base ** -(np.arange(0, head_size, 2) / head_size)


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
