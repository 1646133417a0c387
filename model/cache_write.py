"""New keys and values written into a cache where it lies.

One token of each sequence is a row scattered to its slot, and so are few. The tokens of a prompt,
or of a chunk of one, are one block after the other: XLA:TPU and XLA:CPU take scattered rows one at
a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.cache import CACHE_AXES, PADDING, SCALE_AXES, QuantizedKV, Stored
from model.dtypes import Dtypes
from sharding.layout import Axes
from sharding.placement import Placement, entry_axes
from sharding.platform_workarounds import by_platform, lies_by_slots, scatter_row
from sharding.quantization import Quantization, round_rows

_NEW_AXES = {CACHE_AXES: "BTKh", SCALE_AXES: "BTK"}
"""Letters of what new tokens bring to each array of a cache."""


FEW = 15
"""So many tokens of each sequence are scattered: a loop over sequences takes as many kernels on a
GPU as there are."""


class NewTokens(NamedTuple):
    """Where the new tokens of each sequence belong; they follow each other.

    Attributes:
      first: position of the first, [B] int32: the tokens that the cache holds.
      count: number of real ones, [B] int32; the others only fill the row.
    """

    first: jax.Array
    count: jax.Array

    @classmethod
    def at(cls, positions: jax.Array) -> "NewTokens":
        """From positions [B, T]; those that fill a row stand at `PADDING`."""
        count = jnp.sum(positions < PADDING, axis=1, dtype=jnp.int32)
        return cls(jnp.where(count > 0, positions[:, 0], 0), count)


def write(
    cache: Stored,
    new: jax.Array,
    tokens: NewTokens,
    placement: Placement,
    dtypes: Dtypes,
    *,
    ring: bool,
    continues: bool = False,
    after: jax.Array | None = None,
) -> Stored:
    """Stores new tokens in place, in the cache's form; those past the last slot are dropped.

    Args:
      cache: [B, K, S, h]. There may be more sequences: the tokens are those of the first ones that
        each device has.
      new: [B, T, K, h].
      tokens: where they belong, each field divided as the cache's sequences are.
      placement: gives the cache's sharding.
      dtypes: how the cache is stored.
      ring: the layer has a window: the token at position p is in slot p modulo S.
      continues: there may be tokens before these. Without, those that fill a row may be stored
        too, in slots that no token has reached.
      after: finite numbers that are made of the cache as it was: it is written after them, because
        XLA:TPU writes to a copy where it may write before it reads.

    Returns:
      The updated cache, [B, K, S, h].
    """
    slots = cache.shape[2]

    def update(axes: str, cache: jax.Array, new: jax.Array) -> jax.Array:
        spec, new_spec = placement.cache(axes), placement.cache(_NEW_AXES[axes])
        by_sequence = NewTokens(*(jax.typeof(each).sharding.spec for each in tokens))
        made = None if after is None else jax.typeof(after).sharding.spec
        return jax.shard_map(
            functools.partial(
                _write_shard,
                axes,
                slots if ring else None,
                entry_axes(placement.cache("S")[0]),
                continues,
            ),
            in_specs=(spec, new_spec, by_sequence, made),
            out_specs=spec,
            check_vma=False,
        )(cache, new, tokens, after)

    with jax.named_scope("cache_write"):
        if not isinstance(dtypes.cache, Quantization):
            return update(CACHE_AXES, cache, new.astype(dtypes.cache))
        values, scales = round_rows(new, dtypes.cache)  # [B, T, K, h] and [B, T, K]
        return QuantizedKV(
            update(CACHE_AXES, cache.values, values), update(SCALE_AXES, cache.scales, scales)
        )


def _write_shard(
    axes: str,
    ring: int | None,
    slot_axes: Axes,
    continues: bool,
    cache: jax.Array,
    new: jax.Array,
    tokens: NewTokens,
    after: jax.Array | None,
) -> jax.Array:
    """Stores new tokens in one device's part of a cache, whose slots `slot_axes` divide."""
    slots = cache.shape[2]
    begin = jax.lax.axis_index(slot_axes) * slots if slot_axes else 0
    if new.shape[1] == 1:
        slot = (tokens.first % ring if ring else tokens.first) - begin
        slot = jnp.where(tokens.count > 0, slot, slots)  # of a row that is only filled, nowhere
        return _write_rows(axes, cache, new, slot[:, None])
    if after is not None:  # of no number does it depend, which no compiler knows
        never = after[(0,) * after.ndim] == jnp.inf
        tokens = tokens._replace(count=jnp.where(never, 0, tokens.count))
    if continues and new.shape[1] <= min(FEW, ring or FEW):
        return _write_rows(axes, cache, new, _slots_of(tokens, new.shape[1], ring, begin, slots))
    new = new.transpose([_NEW_AXES[axes].index(axis) for axis in axes.replace("S", "T")])
    if not continues and new.shape[2] <= slots and not slot_axes:
        return jax.lax.dynamic_update_slice(cache, new, (0,) * cache.ndim)
    if not ring:
        return _write_block(axes, cache, new, tokens, jnp.full_like(tokens.first, begin), 0)
    oldest = jnp.maximum(tokens.first + tokens.count - ring, 0)  # those before are soon forgotten
    lap = jnp.maximum(tokens.first, oldest) // ring * ring + begin
    for bases in (lap, lap + ring):
        cache = _write_block(axes, cache, new, tokens, bases, oldest)
    return cache


