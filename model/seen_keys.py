"""Which keys of a cache, or of a block of it, queries see."""

import jax
import jax.numpy as jnp

from model.softmax_parts import Spans, earliest_seen, queries_of_key

Ring = tuple[int, jax.Array]
"""Slots of a whole ring, and which of them is the first here."""


def seen_span(
    spans: Spans, tokens: int, slots: int, ring: Ring | None, window: int | None, chunked: bool
) -> tuple[jax.Array, jax.Array]:
    """The first slot that any query sees, and the one past the last."""
    if ring:
        return jnp.int32(0), jnp.clip(jnp.max(spans.filled) - ring[1], 0, slots)
    last = jnp.minimum(spans.filled, spans.first_query + tokens) - spans.first_key
    last = jnp.clip(jnp.max(last), 0, slots)
    if window is None:
        return jnp.minimum(jnp.clip(jnp.min(-spans.first_key), 0, slots), last), last
    first = earliest_seen(spans.first_query, window, chunked)
    first = jnp.maximum(first, 0) - spans.first_key
    return jnp.minimum(jnp.clip(jnp.min(first), 0, slots), last), last


def seen_keys(
    spans: Spans,
    tokens: int,
    slots: jax.Array,
    ring: Ring | None,
    window: int | None,
    chunked: bool,
) -> jax.Array:
    """Which keys of these slots each query sees, [B, T, slots]."""
    filled = spans.filled[:, None]
    if ring:
        size, begin = ring
        positions = filled - 1 - (filled - 1 - (begin + slots)) % size  # [B, slots]
    else:
        positions = spans.first_key[:, None] + slots
    there = (positions >= 0) & (positions < filled)
    query = (spans.first_query[:, None] + jnp.arange(tokens))[:, :, None]
    seen = there[:, None] & (positions[:, None] <= query)
    if window is None:
        return seen
    positions = positions[:, None]
    return seen & (query < positions + queries_of_key(positions, window, chunked))
