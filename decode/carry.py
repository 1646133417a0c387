"""What decode steps hand to the next and to the host, and the choice of tokens between."""

from typing import NamedTuple

import jax

from decode.sampling import Sampler, draw_keys


class Carry(NamedTuple):
    """What one decode step hands to the next, beside the cache; all of it stays on devices.

    Attributes:
      tokens: [B] int32, each sequence's newest token, not yet in the cache.
      lengths: [B] int32, tokens in the cache.
      index: scalar int32, tokens generated per sequence.
      sequences: [B] int32, each sequence's own number, for its random draws.
      seed: random key.
    """

    tokens: jax.Array
    lengths: jax.Array
    index: jax.Array
    sequences: jax.Array
    seed: jax.Array


class Emitted(NamedTuple):
    """One step's new tokens, and what they cost; of several steps with a dimension of them first.

    Attributes:
      tokens: [B] int32.
      logprobs: [B] float32, each token's log probability under the model's own distribution,
        before temperature and filters.
      experts_touched: [L] int32, distinct experts each layer read for this step; None for a model
        without experts and for tokens of a prefill.
    """

    tokens: jax.Array
    logprobs: jax.Array
    experts_touched: jax.Array | None = None


def emit(logits: jax.Array, carry: Carry, sampler: Sampler) -> tuple[Carry, Emitted]:
    """Chooses each sequence's next token from logits [B, V], by draws of its own."""
    keys = draw_keys(carry.seed, carry.sequences, carry.index)
    tokens, logprobs = sampler.choose(logits, keys)
    carry = carry._replace(tokens=tokens, index=carry.index + 1)
    return carry, Emitted(tokens, logprobs)
