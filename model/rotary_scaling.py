"""Rotary scaling: how models extend positions beyond the length that they were first trained for.

Each kind gives divisors of the unscaled frequencies ``base ** (-2 i / h)``, and a factor of cosines
and sines. Names and defaults as in `modeling_rope_utils.py` of
https://github.com/huggingface/transformers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Scaling(NamedTuple):
    """Changes to the unscaled frequencies.

    Attributes:
      factors: divisors of the h / 2 frequencies; None for all 1.
      scale: multiplies cosines and sines.
      reach: tokens that positions are extended to; `max_position_embeddings` may say fewer.
      scores: multiplies the scores of latent attention, beside what `scale` does.
      fixed: the frequencies only hold for sequences up to `max_position_embeddings`.
    """

    factors: tuple[float, ...] | None = None
    scale: float = 1.0
    reach: int = 0
    fixed: bool = False
    scores: float = 1.0


def scaling(parameters: Mapping[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """The scaling that `rope_parameters` (or the older `rope_scaling`) asks for.

    Args:
      parameters: its fields; empty for no scaling.
      base: base of the frequencies.
      head_size: h.
      longest: `max_position_embeddings`.

    Raises:
      ValueError: an unknown kind or field, or a value out of range.
      KeyError: a field that is missing.
    """
    left = dict(parameters)
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


def _default(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    return Scaling()


def _linear(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Divides all positions by one factor; no field says if `longest` already includes it."""
    return Scaling((_number(parameters, "factor"),) * (head_size // 2))


def _dynamic(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """No scaling up to the trained length; longer sequences, which would have some, are refused."""
    _number(parameters, "factor")
    return Scaling(fixed=True)


def _llama3(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """Llama 3.1: high frequencies stay, low ones are divided, those between are interpolated."""
    factor, low = _number(parameters, "factor"), _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    original = _number(parameters, "original_max_position_embeddings")
    if not 0 < low < high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    waves = 2 * math.pi / _plain(base, head_size)
    unscaled = np.clip((original / waves - low) / (high - low), 0, 1)
    return Scaling(tuple((1 / ((1 - unscaled) / factor + unscaled)).tolist()))


def _yarn(parameters: dict[str, Any], base: float, head_size: int, longest: int) -> Scaling:
    """YaRN (Peng et al. 2023, section 3)."""
    factor = _number(parameters, "factor")
    if not factor >= 1:
        raise ValueError(f"factor {factor} is below 1")
    original = float(parameters.pop("original_max_position_embeddings", None) or longest)
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
    # As `yarn_apply_mscale` of DeepSeek's modules in transformers.
    scores = magnitude(all_dim) ** 2 if all_dim else 1.0
    reach = int(original * factor)
    return Scaling(tuple(factors.tolist()), float(attention), reach=reach, scores=scores)


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
}
