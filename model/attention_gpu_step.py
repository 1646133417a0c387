"""Attention of one new token of each sequence and its cache write, as one Pallas Triton kernel.

A program's running softmax begins with the new token itself, rounded as the cache stores it, and
goes on with the slots before it; so the token's key and value go to the cache in the same kernel.
Where programs divide the slots, a second kernel combines their parts. Both leave a mean in the
type of the queries. Sources: those of `model.attention_gpu`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from model.attention_gpu import Form, Span, add_block, choose_tiles, visited_blocks
from model.cache import PADDING
from model.softmax_parts import LOWEST, Softmaxed, combine
from sharding.quantization import Quantization


class CacheArrays(NamedTuple):
    """One device's arrays of a layer's cache, or references to them.

    Attributes:
      keys: [B, K, S, h] as stored: float32, bfloat16, int8 or float8_e4m3fn.
      values: the same for values.
      key_scales: [K, B, S] float32, if quantized.
      value_scales: the same for values.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None


def attend_step(
    q: jax.Array,
    new_keys: jax.Array,
    new_values: jax.Array,
    cache: CacheArrays,
    positions: jax.Array,
    *,
    quantization: Quantization | None,
    ring: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> tuple[jax.Array, CacheArrays]:
    """Attention of new tokens, and the cache with them; its memory is reused.

    All arrays are one device's own: within `jax.shard_map`, with ``check_vma=False``.

    Args:
      q: [B, 1, K, G, h], bfloat16 or float32; float32 is multiplied in full, without TF32.
      new_keys: [B, 1, K, h], of the type of q.
      new_values: the same for values.
      cache: all slots of these heads. Slots that no token has reached hold anything.
      positions: [B] int32, of the new tokens; past the last slot one is neither seen nor kept, and
        at `PADDING` in a ring neither.
      quantization: how the cache rounds, if it has scales.
      ring: the token at position p is in slot p modulo S; in slot p if not.
      window: a query at p sees keys at positions in (p - window, p]; None: all up to p.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, after the scale.
      interpret: run the kernels' own arithmetic on any platform, slowly.

    Returns:
      The mean of the values seen, [B, 1, K, G, h] in the type of q, and the updated cache.
    """
    _, _, heads, group, _ = q.shape
    slots = cache.keys.shape[2]
    tiles = choose_tiles(q, cache.keys)
    turns = slots if ring else None
    # What a ring holds of the position that the new token takes is never seen.
    window = min(window or slots, slots) if ring else window
    form = Form(tiles, 1, heads, group, slots, turns, window, scale, softcap)
    with jax.named_scope("query_key_value"):  # one array, so that XLA makes it in one kernel
        rows_of_heads = [q[:, 0], new_keys[:, 0, :, None], new_values[:, 0, :, None]]
        new = jnp.concatenate(rows_of_heads, axis=2)  # [B, K, G + 2, h]
    with jax.named_scope("attention"):
        made, cache = _launch(form, quantization, new, cache, positions, interpret)
        if tiles.splits > 1:
            made = _launch_combine(made, q.dtype, interpret)
    return made.reshape(q.shape), cache


def _launch(
    form: Form,
    quantization: Quantization | None,
    new: jax.Array,
    cache: CacheArrays,
    positions: jax.Array,
    interpret: bool,
) -> tuple[jax.Array | Softmaxed, CacheArrays]:
    """Means [B, K * G, h], or the parts of each split, and the updated cache.

    Args:
      form: what the kernel is compiled for.
      quantization: how the cache rounds, if it has scales.
      new: [B, K, G + 2, h], queries, key and value of each KV head.
      cache: the cache.
      positions: [B] int32.
      interpret: run it on any platform.
    """
    (batch, heads, _, size), slots, tiles = new.shape, form.slots, form.tiles
    # Programs: blocks of rows r, splits n, heads k and sequences b.
    stored = pl.BlockSpec((None, None, slots, size), lambda r, n, k, b: (b, k, 0, 0))
    scales = pl.BlockSpec((None, None, slots), lambda r, n, k, b: (k, b, 0))
    arrays = [array for array in cache if array is not None]
    specs = [stored, stored, scales, scales][: len(arrays)]
    parts, part_specs = _parts(form, batch, size, new.dtype)
    made, *arrays = pl.pallas_call(
        functools.partial(_attend, form, quantization),
        grid=(pl.cdiv(form.group, tiles.rows), tiles.splits, heads, batch),
        in_specs=[
            pl.BlockSpec((None,), lambda r, n, k, b: (b,)),
            pl.BlockSpec((None, None, form.group + 2, size), lambda r, n, k, b: (b, k, 0, 0)),
            *specs,
        ],
        out_specs=[part_specs, *specs],
        out_shape=[parts, *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays)],
        input_output_aliases={2 + n: len(jax.tree.leaves(parts)) + n for n in range(len(arrays))},
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="attend_step",
    )(positions, new, *arrays)
    return made, CacheArrays(*arrays)


