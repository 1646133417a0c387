"""Attention of new tokens over the filled part of a KV cache: a Pallas Triton kernel for GPUs.

The rows of a program are queries of one KV head: all that share it, of one token or of several.
It reads the blocks of slots that they see, one after another, and keeps a running softmax. Where
heads and rows are too few for a GPU's multiprocessors, programs divide the blocks between them.
Sources: Dao 2023 (FlashAttention-2), algorithm 1; Dao et al. 2023 (Flash-Decoding).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from model.softmax_parts import (
    LOWEST,
    Softmaxed,
    Spans,
    combine,
    earliest_seen,
    queries_of_key,
)

PROGRAMS = 264
"""Programs that keep a GPU busy: two for each of an H200's 132 multiprocessors."""
BLOCK_BYTES = 2**14
"""Most bytes of the keys of a block, so that some blocks fit the least shared memory, 99 KiB."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is divided; all of it is known when the kernel is compiled.

    Attributes:
      rows: queries of a program, a power of two from 16, the least of a tensor core.
      slots: slots of a block, a power of two from 16.
      splits: programs that divide the blocks which the same rows see.
      warps: warps of a program.
      stages: blocks in flight at once, the one being multiplied included.
    """

    rows: int
    slots: int
    splits: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Form:
    """What a kernel is compiled for.

    Attributes:
      tiles: how the work is divided.
      tokens: T.
      heads: K.
      group: G.
      slots: S.
      ring: slots of the whole ring, if the cache is one.
      window: tokens that a query sees, itself included, if not all before it.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any.
      chunked: a window is a query's own chunk of so many tokens.
    """

    tiles: Tiles
    tokens: int
    heads: int
    group: int
    slots: int
    ring: int | None
    window: int | None
    scale: float
    softcap: float | None
    chunked: bool = False


class Span(NamedTuple):
    """Where one sequence stands, int32 scalars; the names are those of `Spans`.

    Attributes:
      first_query: position of query 0.
      filled: tokens that there are.
      origin: position of the key in slot 0, or slot 0's index in a ring.
    """

    first_query: jax.Array
    filled: jax.Array
    origin: jax.Array


def takes(size: int, stored: jnp.dtype) -> bool:
    """Whether the kernel can be compiled for heads of a size, kept in a type.

    Triton wants whole powers of two, and has no type of four bits.
    """
    return size & (size - 1) == 0 and size >= 16 and jnp.dtype(stored) != jnp.int4


