"""Layers that are alike in what a pass reads, writes and computes of keys and values."""

import collections
import functools
from typing import NamedTuple

import jax

from model.cache import CACHE_AXES, abstract_cache
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.activations import attention_share
from profiles.floor.passes import attended_pairs, chunk_pairs
from sharding.placement import Placement
from sharding.quantization import stored_bytes


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


class CachedLayers(NamedTuple):
    """What each device has of layers that are alike in their caches and attention.

    Attributes:
      layers: these layers.
      share: its part of a cache.
      token: bytes of one token in the cache of one of them.
      of_cache, of_prompts: its part of attention, to a cache and of prompts.
    """

    layers: AlikeLayers
    share: float
    token: float
    of_cache: float
    of_prompts: float

    @classmethod
    def of(cls, layers: AlikeLayers, placement: Placement, dtypes: Dtypes) -> "CachedLayers":
        """What a layout on a mesh gives each device."""
        seen = placement.with_sizes(layers.config.sizes)
        share, kinds = seen.share(("cache", CACHE_AXES)), (True, False)
        attends = (attention_share(seen, of_cache=kind) for kind in kinds)
        return cls(layers, share, cache_bytes(layers, 1, dtypes) * share, *attends)


def attention_work(layers: AlikeLayers, cached: int, tokens: int) -> int:
    """FLOPs of one sequence's scores and sums of values in these layers, all devices together."""
    config = layers.config
    if config.latent:
        return latent_flops(config, cached, tokens)
    pairs = layers.pairs(cached, tokens)
    return 4 * config.query_heads * config.head_size * pairs * layers.count


def latent_flops(config: ModelConfig, cached: int, tokens: int) -> int:
    """FLOPs of one sequence's latent attention, all layers and devices together, at the least.

    A query meets a latent itself, for 2 H (2 r_kv + r_rope) FLOPs, or the key and value that are
    made of it, for 2 H (h + v) and once for all queries 2 r_kv H (u + v) more (DeepSeek-V2, section
    2.1.2). What makes those of new tokens counts among products with weights, in both forms.

    Args:
      config: the model.
      cached: tokens before the new ones.
      tokens: new tokens; each also attends to itself.
    """
    sizes, heads = config.latent, config.query_heads
    absorbed = 2 * heads * (sizes.rank + sizes.cached)
    direct = 2 * heads * (config.head_size + sizes.value)
    expansion = 2 * sizes.rank * heads * (sizes.content + sizes.value)
    before = min(tokens * absorbed, tokens * direct + expansion)
    among = absorbed if tokens == 1 else min(absorbed, direct)
    return config.layers * (cached * before + among * tokens * (tokens + 1) // 2)


def kv_token_bytes(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes one cached token takes on each device, keys and values of all layers that have any."""
    return sum(
        layers.writing * layer_token_bytes(layers, placement, dtypes)
        for layers in alike_layers(config)
    )


def layer_token_bytes(layers: AlikeLayers, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes one cached token takes on each device in one of these layers."""
    return CachedLayers.of(layers, placement, dtypes).token


@functools.lru_cache(maxsize=4096)
def cache_bytes(
    layers: AlikeLayers, slots: int, dtypes: Dtypes, multiple: int = 1, spare: int = 0
) -> int:
    """Bytes of one sequence's cache of one of these layers, all devices together.

    The numbers are those of `abstract_cache`.
    """
    ring = min(slots, layers.window + spare) if layers.window else slots
    cache = abstract_cache(layers.one, 1, ring, dtypes, multiple)
    return sum(map(stored_bytes, jax.tree.leaves(cache)))
