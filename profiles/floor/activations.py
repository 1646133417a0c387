"""What a pass holds beside weights and cache: activations, scores of attention, logits.

Counted as the engine's program makes them, a layer at a time and all scores of a layer at once
(`model.attention.attend`), so that a prompt's grow with the square of its length. Compilers fuse
some of it away and hold some of it twice: the recorded programs of prompts hold 0.4 times as much
(on a v5e, where all of it stays on the chip) to 2.1 times.
"""

import numpy as np

from model.config import ModelConfig
from model.dtypes import Dtypes
from sharding.placement import Placement

FLOAT32 = 4  # bytes of a score, a logit, and of sums in attention and experts


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
    config: ModelConfig, placement: Placement, dtypes: Dtypes, *, tokens: int, slots: int
) -> float:
    """Bytes that one sequence of a pass takes on each device, at the peak.

    Args:
      config: the model.
      placement: the one that the pass runs in.
      dtypes: how its numbers are stored.
      tokens: new tokens of the sequence; 1 in a decode step.
      slots: tokens that the cache has room for; for a prompt, its own, which meet each other.
    """
    D, size = config.d_model, dtypes.dtype.itemsize
    stream = D * size * placement.share(("activations", "BR"))
    gathered = D * size * placement.share(("contracted", "BTD"))
    widest = np.maximum(
        np.maximum(
            _attention(config, placement, dtypes, tokens, slots),
            tokens * _feed_forward(config, placement, dtypes),
        ),
        config.vocabulary * FLOAT32 * _logits_share(placement),  # the last token's logits
    )
    return tokens * (stream + gathered) + widest


def _attention(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, tokens: int, slots: int
) -> float:
    """Queries, keys and values of the new tokens, scores, and what is mixed by them."""
    seen = slots  # a prompt scores all its tokens, then masks those beyond a window
    if tokens == 1 and config.windows:  # a decode step what a layer's cache keeps
        windows = set(map(config.window, range(config.layers)))
        seen = max(min(slots, window or slots) for window in windows)
    heads, width = config.query_heads, config.head_size
    queries = heads * width * attention_share(placement, of_cache=False)
    both = 2 * config.kv_heads * width * placement.share(("attention", "BK"))
    scores = heads * seen * attention_share(placement, of_cache=tokens == 1)
    return tokens * ((queries + both) * dtypes.dtype.itemsize + (scores + queries) * FLOAT32)


def _feed_forward(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one token's gate, up and their product; in a mixture, those in all its experts."""
    if not config.experts:
        share = placement.share(("activations", "BF"))
        return 3 * config.d_ff * dtypes.dtype.itemsize * share
    batch = "activations", "B"
    hidden = config.experts_per_token * 3 * config.d_ff
    inside = hidden * placement.share(batch, ("use", "EF"))
    return (inside + config.d_model * placement.share(batch)) * FLOAT32


def _logits_share(placement: Placement) -> float:
    return placement.share(("beside_stored", "B"), ("activations", "V"))