def _launch_combine(parts: Softmaxed, dtype: jnp.dtype, interpret: bool) -> jax.Array:
    """Means [B, rows, h] of parts with splits as first dimension."""
    splits, batch, rows, size = parts.sums.shape
    each_row = pl.BlockSpec((splits, None, None), lambda r, b: (0, b, r))
    sums = pl.BlockSpec((splits, None, None, size), lambda r, b: (0, b, r, 0))
    return pl.pallas_call(
        functools.partial(_combine, splits),
        grid=(rows, batch),
        in_specs=[sums, each_row, each_row],
        out_specs=pl.BlockSpec((None, None, size), lambda r, b: (b, r, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, rows, size), dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=interpret,
        name="combine_splits",
    )(*parts)


def _parts(form: Form, batch: int, size: int, dtype: jnp.dtype) -> tuple:
    """Shapes and blocks of what programs leave: means, or the parts of each split."""
    rows, splits = form.heads * form.group, form.tiles.splits
    if splits == 1:
        means = pl.BlockSpec((None, rows, size), lambda r, n, k, b: (b, 0, 0))
        return jax.ShapeDtypeStruct((batch, rows, size), dtype), means
    each_row = pl.BlockSpec((None, None, rows), lambda r, n, k, b: (n, b, 0))
    sums = pl.BlockSpec((None, None, rows, size), lambda r, n, k, b: (n, b, 0, 0))
    numbers = jax.ShapeDtypeStruct((splits, batch, rows), jnp.float32)
    shapes = Softmaxed(
        jax.ShapeDtypeStruct((splits, batch, rows, size), jnp.float32), numbers, numbers
    )
    return shapes, Softmaxed(sums, each_row, each_row)


def _attend(form: Form, quantization: Quantization | None, position, new_ref, *refs) -> None:
    """One program: its rows over the new token, if it is the first split, and its share of blocks.

    References are the new token's position, queries, key and value [G + 2, h], the cache's arrays,
    then means [K * G, h] or sums [K * G, h], highest and total [K * G], and the cache's arrays.
    """
    count = 2 if quantization is None else 4
    stored, made, kept = refs[:count], refs[count], refs[count + 1 :]
    tiles, size = form.tiles, new_ref.shape[1]
    first_row = pl.program_id(0) * tiles.rows
    row = first_row + jnp.arange(tiles.rows)  # of G
    real = row < form.group
    lane = jnp.arange(size)
    q = plgpu.load(
        new_ref.at[row[:, None], lane[None]], mask=real[:, None], other=jnp.zeros((), new_ref.dtype)
    )
    there = position[()] < PADDING
    position = jnp.where(there, position[()], 0)  # before which there is nothing to see
    slot = position if form.ring is None else position % form.ring
    first = there & (pl.program_id(1) == 0) & (slot < form.slots)
    token = [_rounded(new_ref[form.group + n], kept[n].dtype, quantization) for n in (0, 1)]

    @pl.when(first & (pl.program_id(0) == 0))
    def _() -> None:
        for n, (numbers, scale) in enumerate(token):
            kept[n][slot] = numbers
            if scale is not None:
                kept[2 + n][slot] = scale

    span = Span(position, position, 0)
    blocks, block_of = visited_blocks(form, span, first_row)
    share = pl.cdiv(blocks, tiles.splits)
    start = pl.program_id(1) * share
    query = jnp.full(tiles.rows, position)
    step = functools.partial(add_block, form, span, q, query, list(stored), block_of)
    begun = _of_itself(form, q, token, first)
    part = jax.lax.fori_loop(start, jnp.minimum(start + share, blocks), step, begun)
    row += pl.program_id(2) * form.group
    at = row[:, None], lane[None]
    if tiles.splits == 1:
        plgpu.store(made.at[at], part.mean().astype(made.dtype), mask=real[:, None])
        return
    plgpu.store(made.sums.at[at], part.sums, mask=real[:, None])
    plgpu.store(made.highest.at[row], part.highest, mask=real)
    plgpu.store(made.total.at[row], part.total, mask=real)


def _rounded(
    row: jax.Array, dtype: jnp.dtype, quantization: Quantization | None
) -> tuple[jax.Array, jax.Array | None]:
    """A key or value [h] as the cache stores it, and its scale if it has one.

    The same as `sharding.quantization.round_rows`, in operations that Triton has.
    """
    if quantization is None:
        return row.astype(dtype), None
    row = row.astype(jnp.float32)
    scale = jnp.max(jnp.abs(row)) / quantization.largest
    scale = jnp.where(scale > 0, scale, 1.0)
    row = row / scale
    if jnp.issubdtype(dtype, jnp.integer):
        below = jnp.floor(row)
        past, odd = row - below, below - 2 * jnp.floor(below / 2) == 1
        row = jnp.where((past > 0.5) | ((past == 0.5) & odd), below + 1, below)  # ties to even
    row = jnp.minimum(jnp.maximum(row, -quantization.largest), quantization.largest)
    return row.astype(dtype), scale


def _of_itself(form: Form, q: jax.Array, token: list, seen: jax.Array) -> Softmaxed:
    """The part of the new token alone, or that of no key.

    Args:
      form: what the kernel is compiled for.
      q: [rows, h].
      token: its key and value [h], each with its scale, if any.
      seen: whether its key is seen.
    """
    (key, key_scale), (value, value_scale) = token
    # Through the type of q, as products of keys that are read are made.
    key, value = (each.astype(q.dtype).astype(jnp.float32) for each in (key, value))
    scores = jnp.sum(q.astype(jnp.float32) * key[None], axis=1) * form.scale  # [rows]
    if key_scale is not None:
        scores *= key_scale
        value *= value_scale
    if form.softcap:
        scores = form.softcap * jnp.tanh(scores / form.softcap)
    sums = jnp.broadcast_to(jnp.where(seen, value, 0.0)[None], q.shape)
    total = jnp.where(seen, jnp.ones_like(scores), jnp.zeros_like(scores))
    return Softmaxed(sums, jnp.where(seen, scores, LOWEST), total)


def _combine(splits: int, sums_ref, highest_ref, total_ref, mean_ref) -> None:
    """One row's mean from the parts of all splits: [splits, h], [splits] and [splits] to [h]."""
    split = jnp.arange(pl.next_power_of_2(splits))
    real = split < splits
    lane = jnp.arange(mean_ref.shape[0])
    sums = plgpu.load(sums_ref.at[split[:, None], lane[None]], mask=real[:, None], other=0.0)
    highest = plgpu.load(highest_ref.at[split], mask=real, other=LOWEST)
    total = plgpu.load(total_ref.at[split], mask=real, other=0.0)
    mean_ref[...] = combine(Softmaxed(sums, highest, total)).mean().astype(mean_ref.dtype)
