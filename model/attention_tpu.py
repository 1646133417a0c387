"""A TPU kernel: attention of new tokens, one or a chunk, to the filled part of a KV cache.

The kernels of `jax.experimental.pallas.ops.tpu` each lack something: splash attention has its masks
fixed when compiled, and paged attention neither windows nor several queries of a sequence. Ragged
paged attention has both, but wants keys and values of a token side by side in pages and one scale
for all tokens, and knows no rings.

The grid goes over sequences, KV heads, queries and blocks of slots. Its last dimension is as long
as the longest run of blocks that any query sees, and a sequence that sees fewer stays at its last
block, which is then neither fetched again nor computed: time follows the tokens that there are.
The queries of a KV head are rows of one matrix, and the softmax is kept as running sums (Dao 2023,
https://arxiv.org/abs/2307.08691).

Pallas: https://docs.jax.dev/en/latest/pallas/tpu/index.html.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model.softmax_parts import LOWEST, Softmaxed, Spans, earliest_seen, queries_of_key

_LANES, _SUBLANES, _ROW_TILE = 128, 8, 16
_ROWS = 1024  # rows of queries at a time, of heads up to 128 wide
_SLOTS = 1024  # slots fetched at a time ...
_STEP = 512  # ... and multiplied at a time
_FEW_ROWS = 128  # up to so many rows, fetching takes the time ...
_FETCHED = 2**19  # ... so that several KV heads are fetched at once: bytes of keys
_MAX_HEADS = 8
_NEVER = 2**31 - 1


class _Form(NamedTuple):
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


class _Place(NamedTuple):
    """Where one sequence's queries and keys are."""

    first_query: jax.Array  # position of the first row's query
    origin: jax.Array  # position of slot 0, ...
    newest: jax.Array  # ... and of those up to this one; later ones are a ring's last round
    filled: jax.Array  # number of tokens


