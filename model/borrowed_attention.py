"""Attention of layers that have queries alone and read the keys and values of an earlier layer.

Brandon et al. 2024 (cross-layer attention, arXiv 2405.12981); as Gemma 4 has it, all of a model's
last layers read the last one before them whose window is as long, which wrote its cache already.
"""

import functools

import jax

from model.attention import Attention, Lent
from model.cache_write import NewTokens
from model.linear import project
from model.rotary import Rotation
from model.softmax_parts import join
from sharding.placement import Placement


class BorrowedAttention(Attention):
    """Projection to queries, attention to another layer's cache, and the projection back."""

    def __call__(
        self,
        x: jax.Array,
        cache: Lent,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
        continues: bool = False,
    ) -> tuple[jax.Array, tuple[None, None], jax.Array]:
        """Attends to what another layer lends.

        Arguments and results are those of `Attention`; there is no cache of this layer's own.
        """
        with jax.named_scope("query_key_value"):
            (q,), x = project(x, [self.query], placement)
            q = self._finish_queries(q, positions, angles, placement)  # [B, T, K, G, h]
        gate, x = self._project_gate(x, placement)
        tokens = NewTokens.at(positions)
        over_cache = functools.partial(self._over_cache, q, cache.cache, tokens)
        if q.shape[1] == 1:
            mixed = over_cache(tokens.first + 1, placement)
        else:
            mixed = self._over_each_other(q, cache.new, tokens)
            if continues:
                mixed = join(mixed, over_cache(tokens.first, placement))
        return self._project_back(self._mean(mixed, q.dtype), gate, placement), (None, None), x
