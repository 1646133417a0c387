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

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model.attention_tpu_blocks import Form, Place, blocks_of, places_of, seen_slots
from model.softmax_parts import LOWEST, Softmaxed, Spans, queries_of_key

_LANES, _SUBLANES = 128, 8
_NEVER = 2**31 - 1


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
    (_, tokens, heads, group, width), slots = q.shape, keys.shape[2]
    form = Form(
        *blocks_of(tokens, heads, group, width, slots, keys.dtype),
        last_slot=slots - 1,
        ring=ring and ring[0],
        window=window,
        scale=scale,
        softcap=softcap,
        chunked=chunked,
        shared=values is None,
    )
    places = places_of(spans, ring, slots)
    seen = seen_slots(spans, ring, window, tokens, slots, form.tokens, chunked)
    stored = [each for each in (keys, values) if each is not None]
    scales = [each for each in (key_scales, value_scales) if each is not None]
    sums, found = _launch(form, places, seen, q, stored, scales, interpret)
    highest, total = found[:, :, 0], found[:, :, 1]
    return Softmaxed(*(_by_tokens(each, tokens, form) for each in (sums, highest, total)))


def _launch(
    form: Form,
    places: jax.Array,
    seen: jax.Array,
    q: jax.Array,
    stored: list[jax.Array],
    scales: list[jax.Array],
    interpret: bool,
) -> list[jax.Array]:
    """Sums [B, K, rows, h], and highest and total among the first of [B, K, 8, rows].

    Args:
      form: what is fixed.
      places: [4, B], see `places_of`.
      seen: [2, B, blocks of queries], see `seen_slots`.
      q: [B, T, K, G, h].
      stored: keys, and values if they are others, [B, K, S, h].
      scales: of each, [K, B, S], if any.
      interpret: run it on a CPU.
    """
    batch, _, heads, _, width = q.shape
    first, end = seen[0] // form.slots, pl.cdiv(seen[1], form.slots)
    stored = [each.swapaxes(2, 3) for each in stored] if form.across else stored
    operands = stored + scales
    if not interpret:  # XLA:TPU would prefetch all of what fits into VMEM, filled or not
        operands = [pltpu.with_memory_space_constraint(part, pltpu.HBM) for part in operands]
    rows = _rows_of(q, form)  # [B, K, rows, h]
    blocks = (batch, heads // form.heads, rows.shape[2] // form.rows)
    in_specs, out_specs = _specs(form, batch, width, bool(scales))
    running = pltpu.VMEM((form.heads, form.rows, _LANES), jnp.float32)
    return pl.pallas_call(
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
    )(places, seen, rows, *operands)


def _rows_of(q: jax.Array, form: Form) -> jax.Array:
    """[B, T, K, G, h] -> [B, K, rows, h]: queries of a KV head in whole blocks of rows."""
    batch, tokens, heads, _, width = q.shape
    blocks = -(-tokens // form.tokens)
    q = jnp.pad(q, ((0, 0), (0, blocks * form.tokens - tokens), *((0, 0),) * 3))
    q = jnp.moveaxis(q, 2, 1).reshape(batch, heads, -1, width)
    return jnp.pad(q, ((0, 0), (0, 0), (0, blocks * form.rows - q.shape[2]), (0, 0)))


def _by_tokens(array: jax.Array, tokens: int, form: Form) -> jax.Array:
    """[B, K, rows, ...] -> [B, T, K, G, ...]."""
    array = array[:, :, : tokens * form.group]
    array = array.reshape(*array.shape[:2], tokens, form.group, *array.shape[3:])
    return jnp.moveaxis(array, 1, 2)


def _specs(form: Form, batch: int, width: int, quantized: bool) -> tuple[list, list]:
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


def _kernel(form: Form, places_ref, seen_ref, q_ref, keys_ref, *rest) -> None:
    """One block of slots: queries [heads, rows, h], keys and values [heads, slots, h]."""
    values_ref, *rest = (keys_ref, *rest) if form.shared else rest
    *scales_refs, sums_ref, found_ref, highest_ref, total_ref = rest
    b, t, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    place = Place(*(places_ref[i, b] for i in range(4)))
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


def _all_visible(form: Form, place: Place, slot: jax.Array) -> jax.Array:
    """Whether every query of the block sees every key from `slot` on, for a step."""
    first = place.origin + slot
    last = first + form.step - 1
    visible = (first >= 0) & (last <= place.first_query) & (last < place.filled)
    visible &= slot + form.step - 1 <= place.newest
    if form.window is not None:
        queries = queries_of_key(first, form.window, form.chunked)
        visible &= first > place.first_query + form.tokens - 1 - queries
    return visible


def _positions(form: Form, place: Place, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions of the keys in slots, from that of the first query, and whether there is one."""
    position = place.origin + slot
    if form.ring is not None:
        position = jnp.where(slot > place.newest, position - form.ring, position)
    there = (slot <= form.last_slot) & (position >= 0) & (position < place.filled)
    return position - place.first_query, there


def _add(
    form: Form,
    place: Place,
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
