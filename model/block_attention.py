"""Attention of new tokens over filled slots, block by block: the form that XLA compiles.

Each block of keys adds to a running softmax, so that no array of all scores is ever stored
(Dao et al. 2022, "FlashAttention"), and loops end where the last key is that a query sees: a step's
time follows the tokens that a cache holds and not the slots that it has.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from model.seen_keys import Ring, seen_keys, seen_span
from model.softmax_parts import LOWEST, Softmaxed, Spans, earliest_seen

Arrays = tuple[jax.Array | None, ...]
"""Keys, values, and the scales of each if they have any."""
Expand = Callable[..., Arrays]
"""Makes the `Arrays` of a block, each sequence's, of what stands in their place."""
KEYS_OF_A_TOKEN = 32
"""Keys that a block has where each sequence has one query: few enough to stay in a CPU's cache."""
FEW_SLOTS = 192
"""Slots that one query of each sequence meets at once: loops over so few would save less time in a
step than they take to compile, a third of a small model's program."""
KEYS_OF_A_PROMPT = 512
"""Keys that a block has where there are more."""
QUERIES = 512
"""Queries that meet a block of earlier keys at once: XLA:CPU multiplies many of them faster."""
QUERIES_AMONG_NEW = 256
"""Queries that meet new tokens at once: fewer, since they also meet those that come after them."""


def attend_part(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array | None,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    spans: Spans,
    *,
    ring: Ring | None = None,
    window: int | None = None,
    scale: float,
    softcap: float | None = None,
    chunked: bool = False,
    expand: Expand | None = None,
    value_width: int | None = None,
) -> Softmaxed:
    """Softmax attention of queries to those keys of one device that they see.

    A query sees the keys of its own position and those before it, within the window. Slots that
    hold no token hold finite numbers: caches begin as zeros.

    Args:
      q: [B, T, K, G, h].
      keys: [B, K, S, h], plain or without their scales. There may be more sequences in the arrays:
        queries are of the first ones.
      values: [B, K, S, h]; None where keys are also values, or where `expand` makes them.
      key_scales: [K, B, S] float32; None for 1.
      value_scales: as `key_scales`.
      spans: positions of queries and keys.
      ring: the slots are a ring, or a part of one.
      window: how many keys a query sees at most, its own included; None for all.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any (Gemma Team 2024, section 2).
      chunked: a window is a query's own chunk of so many keys.
      expand: of prompts, makes keys and values for the K of the queries of a block of what stands
        in their place, once for all queries.
      value_width: numbers of a value, where not those of a query.
    """
    q, scale = _scaled(q.transpose(0, 2, 1, 3, 4), scale)  # [B, K, T, G, h]
    if values is None and not expand:
        values, value_scales = keys, key_scales
    arrays = keys, values, key_scales, value_scales
    how = {"ring": ring, "window": window, "scale": scale, "softcap": softcap}
    how["chunked"] = chunked
    loop = functools.partial(_over_blocks, **how, expand=expand, value_width=value_width)
    if q.shape[2] == 1:
        part = _of_one_query(q, arrays, spans, loop, **how)
    else:
        part = _of_many_queries(q, arrays, spans, loop, q.shape[2] if expand else QUERIES)
    return _in_order_of_queries(part)


def _of_one_query(
    q: jax.Array,
    arrays: Arrays,
    spans: Spans,
    loop: Callable[..., Softmaxed],
    ring: Ring | None,
    window: int | None,
    chunked: bool,
    **scores: float | None,
) -> Softmaxed:
    """One query of each sequence over blocks, or over all keys at once where that reads less.

    Args:
      q: [B, K, 1, G, h].
      arrays: of at least B sequences.
      spans: of the B sequences.
      loop: `_over_blocks`.
      ring: as in `attend_part`, like those after it.
    """
    slots = arrays[0].shape[2]
    loop = functools.partial(loop, q, arrays, spans, KEYS_OF_A_TOKEN)
    whole = functools.partial(_over_all, q, arrays, spans, ring, window, chunked=chunked, **scores)
    if slots <= FEW_SLOTS:
        return whole()
    if q.shape[0] < arrays[0].shape[0]:  # some sequences' slots are copied, be they blocks or all
        return loop()
    # A block is copied before it is read, so that half of all slots take as long as all.
    first, last = seen_span(spans, 1, slots, ring, window, chunked)
    return jax.lax.cond(2 * (last - first) >= slots, whole, loop)


