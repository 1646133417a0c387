"""Layers that are alike in what a pass reads, writes and computes of keys and values."""

import collections
import functools
from typing import NamedTuple

from model.config import ModelConfig
from profiles.floor.passes import attended_pairs, chunk_pairs


class AlikeLayers(NamedTuple):
    """Layers whose caches and attention are alike.

    Attributes:
      config: the model as they see it.
      window: tokens that a token attends to, itself included; None for all.
      count: how many attend.
      writing: how many of them have keys and values of their own; the others read those of one.
    """

    config: ModelConfig
    window: int | None
    count: int
    writing: int

    @property
    def one(self) -> ModelConfig:
        """The model with one such layer, of no window."""
        return self.config.equal_layers(1)

    def seen(self, cached: int) -> int:
        """Cached tokens that one layer's new ones see, of one sequence.

        A token sees those before it, itself included, up to the window, which may be its own chunk
        of the sequence.
        """
        if not self.window:
            return cached
        return cached % self.window if self.config.chunked else min(cached, self.window - 1)

    def pairs(self, cached: int, tokens: int) -> int:
        """Pairs of a new token's query and a key that it meets, of one sequence and layer."""
        counted = chunk_pairs if self.config.chunked and self.window else attended_pairs
        return counted(cached, tokens, self.window or cached + tokens)


@functools.cache
def alike_layers(config: ModelConfig) -> tuple[AlikeLayers, ...]:
    """All layers of a model that attend, each in one entry."""
    kinds = {n: (config.is_full(n), config.window(n)) for n in config.attention_layers}
    own = collections.Counter(kind for n, kind in kinds.items() if not config.borrows(n))
    firsts = {kind: n for n, kind in reversed(kinds.items())}
    return tuple(
        AlikeLayers(config.at(firsts[kind]), kind[1], count, own[kind])
        for kind, count in collections.Counter(kinds.values()).items()
    )
