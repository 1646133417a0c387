"""TPU kernels: products of tokens with one of a stack of matrices in groups, read where it lies.

A loop over the experts of a mixture takes one matrix of a stack at a time. XLA:TPU would cut it
out, and write it in full. Here the number of the matrix is known before the kernel starts
(`PrefetchScalarGridSpec`), so that it reads tiles of that matrix alone.

Of MXFP4 a tile of rows becomes bfloat16 in VMEM, once for all tokens. Scales are powers of two,
which bfloat16 holds: a product with ones and zeros spreads them over the values of their groups,
exactly, in the matrix unit. Other types are multiplied by few tokens as `sharding.grouped` does.

Pallas: https://docs.jax.dev/en/latest/pallas/tpu/index.html.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sharding.float4 import GROUP, decode, decode_scales
from sharding.grouped import LANES, multiply_tile, sums_of, tile_of

_ROWS, _PART = 512, 128
"""Rows of a tile, and how many of them are made dense at a time."""
_TOKENS = 256
_MOST_INPUTS = 8192
"""Of longer rows a tile would take more than some MB of VMEM."""


def fits(rows: int, inputs: int) -> bool:
    """Whether `multiply_one` takes matrices of this size."""
    return inputs % GROUP == 0 and GROUP < inputs <= _MOST_INPUTS and rows >= _PART


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def multiply_one(
    number: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """Tokens times one matrix of a stack, all on one device.

    Args:
      number: int32, of the matrix.
      values: [E, N, K], codes of `sharding.float4`.
      scales: [E, N, K / 32], exponents of it.
      x: [M, K].
      dtype: type of the product.
      interpret: run it on a CPU, as a TPU would.

    Returns:
      [M, N].
    """
    (_, rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    tile_rows, tile_tokens = min(_ROWS, rows), min(_TOKENS, tokens)
    group = jax.lax.broadcasted_iota(jnp.int32, (groups, inputs), 0)
    value = jax.lax.broadcasted_iota(jnp.int32, (groups, inputs), 1)
    spread = (value // GROUP == group).astype(jnp.bfloat16)
    of_matrix = functools.partial(pl.BlockSpec, index_map=lambda n, m, number: (number[0], n, 0))
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(rows, tile_rows), pl.cdiv(tokens, tile_tokens)),
            in_specs=[
                pl.BlockSpec((tile_tokens, inputs), lambda n, m, number: (m, 0)),
                pl.BlockSpec((groups, inputs), lambda n, m, number: (0, 0)),
                of_matrix((None, tile_rows, inputs)),
                of_matrix((None, tile_rows, groups)),
            ],
            out_specs=pl.BlockSpec((tile_tokens, tile_rows), lambda n, m, number: (m, n)),
            scratch_shapes=[pltpu.VMEM((tile_rows, inputs), x.dtype)],
        ),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="multiply_one_of_stack",
    )(number[None], x, spread, values, scales)


def _kernel(number_ref, x_ref, spread_ref, values_ref, scales_ref, out_ref, dense_ref) -> None:
    """One tile: tokens [M, K], values [N, K], scales [N, groups] -> [M, N]."""
    del number_ref  # the tiles are of that matrix
    rows = values_ref.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for start in range(0, rows, _PART):
            part = slice(start, min(start + _PART, rows))
            scales = decode_scales(scales_ref[part]).astype(jnp.bfloat16)
            scales = jnp.dot(scales, spread_ref[...], preferred_element_type=jnp.float32)
            dense_ref[part] = (decode(values_ref[part]) * scales).astype(dense_ref.dtype)

    product = jax.lax.dot_general(
        x_ref[...], dense_ref[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    out_ref[...] = product.astype(out_ref.dtype)


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def multiply_few_of_one(
    number: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """Few tokens times one matrix of a stack, all on one device, where `tile_of` divides its rows.

    Args:
      number: int32, of the matrix.
      values: [E, P, N, K], no codes: each matrix has P parts of N outputs.
      scales: [E, P, N, groups] float32.
      offsets: as scales, if any.
      x: [M, K].
      dtype: type of the product.
      interpret: run it on a CPU, as a TPU would.

    Returns:
      [M, P, N].
    """
    (_, outer, rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    tile = tile_of(rows, inputs, groups, tokens)
    across = rows // tile
    sums = sums_of(x, groups, offsets)
    numbers = [scales] if offsets is None else [scales, offsets]
    transposed = groups % LANES != 0  # as XLA:TPU keeps them, see `sharding.grouped`

    def at(n: int, number: jax.Array) -> tuple[int, ...]:
        return number[0], jax.lax.div(n, across), jax.lax.rem(n, across)

    def by_groups(n: int, number: jax.Array) -> tuple[int, ...]:
        matrix, part, row = at(n, number)
        return matrix, part, 0, row

    def by_rows(n: int, number: jax.Array) -> tuple[int, ...]:
        return *at(n, number), 0

    scales_spec = (
        pl.BlockSpec((None, None, groups, tile), by_groups)
        if transposed
        else pl.BlockSpec((None, None, tile, groups), by_rows)
    )
    product = pl.pallas_call(
        functools.partial(_kernel_of_few, inputs // groups, transposed),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(outer * across,),
            in_specs=[
                pl.BlockSpec((tokens, inputs), lambda n, number: (0, 0)),
                pl.BlockSpec((None, None, tile, inputs), by_rows),
                *(scales_spec for _ in numbers),
                *(pl.BlockSpec((tokens, groups), lambda n, number: (0, 0)) for _ in sums),
            ],
            out_specs=pl.BlockSpec((tokens, tile), lambda n, number: (0, n)),
        ),
        out_shape=jax.ShapeDtypeStruct((tokens, outer * rows), dtype),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="multiply_few_of_stack",
    )(
        number[None], x, values,
        *(each.swapaxes(2, 3) if transposed else each for each in numbers), *sums,
    )  # fmt: skip
    return product.reshape(tokens, outer, rows)


def _kernel_of_few(group: int, transposed: bool, number_ref, *refs) -> None:
    """One tile, as `multiply_tile`."""
    del number_ref  # the tiles are of that matrix
    multiply_tile(group, transposed, False, *refs)