def attend_part(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
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
    """The softmax part of new tokens over one GPU's slots, reading those that some query sees.

    All arrays are one device's own: within `jax.shard_map`, with ``check_vma=False``.

    Args:
      q: [B, T, K, G, h], bfloat16 or float32; float32 is multiplied in full, without TF32.
      keys: [B, K, S, h] as stored: float32, bfloat16, int8 or float8_e4m3fn.
      values: the same for values.
      key_scales: [K, B, S] float32, multiplies the scores of a slot, if quantized.
      value_scales: [K, B, S] float32, multiplies the weights of a slot, if quantized.
      spans: positions of each sequence's queries and keys. Slots whose keys are not there hold
        anything, not-a-numbers included.
      ring: slots of the whole ring, and the index in it of this device's first slot, where the
        token at position p is in slot p modulo the ring's slots; None where slots do not turn.
      window: a query at p sees keys at positions in (p - window, p]; None: all up to p.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, after the scale.
      chunked: a window is a query's own chunk of so many keys.
      interpret: run the kernel's own arithmetic on any platform, slowly.

    Returns:
      sums [B, T, K, G, h], highest and total [B, T, K, G], float32.
    """
    batch, tokens, heads, group, size = q.shape
    slots, (ring_slots, origin) = keys.shape[2], ring or (None, spans.first_key)
    tiles = choose_tiles(q, keys)
    form = Form(tiles, tokens, heads, group, slots, ring_slots, window, scale, softcap, chunked)
    stored = [part for part in (keys, values, key_scales, value_scales) if part is not None]
    origin = origin if ring is None else jnp.reshape(origin, 1)
    rows = q.reshape(batch, tokens * heads * group, size)
    parts = _launch(form, (spans.first_query, spans.filled, origin), rows, stored, interpret)
    whole = combine(parts) if tiles.splits > 1 else Softmaxed(*(part[0] for part in parts))
    return Softmaxed(*(part.reshape(*q.shape[:4], *part.shape[2:]) for part in whole))


def _launch(
    form: Form,
    span: tuple[jax.Array, jax.Array, jax.Array],
    q: jax.Array,
    stored: list[jax.Array],
    interpret: bool,
) -> Softmaxed:
    """The parts of all splits: sums [splits, B, T * K * G, h], the others without h.

    Args:
      form: what the kernel is compiled for.
      span: the `Span` of each sequence, [B] int32; of a ring the device's one origin, [1].
      q: [B, T * K * G, h].
      stored: keys and values, [B, K, S, h], and their scales, [K, B, S], if any.
      interpret: run it on any platform.
    """
    (batch, rows, size), tiles = q.shape, form.tiles
    # Programs: blocks of rows r, splits n, heads k and sequences b.
    of_sequence = pl.BlockSpec((None,), lambda r, n, k, b: (b,))
    of_device = pl.BlockSpec((None,), lambda r, n, k, b: (0,))
    queries = pl.BlockSpec((None, rows, size), lambda r, n, k, b: (b, 0, 0))
    slots = pl.BlockSpec((None, None, form.slots, size), lambda r, n, k, b: (b, k, 0, 0))
    scales = pl.BlockSpec((None, None, form.slots), lambda r, n, k, b: (k, b, 0))
    each_row = pl.BlockSpec((None, None, rows), lambda r, n, k, b: (n, b, 0))
    sums = pl.BlockSpec((None, None, rows, size), lambda r, n, k, b: (n, b, 0, 0))
    origin = of_sequence if form.ring is None else of_device
    arrays = [slots, slots, scales, scales][: len(stored)]

    def result(*last: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((tiles.splits, batch, rows, *last), jnp.float32)

    return pl.pallas_call(
        functools.partial(_attend, form),
        grid=(pl.cdiv(form.tokens * form.group, tiles.rows), tiles.splits, form.heads, batch),
        in_specs=[of_sequence, of_sequence, origin, queries, *arrays],
        out_specs=Softmaxed(sums, each_row, each_row),
        out_shape=Softmaxed(result(size), result(), result()),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attend_part",
    )(*span, q, *stored)


def choose_tiles(q: jax.ShapeDtypeStruct, keys: jax.ShapeDtypeStruct) -> Tiles:
    """Tiles for queries [B, T, K, G, h] over keys [B, K, S, h]."""
    batch, tokens, heads, group, size = q.shape
    wide = q.dtype.itemsize > 2  # multiplied without tensor cores, from registers
    most = 32 if wide or size > 256 else 64 if size > 128 else 128
    rows = min(max(16, pl.next_power_of_2(tokens * group)), most)
    row_bytes = size * max(q.dtype.itemsize, keys.dtype.itemsize)
    slots = max(16, min(BLOCK_BYTES // row_bytes, 32 if wide else 64))
    programs = pl.cdiv(tokens * group, rows) * heads * batch
    splits = min(max(PROGRAMS // programs, 1), pl.cdiv(keys.shape[2], slots))
    warps = 8 if wide or rows > 64 else 4
    return Tiles(rows, slots, splits, warps, stages=2 if wide or size > 128 else 3)


def _attend(form: Form, first_query, filled, origin, q_ref, *refs) -> None:
    """One program: its rows over its share of the blocks that they see.

    References are three scalars, q [T * K * G, h], keys and values [S, h] and scales [S], if any;
    then sums [T * K * G, h], highest and total [T * K * G].
    """
    *stored, sums_ref, highest_ref, total_ref = refs
    tiles, size = form.tiles, q_ref.shape[1]
    first_row = pl.program_id(0) * tiles.rows
    row = first_row + jnp.arange(tiles.rows)  # of T * G
    real = row < form.tokens * form.group
    token = row // form.group
    index = (token * form.heads + pl.program_id(2)) * form.group + row % form.group
    at = index[:, None], jnp.arange(size)[None]

    span = Span(first_query[()], filled[()], origin[()])
    q = plgpu.load(q_ref.at[at], mask=real[:, None], other=jnp.zeros((), q_ref.dtype))
    count, block_of = visited_blocks(form, span, first_row)
    share = pl.cdiv(count, tiles.splits)
    start = pl.program_id(1) * share
    step = functools.partial(add_block, form, span, q, span.first_query + token, stored, block_of)
    none_seen = Softmaxed(
        jnp.zeros((tiles.rows, size), jnp.float32),
        jnp.full(tiles.rows, LOWEST, jnp.float32),
        jnp.zeros(tiles.rows, jnp.float32),
    )
    part = jax.lax.fori_loop(start, jnp.minimum(start + share, count), step, none_seen)
    plgpu.store(sums_ref.at[at], part.sums, mask=real[:, None])
    plgpu.store(highest_ref.at[index], part.highest, mask=real)
    plgpu.store(total_ref.at[index], part.total, mask=real)


def visited_blocks(
    form: Form, span: Span, first_row: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """How many blocks of slots a program's rows see, and which block the n-th of them is.

    The positions that they see are neighbours. So are their slots, but in a ring, where those past
    its end go on at its beginning: blocks there come first.
    """
    block = form.tiles.slots
    first_token = first_row // form.group
    last_token = jnp.minimum((first_row + form.tiles.rows - 1) // form.group, form.tokens - 1)
    # Positions from low up to, but not with, high.
    low, high = 0, jnp.minimum(span.first_query + last_token + 1, span.filled)
    if form.window is not None:
        query = span.first_query + first_token
        low = jnp.maximum(low, earliest_seen(query, form.window, form.chunked))
    if form.ring is not None:
        low = jnp.maximum(low, span.filled - form.ring)
    seen = jnp.maximum(high - low, 0)
    turned = 0  # slots seen at the ring's beginning
    if form.ring is not None:
        low = low % form.ring
        turned = jnp.clip(low + seen - form.ring - span.origin, 0, form.slots)
        seen = jnp.minimum(seen, form.ring - low)
    begin = jnp.clip(low - span.origin, 0, form.slots)
    end = jnp.clip(low + seen - span.origin, 0, form.slots)
    head = pl.cdiv(turned, block)
    first = jnp.maximum(begin // block, head)
    # An empty range sees no block, wherever it begins.
    tail = jnp.where(end > begin, jnp.maximum(pl.cdiv(end, block) - first, 0), 0)
    return head + tail, lambda n: jnp.where(n < head, n, n - head + first)


def add_block(
    form: Form,
    span: Span,
    q: jax.Array,
    query: jax.Array,
    stored: list,
    block_of: Callable[[jax.Array], jax.Array],
    n: jax.Array,
    part: Softmaxed,
) -> Softmaxed:
    """A running part, [rows, h], [rows] and [rows], with the n-th visited block.

    Args:
      form: what the kernel is compiled for.
      span: where the sequence stands.
      q: [rows, h].
      query: [rows], the queries' positions.
      stored: references to keys and values, [S, h], and to their scales, [S], if any.
      block_of: the block that is visited n-th.
      n: from 0.
      part: the part so far.
    """
    keys_ref, values_ref, *scales = stored
    start = block_of(n) * form.tiles.slots
    slot = start + jnp.arange(form.tiles.slots)
    position = span.origin + slot
    if form.ring is not None:
        position = span.filled - 1 - (span.filled - 1 - position) % form.ring
    there = (slot < form.slots) & (position >= 0) & (position < span.filled)

    def read(ref) -> jax.Array:
        """The block's slots, zero where their keys are not there."""
        index = (pl.ds(start, form.tiles.slots), *(slice(None),) * (len(ref.shape) - 1))
        mask = there.reshape(-1, *(1,) * (len(ref.shape) - 1))
        return plgpu.load(ref.at[index], mask=mask, other=jnp.zeros((), ref.dtype))

    # GPUs multiply float32 as TF32 unless asked not to.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(plgpu.dot, precision=precision)
    scores = dot(q, read(keys_ref).astype(q.dtype), trans_b=True) * form.scale  # [rows, slots]
    if scales:
        scores *= read(scales[0])[None]
    if form.softcap:
        scores = form.softcap * jnp.tanh(scores / form.softcap)
    visible = there[None] & (position[None] <= query[:, None])
    if form.window is not None:
        last = position + queries_of_key(position, form.window, form.chunked)
        visible &= query[:, None] < last[None]
    scores = jnp.where(visible, scores, -jnp.inf)

    highest = jnp.maximum(part.highest, jnp.max(scores, axis=1))
    kept = jnp.exp(part.highest - highest)
    weights = jnp.exp(scores - highest[:, None])
    total = part.total * kept + jnp.sum(weights, axis=1)
    if scales:
        weights *= read(scales[1])[None]
    sums = dot(weights.astype(q.dtype), read(values_ref).astype(q.dtype))  # [rows, h]
    return Softmaxed(part.sums * kept[:, None] + sums, highest, total)
