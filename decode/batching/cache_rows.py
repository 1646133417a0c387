"""Rows of a cache taken out, put back or exchanged where the whole lies, each device its own."""

import functools

import jax
import jax.numpy as jnp

from model.cache import (
    CACHE_AXES,
    SCALE_AXES,
    DeltaState,
    KVCache,
    QuantizedKV,
    Stored,
    cache_axes,
)
from model.cache_write import NewTokens
from model.config import ModelConfig
from sharding.layout import Axes
from sharding.placement import Placement, entry_axes


def take_rows(
    cache: KVCache, rows: jax.Array, new: NewTokens, placement: Placement, config: ModelConfig
) -> KVCache:
    """A cache of some rows, with what new tokens see of them and zeros for the rest.

    So numbers that are not finite, which another request may have left behind, stay behind.

    Args:
      cache: of B sequences.
      rows: [m] int32; each is counted from its device's first, and m is divided as B is.
      new: the tokens that each of the m prompts goes on with; of a prompt without any, the row is
        taken as it is.
      placement: gives the cache's sharding.
      config: the model.

    Returns:
      A cache of m sequences.
    """
    specs = jax.tree.map(placement.cache, cache_axes(cache, config))
    by_row = jax.P(placement.cache("B")[0])
    windows = tuple(config.window(layer) for layer in range(config.layers))

    def local(cache: KVCache, rows: jax.Array, new: NewTokens) -> KVCache:
        slot_axes = entry_axes(placement.cache("S")[0])
        take = functools.partial(_take, rows=rows, new=new, slot_axes=slot_axes)
        return KVCache(*(tuple(map(take, parts, windows)) for parts in cache))

    with jax.named_scope("take_rows"):
        rows, new = jax.tree.map(lambda each: jax.reshard(each, by_row), (rows, new))
        return jax.shard_map(
            local,
            in_specs=(specs, by_row, NewTokens(by_row, by_row)),
            out_specs=specs,
            check_vma=False,
        )(cache, rows, new)


def put_rows(
    cache: KVCache, part: KVCache, rows: jax.Array, placement: Placement, config: ModelConfig
) -> KVCache:
    """The cache with the rows of `part` in these places, [m] int32 as in `take_rows`."""
    specs = jax.tree.map(placement.cache, cache_axes(cache, config))
    by_row = jax.P(placement.cache("B")[0])

    def local(cache: KVCache, part: KVCache, rows: jax.Array) -> KVCache:
        def put(array: jax.Array, part: jax.Array, axes: str) -> jax.Array:
            at = axes.index("B")
            for lane in range(part.shape[at]):
                one = jax.lax.slice_in_dim(part, lane, lane + 1, axis=at)
                array = jax.lax.dynamic_update_slice_in_dim(array, one, rows[lane], at)
            return array

        return jax.tree.map(put, cache, part, cache_axes(cache, config))

    with jax.named_scope("put_rows"):
        rows = jax.reshard(rows, by_row)
        return jax.shard_map(
            local, in_specs=(specs, specs, by_row), out_specs=specs, check_vma=False
        )(cache, part, rows)


def exchange_rows(
    cache: KVCache,
    places: jax.Array,
    others: jax.Array,
    placement: Placement,
    config: ModelConfig,
) -> KVCache:
    """The cache with the rows of `others` in `places`, each [m] int32 as in `take_rows`.

    They are gathered and scattered: of slices put into their places XLA:CPU makes one loop, which
    reads the rows that it writes, and copies the whole cache for it.
    """
    specs = jax.tree.map(placement.cache, cache_axes(cache, config))
    by_row = jax.P(placement.cache("B")[0])

    def local(cache: KVCache, places: jax.Array, others: jax.Array) -> KVCache:
        def exchange(array: jax.Array, axes: str) -> jax.Array:
            before = (slice(None),) * axes.index("B")
            return array.at[(*before, places)].set(array[(*before, others)])

        return jax.tree.map(exchange, cache, cache_axes(cache, config))

    with jax.named_scope("exchange_rows"):
        places, others = (jax.reshard(each, by_row) for each in (places, others))
        return jax.shard_map(
            local, in_specs=(specs, by_row, by_row), out_specs=specs, check_vma=False
        )(cache, places, others)


def _take(
    stored: Stored | DeltaState | None,
    window: int | None,
    *,
    rows: jax.Array,
    new: NewTokens,
    slot_axes: Axes,
) -> Stored | DeltaState | None:
    """One device's rows of a layer's keys or values, or of its states.

    Latents have no values beside them; states, and layers that borrow, neither keys nor values.
    """
    if stored is None:
        return None
    if isinstance(stored, DeltaState):
        kept = (new.first > 0) | (new.count == 0)  # [m]: a sequence that begins has none yet
        return jax.tree.map(lambda array: _cut(array, 0, rows, _wide(kept, array.ndim)), stored)
    slots = stored.shape[2]
    parts = jax.lax.axis_size(slot_axes) if slot_axes else 1
    begin = jax.lax.axis_index(slot_axes) * slots if slot_axes else 0
    kept = _seen(begin + jnp.arange(slots), slots * parts, new, window)  # [m, S]

    def take(array: jax.Array, axes: str) -> jax.Array:
        at = axes.index("B")
        return _cut(array, at, rows, kept[:, None, :, None] if at == 0 else kept[None])

    quantized = isinstance(stored, QuantizedKV)
    return jax.tree.map(
        take, stored, QuantizedKV(CACHE_AXES, SCALE_AXES) if quantized else CACHE_AXES
    )


def _cut(array: jax.Array, at: int, rows: jax.Array, mask: jax.Array) -> jax.Array:
    """Rows along a dimension, zeros where the mask, [m, ...] there, is not set."""
    cut = [jax.lax.dynamic_slice_in_dim(array, rows[lane], 1, axis=at) for lane in range(len(rows))]
    # With jax 0.12 XLA:CPU makes a program of slices and mask together that LLVM refuses.
    cut = jax.lax.optimization_barrier(cut)
    cut = jnp.concatenate(cut, axis=at) if len(cut) > 1 else cut[0]
    return jnp.where(mask, cut, jnp.zeros_like(cut))


def _wide(mask: jax.Array, dimensions: int) -> jax.Array:
    """A mask [m] over the first of so many dimensions."""
    return mask.reshape(-1, *(1,) * (dimensions - 1))


def _seen(slots: jax.Array, ring: int, new: NewTokens, window: int | None) -> jax.Array:
    """Which slots hold a token that the first of the new tokens sees, [m, S]; all of idle rows."""
    first = new.first[:, None]
    positions = slots[None]
    if window is not None:
        positions = first - 1 - (first - 1 - positions) % ring
    seen = (positions >= 0) & (positions < first)
    if window is not None:
        seen &= positions > first - window
    return seen | (new.count == 0)[:, None]
