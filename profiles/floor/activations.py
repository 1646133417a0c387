"""What a pass holds beside weights and cache: activations and logits.

Counted as the engine's program makes them, a layer at a time. Prompts run in chunks, so that one
holds no more than a chunk does, whatever its length. Attention keeps the scores of one block of
keys alone: kernels on the chip, and loops of XLA in memory, a few megabytes that are left out here.
Compilers fuse some of it away and hold some of it twice.
"""

import dataclasses
import functools

import numpy as np

from decode.chunks import CHUNK
from model.config import ModelConfig
from model.delta_sizes import DeltaSizes
from model.dtypes import Dtypes
from sharding.placement import Placement

FLOAT32 = 4  # bytes of a normed number, a logit, and of sums in attention and experts


def attention_share(placement: Placement, of_cache: bool) -> float:
    """The part of attention that each device does: of batch and heads, and of slots.

    Args:
      placement: the one that attention runs in.
      of_cache: one token's queries meet the slots of a cache, which may be divided too; tokens of a
        prompt meet each other, wherever their cache lies.
    """
    slots = [("cache", "S")] if of_cache else []
    return placement.share(("attention", "BKG"), *slots)


def activation_bytes(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, *, tokens: int, chunk: int = CHUNK
) -> float:
    """Bytes that one sequence of a pass takes on each device, at the peak.

    Args:
      config: the model.
      placement: the one that the pass runs in.
      dtypes: how its numbers are stored.
      tokens: new tokens of the sequence; 1 in a decode step.
      chunk: tokens of a prompt that run at once.
    """
    tokens = min(tokens, chunk)
    D, size = config.d_model, dtypes.dtype.itemsize
    stream = D * size * placement.share(("activations", "BR"))
    normed = D * FLOAT32 * placement.share(("activations", "BR"))  # before it is gathered
    gathered = D * size * placement.share(("contracted", "BTD"))
    widest = np.maximum(
        np.maximum(
            tokens * _widest_attention(config, placement, dtypes),
            tokens * _feed_forward(config, placement, dtypes),
        ),
        config.vocabulary * FLOAT32 * _logits_share(placement),  # the last token's logits
    )
    kept = config.sizes.get("P", 0) * size * placement.share(("activations", "B"))
    stream = stream + kept  # what layers have of their own is there for the whole pass
    return tokens * stream + np.maximum(tokens * gathered + widest, tokens * normed)


def _widest_attention(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one token's attention in the layers where they are most."""
    kinds = {config.is_full(number): number for number in range(config.layers)}
    seen = map(config.at, kinds.values())
    each = (_attention(kind, placement.with_sizes(kind.sizes), dtypes) for kind in seen)
    return functools.reduce(np.maximum, each)


def _attention(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one token's queries, key and value, and its sums of values."""
    if sizes := config.latent:  # keys and values of a prompt's tokens are expanded to all heads
        share = attention_share(placement, of_cache=False)
        numbers = config.query_heads * (2 * config.head_size + sizes.value)
        return (
            config.query_heads * sizes.value * FLOAT32 * share
            + (numbers * share + sizes.cached * placement.share(("attention", "BK")))
            * dtypes.dtype.itemsize
        )
    if sizes := config.delta:
        plain = dataclasses.replace(config, delta=None, delta_layers=None)
        return np.maximum(_delta(sizes, placement, dtypes), _attention(plain, placement, dtypes))
    width = config.head_size
    queries = config.query_heads * width * attention_share(placement, of_cache=False)
    both = 2 * config.kv_heads * width * placement.share(("attention", "BK"))
    return (queries + both) * dtypes.dtype.itemsize + queries * FLOAT32


def _delta(sizes: DeltaSizes, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one token of a delta layer: what heads make of it, that convolved, and answers."""
    keys = placement.share(("attention", "BN"))
    made = sizes.key_heads * sizes.projected * keys * dtypes.dtype.itemsize
    convolved = sizes.key_heads * sizes.convolved * keys
    answers = sizes.value_heads * sizes.value_size * placement.share(("attention", "BNM"))
    return made + (convolved + answers) * FLOAT32


def _feed_forward(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one token's gate, up and their product; in a mixture, those in all its experts."""
    if not config.experts:
        widths = {"F": config.d_ff, "f": config.shared_cache_d_ff}
        each = (
            3 * width * dtypes.dtype.itemsize * placement.share(("activations", "B" + letter))
            for letter, width in widths.items()
            if width
        )
        return functools.reduce(np.maximum, each)
    batch = "activations", "B"
    hidden = config.experts_per_token * 3 * config.d_ff
    inside = hidden * placement.share(batch, ("use", "EF"))
    experts = (inside + config.d_model * placement.share(batch)) * FLOAT32
    beside = (("f", config.dense_d_ff), ("s", config.shared_d_ff))
    plain = (3 * width * dtypes.dtype.itemsize * placement.share(("activations", "B" + letter))
             for letter, width in beside if width)  # fmt: skip
    return functools.reduce(np.maximum, plain, experts)


def _logits_share(placement: Placement) -> float:
    return placement.share(("beside_stored", "B"), ("activations", "V"))
