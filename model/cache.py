"""The KV cache: a plain pytree that is passed in, updated in place and passed out.

One declaration: `abstract_cache` states shape and dtype, `axes_of` the logical axes. Every
jitted step donates its cache, so that the new one takes the old one's memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.dtypes import Dtypes
from sharding.placement import Placement, entry_axes
from sharding.platform_workarounds import scatter_row
from sharding.quantization import Quantization, QuantizedArray, Weight, round_rows

CACHE_AXES = "BKSh"
SCALE_AXES = "KBS"
"""Of scales: as attention reads them; with sequences first XLA:TPU lays those of a chip with one KV
head out anew at each step."""
TILE, SCALES = 32, 128
"""Slots of 8-bit numbers, and scales, that a TPU keeps together: in a cache of so many, or a
multiple, each sequence begins anew and no row of scales is filled up; of others XLA:TPU puts the
sequences in between and moves them to read."""
PADDING = 2**30
"""Position of a token that is only there to fill a row: past every slot, seen by none."""


Stored = Weight
"""Keys or values of one layer, [B, K, S, h]: plain, or with scales [K, B, S]."""


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
      keys: one array per layer, each [B, K, S, h], keys already turned by their position.
      values: the same for values.

    A layer with a window keeps a ring of at most that many slots: the token at position p is in
    slot p modulo S. Slots that no token has reached hold anything; attention masks them.
    """

    keys: tuple[Stored, ...]
    values: tuple[Stored, ...]


def abstract_cache(
    config: ModelConfig, batch: int, slots: int, dtypes: Dtypes, multiple: int = 1
) -> KVCache:
    """Shapes and dtypes of a cache of `slots` tokens for each of `batch` sequences.

    Scales of a cache in few bits are float32, [K, B, S].

    Where the slots are divided, each layer has as many more as make them a multiple.
    """

    def one(layer: int) -> Stored:
        kept = -(-min(slots, config.window(layer) or slots) // multiple) * multiple
        shape = batch, config.kv_heads, kept, config.head_size
        if isinstance(dtypes.cache, Quantization):
            scales = jax.ShapeDtypeStruct((shape[1], shape[0], kept), jnp.float32)
            return QuantizedArray(jax.ShapeDtypeStruct(shape, dtypes.cache.dtype), scales)
        return jax.ShapeDtypeStruct(shape, dtypes.cache)

    layers = tuple(map(one, range(config.layers)))
    return KVCache(keys=layers, values=layers)


def axes_of(array: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Logical axes of one array of a cache: of keys, values, or their scales."""
    return CACHE_AXES if array.ndim == len(CACHE_AXES) else SCALE_AXES


def whole_tiles(slots: int, dtypes: Dtypes) -> int:
    """At least so many slots, as a TPU likes them in a cache of this form."""
    tile = SCALES if isinstance(dtypes.cache, Quantization) else TILE
    return -(-slots // tile) * tile


def placed(abstract: KVCache, placement: Placement, mesh: jax.sharding.Mesh) -> KVCache:
    """The same shapes with their shardings."""

    def one(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = jax.NamedSharding(mesh, placement.cache(axes_of(array)))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    return jax.tree.map(one, abstract)


def empty_cache(abstract: KVCache, mesh: jax.sharding.Mesh) -> KVCache:
    """A cache of zeros from shapes with shardings, each shard made on its own device."""
    with jax.set_mesh(mesh):
        return _zeros(abstract)


@functools.partial(jax.jit, static_argnums=0)
def _zeros(abstract: KVCache) -> KVCache:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=a.sharding), abstract)


def slots_of(positions: jax.Array, slots: int, ring: bool) -> jax.Array:
    """The slot of each new token, `slots` (none) for padding and for what a ring soon forgets.

    Args:
      positions: [B, T] int32; padding stands at `PADDING`.
      slots: the cache's.
      ring: the layer has a window.
    """
    if not ring:
        return jnp.minimum(positions, slots)
    real = positions < PADDING
    newest = jnp.max(jnp.where(real, positions, -1), axis=1, keepdims=True)
    kept = real & (positions > newest - slots)  # so no two tokens of a prompt want one slot
    return jnp.where(kept, positions % slots, slots)


def positions_in(slots: int, newest: jax.Array, ring: bool) -> jax.Array:
    """The position of the token in each slot, negative or past `newest` where there is none.

    Args:
      slots: S.
      newest: [B, 1] int32, position of each sequence's newest token.
      ring: the layer has a window.

    Returns:
      [B, S] int32, or [1, S] where all sequences agree.
    """
    slot = jnp.arange(slots, dtype=jnp.int32)[None]
    return newest - (newest - slot) % slots if ring else slot


def write(
    cache: Stored,
    new: jax.Array,
    positions: jax.Array,
    placement: Placement,
    dtypes: Dtypes,
    prompts: bool = False,
) -> Stored:
    """Stores new tokens in place, in the cache's form; those of a slot past the last are dropped.

    Args:
      cache: [B, K, S, h].
      new: [B, T, K, h].
      positions: [B, T] int32, the slot of each new token, from `slots_of`.
      placement: gives the cache's sharding.
      dtypes: of the cache.
      prompts: the tokens of each sequence are its first, in order. Those that fill a row may then
        be stored too, in slots that no token has reached.

    Returns:
      The updated cache, [B, K, S, h].
    """
    slots_over = entry_axes(placement.cache("S")[0])

    def local(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
        if prompts and new.shape[1] <= cache.shape[2] and not slots_over:
            return _fill(cache, new)
        if slots_over:
            slots = slots - jax.lax.axis_index(slots_over) * cache.shape[2]
        if new.shape[:3] != (1, 1, 1):
            return _scatter(cache, new, slots)
        return scatter_row(_scatter, cache, new, slots, beyond=cache.shape[2])

    def update(cache: jax.Array, new: jax.Array) -> jax.Array:
        spec = placement.cache(axes_of(cache))
        of_new = placement.cache("BTKh"[: new.ndim])
        specs = spec, of_new, jax.typeof(positions).sharding.spec
        return jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)(
            cache, new, positions
        )

    with jax.named_scope("cache_write"):
        if not isinstance(dtypes.cache, Quantization):
            return update(cache, new.astype(dtypes.cache))
        few = round_rows(new, dtypes.cache)
        return QuantizedArray(
            update(cache.values, few.values), update(cache.scales, few.scales[..., 0])
        )


def _fill(cache: jax.Array, new: jax.Array) -> jax.Array:
    """Whole prompts in the first slots: one block, where XLA:TPU takes rows one after another."""
    turned = jnp.swapaxes(new, 1, 2) if new.ndim == 4 else jnp.transpose(new, (2, 0, 1))
    return jax.lax.dynamic_update_slice(cache, turned, (0,) * cache.ndim)


def _scatter(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """A row for each token and head on this device; those of slots elsewhere are dropped.

    Rows are what XLA:TPU updates where they lie. Asked for several heads of a slot at once, it
    first brings the whole cache into an order in which they are neighbours.
    """
    slots = jnp.where(slots < 0, cache.shape[2], slots)[..., None]  # a negative one: from the end
    sequence, head = jnp.arange(new.shape[0])[:, None, None], jnp.arange(new.shape[2])
    first = (sequence, head) if cache.ndim == 4 else (head, sequence)  # of each [B, T, K]
    return cache.at[*first, slots].set(new, mode="drop")
