"""How models stretch rotary positions beyond the length they were first trained for.

Each kind gives divisors of the plain frequencies ``base ** (-2 i / h)``, and a factor of cosines
and sines. Names and defaults as in `modeling_rope_utils.py` of
https://github.com/huggingface/transformers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Scaling(NamedTuple):
    """What becomes of the plain frequencies.

    Attributes:
      factors: divisors of the h / 2 frequencies; None for all 1.
      scale: multiplies cosines and sines.
      reach: tokens that positions are stretched to, where `max_position_embeddings` may say fewer.
      fixed: sequences beyond `max_position_embeddings` would have other frequencies.
    """

    factors: tuple[float, ...] | None = None
    scale: float = 1.0
    reach: int = 0
    fixed: bool = False


def scaling(given: Mapping[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """The scaling that `rope_parameters` (or the older `rope_scaling`) asks for.

    Args:
      given: its fields; empty for plain positions.
      base: base of the frequencies.
      head_size: h.
      longest: `max_position_embeddings`.

    Raises:
      ValueError: an unknown kind or field, or a value out of range.
      KeyError: a field that is missing.
    """
    left = dict(given)
    old = left.pop("type", None)
    kind = left.pop("rope_type", old or "default")
    if old is not None and old != kind:
        raise ValueError(f"type {old!r:.40} contradicts rope_type {kind!r:.40}")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"rope_type {kind!r:.40} is not one of {', '.join(_KINDS)}")
    result = _KINDS[kind](left, base, head_size, longest)
    if left:
        raise ValueError(f"{kind} has no field {sorted(map(str, left))[0]!r:.40}")
    factors = result.factors
    if factors and not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"{kind} gives factors that are not positive")
    return result


def _default(given: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    return Scaling()


def _linear(given: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """All positions divided alike; whether `longest` is before or after, no field says."""
    return Scaling((_number(given, "factor"),) * (head_size // 2))


def _dynamic(given: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Plain up to the trained length; longer sequences, which would change it, are refused."""
    _number(given, "factor")
    return Scaling(fixed=True)


def _llama3(given: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Llama 3.1: short waves stay, long ones are stretched, those between are blended."""
    factor, low = _number(given, "factor"), _number(given, "low_freq_factor")
    high = _number(given, "high_freq_factor")
    original = _number(given, "original_max_position_embeddings")
    if not 0 < low < high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    waves = 2 * math.pi / _plain(base, head_size)
    kept = np.clip((original / waves - low) / (high - low), 0, 1)
    return Scaling(tuple((1 / ((1 - kept) / factor + kept)).tolist()))


def _yarn(given: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """YaRN (Peng et al. 2023, section 3)."""
    factor = _number(given, "factor")
    if not factor >= 1:
        raise ValueError(f"factor {factor} is below 1")
    original = float(given.pop("original_max_position_embeddings", None) or longest)
    fast = float(given.pop("beta_fast", None) or 32)
    slow = float(given.pop("beta_slow", None) or 1)
    truncate = given.pop("truncate", True)
    attention = given.pop("attention_factor", None)
    some, all_dim = given.pop("mscale", None), given.pop("mscale_all_dim", None)

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
    # The owners of Qwen's models leave `max_position_embeddings` at what it was before.
    return Scaling(tuple(factors.tolist()), float(attention), reach=int(original * factor))


def _number(given: dict[str, Any], name: str) -> float:
    value = given.pop(name)
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
}
