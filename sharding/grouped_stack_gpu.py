"""GPU kernel: rows of tokens, sorted by matrix, times the matrices of a stack in MXFP4.

XLA:GPU takes one matrix after another out of such a stack, and writes it in the type of the tokens.
Here all matrices are one grid. A program has some outputs of one matrix, and goes through the rows
of tokens that are that matrix's: where there are none it ends, so that a matrix that no token chose
is not read. Values are read as words of 16 bits, and tokens brought into their order, as in
`sharding.grouped_gpu`.

A code, without its sign, is three bits. As the last two of the exponent and the first of the
fraction of a bfloat16 number they make what the code stands for, smaller by 2**126, the numbers 0
and 0.5 among them. Scales are powers of two, so that products with 2**126 and with a scale are
exact: the kernel rounds nothing but sums.

Sources: Gale et al. 2022 (MegaBlocks), section 3, for tokens sorted by expert; Frantar et al. 2024
(MARLIN), section 3, for matrices that are converted beside tensor cores.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sharding.float4 import GROUP, decode, decode_scales
from sharding.grouped_gpu import Tiles, choose_tiles

_PER_WORD = 4  # codes of 16 bits


def fits(inputs: int) -> bool:
    """Whether `multiply_sorted` takes matrices with so many inputs: whole groups."""
    return inputs % GROUP == 0


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def multiply_sorted(
    values: jax.Array,
    scales: jax.Array,
    x: jax.Array,
    sizes: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """Rows of tokens times the matrices that they are sorted by, all on one device.

    Args:
      values: [E, N, K], codes of `sharding.float4`.
      scales: [E, N, K / 32], exponents of it.
      x: [M, K], bfloat16 or float32: the first rows are for the first matrix, and so on.
      sizes: [E] int32, rows of each matrix; rows that are left over are of none.
      dtype: type of the product.
      interpret: run the kernel's own arithmetic on any platform, slowly.

    Returns:
      [M, N]; what is in rows of no matrix means nothing.
    """
    (count, rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    width = inputs // _PER_WORD
    words = values.reshape(count, rows, width, _PER_WORD)
    words = jax.lax.bitcast_convert_type(words, jnp.int16)  # for which XLA:GPU moves nothing
    x = x.reshape(tokens, width, _PER_WORD).transpose(2, 0, 1)  # [per_word, M, words]
    # As many rows at a time as a matrix has if all are of some matrix, and spread evenly.
    tiles = choose_tiles(count, rows, inputs, pl.cdiv(tokens, count), _PER_WORD)

    def of_matrix(e: int, n: int) -> tuple[int, ...]:
        return e, 0, 0

    return pl.pallas_call(
        functools.partial(_kernel, tiles, interpret),
        grid=(count, pl.cdiv(rows, tiles.rows)),
        in_specs=[
            pl.BlockSpec((count,), lambda e, n: (0,)),
            pl.BlockSpec((_PER_WORD, tokens, width), lambda e, n: (0, 0, 0)),
            pl.BlockSpec((None, rows, width), of_matrix),
            pl.BlockSpec((None, rows, groups), of_matrix),
        ],
        out_specs=pl.BlockSpec((tokens, rows), lambda e, n: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=tiles.stages),
        interpret=interpret,
        name="multiply_sorted",
    )(sizes, x, words, scales)


def _kernel(
    tiles: Tiles, interpret: bool, sizes_ref, x_ref, words_ref, scales_ref, out_ref
) -> None:
    """One program: its outputs of one matrix, for all rows of tokens that are the matrix's.

    References are sizes [E], tokens [per_word, M, words], words [N, words] and scales [N, groups];
    then products [M, N].
    """
    (_, tokens, width), (rows, groups) = x_ref.shape, scales_ref.shape
    matrix, stack = pl.program_id(0), len(sizes_ref)
    each = jnp.arange(pl.next_power_of_2(stack))
    sizes = plgpu.load(sizes_ref.at[jnp.minimum(each, stack - 1)])
    count = jnp.sum(jnp.where(each == matrix, sizes, 0))
    end = jnp.sum(jnp.where(each <= matrix, sizes, 0))
    row = pl.program_id(1) * tiles.rows + jnp.arange(tiles.rows)
    out_row, row = row[:, None], jnp.minimum(row, rows - 1)
    convert = functools.partial(values_of, x_ref.dtype, interpret)
    per_tile = tiles.words * groups // width
    # GPUs multiply float32 as TF32 unless asked not to.
    precision = jax.lax.Precision.HIGHEST if x_ref.dtype == jnp.float32 else None

    def multiply(block: jax.Array, carry: jax.Array) -> jax.Array:
        token = end - count + block * tiles.tokens + jnp.arange(tiles.tokens)
        at, mine = (token[None], out_row), token < end
        token = jnp.minimum(token, tokens - 1)

        def step(n: jax.Array, sums: jax.Array) -> jax.Array:
            word, group = n * tiles.words + jnp.arange(tiles.words), n * per_tile
            inside, group = word < width, group + jnp.arange(per_tile)
            packed = plgpu.load(words_ref.at[row[:, None], word[None]], mask=inside[None], other=0)
            scales = plgpu.load(
                scales_ref.at[row[:, None], group[None]], mask=(group < groups)[None], other=0
            )
            for place, numbers in enumerate(convert(packed, scales)):
                x = plgpu.load(
                    x_ref.at[place, token[:, None], word[None]],
                    mask=mine[:, None] & inside[None],
                    other=jnp.zeros((), x_ref.dtype),
                )
                sums += plgpu.dot(numbers, x, trans_b=True, precision=precision)
            return sums

        zeros = jnp.zeros((tiles.rows, tiles.tokens))
        sums = jax.lax.fori_loop(0, pl.cdiv(width, tiles.words), step, zeros)
        kept = mine[None] & (out_row < rows)
        plgpu.store(out_ref.at[at], sums.astype(out_ref.dtype), mask=kept)
        return carry

    jax.lax.fori_loop(0, pl.cdiv(count, tiles.tokens), multiply, 0)


def values_of(
    dtype: jnp.dtype, interpret: bool, packed: jax.Array, scales: jax.Array
) -> Iterator[jax.Array]:
    """Numbers of a tile: for each place in a word, the lowest bits first, [N, words].

    Args:
      dtype: their type.
      interpret: compute them as any platform does.
      packed: [N, words] int16.
      scales: exponents of the tile's groups, [N, groups].
    """
    spread = (*scales.shape, packed.shape[1] // scales.shape[1])
    scales = decode_scales(scales).astype(dtype)
    scales = jnp.broadcast_to(scales[:, :, None], spread).reshape(packed.shape)
    for place in range(_PER_WORD):
        if dtype == jnp.bfloat16 and not interpret:
            (found,) = plgpu.elementwise_inline_asm(
                ptx_of(place),
                args=[packed, scales],
                constraints="=r,r,r",
                pack=2,
                result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.bfloat16)],
            )
            yield found
        else:
            codes = jax.lax.shift_right_logical(packed, jnp.int16(4 * place)) & 15
            yield (decode(codes) * scales).astype(dtype)


def ptx_of(place: int) -> str:
    """Instructions that make two bfloat16 numbers, $0, of a place in two words, $1.

    They are multiplied by the two scales in $2. 0x7E80 is 2**126 in bfloat16, 0x8000 is -0, which
    changes no number that it is added to.

    Args:
      place: of the code in its word, from the lowest bits.
    """
    by = 6 - 4 * place  # from the code's lowest bit to the highest of a fraction
    move = f"shl.b32 size, $1, {by};" if by >= 0 else f"shr.u32 size, $1, {-by};"
    # 0xEA: (sign & mask) | size.
    return f"""{{
        .reg .b32 sign, size, value, large, minus_zero;
        mov.b32 large, 0x7E807E80;
        mov.b32 minus_zero, 0x80008000;
        {move}
        and.b32 size, size, 0x01C001C0;
        shl.b32 sign, $1, {12 - 4 * place};
        lop3.b32 value, sign, 0x80008000, size, 0xEA;
        fma.rn.bf16x2 value, value, large, minus_zero;
        fma.rn.bf16x2 $0, value, $2, minus_zero;
    }}"""
