"""How the next token of each row is chosen, by numbers of the row's own."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decode.batching.request import Request
from decode.sampling import GREEDY, Settings, choose_by_row, settings_of


class RowSampling(NamedTuple):
    """What the draws of B rows depend on, beside logits and the tokens' indices.

    Attributes:
      seeds: [B] int32, of random keys.
      sequences: [B] int32, each sequence's own number.
      settings: temperature and filters, each [B].
      alternatives: [B] bool, whether any are told beside the tokens.
    """

    seeds: jax.Array
    sequences: jax.Array
    settings: Settings
    alternatives: jax.Array

    @classmethod
    def of(cls, requests: Sequence[Request | None]) -> "RowSampling":
        """Of B requests, as arrays of NumPy; None takes the most likely token."""
        seeds = [request.seed if request else 0 for request in requests]
        return cls(
            np.array(seeds, np.int64).astype(np.int32),  # the bits that jax.random.key takes
            np.array([request.sequence if request else 0 for request in requests], np.int32),
            settings_of([request.sampler if request else GREEDY for request in requests]),
            np.array([bool(request and request.top_logprobs) for request in requests]),
        )

    def where(self, active: jax.Array) -> "RowSampling":
        """As it is in the rows of `active`, [B] bool; what ran in others costs no time."""
        none = RowSampling.of([None] * len(active))
        return jax.tree.map(lambda own, none: jnp.where(active, own, none), self, none)

    def keys(self, index: jax.Array) -> jax.Array:
        """Random keys [B] of the rows' tokens of these indices, [B] int32.

        They are those of `decode.sampling.draw_keys`, for seeds and indices of each row's own.
        """

        def one(seed: jax.Array, sequence: jax.Array, index: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sequence), index)

        return jax.vmap(one)(self.seeds, self.sequences, index)

    def choose(self, logits: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A token for each row, and its log probability, as `decode.sampling.choose_by_row`."""
        return choose_by_row(logits, self.keys(index), self.settings)
