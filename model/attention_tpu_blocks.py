"""Blocks of queries and of slots that the TPU kernel of attention goes over, and what they cost."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from model.softmax_parts import Spans, earliest_seen
from sharding.platform_workarounds import lies_by_slots

_LANES, _ROW_TILE = 128, 16
_ROWS = 1024  # rows of queries at a time, of heads up to 128 wide
_SLOTS = 1024  # slots fetched at a time ...
_STEP = 512  # ... and multiplied at a time
_FEW_ROWS = 128  # up to so many rows, fetching takes the time ...
_FETCHED = 2**19  # ... so that several KV heads are fetched at once: bytes of keys
_MAX_HEADS = 8


class Form(NamedTuple):
    """What is fixed when the kernel is compiled."""

    group: int  # queries of a KV head
    tokens: int  # queries in a block, each with a row for each of the group
    rows: int  # those rows, filled up to whole registers
    heads: int  # KV heads in a block
    slots: int  # in a block
    step: int  # of those, multiplied at a time
    across: bool  # slots lie in a register's lanes: [h, slots]
    last_slot: int  # of the cache
    ring: int | None  # slots of a whole ring
    window: int | None
    scale: float
    softcap: float | None
    chunked: bool  # a window is a chunk
    shared: bool  # keys are also values


class Place(NamedTuple):
    """Where one sequence's queries and keys are."""

    first_query: jax.Array  # position of the first row's query
    origin: jax.Array  # position of slot 0, ...
    newest: jax.Array  # ... and of those up to this one; later ones are a ring's last round
    filled: jax.Array  # number of tokens


def blocks_of(
    tokens: int, heads: int, group: int, width: int, slots: int, stored: jnp.dtype
) -> tuple[int, int, int, int, int, int, bool]:
    """The first fields of a `Form`: blocks that fit a v5e's 16 MB of VMEM, those fetched twice."""
    # Blocks of rows, of which there are several, fill whole lanes of a row of totals.
    granule = _LANES // math.gcd(group, _LANES)
    most = _ROWS * _LANES // max(width, _LANES) // (granule * group) * granule
    block_tokens = min(tokens, max(most, granule))
    rows = -(-block_tokens * group // _ROW_TILE) * _ROW_TILE
    block_heads, block_slots = 1, _SLOTS
    if rows <= _FEW_ROWS:
        block_heads = math.gcd(heads, _MAX_HEADS)
        row_bytes = block_heads * max(width, _LANES) * jnp.dtype(stored).itemsize
        block_slots = min(max(_FETCHED // row_bytes // _LANES * _LANES, _LANES), _SLOTS)
    step = min(block_slots, _STEP, -(-slots // _LANES) * _LANES)
    block_slots = min(block_slots // step, -(-slots // step)) * step
    return group, block_tokens, rows, block_heads, block_slots, step, lies_by_slots(width)


def places_of(spans: Spans, ring: tuple[int, jax.Array] | None, slots: int) -> jax.Array:
    """The `Place` of each sequence, [4, B]."""
    if ring is None:
        origin, newest = spans.first_key, jnp.full_like(spans.filled, slots - 1)
    else:
        size, first_slot = ring
        last = spans.filled - 1
        origin = last - last % size + first_slot
        newest = jnp.minimum(last % size - first_slot, slots - 1)
    return jnp.stack([spans.first_query, origin, newest, spans.filled]).astype(jnp.int32)


def seen_slots(
    spans: Spans,
    ring: tuple[int, jax.Array] | None,
    window: int | None,
    tokens: int,
    slots: int,
    block_tokens: int,
    chunked: bool = False,
) -> jax.Array:
    """First slot that each block of queries may see, and the end; [2, B, blocks of queries]."""
    token = jnp.arange(0, tokens, block_tokens, dtype=jnp.int32)
    first_query, first_key, filled = (each[:, None] for each in spans)
    start = jnp.zeros_like(first_query + token)
    if window is not None:
        start = jnp.maximum(earliest_seen(first_query + token, window, chunked), 0)
    end = jnp.minimum(first_query + jnp.minimum(token + block_tokens, tokens), filled)
    origin = first_key if ring is None else ring[1]
    first_slot, end_slot = (jnp.clip(at - origin, 0, slots) for at in (start, end))
    if ring is not None:  # once it has come round, any slot may hold any of its positions
        wrapped = filled > ring[0]
        any_seen = (end > start) & (end > filled - ring[0])
        first_slot = jnp.where(wrapped, 0, first_slot)
        end_slot = jnp.where(wrapped, jnp.where(any_seen, slots, 0), end_slot)
    return jnp.stack([jnp.minimum(first_slot, end_slot), end_slot]).astype(jnp.int32)


def multiplied_pairs(
    query_shape: tuple[int, int, int, int, int],
    slots: int,
    stored: jnp.dtype,
    spans: Spans,
    *,
    ring: tuple[int, int] | None = None,
    window: int | None = None,
) -> int:
    """Pairs of a query, in each of its heads, and a key that the kernel multiplies.

    Each is 4 * h FLOPs: of a score, and of a value. What fills up blocks of queries and of slots
    counts, because it is multiplied too.

    Args:
      query_shape: sizes [B, T, K, G, h] of this chip's queries.
      slots: in this chip's cache.
      stored: type of the cache.
      spans: the same as of `model.attention_tpu.attend_part`, as numbers.
      ring: the same.
      window: the same.
    """
    _, tokens, heads, group, width = query_shape
    _, block_tokens, rows, _, _, step, _ = blocks_of(tokens, heads, group, width, slots, stored)
    first, end = seen_slots(spans, ring, window, tokens, slots, block_tokens)
    steps = jnp.maximum(pl.cdiv(end, step) - first // step, 0)  # as `_kernel` goes over them
    return int(jnp.sum(steps)) * heads * rows * step
