"""Rotary positions of a GGUF file: the keys of `rope.scaling`, and tensors of divisors.

llama.cpp's converter writes Llama 3's scaling as a tensor of divisors and LongRoPE's as two of
them, and Gemma 4's pairs that stand still as divisors that let nothing turn; of YaRN the file has
the fields of `config.json` under other names.
"""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.rotary_scaling import scaling
from model.weights import WeightsError
from model.weights.gguf_architectures import ARCHITECTURES
from model.weights.gguf_file import GGUFFile, short
from model.weights.gguf_keys import Keys

_PLAIN = "rope_freqs.weight"
_LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_ORIGINAL = "original_max_position_embeddings"
_STILL = 1e20  # divisors from this on let no position turn a pair; the converter writes 1e30
_LOG_SCALE = 0.1  # llama.cpp's converter multiplies DeepSeek's `mscale_all_dim` by it
_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rotary_parameters(keys: Keys, file: GGUFFile, longest: int) -> dict[str, Any]:
    """Fields of rotary scaling in the words of `model.rotary_scaling`; empty for none.

    Args:
      keys: the file's.
      file: its tensors tell LongRoPE where no key does.
      longest: tokens of the longest sequence.

    Raises:
      WeightsError: another kind of scaling.
    """
    prefix, architecture = "rope.scaling.", ARCHITECTURES[keys.architecture]
    long = [name for name in _LONGROPE.values() if name in file.tensors]
    kind = keys.text(f"{prefix}type", "longrope" if long else "linear")
    factor = keys.number("rope.scale_linear", 1.0)  # the name that older files use
    factor = float(keys.number(f"{prefix}factor", factor) or 1.0)  # 0 says that there is none
    if kind not in ("none", "linear", "yarn", "longrope"):
        keys.refuse(f"{prefix}type", kind)
    if len(long) != (2 if kind == "longrope" else 0):
        keys.refuse(f"{prefix}type", kind, f", where {len(long)} of its two tensors are there")
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "factor": factor}
    if kind not in ("yarn", "longrope"):
        return {}
    original = keys.integer(f"{prefix}original_context_length", longest)
    found = {"rope_type": kind, _ORIGINAL: original}
    if kind == "longrope":
        if f"{prefix}attn_factor" in keys:
            found["attention_factor"] = keys.number(f"{prefix}attn_factor")
        return found
    found |= {"factor": factor, **architecture.scaling}
    for theirs, ours in _YARN.items():
        if prefix + theirs in keys:
            found[ours] = keys.number(prefix + theirs)
    if architecture.latent and f"{prefix}yarn_log_multiplier" in keys:
        # A file has one of two factors, which all released models have alike, in float32.
        scale = round(keys.number(f"{prefix}yarn_log_multiplier") / _LOG_SCALE, 6)
        found |= {"mscale": scale, "mscale_all_dim": scale}
    return found


def rotary_shapes(file: GGUFFile, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of divisors that a file has, or must have (Gemma 4)."""
    if full := config.full_attention:
        return {_PLAIN: (full.head_size // 2,)}
    names = (_PLAIN, *_LONGROPE.values())
    return {name: (config.rotated // 2,) for name in names if name in file.tensors}


def with_rotary(file: GGUFFile, config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """The configuration with its divisors, once tensors have confirmed the size of a head.

    Args:
      file: the file.
      config: the rest of it.
      given: as `rotary_parameters` gave them.

    Raises:
      WeightsError: fields or divisors that are out of range.
    """
    if config.full_attention:
        return _with_pairs(file, config, given)
    if given.get("rope_type") == "longrope":
        given = {**given, **{ours: file.read(name).tolist() for ours, name in _LONGROPE.items()}}
    try:
        found = scaling(given, config.rotary_base, config.rotated, config.max_context)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise WeightsError(
            f"metadata 'rope.scaling' of {file.path.name} is not possible ({error!s:.100}); give "
            "another model"
        ) from None
    factors = found.factors
    if _PLAIN in file.tensors:
        divisors = file.read(_PLAIN).tolist()
        factors = tuple(map(operator.mul, divisors, factors or [1.0] * len(divisors)))
    scores = config.attention_scale
    if config.latent:
        scores = found.scores * config.head_size**-0.5
    return dataclasses.replace(
        config,
        rotary_factors=factors,
        rotary_scale=found.scale,
        rotary_limit=found.limit,
        long_rotary_factors=found.long_factors,
        max_context=found.reach or config.max_context,
        attention_scale=scores,
    )


def _with_pairs(file: GGUFFile, config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """The configuration with the pairs that are rotated in layers without a window (Gemma 4)."""
    if given:
        raise WeightsError(
            f"metadata 'rope.scaling' of {file.path.name} is of type {given['rope_type']}; a model "
            "whose layers have heads of two sizes has none, give another model"
        )
    divisors = file.read(_PLAIN)
    pairs = int((divisors < _STILL).sum())
    if not pairs or (divisors[:pairs] != 1).any():
        raise WeightsError(
            f"tensor {_PLAIN} of {file.path.name} is {short(divisors.tolist())}; supported are "
            f"ones, and then divisors from {_STILL:g} on, give another model"
        )
    pairs = None if pairs == len(divisors) else pairs
    full = dataclasses.replace(config.full_attention, rotary_pairs=pairs)
    return dataclasses.replace(config, full_attention=full)