def _of_many_queries(
    q: jax.Array, arrays: Arrays, spans: Spans, loop: Callable[..., Softmaxed], queries: int
) -> Softmaxed:
    """Queries of prompts, so many at a time.

    Args:
      q: [B, K, T, G, h].
      arrays: of at least B sequences.
      spans: of the B sequences.
      loop: `_over_blocks`.
      queries: at a time.
    """

    def one(row: jax.Array | int) -> Softmaxed:
        """A sequence, a loop for each block of queries: XLA:CPU runs them side by side."""
        own = Spans(*(jax.lax.dynamic_slice_in_dim(each, row, 1) for each in spans))
        parts = [
            loop(
                jax.lax.dynamic_slice_in_dim(q[:, :, first : first + queries], row, 1),
                arrays,
                own._replace(first_query=own.first_query + first),
                KEYS_OF_A_PROMPT,
                row,
            )
            for first in range(0, q.shape[2], queries)
        ]
        return _one_after_another(parts)

    return _each_sequence(one, q.shape[0])


def _scaled(q: jax.Array, scale: float) -> tuple[jax.Array, float]:
    """Queries times the scale, if that rounds no more than scores would, and what is left of it.

    There are fewer numbers in queries than in scores.
    """
    return (q * scale, 1.0) if q.dtype == jnp.float32 else (q, scale)


def _one_after_another(parts: Iterable[Softmaxed]) -> Softmaxed:
    """Blocks of queries, each [B, K, queries, ...], as one."""
    return Softmaxed(*(jnp.concatenate(each, axis=2) for each in zip(*parts, strict=True)))


def _each_sequence(one: Callable[[jax.Array | int], Softmaxed], batch: int) -> Softmaxed:
    """What `one` finds of each of so many sequences, [B, K, T, ...]."""
    if batch == 1:
        return one(0)
    found = jax.lax.map(one, jnp.arange(batch))  # [B, 1, K, T, ...]
    return Softmaxed(*(each[:, 0] for each in found))


def attend_each_other(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    first_query: jax.Array | None = None,
    *,
    window: int | None = None,
    scale: float,
    softcap: float | None = None,
    chunked: bool = False,
) -> Softmaxed:
    """The same among new tokens: the key of each query is in the slot of its number.

    Which keys a query sees is then known when this is compiled, but for chunks. So each block of
    queries meets its keys at once, without a loop. Tokens that fill a row come last, where no other
    sees them.

    Args:
      q: as in `attend_part`, like those after it; S is T.
      first_query: position of each sequence's first token, [B] int32; chunks need it.
    """
    q, scale = _scaled(q.transpose(0, 2, 1, 3, 4), scale)  # [B, K, T, G, h]
    arrays = keys, values, key_scales, value_scales
    tokens = q.shape[2]

    def one(row: jax.Array | int) -> Softmaxed:
        parts = []
        for first in range(0, tokens, QUERIES_AMONG_NEW):
            last = min(first + QUERIES_AMONG_NEW, tokens)
            least = 0 if window is None else max(first - window + 1, 0)
            some = jax.lax.dynamic_slice_in_dim(q[:, :, first:last], row, 1)
            query, key = np.arange(first, last)[:, None], np.arange(least, last)
            seen = (key <= query) & ((window is None) | (key > query - (window or 0)))
            if chunked:
                place = first_query[row]
                begin = earliest_seen(place + query, window, chunked)
                seen &= place + key >= begin
            cut = (
                each if each is None else _cut(each, row, least, 1, last - least) for each in arrays
            )
            rows = some.reshape(1, some.shape[1], -1, some.shape[-1])
            part = _add(None, rows, *cut, jnp.asarray(seen)[None], scale, softcap)
            shape = some.shape[:-1]
            parts.append([each.reshape(*shape, *each.shape[3:]) for each in part])
        return _one_after_another(map(Softmaxed._make, parts))

    return _in_order_of_queries(_each_sequence(one, q.shape[0]))


def _in_order_of_queries(part: Softmaxed) -> Softmaxed:
    """From [B, K, T, ...] to [B, T, K, ...]."""
    return Softmaxed(*(each.swapaxes(1, 2) for each in part))


