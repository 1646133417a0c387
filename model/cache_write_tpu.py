"""A TPU kernel: one new token of each sequence, written into a cache that lies by its slots.

XLA:TPU keeps a cache whose heads are no whole registers wide by its slots, [h, S]: by heads, what
fills the registers up would be as long as the numbers. For a scatter of rows it would lay all of
the cache out anew, there and back. Here the slots that share a register are fetched, one of them
takes the token, and they are written back where they were.

Pallas: https://docs.jax.dev/en/latest/pallas/tpu/index.html.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128  # of a register


def write_tokens(
    cache: jax.Array, new: jax.Array, slots: jax.Array, interpret: bool = False
) -> jax.Array:
    """Stores one token of each sequence, all on one device.

    Args:
      cache: [B', K, S, h], of any type that a cache stores.
      new: [B, 1, K, h] of the same type, of the first B sequences.
      slots: [B, 1] int32; a token of a slot elsewhere is dropped.
      interpret: run it on a CPU, as a TPU would.

    Returns:
      The updated cache.
    """
    heads, count, width = cache.shape[1:]
    block = min(_LANES, count)
    by_slots = cache.swapaxes(2, 3)  # [B', K, h, S], as it lies
    if not interpret:  # XLA:TPU would bring all of what fits into VMEM, and write it back
        by_slots = pltpu.with_memory_space_constraint(by_slots, pltpu.HBM)
    of_block = pl.BlockSpec(
        (1, heads, width, block),
        lambda b, slots: (b, 0, 0, jax.lax.div(jnp.clip(slots[b], 0, count - 1), block)),
    )
    updated = pl.pallas_call(
        functools.partial(_kernel, count),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(len(new),),
            in_specs=[pl.BlockSpec((1, heads, width), lambda b, slots: (b, 0, 0)), of_block],
            out_specs=of_block,
        ),
        out_shape=jax.ShapeDtypeStruct(by_slots.shape, cache.dtype),
        input_output_aliases={2: 0},
        interpret=pltpu.InterpretParams() if interpret else False,
        name="write_tokens",
    )(slots[:, 0], new[:, 0], by_slots)
    return updated.swapaxes(2, 3)


def _kernel(count: int, slots_ref, new_ref, cache_ref, out_ref) -> None:
    """One sequence: slots, its token [1, K, h] and a block of the cache, [1, K, h, slots]."""
    heads, width, block = cache_ref.shape[1:]
    slot = slots_ref[pl.program_id(0)]
    lane = jnp.where((slot >= 0) & (slot < count), jax.lax.rem(slot, block), -1)
    taken = jax.lax.broadcasted_iota(jnp.int32, (width, block), 1) == lane
    square = (width, width)
    diagonal = jax.lax.broadcasted_iota(jnp.int32, square, 0) == jax.lax.broadcasted_iota(
        jnp.int32, square, 1
    )
    for head in range(heads):
        row = new_ref[0, head : head + 1].astype(jnp.float32)  # [1, h]
        column = jnp.sum(jnp.where(diagonal, row, 0), axis=1, keepdims=True)  # [h, 1]
        old = cache_ref[0, head].astype(jnp.float32)
        out_ref[0, head] = jnp.where(taken, column, old).astype(out_ref.dtype)
