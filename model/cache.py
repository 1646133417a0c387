"""The KV cache: a plain pytree that is passed in, updated in place and passed out.

One declaration: `abstract_cache` states shapes and dtypes, `cache_axes` the letters of each array.
Every jitted step donates its cache, so that the new one takes the old one's memory.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.dtypes import Dtypes
from sharding.layout import Axes
from sharding.placement import Placement, entry_axes
from sharding.platform_workarounds import scatter_row
from sharding.quantization import Quantization, round_rows

CACHE_AXES = "BKSh"
"""Letters of keys and values."""
SCALE_AXES = "KBS"
"""Letters of their scales, in the order that attention reads them: with sequences first, XLA:TPU
lays the scales of a chip with one KV head out anew at each step."""
TILE, SCALES = 32, 128
"""Slots of 8-bit numbers, and scales, that a TPU keeps together: in a cache of so many, or a
multiple, each sequence begins anew and no row of scales is filled up; of others XLA:TPU puts the
sequences in between and moves them to read."""
PADDING = 2**30
"""Position of a token that is only there to fill a row: past every slot, seen by none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKV:
    """Keys or values of one layer in few bits, with a scale for each token and head.

    Attributes:
      values: [B, K, S, h], in a quantization's dtype.
      scales: [K, B, S], float32.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    def astype(self, dtype: jnp.dtype) -> jax.Array:
        """The values in another type, their scales still to multiply."""
        return self.values.astype(dtype)


Stored = jax.Array | QuantizedKV
"""Keys or values of one layer, [B, K, S, h]."""


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

    Where the slots are divided, each layer has as many more as make them a multiple.
    """
    fixed = config.sizes

    def layer_array(layer: int) -> Stored:
        layer_slots = -(-min(slots, config.window(layer) or slots) // multiple) * multiple
        sizes = fixed | {"B": batch, "S": layer_slots}
        shape, scales_shape = (tuple(map(sizes.get, axes)) for axes in (CACHE_AXES, SCALE_AXES))
        if isinstance(dtypes.cache, Quantization):
            values = jax.ShapeDtypeStruct(shape, dtypes.cache.dtype)
            return QuantizedKV(values, jax.ShapeDtypeStruct(scales_shape, jnp.float32))
        return jax.ShapeDtypeStruct(shape, dtypes.cache)

    layers = tuple(map(layer_array, range(config.layers)))
    return KVCache(keys=layers, values=layers)


def cache_axes(cache: KVCache) -> KVCache:
    """A tree like the cache, with each array's letters in its stead."""

    def axes_of(part: Stored) -> str | QuantizedKV:
        quantized = isinstance(part, QuantizedKV)
        return QuantizedKV(CACHE_AXES, SCALE_AXES) if quantized else CACHE_AXES

    return KVCache(*(tuple(map(axes_of, parts)) for parts in cache))


def round_up_to_tiles(slots: int, dtypes: Dtypes) -> int:
    """The number of slots rounded up to whole tiles of a TPU, in a cache of these types."""
    tile = SCALES if isinstance(dtypes.cache, Quantization) else TILE
    return -(-slots // tile) * tile


def with_shardings(abstract: KVCache, placement: Placement, mesh: jax.sharding.Mesh) -> KVCache:
    """The same shapes with their shardings."""

    def with_sharding(array: jax.ShapeDtypeStruct, axes: str) -> jax.ShapeDtypeStruct:
        sharding = jax.NamedSharding(mesh, placement.cache(axes))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, abstract, cache_axes(abstract))


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
      slots: number of slots of the cache, S.
      ring: the layer has a window.
    """
    if not ring:
        return jnp.minimum(positions, slots)
    real = positions < PADDING
    newest = jnp.max(jnp.where(real, positions, -1), axis=1, keepdims=True)
    stored = real & (positions > newest - slots)  # so no two tokens of a prompt want one slot
    return jnp.where(stored, positions % slots, slots)


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
    slots: jax.Array,
    placement: Placement,
    dtypes: Dtypes,
    prompts: bool = False,
) -> Stored:
    """Stores new tokens in place, in the cache's form; those of a slot past the last are dropped.

    Args:
      cache: [B, K, S, h].
      new: [B, T, K, h].
      slots: [B, T] int32, the slot of each new token, from `slots_of`.
      placement: gives the cache's sharding.
      dtypes: how the cache is stored.
      prompts: the tokens of each sequence are its first, in order. Those that fill a row may then
        be stored too, in slots that no token has reached.

    Returns:
      The updated cache, [B, K, S, h].
    """

    def update(axes: str, cache: jax.Array, new: jax.Array) -> jax.Array:
        spec, new_spec = placement.cache(axes), placement.cache(_NEW_AXES[axes])
        slot_axes = entry_axes(placement.cache("S")[0])
        return jax.shard_map(
            functools.partial(_write_shard, axes, slot_axes, prompts),
            in_specs=(spec, new_spec, jax.typeof(slots).sharding.spec),
            out_specs=spec,
            check_vma=False,
        )(cache, new, slots)

    with jax.named_scope("cache_write"):
        if not isinstance(dtypes.cache, Quantization):
            return update(CACHE_AXES, cache, new.astype(dtypes.cache))
        values, scales = round_rows(new, dtypes.cache)  # [B, T, K, h] and [B, T, K]
        return QuantizedKV(
            update(CACHE_AXES, cache.values, values), update(SCALE_AXES, cache.scales, scales)
        )


_NEW_AXES = {CACHE_AXES: "BTKh", SCALE_AXES: "BTK"}
"""Letters of what new tokens bring to each array of a cache."""


def _write_shard(
    axes: str,
    slot_axes: Axes,
    prompts: bool,
    cache: jax.Array,
    new: jax.Array,
    slots: jax.Array,
) -> jax.Array:
    """Stores new tokens in one device's part of a cache, whose slots `slot_axes` divide."""
    if prompts and new.shape[1] <= cache.shape[2] and not slot_axes:
        return _fill(axes, cache, new)
    if slot_axes:
        slots = slots - jax.lax.axis_index(slot_axes) * cache.shape[2]
    scatter = functools.partial(_scatter, axes)
    if new.shape[:3] != (1, 1, 1):
        return scatter(cache, new, slots)
    return scatter_row(scatter, cache, new, slots, past_last=cache.shape[2])


def _fill(axes: str, cache: jax.Array, new: jax.Array) -> jax.Array:
    """Whole prompts in the first slots: one block, where XLA:TPU takes rows one after another."""
    order = map(_NEW_AXES[axes].index, axes.replace("S", "T"))
    return jax.lax.dynamic_update_slice(cache, new.transpose(*order), (0,) * cache.ndim)


def _scatter(axes: str, cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """A row for each token and head on this device; those of slots elsewhere are dropped.

    Rows are what XLA:TPU updates where they lie. Asked for several heads of a slot at once, it
    first brings the whole cache into an order in which they are neighbours.
    """
    slots = jnp.where(slots < 0, cache.shape[2], slots)[..., None]  # a negative one: from the end
    sequence, head = jnp.arange(new.shape[0])[:, None, None], jnp.arange(new.shape[2])
    index = {"B": sequence, "K": head, "S": slots}  # each broadcasts to [B, T, K]
    return cache.at[*(index[letter] for letter in axes[:3])].set(new, mode="drop")
