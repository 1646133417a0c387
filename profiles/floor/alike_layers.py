"""Layers that are alike in what a pass reads, writes and computes of keys and values."""

import collections
import functools
from typing import NamedTuple

from model.config import ModelConfig


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


@functools.cache
def alike_layers(config: ModelConfig) -> tuple[AlikeLayers, ...]:
    """All layers of a model, each in one entry."""
    numbers = range(config.layers)
    kinds = [(config.is_full(number), config.window(number)) for number in numbers]
    own = collections.Counter(
        kind for number, kind in zip(numbers, kinds, strict=True) if not config.borrows(number)
    )
    return tuple(
        AlikeLayers(config.at(kinds.index(kind)), kind[1], count, own[kind])
        for kind, count in collections.Counter(kinds).items()
    )