def attend_part(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array | None,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    spans: Spans,
    *,
    ring: tuple[int, jax.Array] | None,
    window: int | None,
    scale: float,
    softcap: float | None,
    chunked: bool = False,
    interpret: bool = False,
) -> Softmaxed:
    """Attention of queries to the keys in this chip's slots; all arrays are one chip's own.

    Args:
      q: [B, T, K, G, h], bfloat16 or float32; products are of its type, sums float32.
      keys: [B, K, S, h], of any type that the cache stores.
      values: the same; None where keys are also values, and are fetched once.
      key_scales: [K, B, S] float32, which multiply scores, if any.
      value_scales: [K, B, S] float32, which multiply weights of values, if any.
      spans: positions of queries and keys.
      ring: None, or slots R of the whole ring and this chip's first slot: with `last` the newest
        position, slot s holds position last - (last - (first + s)) mod R, none if negative.
      window: a query at p sees keys in (p - window, p]; without one, all up to p.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any.
      chunked: a window is a query's own chunk of so many keys.
      interpret: run it on a CPU, as a TPU would.
    """
    (batch, tokens, heads, group, width), slots = q.shape, keys.shape[2]
    form = _Form(
        *_blocks_of(tokens, heads, group, width, slots, keys.dtype),
        last_slot=slots - 1,
        ring=ring and ring[0],
        window=window,
        scale=scale,
        softcap=softcap,
        chunked=chunked,
        shared=values is None,
    )
    places = _places(spans, ring, slots)
    seen = _seen(spans, ring, window, tokens, slots, form.tokens, chunked)
    first, end = seen[0] // form.slots, pl.cdiv(seen[1], form.slots)
    arrays = [each for each in (keys, values) if each is not None]
    scales = [each for each in (key_scales, value_scales) if each is not None]
    stored = [each.swapaxes(2, 3) for each in arrays] if form.across else arrays
    stored += scales
    if not interpret:  # XLA:TPU would prefetch all of what fits into VMEM, filled or not
        stored = [pltpu.with_memory_space_constraint(part, pltpu.HBM) for part in stored]
    rows = _rows_of(q, form)  # [B, K, rows, h]
    blocks = (batch, heads // form.heads, rows.shape[2] // form.rows)
    in_specs, out_specs = _specs(form, batch, width, bool(scales))
    running = pltpu.VMEM((form.heads, form.rows, _LANES), jnp.float32)
    sums, found = pl.pallas_call(
        functools.partial(_kernel, form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(*blocks, jnp.maximum(jnp.max(end - first), 1)),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[running, running],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(rows.shape, jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, _SUBLANES, rows.shape[2]), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="attend_filled",
    )(places, seen, rows, *stored)
    highest, total = found[:, :, 0], found[:, :, 1]
    return Softmaxed(*(_by_tokens(each, tokens, form) for each in (sums, highest, total)))


def multiplied_pairs(
    query_shape: tuple[int, int, int, int, int],
    slots: int,
    stored: jnp.dtype,
    spans: Spans,
    *,
    ring: tuple[int, int] | None = None,
    window: int | None = None,
) -> int:
    """Pairs of a query, in each of its heads, and a key that `attend_part` multiplies.

    Each is 4 * h FLOPs: of a score, and of a value. What fills up blocks of queries and of slots
    counts, because it is multiplied too.

    Args:
      query_shape: sizes [B, T, K, G, h] of this chip's queries.
      slots: in this chip's cache.
      stored: type of the cache.
      spans: the same as of `attend_part`, as numbers.
      ring: the same.
      window: the same.
    """
    _, tokens, heads, group, width = query_shape
    _, block_tokens, rows, _, _, step, _ = _blocks_of(tokens, heads, group, width, slots, stored)
    first, end = _seen(spans, ring, window, tokens, slots, block_tokens)
    steps = jnp.maximum(pl.cdiv(end, step) - first // step, 0)  # as `_kernel` goes over them
    return int(jnp.sum(steps)) * heads * rows * step


def _blocks_of(
    tokens: int, heads: int, group: int, width: int, slots: int, stored: jnp.dtype
) -> tuple[int, int, int, int, int, int, bool]:
    """The first fields of a form: blocks that fit a v5e's 16 MB of VMEM, those fetched twice."""
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
    # XLA:TPU keeps a cache whose heads are not whole registers wide by its slots: it is read so.
    across = width % _LANES != 0
    return group, block_tokens, rows, block_heads, block_slots, step, across


def _rows_of(q: jax.Array, form: _Form) -> jax.Array:
    """[B, T, K, G, h] -> [B, K, rows, h]: queries of a KV head in whole blocks of rows."""
    batch, tokens, heads, _, width = q.shape
    blocks = -(-tokens // form.tokens)
    q = jnp.pad(q, ((0, 0), (0, blocks * form.tokens - tokens), *((0, 0),) * 3))
    q = jnp.moveaxis(q, 2, 1).reshape(batch, heads, -1, width)
    return jnp.pad(q, ((0, 0), (0, 0), (0, blocks * form.rows - q.shape[2]), (0, 0)))


def _by_tokens(array: jax.Array, tokens: int, form: _Form) -> jax.Array:
    """[B, K, rows, ...] -> [B, T, K, G, ...]."""
    array = array[:, :, : tokens * form.group]
    array = array.reshape(*array.shape[:2], tokens, form.group, *array.shape[3:])
    return jnp.moveaxis(array, 1, 2)


def _specs(form: _Form, batch: int, width: int, quantized: bool) -> tuple[list, list]:
    """Blocks of queries, keys, values and scales, and of what is made of them."""

    def block_of(b: jax.Array, t: jax.Array, j: jax.Array, seen_ref: jax.Ref) -> jax.Array:
        last = jax.lax.div(jnp.maximum(seen_ref[1, b, t] - 1, 0), form.slots)
        return jnp.minimum(jax.lax.div(seen_ref[0, b, t], form.slots) + j, last)

    def stored_index(b, k, t, j, places_ref, seen_ref) -> tuple:
        block = block_of(b, t, j, seen_ref)
        return (b, k, 0, block) if form.across else (b, k, block, 0)

    def scales_index(b, k, t, j, places_ref, seen_ref) -> tuple:
        return k, jax.lax.div(b, scales_rows), block_of(b, t, j, seen_ref)

    scales_rows = min(batch, _SUBLANES)  # of a whole register, of which one is this sequence's
    block = (width, form.slots) if form.across else (form.slots, width)
    rows = pl.BlockSpec((None, form.heads, form.rows, width), lambda b, k, t, *_: (b, k, t, 0))
    found = pl.BlockSpec((None, form.heads, _SUBLANES, form.rows), lambda b, k, t, *_: (b, k, 0, t))
    stored = pl.BlockSpec((None, form.heads, *block), stored_index)
    scales = pl.BlockSpec((form.heads, scales_rows, form.slots), scales_index)
    count = 1 if form.shared else 2
    return [rows, *[stored] * count, *[scales] * count * quantized], [rows, found]


def _places(spans: Spans, ring: tuple[int, jax.Array] | None, slots: int) -> jax.Array:
    """The `_Place` of each sequence, [4, B]."""
    if ring is None:
        origin, newest = spans.first_key, jnp.full_like(spans.filled, slots - 1)
    else:
        size, first_slot = ring
        last = spans.filled - 1
        origin = last - last % size + first_slot
        newest = jnp.minimum(last % size - first_slot, slots - 1)
    return jnp.stack([spans.first_query, origin, newest, spans.filled]).astype(jnp.int32)


def _seen(
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


def _kernel(form: _Form, places_ref, seen_ref, q_ref, keys_ref, *rest) -> None:
    """One block of slots: queries [heads, rows, h], keys and values [heads, slots, h]."""
    values_ref, *rest = (keys_ref, *rest) if form.shared else rest
    *scales_refs, sums_ref, found_ref, highest_ref, total_ref = rest
    b, t, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    place = _Place(*(places_ref[i, b] for i in range(4)))
    place = place._replace(first_query=place.first_query + t * form.tokens)
    start, end = seen_ref[0, b, t], seen_ref[1, b, t]
    first_slot = (jax.lax.div(start, form.slots) + j) * form.slots

    @pl.when(j == 0)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)
        highest_ref[...] = jnp.full_like(highest_ref, LOWEST)
        total_ref[...] = jnp.zeros_like(total_ref)

    def step(index: jax.Array, _: None) -> None:
        begin = pl.multiple_of(index * form.step, form.step)
        span, slot = pl.ds(begin, form.step), first_slot + begin
        whole = _all_visible(form, place, slot)
        for masked in (False, True):

            @pl.when(whole != masked)
            def _(masked: bool = masked) -> None:
                for head in range(form.heads):
                    at = (head, slice(None), span) if form.across else (head, span)
                    stored = keys_ref[at], values_ref[at]
                    row = pl.ds(jax.lax.rem(b, _SUBLANES), 1)
                    scales = [ref[head, row, span] for ref in scales_refs]  # [1, step]
                    running = [ref.at[head] for ref in (sums_ref, highest_ref, total_ref)]
                    _add(form, place, slot, masked, q_ref[head], *stored, scales, running)

    first_step = jnp.maximum(start - first_slot, 0) // form.step
    steps = pl.cdiv(jnp.minimum(end - first_slot, form.slots), form.step)
    jax.lax.fori_loop(first_step, steps, step, None)

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        lane = _iota((form.rows, _LANES), 1)
        for head in range(form.heads):
            both = jnp.where(lane == 0, highest_ref[head], total_ref[head])
            found_ref[head] = both.T[:_SUBLANES]


def _all_visible(form: _Form, place: _Place, slot: jax.Array) -> jax.Array:
    """Whether every query of the block sees every key from `slot` on, for a step."""
    first = place.origin + slot
    last = first + form.step - 1
    visible = (first >= 0) & (last <= place.first_query) & (last < place.filled)
    visible &= slot + form.step - 1 <= place.newest
    if form.window is not None:
        queries = queries_of_key(first, form.window, form.chunked)
        visible &= first > place.first_query + form.tokens - 1 - queries
    return visible


def _positions(form: _Form, place: _Place, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions of the keys in slots, from that of the first query, and whether there is one."""
    position = place.origin + slot
    if form.ring is not None:
        position = jnp.where(slot > place.newest, position - form.ring, position)
    there = (slot <= form.last_slot) & (position >= 0) & (position < place.filled)
    return position - place.first_query, there


def _add(
    form: _Form,
    place: _Place,
    slot: jax.Array,
    masked: bool,
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    scales: list[jax.Array],
    running: list,
) -> None:
    """Adds the keys and values of a step from `slot` on to one head's running sums."""
    sums_ref, highest_ref, total_ref = running
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    scores = _dot(q, keys, 0 if form.across else 1)  # [rows, step]
    scores *= scales[0] * form.scale if scales else form.scale
    if form.softcap:
        scores = form.softcap * jnp.tanh(scores / form.softcap)
    if masked:
        distance, there = _positions(form, place, slot + _iota((1, form.step), 1))
        # Query t has rows t * group and on: rows are compared, and none is divided.
        row = _iota(scores.shape, 0)
        visible = row >= jnp.where(there, distance * form.group, _NEVER)
        if form.window is not None:
            key = distance + place.first_query
            queries = queries_of_key(key, form.window, form.chunked)
            visible &= row < (distance + queries) * form.group
        scores = jnp.where(visible, scores, -jnp.inf)
        scales = [jnp.where(there, each, 0) for each in scales]
        if not form.across:
            _, there = _positions(form, place, slot + _iota((form.step, 1), 0))
        values = jnp.where(there, values, 0)  # 0 times NaN is NaN
    before = highest_ref[:, :1]
    highest = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
    weights, kept = jnp.exp(scores - highest), jnp.exp(before - highest)
    total = kept * total_ref[:, :1] + jnp.sum(weights, axis=1, keepdims=True)
    if scales:
        weights *= scales[-1]
    sums = _dot(weights.astype(q.dtype), values, 1 if form.across else 0)  # [rows, h]
    sums_ref[...] = kept * sums_ref[...] + sums
    highest_ref[...] = jnp.broadcast_to(highest, highest_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)


def _iota(shape: tuple[int, int], dimension: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, dimension)


def _dot(a: jax.Array, b: jax.Array, dimension: int) -> jax.Array:
    """The product over the last dimension of `a` and one of `b`, float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (dimension,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