def _over_blocks(
    q: jax.Array,
    arrays: tuple[jax.Array | None, ...],
    spans: Spans,
    block: int,
    row: jax.Array | int = 0,
    *,
    ring: Ring | None,
    window: int | None,
    scale: float,
    softcap: float | None,
    chunked: bool = False,
    expand: Expand | None = None,
    value_width: int | None = None,
) -> Softmaxed:
    """Queries over the blocks of keys that any of them sees.

    Args:
      q: [B, K, T, G, h].
      arrays: keys, values and their scales, of at least B sequences.
      spans: of the B sequences.
      block: keys at a time.
      row: the first of the B sequences among those of the arrays.
      ring: as in `attend_part`, like those after it.
    """
    (batch, heads, tokens, group, width), slots = q.shape, arrays[0].shape[2]
    block = min(block, slots)
    first, last = seen_span(spans, tokens, slots, ring, window, chunked)
    rows = q.reshape(batch, heads, tokens * group, width)

    def step(number: jax.Array, part: Softmaxed, masked: bool = True) -> Softmaxed:
        start = jnp.minimum(number * block, slots - block)
        cut = tuple(
            array if array is None else _cut(array, row, start, batch, block) for array in arrays
        )
        cut = expand(*cut) if expand else cut
        seen = None
        if masked:
            at = start + jnp.arange(block)
            seen = seen_keys(spans, tokens, at, ring, window, chunked)
            seen &= at >= number * block  # the last block may begin within the one before
        return _add(part, rows, *cut, seen, scale, softcap)

    shape = batch, heads, tokens * group
    nothing = Softmaxed(
        jnp.zeros((*shape, value_width or width), jnp.float32),
        jnp.full(shape, LOWEST, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    begin, end = first // block, -(-last // block)
    if ring is None and window is None:
        # All queries see all keys of all blocks but the last ones.
        seen_by_all = jnp.minimum(spans.filled, spans.first_query + 1) - spans.first_key
        some = jnp.clip(jnp.min(seen_by_all) // block, begin, end)
        nothing = jax.lax.fori_loop(begin, some, functools.partial(step, masked=False), nothing)
        begin = some
    part = jax.lax.fori_loop(begin, end, step, nothing)
    return Softmaxed(*(each.reshape(batch, heads, tokens, group, *each.shape[3:]) for each in part))


def _over_all(
    q: jax.Array,
    arrays: tuple[jax.Array | None, ...],
    spans: Spans,
    ring: Ring | None,
    window: int | None,
    scale: float,
    softcap: float | None,
    chunked: bool,
) -> Softmaxed:
    """One query of each sequence over all keys at once; arguments are those of `_over_blocks`."""
    batch, heads, tokens, group, width = q.shape
    slots = arrays[0].shape[2]
    seen = seen_keys(spans, tokens, jnp.arange(slots), ring, window, chunked)
    if batch < arrays[0].shape[0]:
        arrays = tuple(each if each is None else _cut(each, 0, 0, batch, slots) for each in arrays)
    rows = q.reshape(batch, heads, tokens * group, width)
    part = _add(None, rows, *arrays, seen, scale, softcap, keys_first=True)
    return Softmaxed(*(each.reshape(batch, heads, tokens, group, *each.shape[3:]) for each in part))


def _add(
    part: Softmaxed | None,
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    seen: jax.Array | None,
    scale: float,
    softcap: float | None,
    keys_first: bool = False,
) -> Softmaxed:
    """The part with a block of keys more; its arrays are [B, K, rows, ...].

    Args:
      part: of the keys before, if any.
      rows: queries, [B, K, T * G, h].
      keys: [B, K, block, h].
      values: [B, K, block, h].
      key_scales: [K, B, block], if any.
      value_scales: as `key_scales`.
      seen: [B, T, block] bool; None for all.
      scale: multiplies scores.
      softcap: caps them.
      keys_first: multiply keys with queries, so that XLA:CPU does not copy many keys into another
        order; of a few it is slower.
    """
    keys = keys.astype(rows.dtype)
    products = _product(keys, rows, 3).swapaxes(2, 3) if keys_first else _product(rows, keys, 3)
    scores = products * scale  # [B, K, T * G, block]
    if key_scales is not None:
        scores *= key_scales.swapaxes(0, 1)[:, :, None]
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if seen is not None:
        group = rows.shape[2] // seen.shape[1]
        scores = jnp.where(jnp.repeat(seen, group, axis=1)[:, None], scores, -jnp.inf)
    highest = jnp.max(scores, axis=-1)
    highest = jnp.maximum(highest, LOWEST if part is None else part.highest)
    weights = jnp.exp(scores - highest[..., None])
    total = jnp.sum(weights, axis=-1)
    if value_scales is not None:
        weights *= value_scales.swapaxes(0, 1)[:, :, None]
    sums = _product(weights.astype(rows.dtype), values.astype(rows.dtype), 2)
    if part is None:
        return Softmaxed(sums, highest, total)
    before = jnp.exp(part.highest - highest)
    return Softmaxed(part.sums * before[..., None] + sums, highest, part.total * before + total)


def _product(left: jax.Array, right: jax.Array, contracted: int) -> jax.Array:
    """[B, K, rows, n] with [B, K, ...], whose dimension `contracted` is n."""
    dimensions = (((3,), (contracted,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _cut(
    array: jax.Array, row: jax.Array | int, start: jax.Array | int, batch: int, block: int
) -> jax.Array:
    """A block of slots of some sequences: of [B, K, S, h], or of scales, [K, B, S]."""
    at, sizes = [0] * array.ndim, list(array.shape)
    where = 0 if array.ndim == 4 else 1
    at[where], sizes[where] = row, batch
    at[2], sizes[2] = start, block
    return jax.lax.dynamic_slice(array, at, sizes)
