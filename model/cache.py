"""The KV cache: a plain pytree that is passed in, updated in place and passed out.

One declaration: `abstract_cache` states shape and dtype, `CACHE_AXES` the logical axes. Every
jitted step donates its cache, so that the new one takes the old one's memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from sharding.layout import Placement

CACHE_AXES = ("B", "K", "S", "h")


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
      keys: one array per layer, each [B, K, S, h], keys already turned by their position.
      values: the same for values.

    Slots at or past a sequence's length hold anything; attention masks them.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def abstract_cache(config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
    """Shapes and dtypes of a cache of `slots` tokens for each of `batch` sequences."""
    shape = (batch, config.kv_heads, slots, config.head_size)
    one = jax.ShapeDtypeStruct(shape, dtype)
    return KVCache(keys=(one,) * config.layers, values=(one,) * config.layers)


def empty_cache(abstract: KVCache, placement: Placement, mesh: jax.sharding.Mesh) -> KVCache:
    """A cache of zeros, each shard made on its own device."""
    spec = placement.cache(*CACHE_AXES)
    with jax.set_mesh(mesh):
        return _zeros(abstract, spec)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(abstract: KVCache, spec: jax.P) -> KVCache:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=spec), abstract)


def write(cache: jax.Array, new: jax.Array, positions: jax.Array, placement: Placement):
    """Stores new tokens in place; positions past the last slot are dropped.

    Args:
      cache: [B, K, S, h].
      new: [B, T, K, h].
      positions: [B, T] int32, the slot of each new token.
      placement: gives the cache's sharding.

    Returns:
      The updated cache, [B, K, S, h].
    """
    sequence = jax.P(*placement.cache(*CACHE_AXES)[1:])

    def scatter(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
        def one(slots: jax.Array, tokens: jax.Array, where: jax.Array) -> jax.Array:
            return slots.at[:, where].set(tokens, mode="drop", out_sharding=sequence)

        return jax.vmap(one)(cache, jnp.swapaxes(new, 1, 2), positions)

    def scatter_two_rows(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
        beyond = jnp.full_like(positions, cache.shape[2])
        doubled = jnp.concatenate([new, new], axis=1)
        return scatter(cache, doubled, jnp.concatenate([positions, beyond], axis=1))

    with jax.named_scope("cache_write"):
        if positions.shape != (1, 1):
            return scatter(cache, new, positions)
        # XLA:CPU turns a scatter of one row into an update that it then makes twice, copying the
        # whole cache for each. A second row, dropped, keeps it a scatter in place.
        return jax.lax.platform_dependent(
            cache, new, positions, cpu=scatter_two_rows, default=scatter
        )