def _slots_of(
    tokens: NewTokens, length: int, ring: int | None, begin: jax.Array | int, slots: int
) -> jax.Array:
    """The slot of each token among a device's `slots`, [B, length]; others lie elsewhere."""
    order = jnp.arange(length, dtype=jnp.int32)
    places = tokens.first[:, None] + order
    places = (places % ring if ring else places) - begin
    return jnp.where(order < tokens.count[:, None], places, slots)


def _write_block(
    axes: str,
    cache: jax.Array,
    new: jax.Array,
    tokens: NewTokens,
    bases: jax.Array,
    oldest: jax.Array | int,
) -> jax.Array:
    """Stores each sequence's tokens that belong in slots one after the other.

    Args:
      axes: letters of the cache's array.
      cache: the array.
      new: as the array, with new tokens in the place of slots.
      tokens: where they belong.
      bases: position that belongs in the first slot of each sequence, [B].
      oldest: position of each sequence's first token that is kept, [B] or one for all.
    """
    length, slots, batch = new.shape[2], cache.shape[2], axes.index("B")
    block = min(length, slots)
    sizes = [1 if n == batch else size for n, size in enumerate(cache.shape)]
    sizes[2] = block
    beside = [(block, block) if n == 2 else (0, 0) for n in range(new.ndim)]
    new = jnp.pad(new, beside)
    start = jnp.clip(tokens.first - bases, 0, slots - block)
    number = (bases + start - tokens.first)[:, None] + jnp.arange(block)  # token in each slot
    kept = (number >= 0) & (number < tokens.count[:, None])
    kept &= number + tokens.first[:, None] >= jnp.reshape(oldest, (-1, 1))
    cut = jnp.clip(number[:, 0], -block, length) + block

    def write_one(row: jax.Array | int, cache: jax.Array) -> jax.Array:
        at = [0] * cache.ndim
        at[batch], at[2] = row, start[row]
        brought = [0] * cache.ndim
        brought[batch], brought[2] = row, cut[row]
        mask = kept[row].reshape(-1, *(1,) * (cache.ndim - 3))
        old = jax.lax.dynamic_slice(cache, at, sizes)
        merged = jnp.where(mask, jax.lax.dynamic_slice(new, brought, sizes), old)
        return jax.lax.dynamic_update_slice(cache, merged, at)

    if len(start) == 1:
        return write_one(0, cache)
    return jax.lax.fori_loop(0, len(start), write_one, cache)


def _write_rows(axes: str, cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """Stores tokens of each sequence in slots [B, T]; those of slots elsewhere are dropped."""
    scatter = functools.partial(_scatter, axes)

    def by_rows(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
        if new.shape[:3] != (1, 1, 1):
            return scatter(cache, new, slots)
        return scatter_row(scatter, cache, new, slots, past_last=cache.shape[2])

    if axes == CACHE_AXES and new.shape[1] == 1 and lies_by_slots(cache.shape[-1]):
        return by_platform(cache, new, slots, tpu=_write_by_slots, default=by_rows)
    return by_rows(cache, new, slots)


def _write_by_slots(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    from model.cache_write_tpu import write_tokens  # imports Pallas, which takes a while

    return write_tokens(cache, new, slots)


def _scatter(axes: str, cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """A row for each token and head on this device; those of slots elsewhere are dropped.

    Rows are what XLA:TPU updates where they lie. Asked for several heads of a slot at once, it
    first brings the whole cache into an order in which they are neighbours.
    """
    slots = jnp.where(slots < 0, cache.shape[2], slots)[..., None]  # a negative one: from the end
    sequence, head = jnp.arange(new.shape[0])[:, None, None], jnp.arange(new.shape[2])
    index = {"B": sequence, "K": head, "S": slots}  # each broadcasts to [B, T, K]
    return cache.at[*(index[letter] for letter in axes[:3])].set(new, mode="drop")
