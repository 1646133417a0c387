"""Parts of a softmax that are found apart, over some keys each, and then joined.

A part keeps the largest score beside its sums, so that parts join without any score again
(Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharding.layout import Axes

LOWEST = float(jnp.finfo(jnp.float32).min)
"""The largest score of a part in which no key is seen."""


def earliest_seen(query: jax.Array, window: int, chunked: bool) -> jax.Array:
    """Position of the first key that a query sees, where none is negative.

    Args:
      query: position of the query.
      window: keys that a query sees at most, its own included.
      chunked: it sees those of its own chunk of so many.
    """
    return query - query % window if chunked else query - window + 1


def queries_of_key(key: jax.Array, window: int, chunked: bool) -> jax.Array | int:
    """How many queries see a key, from that of its own position on; see `earliest_seen`."""
    return window - key % window if chunked else window


class Spans(NamedTuple):
    """Where the queries and keys of each sequence stand in it; each is [B] int32.

    Attributes:
      first_query: position of the first query; the others follow it.
      first_key: position of the key in the first slot; the others follow it. A ring has none.
      filled: tokens of the sequence that there are; slots of other positions hold anything.
    """

    first_query: jax.Array
    first_key: jax.Array
    filled: jax.Array


class Softmaxed(NamedTuple):
    """Values weighted by a softmax over some of the keys.

    Attributes:
      sums: sums of values, each times exp(score - highest): [B, T, K, G, h] float32.
      highest: the largest score, `LOWEST` where no key is seen: [B, T, K, G] float32.
      total: sum of exp(score - highest), 0 where no key is seen: [B, T, K, G] float32.
    """

    sums: jax.Array
    highest: jax.Array
    total: jax.Array

    def mean(self) -> jax.Array:
        """The weighted mean of the values, [B, T, K, G, h]; 0 where no key is seen."""
        return self.sums / jnp.maximum(self.total, jnp.finfo(jnp.float32).tiny)[..., None]


def join(a: Softmaxed, b: Softmaxed) -> Softmaxed:
    """One part of two over different keys."""
    highest = jnp.maximum(a.highest, b.highest)
    of_a, of_b = (jnp.exp(part.highest - highest) for part in (a, b))
    sums = a.sums * of_a[..., None] + b.sums * of_b[..., None]
    return Softmaxed(sums, highest, a.total * of_a + b.total * of_b)


def join_sink(part: Softmaxed, sink: jax.Array) -> Softmaxed:
    """A part with one more score, which counts in the total and has no value.

    Source: attention sinks as gpt-oss has them (`modeling_gpt_oss.py` of
    https://github.com/huggingface/transformers), after Xiao et al. 2024, section 3.3.

    Args:
      part: over all of the keys: the sink is to be joined once.
      sink: [K, G] float32, the score of each query head.
    """
    highest = jnp.maximum(part.highest, sink)
    of_part = jnp.exp(part.highest - highest)
    total = part.total * of_part + jnp.exp(sink - highest)
    return Softmaxed(part.sums * of_part[..., None], highest, total)


def combine(parts: Softmaxed) -> Softmaxed:
    """One part of many over different keys, stacked along a new first axis of each array."""
    highest = jnp.max(parts.highest, axis=0)
    share = jnp.exp(parts.highest - highest)
    sums = jnp.sum(parts.sums * share[..., None], axis=0)
    return Softmaxed(sums, highest, jnp.sum(parts.total * share, axis=0))


def join_devices(part: Softmaxed, axes: Axes) -> Softmaxed:
    """One part of those of the devices along mesh axes, within a `jax.shard_map`.

    Two all-reduces: of the largest scores, and of sums and totals together (as Flash-Decoding,
    Dao et al. 2023, joins parts of one device).
    """
    highest = jax.lax.pmax(part.highest, axes)
    both = jnp.concatenate([part.sums, part.total[..., None]], axis=-1)
    both = jax.lax.psum(both * jnp.exp(part.highest - highest)[..., None], axes)
    return Softmaxed(both[..., :-1], highest, both[..., -1])
